"""Several exposures, bands and galaxies at once: one morphology for each galaxy, each exposure with
its own telescope and orientation, neighbours that share the light.

observations -> frames -> plans -> scene (what each galaxy looks like in each exposure) -> bands
tied -> mode -> blend (galaxies that share light) -> draws -> Result
"""

from astrogen.joint.fit import deblend, deconvolve_jointly

__all__ = ["deblend", "deconvolve_jointly"]
