"""Power of pixels on a grid from the spectrum of the sky: against covariances computed in real
space, and against closed forms.
"""

import numpy as np
import pytest
from map_oracles import AREA, LOG_L, PIXEL_SCALE, SHIFT, true_covariance, true_power, true_spectrum

from astrogen.priors.grid_power import (
    grid_power,
    mode_counts,
    pixel_covariance,
    pixel_variance,
    windowed_power,
)

SPECTRUM = np.log(true_spectrum(np.exp(LOG_L)))


@pytest.mark.parametrize("shape", [(32, 48), (80, 80)], ids=["oblong", "square"])
def test_pixels_covary_as_means_over_a_finer_grid(shape):
    found = pixel_covariance(LOG_L, SPECTRUM, shape, pixel_scale=PIXEL_SCALE)
    expected = true_covariance(shape)
    assert found.shape == (shape[0] // 2 + 1, shape[1] // 2 + 1)
    np.testing.assert_allclose(found, expected, atol=4e-3 * expected[0, 0])
    np.testing.assert_allclose(found[:3, :3], expected[:3, :3], rtol=0.01)


def test_white_noise_has_the_variance_of_a_pixel():
    """Of a spectrum C without scale, a pixel has C / A, and no pixel knows of its neighbour."""
    found = pixel_covariance(
        np.log([1.0, 10.0, 1e6]), np.log(np.full(3, 2e-9)), (16, 24), pixel_scale=PIXEL_SCALE
    )
    # of the power folded back all but the aliases beyond the second is counted
    assert found[0, 0] == pytest.approx(2e-9 / AREA, rel=0.15)
    assert np.abs(found[1:]).max() < 0.05 * found[0, 0]


@pytest.mark.parametrize("shape", [(16, 24), (24, 24)], ids=["oblong", "square"])
def test_a_grid_keeps_the_lags_up_to_its_half(shape):
    """The power of each mode by an explicit transform; back again it gives the covariance, and the
    variance of a pixel is the same on every grid.
    """
    covariance = true_covariance(shape)
    power = grid_power(covariance, pixel_scale=PIXEL_SCALE)
    whole = true_power(covariance)
    np.testing.assert_allclose(power, whole[:, : shape[1] // 2 + 1], rtol=1e-6)
    back = np.fft.ifft2(whole).real / AREA
    np.testing.assert_allclose(
        back[: shape[0] // 2 + 1, : shape[1] // 2 + 1], covariance, rtol=1e-6
    )
    assert pixel_variance(power, shape, pixel_scale=PIXEL_SCALE) == pytest.approx(covariance[0, 0])
    assert mode_counts(*shape).sum() == np.prod(shape)


def test_windowed_maps_have_the_power_of_all_pairs_of_pixels(rng):
    """|FFT|^2 of a windowed map is quadratic in its pixels: its mean by the covariance matrix."""
    side = 6
    window = rng.uniform(0.2, 1, side)
    covariance = true_covariance((12, 12))[:side, :side]
    rows, columns = (axis.ravel() for axis in np.indices((side, side)))
    matrix = covariance[np.abs(rows[:, None] - rows), np.abs(columns[:, None] - columns)]
    weight = np.outer(window, window).ravel()
    fourier = np.exp(-2j * np.pi / side * (np.outer(rows, rows) + np.outer(columns, columns)))
    expected = np.einsum("ki,ij,kj->k", fourier * weight, matrix, fourier.conj() * weight).real
    expected = expected.reshape(side, side) * AREA / np.sum(window**2) ** 2
    found = windowed_power(covariance, window, pixel_scale=PIXEL_SCALE)
    np.testing.assert_allclose(found, expected[:, : side // 2 + 1], rtol=1e-6)


def test_no_mode_of_the_log_field_is_lost():
    """The shipped spectrum and shift: nothing has to be cut off, so nothing is fitted."""
    covariance = true_covariance((64, 64))
    for power in (covariance, np.log1p(covariance / SHIFT**2)):
        whole = true_power(power)
        assert whole.min() > 0
        np.testing.assert_allclose(
            grid_power(power, pixel_scale=PIXEL_SCALE), whole[:, :33], rtol=1e-6
        )
