"""What was recorded: observations with their noise, mask and PSF, shear fields, catalogues, and the
files that hold them. Everything is checked here, once.
"""
