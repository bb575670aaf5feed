"""E and B modes of sheared fields whose signs or axes are wrong: recognised, with the likely cause;
fields that are right are left alone.
"""

import numpy as np
import pytest
from test_field import sky
from toy_maps import GRID, HOLE, SCALE, SHAPE, SIGMA, draw_kappa, grid_spectrum, toy_prior

from astrogen.darkmatter.b_modes import CLEAR, OTHER_AXES, measure_modes, sentences_of
from astrogen.data.field import make_field
from astrogen.instruments.lensing import crop, embed, make_grid, observe, shear_kernels

BIG = make_grid((48, 48))
AREA = (SCALE * np.pi / 180 / 60) ** 2


def lumps(rng):
    """Shear [2, 48, 48] of two lumps, by sums over point masses."""
    y, x = np.mgrid[:48, :48].astype(float)
    kappa = 0.07 * np.exp(-((x - 30) ** 2 + (y - 14) ** 2) / 12.5)
    kappa += 0.04 * np.exp(-((x - 12) ** 2 + (y - 33) ** 2) / 12.5)
    shear = np.zeros((48, 48), complex)
    for row, column in zip(*np.nonzero(kappa > 1e-6), strict=True):
        z = (x - column) + 1j * (y - row)
        elsewhere = z != 0
        shear[elsewhere] -= kappa[row, column] / np.pi / np.conj(z[elsewhere]) ** 2
    return np.stack([shear.real, shear.imag]) + rng.normal(0, 0.02, (2, 48, 48))


def modes_of(shear, *, noise=0.02, mask=None, wcs=None):
    field = make_field(shear, noise=noise, mask=mask, pixel_scale=None if wcs else SCALE, wcs=wcs)
    power = grid_spectrum(BIG.n, BIG.m) / AREA
    draws = [np.zeros_like(field.maps)] * 32
    return measure_modes(field, BIG, power, draws, seed=(1, 2))


def test_a_right_field_is_left_alone(rng):
    modes = modes_of(lumps(rng))
    assert max(modes.better) < 0 and abs(modes.excess) < 3 and modes.b_over_e < 0.8
    assert sentences_of(modes, None) == []


@pytest.mark.parametrize("number", range(3), ids=["other sign", "exchanged", "turned"])
def test_wrong_axes_are_recognised(number, rng):
    axes, cause = OTHER_AXES[number]
    shear = np.tensordot(np.linalg.inv(axes), lumps(rng), 1)
    modes = modes_of(shear)
    assert np.argmax(modes.better) == number
    (sentence,) = sentences_of(modes, None)
    assert sentence.startswith("B modes as strong as E modes") and cause in sentence


def test_the_wcs_is_part_of_the_cause(rng):
    shear = lumps(rng)
    shear[1] *= -1
    wcs = sky(SCALE, (48, 48))
    (sentence,) = sentences_of(modes_of(shear, wcs=wcs), wcs)
    assert "--flip-e2" in sentence and "right ascension runs to the left" in sentence


def test_b_modes_without_a_reason_are_said(rng):
    """A pattern that no axes explain: the same power in E and B."""
    power = grid_spectrum(BIG.n, BIG.m)
    e_mode, b_mode = (
        np.fft.rfft2(rng.normal(size=(BIG.n, BIG.m))) * 3 * np.sqrt(power / AREA) for _ in range(2)
    )
    first, second = shear_kernels(BIG.n, BIG.m)
    both = [first * e_mode - second * b_mode, second * e_mode + first * b_mode]
    shear = np.fft.irfft2(both, (BIG.n, BIG.m))[:, 16:64, 16:64]
    modes = modes_of(shear + rng.normal(0, 0.005, shear.shape), noise=0.005)
    (sentence,) = sentences_of(modes, None)
    assert "sigma above those that noise and holes make" in sentence


def test_chance_and_holes_do_not_raise_the_alarm():
    """60 small fields of the toy, each with a hole: no axes but their own fit."""
    prior, rng = toy_prior("gaussian"), np.random.default_rng(3)
    for _ in range(60):
        kappa = draw_kappa(prior, rng)
        seen = observe(kappa, shear_kernels(GRID.n, GRID.m), GRID).numpy()
        field = make_field(
            seen + rng.normal(0, SIGMA, seen.shape), noise=SIGMA, mask=HOLE, pixel_scale=SCALE
        )
        modes = measure_modes(field, GRID, grid_spectrum() / AREA, [seen] * 32, seed=(1, 2))
        assert sentences_of(modes, None) == [] and seen.shape == (2, *SHAPE)


def test_noise_that_is_stated_too_small_is_no_matter_of_axes(rng):
    """A tenth of the true noise: all axes have B modes, none is better for it."""
    modes = modes_of(rng.normal(0, 0.02, (2, 48, 48)), noise=0.002)
    (sentence,) = sentences_of(modes, None)
    assert "noise that is too small" in sentence and max(modes.better) < CLEAR


def test_mass_outside_of_the_field_is_no_alarm():
    """20 fields with hardly any noise, cut out of a larger sky; what is expected knows the mass
    inside alone, as the draws of a mass map do.
    """
    prior, rng = toy_prior("gaussian"), np.random.default_rng(4)
    kernels = shear_kernels(GRID.n, GRID.m)
    for _ in range(20):
        kappa = draw_kappa(prior, rng)
        seen = observe(kappa, kernels, GRID).numpy()
        inside = observe(embed(crop(kappa, GRID), GRID), kernels, GRID).numpy()
        field = make_field(
            seen + rng.normal(0, 5e-4, seen.shape), noise=5e-4, mask=HOLE, pixel_scale=SCALE
        )
        modes = measure_modes(field, GRID, grid_spectrum() / AREA, [inside] * 32, seed=(1, 2))
        assert sentences_of(modes, None) == []
