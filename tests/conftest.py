"""What several test files need: the shared real data, where they are, and seeded randomness."""

import os
from pathlib import Path

import keras
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("ASTROGEN_SHARED", ROOT / "../shared"))


@pytest.fixture(scope="session")
def shared():
    """Folder of the shared real data and benchmarks; the test is skipped where it is not there."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"needs the shared data: no folder {SHARED}/data; set ASTROGEN_SHARED")
    return SHARED


@pytest.fixture(autouse=True)
def seeded_networks():
    """Untrained networks begin from the same weights in every run, whatever tests ran before."""
    keras.utils.set_random_seed(20240229)


@pytest.fixture
def rng():
    """A generator that gives the same numbers in every run."""
    return np.random.default_rng(20240229)


def lone_result(
    observation,
    *,
    prior_scale,
    target_fwhm,
    draws,
    model,
    latent_draws,
    flux_draws,
    shift_draws,
    background_draws,
    num_fitted=0.0,
    **told,
):
    """The Result of one galaxy in one exposure, from draws [num_draws, h, w] of its image and a
    model with background; the rest as of `astrogen.galaxies.conclude.make_result`.
    """
    from astrogen.galaxies.conclude import Drawn, Grid, make_exposure, make_result, make_source

    levels = np.asarray(background_draws, np.float32)
    fluxes = np.asarray(flux_draws)[:, None]
    source = make_source(
        observation,
        observation.name,
        Grid(prior_scale, target_fwhm),
        Drawn(np.asarray(draws)[:, None], shift_draws, latent_draws, fluxes),
        residual_amplitude=1.0,
    )
    exposure = make_exposure(
        observation,
        light=np.asarray(model) - (levels.mean(dtype=np.float64) if len(levels) else 0.0),
        background_draws=levels,
        num_fitted=num_fitted,
    )
    return make_result([source], [exposure], **told)
