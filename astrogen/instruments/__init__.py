"""What an instrument makes of the sky: `telescope` of galaxies (PSF, pixels), `lensing` of
convergence (shear).
"""
