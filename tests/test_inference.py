"""Inference against closed forms: Gaussian posteriors of linear decoders, and ArviZ and
autoregressive chains for the diagnostics.
"""

from typing import NamedTuple

import arviz as az
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from astrogen.inference import (
    diagnostics,
    draw_gaussian,
    find_map,
    find_map_multi,
    gaussian_log_density,
    kernels,
    resample,
    sample_hmc,
)
from astrogen.inference import hmc as hmc_module
from astrogen.inference.climb import Climb, value_and_gradient
from astrogen.inference.contracts import Sampling
from astrogen.inference.laplace import laplace

SEED = [20240229, 7]


class Stamps(NamedTuple):
    """Evidence of a linear decoder: data [batch, r] = forward [batch, r, p] @ parameters + unit
    noise, parameters ~ N(0, I).
    """

    data: tf.Tensor
    forward: tf.Tensor


def linear_log_density(parameters, stamps):
    miss = stamps.data - tf.linalg.matvec(stamps.forward, parameters)
    return -0.5 * tf.reduce_sum(miss**2, -1) - 0.5 * tf.reduce_sum(parameters**2, -1)


def linear_curvature(parameters, stamps):
    return tf.matmul(stamps.forward, stamps.forward, transpose_a=True) + tf.eye(
        parameters.shape[-1]
    )


def linear_stamps(rng, num, *, size=5, pixels=12):
    """Stamps whose posterior is badly scaled (standard deviations from about .03 to 1) and
    correlated.
    """
    forward = (
        rng.normal(size=(num, pixels, size))
        * np.geomspace(0.3, 10, size)
        @ np.linalg.qr(rng.normal(size=(size, size)))[0]
    )
    return Stamps(
        tf.constant(forward @ rng.normal(size=size) + rng.normal(size=(num, pixels)), tf.float32),
        tf.constant(forward, tf.float32),
    )


def linear_posterior(stamps):
    """Mean [batch, p] and covariance [batch, p, p] in closed form, in float64."""
    forward, data = stamps.forward.numpy().astype(float), stamps.data.numpy().astype(float)
    covariance = np.linalg.inv(forward.transpose(0, 2, 1) @ forward + np.eye(forward.shape[-1]))
    return np.einsum("npq,nrq,nr->np", covariance, forward, data), covariance


def climb_of(stamps, start=None):
    num, _, size = stamps.forward.shape
    return find_map(
        linear_log_density,
        linear_curvature,
        stamps,
        tf.zeros([num, size]) if start is None else start,
        tolerance=1e-6,
    )


def assert_draws_follow(draws, mean, covariance, *, num_effective):
    """Draws [draw, batch, p] have the mean and the covariance that they should, to five standard
    errors, in the whitened space.
    """
    factor = np.linalg.cholesky(covariance)
    white = np.linalg.solve(factor, (draws - mean).transpose(1, 2, 0))  # [batch, p, draw]
    assert np.abs(white.mean(-1)).max() < 5 / np.sqrt(num_effective)
    second = white @ white.transpose(0, 2, 1) / white.shape[-1]
    assert np.abs(second - np.eye(second.shape[-1])).max() < 5 * np.sqrt(2 / num_effective)


# ---- climbing ----


def test_climb_finds_the_mode_of_a_gaussian_in_a_step(rng):
    stamps = linear_stamps(rng, 6)
    climb = climb_of(stamps)
    mean, covariance = linear_posterior(stamps)
    assert climb.converged.numpy().all()
    assert climb.num_steps <= 3
    offset = np.einsum(
        "np,npq,nq->n", climb.parameters - mean, np.linalg.inv(covariance), climb.parameters - mean
    )
    assert offset.max() < 1e-3
    np.testing.assert_allclose(climb.precision, np.linalg.inv(covariance), rtol=1e-4, atol=0.05)


def rosenbrock(parameters, scale):
    return -scale * (
        (1 - parameters[:, 0]) ** 2 + 10 * (parameters[:, 1] - parameters[:, 0] ** 2) ** 2
    )


def rosenbrock_curvature(parameters, scale):
    """Of its two residuals: the Gauss-Newton matrix."""
    x = parameters[:, 0]
    jacobian = tf.stack(
        [
            tf.stack([tf.ones_like(x), tf.zeros_like(x)], -1),
            np.sqrt(10.0) * tf.stack([-2 * x, tf.ones_like(x)], -1),
        ],
        1,
    )
    return 2 * scale[:, None, None] * tf.matmul(jacobian, jacobian, transpose_a=True)


def test_climb_follows_a_curved_valley():
    starts = tf.constant([[-1.2, 1.0], [2.0, -2.0], [0.0, 3.0], [1.0, 1.0]])
    climb = find_map(
        rosenbrock, rosenbrock_curvature, tf.fill([4], 5.0), starts, max_steps=60, tolerance=1e-6
    )
    assert climb.converged.numpy().all()
    np.testing.assert_allclose(climb.parameters, np.ones((4, 2)), atol=3e-3)


def steep(parameters, scale):
    """Three times as curved as the Gauss-Newton matrix below says, so that full steps overshoot for
    ever; not concave far out.
    """
    return -scale * tf.reduce_sum(tf.math.log(1 + 3 * parameters**2), -1)


def steep_curvature(parameters, scale):
    return (
        2
        * scale[:, None, None]
        * tf.eye(parameters.shape[-1], batch_shape=tf.shape(parameters)[:1])
    )


def test_climb_learns_curvature_that_gauss_newton_misses():
    climb = find_map(
        steep,
        steep_curvature,
        tf.constant([1.0, 4.0]),
        tf.constant([[0.4, -0.3, 0.9], [2.0, 0.1, -1.5]]),
        tolerance=1e-4,
    )
    assert climb.converged.numpy().all()
    assert np.abs(climb.parameters).max() < 0.02


def test_climb_says_when_it_has_not_arrived():
    climb = find_map(
        rosenbrock,
        rosenbrock_curvature,
        tf.fill([2], 5.0),
        tf.constant([[-1.2, 1.0], [1.0, 1.0]]),
        max_steps=2,
    )
    assert climb.converged.numpy().tolist() == [False, True]


def test_a_climb_has_arrived_where_a_full_step_promises_less_than_the_tolerance():
    """Of a Gaussian the promise is what is left to gain, 1/2 d' P d, known at any distance d from
    the mode; each member stands still at its own.
    """
    left = np.array([0.25, 0.9, 1.1, 4.0]) * 0.02  # nats
    precision = np.array([[3.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 0.7]])
    away = np.linalg.solve(np.linalg.cholesky(precision).T, np.array([0.6, -0.64, 0.48]))
    places = np.sqrt(2 * left)[:, None] * away  # a white vector of norm one, turned back
    np.testing.assert_allclose(
        0.5 * np.einsum("bp,pq,bq->b", places, precision, places), left, rtol=1e-12
    )

    def log_density_fn(parameters, matrix):
        return -0.5 * tf.reduce_sum(parameters * tf.linalg.matvec(matrix, parameters), -1)

    climb = find_map(
        log_density_fn,
        lambda parameters, matrix: matrix,
        tf.constant(np.tile(precision, (4, 1, 1)), tf.float32),
        tf.constant(places, tf.float32),
        max_steps=0,
        tolerance=0.02,
    )
    assert climb.converged.numpy().tolist() == [True, True, False, False]


def half_defined(parameters, limit):
    """A unit Gaussian that is not a number beyond a limit."""
    return tf.where(
        tf.reduce_all(parameters < limit[:, None], -1),
        -0.5 * tf.reduce_sum(parameters**2, -1),
        np.nan,
    )


def half_defined_curvature(parameters, limit):
    return tf.where(
        (limit > 0)[:, None, None],
        tf.eye(parameters.shape[-1], batch_shape=tf.shape(parameters)[:1]),
        np.nan,
    )


def test_a_density_that_is_not_finite_harms_only_its_own_object():
    limit = tf.constant([0.5, -9.0, 40.0])
    climb = find_map(half_defined, half_defined_curvature, limit, tf.fill([3, 2], -1.0))
    assert climb.converged.numpy().tolist() == [True, False, True]
    np.testing.assert_allclose(climb.parameters, [[0, 0], [-1, -1], [0, 0]], atol=1e-5)
    approximation = laplace(half_defined, climb, limit, num_draws=400, seed=SEED)
    log_weights, k_hat = diagnostics.smooth_weights(approximation.log_weights)
    assert np.isfinite(approximation.draws).all() and np.isfinite(log_weights).all()
    assert np.isinf(k_hat[1]) and k_hat[2] < 0.7
    inside = np.exp(log_weights[:, 0]) @ (approximation.draws.numpy()[:, 0] < 0.5).all(-1)
    assert inside == pytest.approx(1)
    chains = sample_hmc(
        half_defined,
        climb,
        limit,
        seed=SEED,
        settings=Sampling(num_draws=150, num_burnin=50, num_chains=4),
    )
    assert np.isfinite(chains.draws).all() and (chains.draws.numpy()[:, :, 0] < 0.5).all()
    assert chains.divergent[1] == 600 and chains.divergent[0] > 10 and chains.divergent[2] == 0
    assert (
        np.isinf(chains.r_hat[1]).all()
        and (chains.ess[1] == 1).all()
        and (chains.r_hat[2] < 1.03).all()
    )
    # a valid rejection keeps the truncated Gaussian exact
    expected = stats.truncnorm(-np.inf, 0.5).mean()
    assert chains.draws.numpy()[:, :, 0].mean((0, 1)) == pytest.approx(
        [expected, expected], abs=0.2
    )


def two_hills(parameters, heights):
    return tf.reduce_logsumexp(
        tf.stack(
            [
                heights[:, 0] - 8 * (parameters[..., 0] - 2) ** 2,
                heights[:, 1] - 8 * (parameters[..., 0] + 2) ** 2,
            ]
        ),
        0,
    )


def two_hills_curvature(parameters, heights):
    return tf.fill([tf.shape(parameters)[0], 1, 1], 16.0)


def test_several_starts_find_the_highest_hill():
    starts = tf.constant([[[1.6], [1.6]], [[-1.7], [-1.7]], [[2.2], [2.2]]])
    climb, below = find_map_multi(
        two_hills, two_hills_curvature, tf.constant([[0.0, 3.0], [3.0, 0.0]]), starts
    )
    np.testing.assert_allclose(climb.parameters, [[-2], [2]], atol=0.02)
    np.testing.assert_allclose(below, [[3, 0], [0, 3], [3, 0]], atol=0.02)
    assert climb.converged.numpy().all()


# ---- the linear decoder: all methods exact ----


def test_laplace_is_exact_for_a_linear_decoder(rng):
    stamps = linear_stamps(rng, 4)
    mean, covariance = linear_posterior(stamps)
    approximation = laplace(linear_log_density, climb_of(stamps), stamps, num_draws=3000, seed=SEED)
    assert_draws_follow(approximation.draws.numpy(), mean, covariance, num_effective=3000)
    assert np.ptp(approximation.log_weights, axis=0).max() < 0.05
    log_weights, k_hat = diagnostics.smooth_weights(approximation.log_weights)
    assert (k_hat < 0.5).all()
    assert diagnostics.effective_sample_size(log_weights).min() > 2990


def test_gaussian_log_density_agrees_with_scipy(rng):
    mean, root = rng.normal(size=(3, 4)), rng.normal(size=(3, 4, 4))
    precision = root @ root.transpose(0, 2, 1) + np.eye(4)
    climb = Climb(
        tf.constant(mean, tf.float32), None, tf.constant(precision, tf.float32), None, None
    )
    climb = climb._replace(
        log_density=tf.zeros(3), converged=tf.fill([3], True), num_steps=tf.constant(1)
    )
    draws = rng.normal(size=(6, 3, 4))
    expected = [
        [
            stats.multivariate_normal(m, np.linalg.inv(p)).logpdf(x)
            for x, m, p in zip(row, mean, precision)
        ]
        for row in draws
    ]
    np.testing.assert_allclose(
        gaussian_log_density(climb, tf.constant(draws, tf.float32)), expected, rtol=1e-4, atol=1e-4
    )


def test_log_weights_give_the_evidence(rng):
    """The mean weight is the integral of the target: for a linear decoder, a Gaussian integral."""
    stamps = linear_stamps(rng, 2, size=3)
    mean, covariance = linear_posterior(stamps)
    approximation = laplace(linear_log_density, climb_of(stamps), stamps, num_draws=50, seed=SEED)
    height = linear_log_density(tf.constant(mean, tf.float32), stamps).numpy()
    np.testing.assert_allclose(
        approximation.log_weights.numpy().mean(0),
        height + 0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1],
        atol=0.02,
    )


def test_hmc_is_exact_for_a_badly_scaled_linear_decoder(rng):
    stamps = linear_stamps(rng, 4)
    mean, covariance = linear_posterior(stamps)
    chains = sample_hmc(
        linear_log_density,
        climb_of(stamps),
        stamps,
        seed=SEED,
        settings=Sampling(num_draws=700, num_burnin=100, num_chains=4),
    )
    assert chains.r_hat.max() < 1.01
    assert chains.ess.min() > 1000
    assert chains.divergent.sum() == 0
    assert (chains.accept_rate > 0.7).all() and (chains.step_size < 2).all()
    assert_draws_follow(
        chains.draws.numpy().reshape(2800, 4, -1), mean, covariance, num_effective=900
    )
    np.testing.assert_allclose(
        chains.log_density[-1, 2],
        linear_log_density(chains.draws[-1, 2], stamps),
        rtol=1e-3,
        atol=1e-3,
    )


def test_hmc_corrects_a_wrong_approximation(rng):
    """Started from a mode off by one and a precision off by four, HMC ends in the right posterior:
    the Metropolis step is valid.
    """
    stamps = linear_stamps(rng, 3, size=3)
    mean, covariance = linear_posterior(stamps)
    climb = climb_of(stamps)
    wrong = climb._replace(
        parameters=climb.parameters + np.sqrt(np.diagonal(covariance, axis1=1, axis2=2)),
        precision=4 * climb.precision,
    )
    chains = sample_hmc(
        linear_log_density,
        wrong,
        stamps,
        seed=SEED,
        settings=Sampling(num_draws=700, num_burnin=100, num_chains=4),
    )
    assert chains.r_hat.max() < 1.02
    assert_draws_follow(
        chains.draws.numpy().reshape(2800, 3, -1), mean, covariance, num_effective=500
    )


# ---- trajectories ----


def quartic(parameters, _):
    """Two coupled anharmonic oscillators, stiff enough that steps of a tenth err visibly."""
    x, y = parameters[..., 0], parameters[..., 1]
    return -0.5 * (x**2 + 2 * y**2) - 0.25 * x**4 - 0.5 * x**2 * y**2


def potential(x):
    return 0.5 * (x[0] ** 2 + 2 * x[1] ** 2) + 0.25 * x[0] ** 4 + 0.5 * (x[0] * x[1]) ** 2


PLACE, MOMENTUM = np.array([0.8, -0.5]), np.array([-0.7, 1.1])


def fly(place, momentum, step, num_steps):
    """End and energy error of a trajectory."""

    def density(position):
        return value_and_gradient(quartic, position, None)

    position = tf.constant(place[None, None], tf.float32)
    end, error, _ = kernels.fly(
        density,
        kernels.Place(position, *density(position)),
        tf.constant(momentum[None, None], tf.float32),
        tf.constant([[step]], tf.float32),
        tf.constant(float(num_steps)),
        floor=tf.constant([-1e9]),
    )
    return end.position.numpy()[0, 0].astype(float), float(error[0, 0])


def end_momentum(step, num_steps):
    """Of a leapfrog, from the positions one step before and after: their difference over two
    steps.
    """
    before, after = (fly(PLACE, MOMENTUM, step, num_steps + more)[0] for more in (-1, 1))
    return (after - before) / (2 * step)


def test_a_trajectory_is_undone_by_turning_its_momentum():
    end, _ = fly(PLACE, MOMENTUM, 0.2, 12)
    assert np.abs(end - PLACE).max() > 0.3
    back, _ = fly(end, -end_momentum(0.2, 12), 0.2, 12)
    np.testing.assert_allclose(back, PLACE, atol=1e-4)


def test_the_energy_error_is_that_of_the_place_and_falls_with_the_square_of_the_step():
    """Four times smaller for a half of the step and twice their number."""
    errors = []
    for step, num_steps in ((0.16, 10), (0.08, 20)):
        end, told = fly(PLACE, MOMENTUM, step, num_steps)
        last = end_momentum(step, num_steps)
        errors.append(potential(end) - potential(PLACE) + 0.5 * (last @ last - MOMENTUM @ MOMENTUM))
        assert told == pytest.approx(errors[-1], abs=2e-5)
    assert abs(errors[0]) > 1e-3
    assert errors[0] / errors[1] == pytest.approx(4, abs=0.8)


def test_a_leapfrog_of_a_unit_gaussian_is_that_of_verlet(monkeypatch):
    """In closed form: a turn by theta at each step, cos theta = 1 - step^2 / 2, on an ellipse."""
    monkeypatch.setitem(globals(), "quartic", lambda x, _: -0.5 * tf.reduce_sum(x**2, -1))
    for step, num_steps in ((0.3, 7), (1.2, 4)):
        theta = np.arccos(1 - step**2 / 2)
        expected = np.cos(num_steps * theta) * PLACE + np.sin(
            num_steps * theta
        ) * MOMENTUM / np.sqrt(1 - step**2 / 4)
        np.testing.assert_allclose(fly(PLACE, MOMENTUM, step, num_steps)[0], expected, atol=1e-5)


def test_chains_start_wider_than_the_posterior_that_they_look_for(rng, monkeypatch):
    """1.25 times as wide, in every direction: R-hat can only speak of chains that come from
    different places. Here they stay where they start.
    """
    monkeypatch.setattr(hmc_module, "FIRST_STEP", 1e-6)
    stamps = linear_stamps(rng, 2, size=3)
    mean, covariance = linear_posterior(stamps)
    chains = sample_hmc(
        lambda parameters, stamps: linear_log_density(parameters, stamps),  # a graph of its own
        climb_of(stamps),
        stamps,
        seed=SEED,
        settings=Sampling(num_draws=4, num_burnin=0, num_chains=600),
    )
    starts = chains.draws.numpy()[0]
    assert np.abs(chains.draws.numpy() - starts).max() < 1e-4
    assert_draws_follow(starts, mean, 1.25**2 * covariance, num_effective=600)


def test_equal_targets_end_with_nearly_equal_steps():
    """The step after burn-in is the average of those tried, not the last one, which one lucky
    trajectory changes by a third.
    """
    stamps = Stamps(tf.zeros([32, 5]), tf.tile(tf.eye(5)[None], [32, 1, 1]))
    chains = sample_hmc(
        linear_log_density,
        climb_of(stamps),
        stamps,
        seed=SEED,
        settings=Sampling(num_draws=4, num_burnin=60, num_chains=2),
    )
    assert np.log(chains.step_size).std() < 0.12


# ---- where the Gaussian is wrong, it is said ----


def banana(parameters, bend):
    """Pairs (x, y): x is a standard normal, y follows bend * (x^2 - 1) with standard deviation
    .1.
    """
    x, y = tf.split(parameters, 2, -1)
    return -0.5 * tf.reduce_sum(x**2 + ((y - bend[:, None] * (x**2 - 1)) / 0.1) ** 2, -1)


def banana_curvature(parameters, bend):
    x = tf.split(parameters, 2, -1)[0]
    slope, one = (
        tf.linalg.diag(-2 * bend[:, None] * x),
        tf.eye(x.shape[-1], batch_shape=tf.shape(x)[:1]),
    )
    jacobian = tf.concat(
        [tf.concat([slope / 0.1, one / 0.1], -1), tf.concat([one, 0 * one], -1)], -2
    )
    return tf.matmul(jacobian, jacobian, transpose_a=True)


def cauchy(parameters, width):
    return -tf.reduce_sum(tf.math.log(1 + (parameters / width[:, None]) ** 2), -1)


def cauchy_curvature(parameters, width):
    return (
        2
        / width[:, None, None] ** 2
        * tf.eye(parameters.shape[-1], batch_shape=tf.shape(parameters)[:1])
    )


def banana_climb(bend):
    return find_map(banana, banana_curvature, bend, tf.zeros([bend.shape[0], 2]), tolerance=1e-5)


@pytest.mark.parametrize(
    "log_density_fn, curvature_fn",
    [(banana, banana_curvature), (cauchy, cauchy_curvature)],
    ids=["banana", "heavy-tails"],
)
def test_k_hat_warns_where_the_approximation_is_wrong(log_density_fn, curvature_fn):
    evidence = tf.constant([1.0, 1.5])
    climb = find_map(log_density_fn, curvature_fn, evidence, tf.zeros([2, 10]), tolerance=1e-5)
    _, k_hat = diagnostics.smooth_weights(
        laplace(log_density_fn, climb, evidence, num_draws=1000, seed=SEED).log_weights
    )
    assert (k_hat > 0.7).all()


def test_hmc_finds_its_way_round_a_banana():
    bend = tf.constant([0.05])
    chains = sample_hmc(
        banana,
        banana_climb(bend),
        bend,
        seed=SEED,
        settings=Sampling(num_draws=800, num_burnin=100, num_chains=4, target_accept=0.9),
    )
    draws = chains.draws.numpy().reshape(-1, 2)
    assert chains.r_hat.max() < 1.03
    assert draws.mean(0) == pytest.approx([0, 0], abs=0.1)  # exact: E x = E bend (x^2 - 1) = 0
    assert draws.std(0) == pytest.approx([1, np.sqrt(0.1**2 + 2 * 0.05**2)], rel=0.1)


def test_weights_correct_a_skewed_density():
    """Gumbel's density: mean and standard deviation are known; its Laplace approximation misses
    both.
    """

    def log_density_fn(parameters, _):
        return -parameters[:, 0] - tf.exp(-parameters[:, 0])

    def curvature_fn(parameters, _):
        return 0.7 * tf.exp(-parameters)[:, :, None]

    evidence = tf.zeros([1])
    climb = find_map(log_density_fn, curvature_fn, evidence, tf.constant([[0.5]]), tolerance=1e-6)
    approximation = laplace(log_density_fn, climb, evidence, num_draws=4000, seed=SEED)
    log_weights, _ = diagnostics.smooth_weights(approximation.log_weights)
    kept = np.take_along_axis(
        approximation.draws.numpy()[..., 0], resample(log_weights, num_draws=2000, seed=SEED), 0
    )
    assert abs(approximation.draws.numpy().mean()) < 0.1
    assert kept.mean() == pytest.approx(np.euler_gamma, abs=0.12)
    assert kept.std() == pytest.approx(np.pi / np.sqrt(6), rel=0.12)


def test_divergences_are_counted():
    """Neal's funnel: in its neck no step is small enough."""

    def funnel(parameters, _):
        return (
            -0.5 * (parameters[..., 0] / 3) ** 2
            - 0.5 * tf.reduce_sum(parameters[..., 1:] ** 2, -1) * tf.exp(-parameters[..., 0])
            - 2 * parameters[..., 0]
        )

    climb = Climb(
        tf.zeros([1, 5]),
        tf.zeros([1]),
        tf.linalg.diag(tf.constant([[1 / 9, 1e-3, 1e-3, 1e-3, 1e-3]])),
        tf.constant([True]),
        tf.constant(0),
    )
    chains = sample_hmc(
        funnel,
        climb,
        tf.zeros([1]),
        seed=SEED,
        settings=Sampling(num_draws=100, num_burnin=0, num_chains=4),
    )
    assert chains.divergent[0] > 0
    assert np.isfinite(chains.draws).all() and np.isfinite(chains.log_density).all()


# ---- laws ----


def member(nested, index):
    return tf.nest.map_structure(lambda tensor: tensor[index : index + 1], nested)


def test_objects_together_equal_each_alone():
    bend, seeds = tf.constant([0.1, 0.3, 0.2]), np.array([[1, 5], [1, 6], [1, 9]])
    together = banana_climb(bend)
    drawn = laplace(banana, together, bend, num_draws=20, seed=seeds)
    chains = sample_hmc(
        banana,
        together,
        bend,
        seed=seeds,
        settings=Sampling(num_draws=12, num_burnin=8, num_chains=2),
    )
    kept = resample(drawn.log_weights, num_draws=20, seed=seeds)
    for index in range(3):
        alone, evidence, seed = (
            banana_climb(member(bend, index)),
            member(bend, index),
            seeds[index : index + 1],
        )
        np.testing.assert_allclose(alone.parameters, member(together.parameters, index), atol=1e-5)
        again = laplace(banana, alone, evidence, num_draws=20, seed=seed)
        np.testing.assert_allclose(again.draws, drawn.draws[:, index : index + 1], atol=1e-4)
        np.testing.assert_array_equal(
            resample(again.log_weights, num_draws=20, seed=seed), kept[:, index : index + 1]
        )
        lone = sample_hmc(
            banana,
            alone,
            evidence,
            seed=seed,
            settings=Sampling(num_draws=12, num_burnin=8, num_chains=2),
        )
        np.testing.assert_allclose(lone.draws, chains.draws[:, :, index : index + 1], atol=1e-2)


def test_equal_seeds_give_equal_bytes_and_others_do_not(rng):
    stamps = linear_stamps(rng, 2)
    climb = climb_of(stamps)

    def one_run(seed):
        chains = sample_hmc(
            linear_log_density,
            climb,
            stamps,
            seed=seed,
            settings=Sampling(num_draws=10, num_burnin=5, num_chains=2),
        )
        return draw_gaussian(climb, num_draws=5, seed=seed).numpy(), chains.draws.numpy()

    for first, second, other in zip(one_run([1, 2]), one_run([1, 2]), one_run([1, 3])):
        assert first.tobytes() == second.tobytes()
        assert np.abs(first - other).max() > 1e-3
    assert len(np.unique(one_run([1, 2])[0])) == 5 * 2 * 5  # objects do not share their noise


def test_one_trace_serves_other_evidence_of_the_same_shape(rng):
    traces = []

    def log_density_fn(parameters, stamps):
        traces.append(1)
        return linear_log_density(parameters, stamps)

    counts = []
    for _ in range(3):
        stamps = linear_stamps(rng, 2)
        climb = find_map(log_density_fn, linear_curvature, stamps, tf.zeros([2, 5]))
        laplace(log_density_fn, climb, stamps, num_draws=5, seed=SEED)
        sample_hmc(
            log_density_fn,
            climb,
            stamps,
            seed=SEED,
            settings=Sampling(num_draws=4, num_burnin=2, num_chains=2),
        )
        counts.append(len(traces))
    assert counts[0] == counts[-1]


def test_a_seed_of_another_shape_is_refused(rng):
    climb = climb_of(linear_stamps(rng, 3))
    with pytest.raises(
        ValueError,
        match=(
            r"member_seeds: seed must be a pair of integers or one pair for each of 3 objects, got"
            r" shape \(2, 2\); give"
        ),
    ):
        draw_gaussian(climb, num_draws=5, seed=[[1, 2], [3, 4]])


@pytest.mark.parametrize(
    "num_draws, num_burnin, num_chains",
    [(3, 1, 1), (4, -1, 1), (4, 0, 0)],
    ids=["draws", "burn-in", "chains"],
)
def test_too_few_draws_are_refused(rng, num_draws, num_burnin, num_chains):
    stamps = linear_stamps(rng, 1)
    with pytest.raises(
        ValueError,
        match=(
            "sample_hmc: num_draws, num_chains and num_burnin must be at least 4, 1 and 0, got"
            " .*R-hat compares"
        ),
    ):
        sample_hmc(
            linear_log_density,
            climb_of(stamps),
            stamps,
            seed=SEED,
            settings=Sampling(num_draws=num_draws, num_burnin=num_burnin, num_chains=num_chains),
        )


# ---- diagnostics ----


@pytest.mark.parametrize("num", [40, 200, 1000])
def test_smoothed_weights_agree_with_arviz(rng, num):
    log_weights = np.stack(
        [scale * rng.standard_t(5, num) for scale in (0.3, 1, 2, 4)]
        + [1000 + rng.normal(size=num)],
        1,
    )
    smoothed, k_hat = diagnostics.smooth_weights(log_weights)
    rival, rival_k = az.psislw(log_weights.T)
    np.testing.assert_allclose(smoothed.T, rival, atol=1e-9)
    np.testing.assert_allclose(k_hat, rival_k, atol=1e-9)


def test_weights_that_are_equal_but_for_rounding_have_no_tail(rng):
    """Those of an exact Gaussian, as differences of log-densities in float32."""
    weights = np.float32(rng.normal(-300, 20, (400, 1))) * np.ones(3, np.float32)
    rounding = (weights + np.float32(1e3)) - np.float32(1e3) - weights
    assert np.unique(rounding).size >= 5
    log_weights, k_hat = diagnostics.smooth_weights(rounding)
    assert k_hat.tolist() == [0, 0, 0]
    np.testing.assert_allclose(np.exp(log_weights), 1 / 400, rtol=1e-4)


def test_k_hat_is_the_shape_of_a_known_pareto_tail(rng):
    """Weights u^-k have a Pareto tail of shape k."""
    shapes = np.array([0.1, 0.4, 0.8])
    _, k_hat = diagnostics.smooth_weights(-shapes * np.log(rng.uniform(size=(40000, 1))))
    np.testing.assert_allclose(k_hat, shapes, atol=0.1)


def test_weights_that_are_equal_or_not_finite():
    odd = np.zeros((100, 3))
    odd[:50, 1], odd[:, 2] = np.nan, -np.inf
    log_weights, k_hat = diagnostics.smooth_weights(odd)
    np.testing.assert_allclose(np.exp(log_weights).sum(0), 1)
    assert k_hat.tolist()[:2] == [0, 0] and np.isinf(k_hat[2])
    np.testing.assert_allclose(diagnostics.effective_sample_size(log_weights), [100, 50, 100])
    assert np.isinf(diagnostics.smooth_weights(np.zeros((10, 1)))[1]).all()  # too few for a tail


def test_effective_sample_size_of_lognormal_weights(rng):
    """In closed form: draws / exp(variance of the log-weights)."""
    log_weights = 0.6 * rng.normal(size=(50000, 3))
    np.testing.assert_allclose(
        diagnostics.effective_sample_size(log_weights), 50000 / np.exp(0.36), rtol=0.03
    )


def test_resampling_keeps_draws_in_proportion_to_their_weights(rng):
    weights = rng.dirichlet(np.ones(8), size=3).T
    chosen = resample(np.log(weights), num_draws=1000, seed=SEED)
    counts = np.stack([np.bincount(column, minlength=8) for column in chosen.T], 1)
    # systematic resampling rounds up or down, no more
    assert np.abs(counts - 1000 * weights).max() <= 1


def test_resampling_gives_every_draw_its_chance(rng):
    """Over seeds a draw is kept in proportion to its weight, also where that is less than one."""
    weights = rng.dirichlet(np.ones(12), size=400)[:1].repeat(400, 0).T
    seeds = np.stack([np.arange(400), np.full(400, 3)], 1)
    chosen = resample(np.log(weights), num_draws=3, seed=seeds)
    counts = np.bincount(chosen.ravel(), minlength=12) / 400
    expected = 3 * weights[:, 0]
    error = np.sqrt(np.maximum(expected % 1 * (1 - expected % 1), 1e-6) / 400)
    assert np.abs((counts - expected) / error).max() < 4


def autoregressive(rng, correlation, shape):
    noise = rng.normal(size=shape)
    draws = noise.copy()
    for index in range(1, shape[1]):
        draws[:, index] = (
            correlation * draws[:, index - 1] + np.sqrt(1 - correlation**2) * noise[:, index]
        )
    return draws


@pytest.mark.parametrize("correlation", [-0.5, 0.0, 0.6, 0.9])
def test_effective_draws_of_an_autoregressive_chain(rng, correlation):
    """In closed form: draws (1 - rho) / (1 + rho)."""
    draws = autoregressive(rng, correlation, (4, 5000, 3))
    expected = 20000 * (1 - correlation) / (1 + correlation)
    np.testing.assert_allclose(diagnostics.effective_draws(draws), expected, rtol=0.15)
    np.testing.assert_allclose(
        diagnostics.effective_draws(draws), [az.ess(draws[..., i]) for i in range(3)], rtol=1e-9
    )
    assert (np.abs(diagnostics.r_hat(draws) - 1) < 0.01).all()


def test_antithetic_chains_are_worth_no_more_than_arviz_says(rng):
    """Nearly alternating draws would in closed form be worth forty times as many; both stop at
    their number times its logarithm (Vehtari et al. 2021, section 3.2).
    """
    draws = autoregressive(rng, -0.95, (4, 1000, 2))
    ours = diagnostics.effective_draws(draws)
    assert ours.max() < 4000 * np.log10(4000) * (1 + 1e-9)
    np.testing.assert_allclose(ours, [az.ess(draws[..., i]) for i in range(2)], rtol=1e-9)


@pytest.mark.parametrize("num", [4, 5, 6, 7, 8, 11, 40, 151])
def test_effective_draws_are_those_of_arviz_for_short_chains_too(rng, num):
    draws = np.stack([autoregressive(rng, c, (4, num)) for c in (-0.9, -0.3, 0.0, 0.5, 0.95)], -1)
    np.testing.assert_allclose(
        diagnostics.effective_draws(draws), [az.ess(draws[..., i]) for i in range(5)], rtol=1e-9
    )


def test_the_error_of_k_hat_is_its_scatter(rng):
    shapes = np.array([0.3, 0.7])
    found = [
        diagnostics.smooth_weights(-shapes * np.log(rng.uniform(size=(1500, 1))))[1]
        for _ in range(200)
    ]
    scatter = np.std(found, 0)
    np.testing.assert_allclose(diagnostics.k_hat_error(shapes, 1500), scatter, rtol=0.25)


def test_r_hat_agrees_with_arviz_where_chains_differ_in_place_or_in_width(rng):
    draws = rng.normal(size=(4, 101, 3))
    draws[0, :, 1] += 1.0
    draws[0, :, 2] *= 4.0
    r_hat = diagnostics.r_hat(draws)
    np.testing.assert_allclose(r_hat, [az.rhat(draws[..., i]) for i in range(3)], rtol=1e-9)
    assert r_hat[0] < 1.05 and (r_hat[1:] > 1.05).all()


def test_chains_that_never_moved_are_not_called_converged():
    still = np.ones((4, 20, 2))
    assert np.isinf(diagnostics.r_hat(still)).all()
    assert (diagnostics.effective_draws(still) == 1).all()
