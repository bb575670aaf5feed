"""The log-density of a map and the coordinates in which it is sampled, against formulas in NumPy,
finite differences and the closed Gaussian posterior.
"""

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats
from toy_maps import (
    AREA,
    FIDUCIAL,
    GRID,
    HOLE,
    RANGE,
    SIGMA,
    dense_posterior,
    draw_kappa,
    grid_spectrum,
    seen,
    toy_prior,
)

from astrogen.darkmatter.posterior import bounded, gaussian_start, make_target
from astrogen.darkmatter.wiener import (
    from_white,
    linear_view,
    posterior_draws,
    posterior_mean,
    to_white,
)
from astrogen.instruments.lensing import crop, filtered, shear_kernels
from astrogen.priors.correction import Correction


@pytest.fixture(scope="module")
def field():
    """A field with a hole seen through the Gaussian toy."""
    rng = np.random.default_rng(4)
    return seen(draw_kappa(toy_prior("gaussian"), rng), rng, sigma=SIGMA, mask=HOLE)


def test_constrained_realisations_follow_the_gaussian_posterior(field):
    mean, std = dense_posterior(field)
    linear = linear_view(field, GRID, grid_spectrum())
    draws = crop(
        filtered(posterior_draws(tf.constant(field.maps), linear, GRID, (1, 2), 1000), linear.gain),
        GRID,
    ).numpy()
    assert np.abs((draws.mean(0) - mean) / std).max() < 5 / np.sqrt(1000)
    assert np.abs(draws.std(0) / std - 1).max() < 5 / np.sqrt(2000)


def test_the_mean_of_each_of_several_maps_is_that_of_the_map_alone(field):
    """Also beside one of which nothing is left to find, and one that is much brighter."""
    mean, std = dense_posterior(field)
    linear = linear_view(field, GRID, grid_spectrum())
    factors = np.array([0.0, 1.0, 1e4], np.float32)
    maps = factors[:, None, None, None] * field.maps
    found = crop(filtered(posterior_mean(tf.constant(maps), linear, GRID), linear.gain), GRID)
    for factor, one in zip(factors, found.numpy(), strict=True):
        np.testing.assert_allclose(one, factor * mean, atol=2e-4 * factor * std.max())


def test_a_network_of_zeros_is_the_lognormal_prior_and_its_start_always_is(field):
    """Densities of the three targets at the same place; the start leaves the network out."""
    zeros = Correction(4, [1, 2], [2.0])
    prior, network = toy_prior("lognormal"), toy_prior("network", network=zeros)
    evidence, white = gaussian_start(
        field, prior, GRID, FIDUCIAL, num_chains=2, sampled=False, seed=(1, 2)
    )
    expected = make_target(prior, GRID, sampled=False).density_fn(white, evidence)
    np.testing.assert_allclose(
        make_target(network, GRID, sampled=False).density_fn(white, evidence), expected, rtol=1e-6
    )
    zeros.last.kernel.assign(0.3 * np.random.default_rng(1).normal(size=zeros.last.kernel.shape))
    changed = make_target(network, GRID, sampled=False)
    assert np.abs(changed.density_fn(white, evidence) - expected).max() > 0.1
    start = make_target(network, GRID, sampled=False, corrected=False)
    np.testing.assert_allclose(start.density_fn(white, evidence), expected, rtol=1e-6)
    assert make_target(network, GRID, sampled=False) is changed


def test_the_log_density_is_that_of_its_formula(field):
    """-chi2 / 2 - |x|^2 / 2 with NumPy's own transforms, masked pixels left out; the draw comes
    with its chi2.
    """
    prior = toy_prior("gaussian")
    evidence, white = gaussian_start(
        field, prior, GRID, FIDUCIAL, num_chains=3, sampled=False, seed=(1, 2)
    )
    target = make_target(prior, GRID, sampled=False)
    latent = from_white(white, evidence.whitening, GRID).numpy().astype(float)
    gain = np.sqrt(grid_spectrum() / AREA)
    transform = np.fft.rfft2(latent) * gain
    shear = np.stack(
        [
            np.fft.irfft2(transform * kernel, (GRID.n, GRID.m))
            for kernel in shear_kernels(GRID.n, GRID.m)
        ],
        1,
    )
    shear = shear[:, :, GRID.top : GRID.top + 12, GRID.left : GRID.left + 12]
    chi2 = (((shear - field.maps) ** 2 / field.variance)[:, :, ~HOLE]).sum((1, 2))
    np.testing.assert_allclose(
        target.density_fn(white, evidence), -0.5 * chi2 - 0.5 * (latent**2).sum((1, 2)), rtol=1e-4
    )
    np.testing.assert_allclose(target.draw_fn(white, evidence).chi2, chi2, rtol=1e-3)


def test_the_log_density_of_a_sampled_cosmology_is_that_of_its_formula(field):
    """Its two numbers are standard normals, whose cumulative probability says where in the range
    (Omega_m, sigma_8) lie; the spectrum grows as sigma_8 squared.
    """
    prior = toy_prior("gaussian")
    evidence, white = gaussian_start(
        field, prior, GRID, FIDUCIAL, num_chains=4, sampled=True, seed=(1, 2)
    )
    numbers = np.array([[0.0, 0.0], [2.5, 0.0], [-1.0, 1.5], [0.5, -2.0]], np.float32)
    white = tf.concat([tf.tile(white[:1, :-2], [4, 1]), tf.constant(numbers)], 1)
    target = make_target(prior, GRID, sampled=True)
    latent = from_white(white[:, :-2], evidence.whitening, GRID).numpy().astype(float)
    low, high = np.transpose(list(RANGE.values()))
    cosmology = low + (high - low) * stats.norm.cdf(numbers)
    gain = np.sqrt(grid_spectrum() / AREA)
    transform = np.fft.rfft2(latent) * gain * (cosmology[:, 1] / 0.8)[:, None, None]
    shear = np.stack(
        [
            np.fft.irfft2(transform * kernel, (GRID.n, GRID.m))
            for kernel in shear_kernels(GRID.n, GRID.m)
        ],
        1,
    )[:, :, GRID.top : GRID.top + 12, GRID.left : GRID.left + 12]
    chi2 = (((shear - field.maps) ** 2 / field.variance)[:, :, ~HOLE]).sum((1, 2))
    expected = (
        stats.norm.logpdf(numbers.astype(float)).sum(1) - 0.5 * chi2 - 0.5 * (latent**2).sum((1, 2))
    )
    found = target.density_fn(white, evidence).numpy()
    np.testing.assert_allclose(found - found[0], expected - expected[0], atol=0.02)
    np.testing.assert_allclose(target.draw_fn(white, evidence).cosmology, cosmology, rtol=1e-5)


def test_chains_start_from_different_cosmologies_and_maps(field):
    """The cosmology's numbers half as wide as their prior, so that none starts at the edge; the
    maps as wide as the Gaussian posterior, to which R-hat can hold them.
    """
    num = 200
    evidence, white = gaussian_start(
        field, toy_prior("gaussian"), GRID, FIDUCIAL, num_chains=num, sampled=True, seed=(1, 2)
    )
    cosmology = white[:, -2:].numpy()
    assert np.abs(cosmology.mean(0)).max() < 4 * 0.5 / np.sqrt(num)
    np.testing.assert_allclose(cosmology.std(0), 0.5, rtol=4 / np.sqrt(2 * num))
    linear = linear_view(field, GRID, grid_spectrum())
    kappa = crop(
        filtered(from_white(white[:, :-2], evidence.whitening, GRID), linear.gain), GRID
    ).numpy()
    mean, std = dense_posterior(field)
    assert np.abs((kappa.mean(0) - mean) / std).max() < 5 / np.sqrt(num)
    assert np.abs(kappa.std(0) / std - 1).max() < 5 / np.sqrt(2 * num)


def test_gradients_of_the_log_density_are_those_of_differences(field):
    """Along a random direction, cosmology included, through the network."""
    network = Correction(4, [1, 2], [2.0])
    network.last.kernel.assign(
        0.2 * np.random.default_rng(1).normal(size=network.last.kernel.shape)
    )
    prior = toy_prior("network", network=network)
    evidence, white = gaussian_start(
        field, prior, GRID, FIDUCIAL, num_chains=2, sampled=True, seed=(1, 2)
    )
    density = make_target(prior, GRID, sampled=True).density_fn
    direction = np.random.default_rng(2).normal(size=white.shape).astype(np.float32)
    direction[:, -2:] *= 10
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    with tf.GradientTape() as tape:
        tape.watch(white)
        value = density(white, evidence)
    slope = (tape.gradient(value, white).numpy() * direction).sum(-1)
    step = 0.1
    np.testing.assert_allclose(
        slope,
        (density(white + step * direction, evidence) - density(white - step * direction, evidence))
        / (2 * step),
        rtol=0.02,
        atol=0.02,
    )


def test_whitening_is_undone(field):
    evidence, white = gaussian_start(
        field, toy_prior("gaussian"), GRID, FIDUCIAL, num_chains=3, sampled=False, seed=(1, 2)
    )
    np.testing.assert_allclose(
        to_white(from_white(white, evidence.whitening, GRID), evidence.whitening, GRID),
        white,
        atol=2e-4,
    )


def test_what_is_whitened_one_by_one_is_white(field):
    """Along the directions that are whitened one by one."""
    evidence, white = gaussian_start(
        field, toy_prior("gaussian"), GRID, FIDUCIAL, num_chains=200, sampled=False, seed=(1, 2)
    )
    along = white.numpy() @ evidence.whitening.vectors.numpy()
    assert np.abs(along.std(0) - 1).max() < 0.35
    assert along.std() == pytest.approx(1, abs=0.05)


def test_the_bounded_cosmology_is_uniform():
    values = bounded(tf.random.stateless_normal([20000, 2], [1, 2]), RANGE).numpy()
    for value, (low, high) in zip(values.T, RANGE.values()):
        assert low <= value.min() and value.max() <= high
        assert np.histogram(value, 10, (low, high))[0] == pytest.approx(2000, abs=5 * np.sqrt(2000))
