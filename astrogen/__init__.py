"""Deep generative priors for the Bayesian deconvolution of galaxy images.

    psf = astrogen.read_psf("psf.fits", pixel_scale=0.168)
    observation = astrogen.read_observation("galaxy.fits", psf=psf)
    result = astrogen.deconvolve(observation, prior=astrogen.load_prior("galaxy"), seed=1)

The folders tell the road in order: data, priors and instruments, galaxies and darkmatter,
inference, report. Names are imported on first use, because TensorFlow takes seconds to import and
`astrogen --version` should not.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "Observation": "data.observation",
    "PSF": "data.observation",
    "AstrogenError": "errors",
    "InputError": "errors",
    "InputFileError": "errors",
    "SurveyError": "errors",
    "WeightsError": "errors",
    "PoorInputWarning": "data.observation",
    "make_observation": "data.observation",
    "make_psf": "data.observation",
    "psf_from_model": "data.observation",
    "psf_from_galsim": "galsim_objects",
    "read_observation": "data.observation",
    "read_psf": "data.observation",
    "mask_neighbours": "data.detection",
    "load_prior": "priors",
    "deconvolve": "galaxies.deconvolve",
    "deconvolve_jointly": "galaxies.deblend",
    "deblend": "galaxies.deblend",
    "Result": "galaxies.result",
    "read_result": "galaxies.result",
    "results_table": "galaxies.result",
    "write_report": "report",
    "run_survey": "survey",
    "read_survey": "survey",
    "read_object": "survey",
    "LensingField": "data.field",
    "make_field": "data.field",
    "read_field": "data.field",
    "map_mass": "darkmatter.map_mass",
    "MassMap": "darkmatter.map_mass",
    "read_massmap": "darkmatter.map_mass",
    "draw_galaxies": "galsim_objects.emulate",
    "draw_maps": "galsim_objects.emulate",
    "write_galaxies": "galsim_objects.emulate",
    "write_maps": "galsim_objects.emulate",
    "train_prior": "training",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(
            f"module 'astrogen' has no attribute {name!r}; it offers {', '.join(_HOMES)}"
        )
    return getattr(import_module(f"astrogen.{_HOMES[name]}"), name)


def __dir__():
    return sorted([*globals(), *_HOMES])
