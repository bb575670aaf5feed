"""Types for GalSim configurations: galaxies of a prior, and an emulated lensing field.

    modules: [astrogen.galsim_objects]
    input:
        astrogen_catalog: {num: 1000}
        astrogen_kappa: {omega_m: 0.3, sigma_8: 0.8}
    gal:
        type: AstrogenGalaxy
        index: {type: Sequence}
        shear: {type: AstrogenShear}
        magnification: {type: AstrogenMagnification}
"""
import galsim
from galsim import config as galsim_config

from astrogen.galsim_objects.galaxies import AstrogenCatalog
from astrogen.galsim_objects.lensing import KappaMap

STRONGEST = 25.0         # magnification, as in GalSim's own PowerSpectrumMagnification


class _draw_kappa(KappaMap):    # noqa: N801 (it stands for a function)
    """`KappaMap.draw` as the class that GalSim expects of an input."""

    def __init__(self, **options):
        self.__dict__.update(KappaMap.draw(**options).__dict__)


def _galaxy(config, base, ignore, gsparams, logger):
    catalog = galsim_config.GetInputObj("astrogen_catalog", config, base, "AstrogenGalaxy")
    galsim_config.SetDefaultIndex(config, catalog.getNObjects())
    kwargs, safe = galsim_config.GetAllParams(config, base, req={"index": int}, opt={"flux": float, "half_light_radius": float, "pixel_scale": float},
                                              ignore=[*ignore, "num"])
    if gsparams:
        kwargs["gsparams"] = galsim.GSParams(**gsparams)
    return catalog.galaxy(kwargs.pop("index"), **kwargs), safe


def _shear(config, base, value_type):
    field = galsim_config.GetInputObj("astrogen_kappa", config, base, "AstrogenShear")
    galsim_config.CheckAllParams(config, opt={"num": int})
    return galsim.Shear(*field.getShear(_position(base, "AstrogenShear"))), False


def _magnification(config, base, value_type):
    field = galsim_config.GetInputObj("astrogen_kappa", config, base, "AstrogenMagnification")
    largest = galsim_config.GetAllParams(config, base, opt={"max_mu": float, "num": int})[0].get("max_mu", STRONGEST)
    mu = float(field.getMagnification(_position(base, "AstrogenMagnification")))
    return mu if 0 < mu <= largest else largest, False


def _position(base, wanted_by):
    if "uv_pos" not in base:
        raise galsim.GalSimConfigError(f"{wanted_by}: needs a position; give image or stamp positions")
    return base["uv_pos"]


galsim_config.RegisterInputType("astrogen_catalog", galsim_config.InputLoader(AstrogenCatalog, has_nobj=True))
galsim_config.RegisterInputType("astrogen_kappa", galsim_config.InputLoader(_draw_kappa))
galsim_config.RegisterObjectType("AstrogenGalaxy", _galaxy, input_type="astrogen_catalog")
galsim_config.RegisterValueType("AstrogenShear", _shear, [galsim.Shear], input_type="astrogen_kappa")
galsim_config.RegisterValueType("AstrogenMagnification", _magnification, [float], input_type="astrogen_kappa")
