"""Deep generative priors for the Bayesian deconvolution of galaxy images.

    psf = astrogen.read_psf("psf.fits", pixel_scale=0.168)
    observation = astrogen.read_observation("galaxy.fits", psf=psf)
    result = astrogen.deconvolve(observation, prior=astrogen.load_prior("galaxy"), seed=1)

The modules tell the road in order: observation, forward, priors, posterior, inference, result,
report. Names are imported on first use, because TensorFlow takes seconds to import and `astrogen
--version` should not.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "Observation": "observation",
    "PSF": "observation",
    "AstrogenError": "errors",
    "InputError": "errors",
    "InputFileError": "errors",
    "SurveyError": "errors",
    "WeightsError": "errors",
    "PoorInputWarning": "observation",
    "make_observation": "observation",
    "make_psf": "observation",
    "psf_from_model": "observation",
    "psf_from_galsim": "galsim_objects",
    "read_observation": "observation",
    "read_psf": "observation",
    "mask_neighbours": "detection",
    "load_prior": "priors",
    "deconvolve": "deconvolution",
    "deconvolve_jointly": "joint",
    "deblend": "joint",
    "Result": "result",
    "read_result": "result",
    "results_table": "result",
    "write_report": "report",
    "run_survey": "survey",
    "read_survey": "survey",
    "read_object": "survey",
    "LensingField": "field",
    "make_field": "field",
    "read_field": "field",
    "MassMap": "massmap",
    "read_massmap": "massmap",
    "draw_galaxies": "emulate",
    "draw_maps": "emulate",
    "write_galaxies": "emulate",
    "write_maps": "emulate",
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
