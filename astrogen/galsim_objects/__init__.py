"""The meeting point with GalSim: PSFs that are GalSim objects, measurements that GalSim does, and
the priors as GalSim objects.

The only package of astrogen that imports GalSim. In a configuration, `modules:
[astrogen.galsim_objects]` registers the input types `astrogen_catalog` and `astrogen_kappa`, the
object type `AstrogenGalaxy`, and the value types `AstrogenShear` and `AstrogenMagnification`.
"""

from astrogen.galsim_objects import config as config
from astrogen.galsim_objects.galaxies import AstrogenCatalog, AstrogenGalaxy
from astrogen.galsim_objects.lensing import KappaMap
from astrogen.galsim_objects.measures import measure_image, psf_from_galsim

__all__ = ["AstrogenCatalog", "AstrogenGalaxy", "KappaMap", "measure_image", "psf_from_galsim"]
