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

demo.yaml beside this file is a whole one; `benchmarks.galsim_demo` draws it, and the same in
Python.
"""

import galsim
from galsim import config as galsim_config

from astrogen.galsim_objects.galaxies import AstrogenCatalog
from astrogen.galsim_objects.lensing import DrawnKappaMap

STRONGEST = 25.0  # magnification, as in GalSim's own PowerSpectrumMagnification
TYPES = "astrogen_catalog", "astrogen_kappa"


class _OwnNumbers(galsim_config.InputLoader):
    """Gives each input random numbers of its own.

    GalSim hands the same generator from input to input, and a copy of it to another process: what
    the second draws
    would depend on the number of processes.

    The first catalogue gets GalSim's generator as it is, the next input in the order of TYPES a
    generator seeded by the first number of the one before it, and so on.
    """

    def getKwargs(self, config, base, logger):
        kwargs, safe = super().getKwargs(config, base, logger)
        name = TYPES[self.init_func is DrawnKappaMap]
        inputs = base["input"][name]
        number = (
            next((index for index, one in enumerate(inputs) if one is config), 0)
            if isinstance(inputs, list)
            else 0
        )
        kwargs["rng"] = kwargs["rng"].duplicate()
        for _ in range(len(TYPES) * number + TYPES.index(name)):
            kwargs["rng"] = galsim.BaseDeviate(kwargs["rng"].raw())
        return kwargs, safe


def _galaxy(config, base, ignore, gsparams, logger):
    catalog = galsim_config.GetInputObj("astrogen_catalog", config, base, "AstrogenGalaxy")
    galsim_config.SetDefaultIndex(config, catalog.getNObjects())
    kwargs, safe = galsim_config.GetAllParams(
        config,
        base,
        req={"index": int},
        opt={"flux": float, "half_light_radius": float, "prior_scale": float},
        ignore=[*ignore, "num"],
    )
    if gsparams:
        kwargs["gsparams"] = galsim.GSParams(**gsparams)
    return catalog.galaxy(kwargs.pop("index"), **kwargs), safe


def _shear(config, base, value_type):
    field = galsim_config.GetInputObj("astrogen_kappa", config, base, "AstrogenShear")
    galsim_config.CheckAllParams(config, opt={"num": int})
    g1, g2 = field.getShear(_position(base, "AstrogenShear"))
    return galsim.Shear(g1=g1, g2=g2), False


def _magnification(config, base, value_type):
    field = galsim_config.GetInputObj("astrogen_kappa", config, base, "AstrogenMagnification")
    largest = galsim_config.GetAllParams(config, base, opt={"max_mu": float, "num": int})[0].get(
        "max_mu", STRONGEST
    )
    mu = float(field.getMagnification(_position(base, "AstrogenMagnification")))
    return mu if 0 < mu <= largest else largest, False


def _position(base, wanted_by):
    if "uv_pos" not in base:
        raise galsim.GalSimConfigError(
            f"{wanted_by}: needs a position; give image or stamp positions"
        )
    return base["uv_pos"]


galsim_config.RegisterInputType("astrogen_catalog", _OwnNumbers(AstrogenCatalog, has_nobj=True))
galsim_config.RegisterInputType("astrogen_kappa", _OwnNumbers(DrawnKappaMap))
galsim_config.RegisterObjectType("AstrogenGalaxy", _galaxy, input_type="astrogen_catalog")
galsim_config.RegisterValueType(
    "AstrogenShear", _shear, [galsim.Shear], input_type="astrogen_kappa"
)
galsim_config.RegisterValueType(
    "AstrogenMagnification", _magnification, [float], input_type="astrogen_kappa"
)
