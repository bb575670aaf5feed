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
