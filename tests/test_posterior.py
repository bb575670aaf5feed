"""The posterior against dense Gaussians in pixel space, by scipy and in float64: nothing may be
lost by compression, marginalisation or masks.
"""

from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf
from oracles import PixelPosterior, telescope_matrix, tiny_prior

from astrogen.galaxies import posterior
from astrogen.inference import find_map
from astrogen.inference.laplace import laplace
from astrogen.instruments import telescope

SHAPE, PIXEL_SCALE, PRIOR_SCALE, CENTRE = (13, 14), 0.2, 0.1, (0.03, -0.05)
BACKGROUND_STD = 0.05


class Case(NamedTuple):
    """A tiny prior, stamps [batch] drawn from it with masked pixels and changing variance,
    compressed, and each one's pixel posterior.
    """

    prior: object
    compressed: posterior.Compressed
    oracles: list
    images: np.ndarray
    inverse_sigma: np.ndarray
    numbers: dict
    kernel: np.ndarray


def gaussian_kernel(fwhm=0.6):
    x = (np.arange(41) - 20) * 0.1
    star = np.exp(-0.5 * (x / (fwhm / 2.3548)) ** 2)
    return telescope.kernel_transform(
        np.outer(star, star) / star.sum() ** 2,
        psf_scale=0.1,
        pixel_response=0.0,
        pixel_scale=PIXEL_SCALE,
        prior_scale=PRIOR_SCALE,
        target_fwhm=0.2,
    )


def compressed_of(
    prior, kernel, images, inverse_sigma, *, background_std=BACKGROUND_STD, signal_to_noise=1000.0
):
    num = len(images)
    basis = posterior.telescope_basis(kernel, prior, signal_to_noise=signal_to_noise)
    return posterior.compress(
        *basis,
        prior,
        whitened=images * inverse_sigma,
        inverse_sigma=inverse_sigma,
        centre=np.tile(CENTRE, (num, 1)),
        pixel_scale=[PIXEL_SCALE] * num,
        prior_scale=[PRIOR_SCALE] * num,
        background_precision=[float(background_std) ** -2 if background_std else np.inf] * num,
    )


def make_case(
    rng, *, batch=3, flux=10.0, background_std=BACKGROUND_STD, good_share=0.85, **shape_of_prior
):
    prior, numbers = tiny_prior(rng, **shape_of_prior)
    kernel = gaussian_kernel()
    matrix = telescope_matrix(
        numbers["basis"],
        kernel,
        shape=SHAPE,
        pixel_scale=PIXEL_SCALE,
        prior_scale=PRIOR_SCALE,
        shift=CENTRE,
    )
    good = rng.random((batch, *SHAPE)) < good_share
    sigma = 0.05 * (1 + rng.random((batch, *SHAPE)))
    oracle = PixelPosterior(numbers, matrix, None, np.ones(len(matrix)), 0.0, numbers["mean"])
    scenes = []
    for row in range(batch):
        _, mean, scale = oracle.coefficients(
            np.r_[rng.normal(size=prior.latent_size), 0, 0.3 * rng.normal(size=2), 0.3]
        )
        scenes.append(flux * matrix @ (mean + scale * rng.normal(size=len(mean))))
    images = (
        np.reshape(scenes, (batch, *SHAPE)) + sigma * rng.normal(size=sigma.shape) + 0.03
    ).astype(np.float32)
    inverse = np.where(good, 1 / sigma, 0).astype(np.float32)
    compressed = compressed_of(prior, kernel, images, inverse, background_std=background_std)
    oracles = [
        PixelPosterior(
            numbers,
            matrix[good[row].ravel()],
            images[row][good[row]].astype(float),
            1 / inverse[row][good[row]].astype(float),
            background_std,
            compressed.coefficients[row].numpy().astype(float),
        )
        for row in range(batch)
    ]
    return Case(prior, compressed, oracles, images, inverse, numbers, kernel)


@pytest.fixture(scope="module")
def case():
    return make_case(np.random.default_rng(1))


def places(case, num=6, seed=3):
    """Parameters [num, p] such as a sampler visits."""
    rng = np.random.default_rng(seed)
    size = case.prior.latent_size
    return np.c_[
        rng.normal(size=(num, size)),
        0.1 * rng.normal(size=num),
        0.4 * rng.normal(size=(num, 2)),
        rng.normal(0.3, 0.5, num),
    ]


def log_densities(case, parameters, compressed=None):
    """[place, batch]"""
    compressed = compressed or case.compressed
    num = compressed.data.shape[0]
    return np.array(
        [
            posterior.log_density(
                case.prior, compressed, tf.constant(np.tile(place, (num, 1)), tf.float32)
            )
            for place in parameters
        ]
    )


def differences(values):
    return values - values[0]


# ---- the log-density ----


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="background_marginalised"),
        pytest.param({"background_std": 0.0}, id="background_fixed"),
        pytest.param({"background_std": 30.0}, id="background_unknown"),
        pytest.param({"background_std": np.inf}, id="background_flat"),
        pytest.param({"rough": 0.0}, id="constant_residual"),
        pytest.param({"num": 12, "latent": 5}, id="more_components"),
        pytest.param({"flux": 0.05}, id="faint"),
        pytest.param(
            {"num": 40, "good_share": 0.1, "background_std": np.inf},
            id="fewer_pixels_than_directions",
        ),
    ],
)
def test_log_density_is_that_of_the_pixels(options):
    """Up to one constant per stamp: masked pixels are left out of the oracle, variances change from
    pixel to pixel.
    """
    case = make_case(np.random.default_rng(2), **options)
    parameters = places(case)
    expected = np.array(
        [[oracle.log_density(place) for oracle in case.oracles] for place in parameters]
    )
    assert np.ptp(expected, axis=0).min() > 1
    np.testing.assert_allclose(
        differences(log_densities(case, parameters)), differences(expected), rtol=2e-4, atol=5e-3
    )


def test_residual_and_background_are_integrated_out(rng):
    """One coefficient and one level: the integral over both by a sum over a grid, without any
    formula for it.
    """
    case = make_case(rng, num=1, latent=1, batch=1, flux=1.0)
    parameters, oracle = places(case, num=3), case.oracles[0]
    sigma = np.sqrt(np.diag(oracle.noise) - BACKGROUND_STD**2)
    steps = np.linspace(-8, 8, 801)
    level = BACKGROUND_STD * steps
    values = []
    for place in parameters:
        flux, mean, scale = oracle.coefficients(place)
        amplitude = flux * (mean[0] + scale[0] * steps)
        residual = (oracle.image[:, None] - oracle.matrix * amplitude) / sigma[:, None]
        square = (
            (residual**2).sum(0)[:, None]
            - 2 * (residual / sigma[:, None]).sum(0)[:, None] * level
            + (sigma**-2.0).sum() * level**2
        )
        log_integrand = -0.5 * (square + steps[:, None] ** 2 + steps**2)
        peak = log_integrand.max()
        values.append(peak + np.log(np.exp(log_integrand - peak).sum()) + oracle.log_prior(place))
    np.testing.assert_allclose(
        differences(log_densities(case, parameters)[:, 0]), differences(np.array(values)), atol=5e-3
    )


def test_log_prior_is_a_product_of_normals(case):
    parameters = places(case)
    expected = np.array([case.oracles[0].log_prior(place) for place in parameters])
    np.testing.assert_allclose(
        differences(posterior.log_prior(case.prior, tf.constant(parameters, tf.float32)).numpy()),
        differences(expected),
        atol=1e-4,
    )


def test_the_public_distributions_make_up_the_density(case):
    """Likelihood and latent as distributions, against the density that inference sees."""
    parameters = tf.constant(places(case, num=3), tf.float32)
    latent, flux, shift, amplitude = posterior.split(parameters, case.prior.latent_size)
    likelihood = posterior.likelihood(case.prior, case.compressed, parameters)
    others = -0.5 * (
        (flux / posterior.LOG_FLUX_STD) ** 2
        + tf.reduce_sum((shift / posterior.SHIFT_STD) ** 2, -1)
        + ((amplitude - case.prior.log_amplitude_mean) / case.prior.log_amplitude_std) ** 2
    )
    whole = likelihood.log_prob(case.compressed.data) + case.prior.latent.log_prob(latent) + others
    num = case.compressed.data.shape[1] + case.prior.latent_size
    np.testing.assert_allclose(
        posterior.log_density(case.prior, case.compressed, parameters),
        whole + 0.5 * num * np.log(2 * np.pi),
        rtol=1e-4,
        atol=2e-3,
    )


def test_the_amplitude_is_that_of_the_galaxy_as_seen(case):
    """Whatever the latent and the shift, log amplitude 0 has the norm, in sigmas, of the linear
    estimate.
    """
    parameters = places(case, num=3)
    parameters[:, case.prior.latent_size] = 0.0
    _, _, seen, _ = posterior.predict(
        case.prior, case.compressed, tf.constant(parameters, tf.float32)
    )
    expected = [oracle._norm(oracle.reference) for oracle in case.oracles]
    np.testing.assert_allclose(tf.norm(seen, axis=1), expected, rtol=1e-4)


# ---- compression ----


def test_masked_pixels_never_change_anything(case):
    garbage = np.where(case.inverse_sigma > 0, case.images, 1e6).astype(np.float32)
    again = compressed_of(case.prior, case.kernel, garbage, case.inverse_sigma)
    for before, after in zip(case.compressed, again):
        np.testing.assert_array_equal(before, after)


def test_a_stamp_is_compressed_the_same_way_alone(case):
    parameters = places(case)
    alone = [
        log_densities(
            case,
            parameters,
            compressed_of(
                case.prior,
                case.kernel,
                case.images[row : row + 1],
                case.inverse_sigma[row : row + 1],
            ),
        )
        for row in range(3)
    ]
    np.testing.assert_allclose(
        differences(np.concatenate(alone, 1)),
        differences(log_densities(case, parameters)),
        rtol=2e-4,
        atol=5e-3,
    )


def test_what_is_too_faint_to_see_is_dropped_without_harm():
    """Fewer directions are kept at a signal-to-noise of 25, the least that is assumed: in this
    crowded basis half a nat of twenty changes.
    """
    case = make_case(np.random.default_rng(4), num=60, latent=4, flux=0.02, batch=2)
    fewer = compressed_of(
        case.prior, case.kernel, case.images, case.inverse_sigma, signal_to_noise=25.0
    )
    assert fewer.forward.shape[1] == 32 < case.compressed.forward.shape[1]
    parameters = places(case)
    # The amplitude is counted from the linear estimate, which should be the same here.
    same = fewer._replace(coefficients=case.compressed.coefficients)
    np.testing.assert_allclose(
        differences(log_densities(case, parameters, same)),
        differences(log_densities(case, parameters)),
        atol=0.5,
    )


def test_stacked_stamps_keep_their_log_densities(case):
    """Stamps of telescopes that keep different numbers of directions, padded to one shape."""
    fewer = case.compressed._replace(
        data=case.compressed.data[:, :4],
        forward=case.compressed.forward[:, :4, :5],
        visible=case.compressed.visible[:, :5],
        background_forward=case.compressed.background_forward[:, :5],
    )
    both = posterior.stack([case.compressed, fewer])
    parameters = places(case)
    expected = np.concatenate(
        [log_densities(case, parameters), log_densities(case, parameters, fewer)], 1
    )
    np.testing.assert_allclose(
        log_densities(case, parameters, both), expected, rtol=1e-5, atol=1e-3
    )


def test_linear_estimate_recovers_the_amplitude():
    """With little noise the norm of flux * a is that of the truth."""
    case = make_case(np.random.default_rng(5), flux=200.0)
    truth = np.linalg.lstsq(case.oracles[0].matrix, case.oracles[0].image - 0.03, rcond=None)[0]
    np.testing.assert_allclose(case.compressed.flux0[0], np.linalg.norm(truth), rtol=0.01)
    np.testing.assert_allclose(
        case.compressed.coefficients[0], truth, atol=0.02 * np.linalg.norm(truth)
    )


def test_start_holds_the_usual_residual_and_no_shift(case):
    start = posterior.start(case.prior, case.compressed).numpy()
    latent, log_flux, shift, log_amplitude = posterior.split(start, case.prior.latent_size)
    assert latent.shape == (3, case.prior.latent_size)
    assert not log_flux.any() and not shift.any()
    np.testing.assert_allclose(log_amplitude, 0.3)


# ---- derivatives ----


def test_gradient_agrees_with_the_pixels(case):
    parameters = places(case, num=3)
    with tf.GradientTape() as tape:
        x = tf.constant(parameters, tf.float32)
        tape.watch(x)
        value = posterior.log_density(case.prior, case.compressed, x)
    step = 1e-5
    expected = [
        [
            (oracle.log_density(place + step * unit) - oracle.log_density(place - step * unit))
            / (2 * step)
            for unit in np.eye(len(place))
        ]
        for oracle, place in zip(case.oracles, parameters)
    ]
    np.testing.assert_allclose(
        tape.gradient(value, x), expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max()
    )


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"rough": 0.0}, id="constant_residual"),
        pytest.param({"rough": 0.3}, id="latent_sets_the_residual"),
        pytest.param({"background_std": np.inf}, id="background_flat"),
    ],
)
def test_curvature_is_the_fisher_information_of_the_pixels(options):
    case = make_case(np.random.default_rng(6), **options)
    parameters = places(case, num=3)
    got = posterior.curvature(
        case.prior, case.compressed, tf.constant(parameters, tf.float32)
    ).numpy()
    expected = np.array([oracle.fisher(place) for oracle, place in zip(case.oracles, parameters)])
    scale = np.sqrt(np.einsum("npp,nqq->npq", expected, expected))
    np.testing.assert_allclose(got / scale, expected / scale, atol=1e-3)


# ---- drawing back what was integrated out ----


@pytest.mark.parametrize("background_std", [BACKGROUND_STD, np.inf], ids=["normal", "flat"])
def test_coefficients_and_background_are_drawn_from_their_conditional(background_std):
    """Draws are affine in their normals, so that the mean and the covariance can be read off
    exactly.
    """
    case = make_case(np.random.default_rng(1), background_std=background_std)
    parameters = tf.constant(places(case, num=3), tf.float32)
    width = case.prior.coefficient_std.shape[0] + case.compressed.data.shape[1] + 1

    def drawn(normals):
        coefficients, level = posterior.draw_coefficients(
            case.prior,
            case.compressed,
            parameters,
            tf.tile(tf.constant(normals[None], tf.float32), [3, 1]),
        )
        return np.c_[coefficients, level].astype(float)

    middle = drawn(np.zeros(width))
    factor = np.stack([drawn(unit) - middle for unit in np.eye(width)], -1)
    for row, oracle in enumerate(case.oracles):
        mean, covariance = oracle.conditional(parameters[row].numpy().astype(float))
        spread = np.sqrt(np.diag(covariance))
        np.testing.assert_allclose(middle[row] / spread, mean / spread, atol=0.02)
        np.testing.assert_allclose(
            factor[row] @ factor[row].T / np.outer(spread, spread),
            covariance / np.outer(spread, spread),
            atol=0.01,
        )


def test_a_fixed_background_is_drawn_as_zero():
    case = make_case(np.random.default_rng(7), background_std=0.0)
    width = case.prior.coefficient_std.shape[0] + case.compressed.data.shape[1] + 1
    coefficients, level = posterior.draw_coefficients(
        case.prior,
        case.compressed,
        tf.constant(places(case, num=3), tf.float32),
        tf.ones([3, width]),
    )
    assert np.isfinite(coefficients).all()
    assert not np.any(level)


# ---- inference on it ----


def _at_unit_flux(case):
    """The posterior of the latent alone, the flux given: linear in it, so that it is a Gaussian.

    Densities and curvatures as inference takes them.
    """
    prior, precision = (
        case.prior,
        np.r_[
            np.zeros(case.prior.latent_size),
            posterior.LOG_FLUX_STD**-2,
            1,
            1,
            case.prior.log_amplitude_std**-2,
        ],
    )

    def full(latent, compressed):
        seen = posterior.seen_by(compressed, prior.components(latent)[0])
        log_flux = tf.math.log(
            10.0
            * tf.norm(seen, axis=1)
            / tf.norm(posterior.seen_by(compressed, compressed.coefficients), axis=1)
        )[:, None]
        return tf.concat(
            [
                latent,
                log_flux,
                tf.zeros_like(latent[:, :2]),
                tf.fill(tf.shape(log_flux), prior.log_amplitude_mean),
            ],
            1,
        )

    def log_density_fn(latent, compressed):
        parameters = full(latent, compressed)
        return (
            posterior.log_density(prior, compressed, parameters)
            - posterior.log_prior(prior, parameters)
            - 0.5 * tf.reduce_sum(latent**2, 1)
        )

    def curvature_fn(latent, compressed):
        with tf.GradientTape() as tape:
            tape.watch(latent)
            parameters = full(latent, compressed)
            log_flux = parameters[:, prior.latent_size]
        zero = tf.zeros_like(latent)[:, None]
        slope = tf.concat(
            [
                tf.eye(latent.shape[1], batch_shape=tf.shape(latent)[:1]),
                tape.gradient(log_flux, latent)[:, None],
                zero,
                zero,
                zero,
            ],
            1,
        )
        return tf.matmul(
            slope,
            tf.matmul(
                posterior.curvature(prior, compressed, parameters)
                - tf.linalg.diag(tf.constant(precision, tf.float32)),
                slope,
            ),
            transpose_a=True,
        )

    return log_density_fn, curvature_fn


def test_a_linear_decoder_has_its_gaussian_posterior():
    """Through `find_map` and `laplace`, against the closed form in pixel space."""
    case = make_case(np.random.default_rng(8), rough=0.0)
    n, size = case.numbers, case.prior.latent_size
    log_density_fn, curvature_fn = _at_unit_flux(case)
    climb = find_map(
        log_density_fn, curvature_fn, case.compressed, tf.zeros([3, size]), tolerance=1e-5
    )
    drawn = laplace(log_density_fn, climb, case.compressed, num_draws=1000, seed=[1, 2])
    assert climb.converged.numpy().all()
    assert np.ptp(drawn.log_weights, axis=0).max() < 0.05
    for row, oracle in enumerate(case.oracles):
        latent_matrix = (
            oracle.matrix
            @ (n["std"][:, None] * n["kernel"].T[: len(n["std"])] @ n["whitening_factor"])
            * 10.0
        )
        constant = (
            10.0
            * oracle.matrix
            @ (
                n["mean"]
                + n["std"] * (n["whitening_mean"] @ n["kernel"] + n["bias"])[: len(n["std"])]
            )
        )
        scale = np.exp(0.15) * (
            np.log1p(
                np.exp(
                    n["bias"][len(n["std"]) :]
                    + np.log(np.expm1(1))
                    + n["whitening_mean"] @ n["kernel"][:, len(n["std"]) :]
                )
            )
            * n["std"]
            + n["floor"]
        )
        scale *= (np.arange(1, len(scale) + 1) / 50) ** n["tilt"]
        spread = oracle.matrix * (10.0 * scale)
        inverse = np.linalg.inv(spread @ spread.T + oracle.noise)
        precision = latent_matrix.T @ inverse @ latent_matrix + np.eye(size)
        mean = np.linalg.solve(precision, latent_matrix.T @ inverse @ (oracle.image - constant))
        std = np.sqrt(np.diag(np.linalg.inv(precision)))
        np.testing.assert_allclose(climb.parameters[row] / std, mean / std, atol=0.03)
        np.testing.assert_allclose(
            climb.precision[row] * np.outer(std, std), precision * np.outer(std, std), atol=5e-3
        )
        draws = drawn.draws[:, row].numpy()
        assert np.abs((draws.mean(0) - mean) / std).max() < 5 / np.sqrt(len(draws))
        np.testing.assert_allclose(
            np.cov(draws.T) / np.outer(std, std),
            np.linalg.inv(precision) / np.outer(std, std),
            atol=0.17,
        )


def test_target_is_one_pair_for_each_prior(case):
    assert posterior.target(case.prior) is posterior.target(case.prior)
    log_density_fn, curvature_fn = posterior.target(case.prior)
    parameters = tf.constant(places(case, num=3), tf.float32)
    np.testing.assert_array_equal(
        log_density_fn(parameters, case.compressed),
        posterior.log_density(case.prior, case.compressed, parameters),
    )
    np.testing.assert_array_equal(
        curvature_fn(parameters, case.compressed),
        posterior.curvature(case.prior, case.compressed, parameters),
    )
