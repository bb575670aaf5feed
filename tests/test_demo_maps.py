"""The demonstration of dark matter: better than the Wiener filter, with errors that hold the
truth.
"""

import numpy as np
import pytest

from astrogen.demo import maps as demo_maps
from astrogen.demo.maps import HOLE, NUM_HOLES, observe_truth, run_demo_maps


def test_the_shear_of_one_mode_inside_the_field(monkeypatch):
    """A wave along x: gamma1 is the convergence and gamma2 is zero, as far from the edges as a wave
    reaches.
    """
    x = np.arange(64)
    truth = np.tile(np.cos(2 * np.pi * 8 * x / 64), (64, 1)).astype(np.float32)
    monkeypatch.setattr(demo_maps, "SHAPE_NOISE", 1e-3)
    field = observe_truth(0.5 * truth, 2.3, 3)
    inside = np.zeros((64, 64), bool)
    inside[28:36, 28:36] = True
    inside &= ~field.mask
    np.testing.assert_allclose(field.maps[0][inside] / 0.5, truth[inside], atol=0.08)
    np.testing.assert_allclose(field.maps[1][inside] / 0.5, 0, atol=0.08)
    assert 0.4 < field.mask.sum() / (NUM_HOLES * np.pi * HOLE**2) <= 1.05
    assert np.sqrt(field.variance[0][~field.mask]) == pytest.approx(
        1e-3 / np.sqrt(30 * 2.3**2), rel=1e-4
    )


@pytest.mark.slow
def test_the_demonstration(tmp_path, capsys):
    summary = run_demo_maps(tmp_path, 1)
    assert (
        summary["r_astrogen"] > summary["r_wiener"] > summary["r_ks"]
        and summary["rmse_astrogen"] < summary["rmse_wiener"]
    )
    assert 0.62 < summary["coverage68"] < 0.75
    assert (
        (tmp_path / "index.html").is_file()
        and (tmp_path / "emulated.png").is_file()
        and "Kaiser-Squires" in capsys.readouterr().out
    )
