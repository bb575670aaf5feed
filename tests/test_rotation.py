"""The sampler for thousands of nearly normal parameters, and the directions that keep them from
being normal, against closed forms.
"""

import numpy as np
import pytest
import tensorflow as tf

from astrogen.inference import diagnostics, kernels
from astrogen.inference.climb import value_and_gradient
from astrogen.inference.deflation import far_from_one
from astrogen.inference.rotation import SETTINGS, sample_rotating

SIZE = 600


def keep(white, evidence):
    return white


def normal(white, evidence):
    return -0.5 * tf.reduce_sum(white**2, -1)


def scaled(white, precision):
    return -0.5 * tf.reduce_sum(precision * white**2, -1)


def skewed(white, evidence):
    """log of a Gamma(3) variable's density under x = log(gamma), independent."""
    return tf.reduce_sum(3 * white - tf.exp(white), -1)


def walk(density, evidence=0.0, *, size=SIZE, chains=4, draws=100, burnin=60, seed=(5, 6)):
    start = tf.random.stateless_normal([chains, size], [3, 4])
    return sample_rotating(
        density,
        start,
        evidence,
        keep_fn=keep,
        seed=seed,
        settings=SETTINGS._replace(num_draws=draws, num_burnin=burnin),
    )


def test_steps_are_exact_for_a_standard_normal_whatever_their_number_of_parameters():
    """Nothing is refused at the largest step; path pi / 2 to 3/2 of it forgets the start."""
    done = walk(normal, draws=60)
    assert done.accept_rate == pytest.approx(1, abs=1e-3)
    assert done.step > 1.0
    assert done.kept.std() == pytest.approx(1, abs=0.02)
    assert diagnostics.r_hat(np.moveaxis(done.kept[..., :40], 0, 1)).max() < 1.1


def test_draws_follow_a_gaussian_with_known_variances():
    precision = np.geomspace(0.5, 3, SIZE).astype(np.float32)
    done = walk(scaled, tf.constant(precision), draws=250)
    variance = done.kept.reshape(-1, SIZE).var(0)
    ratio = variance * precision
    assert ratio.mean() == pytest.approx(1, abs=0.01)
    assert ratio.std() < 2 * np.sqrt(2 / 1000)
    assert 0.6 < done.accept_rate < 0.95
    assert done.divergent == 0
    np.testing.assert_allclose(
        done.log_density, -0.5 * (precision * done.kept**2).sum(-1), rtol=1e-4
    )


def test_draws_follow_a_density_that_is_not_gaussian():
    """Mean and variance of log Gamma(3): digamma(3) and trigamma(3)."""
    done = walk(skewed, size=60, draws=300)
    assert done.kept.mean() == pytest.approx(0.922784, abs=0.01)
    assert done.kept.var() == pytest.approx(0.394934, rel=0.03)


# ---- one trajectory ----


def quartic(white, _):
    """A standard normal and a quarter of the fourth powers' sum, coupled."""
    x, y = white[..., 0], white[..., 1]
    return -0.5 * (x**2 + y**2) - 0.25 * x**4 - 0.5 * x**2 * y**2


def potential(x):
    return 0.5 * (x @ x) + 0.25 * x[0] ** 4 + 0.5 * (x[0] * x[1]) ** 2


PLACE, MOMENTUM = np.array([0.8, -0.5]), np.array([-0.7, 1.1])


def fly(place, momentum, step, num_steps):
    """End and energy error of a trajectory."""

    def density(white):
        return value_and_gradient(quartic, white, None)

    white = tf.constant(place[None], tf.float32)
    end, error, _ = kernels.fly(
        density,
        kernels.Place(white, *density(white)),
        tf.constant(momentum[None], tf.float32),
        step,
        float(num_steps),
        rotating=True,
    )
    return end.position.numpy()[0].astype(float), float(error[0])


def end_momentum(step, num_steps):
    """From the positions one step before and after: these lie on a circle about the kicked end, so
    that their difference is 2 sin(step) times the momentum, the two kicks cancelling.
    """
    before, after = (fly(PLACE, MOMENTUM, step, num_steps + more)[0] for more in (-1, 1))
    return (after - before) / (2 * np.sin(step))


def test_a_trajectory_is_undone_by_turning_its_momentum():
    end, _ = fly(PLACE, MOMENTUM, 0.2, 12)
    assert np.abs(end - PLACE).max() > 0.3
    back, _ = fly(end, -end_momentum(0.2, 12), 0.2, 12)
    np.testing.assert_allclose(back, PLACE, atol=1e-4)


def test_the_energy_error_is_that_of_the_place_and_falls_with_the_square_of_the_step():
    """Four times smaller for a half of the step and twice their number."""
    errors = []
    for step, num_steps in ((0.2, 10), (0.1, 20)):
        end, told = fly(PLACE, MOMENTUM, step, num_steps)
        last = end_momentum(step, num_steps)
        errors.append(potential(end) - potential(PLACE) + 0.5 * (last @ last - MOMENTUM @ MOMENTUM))
        assert told == pytest.approx(errors[-1], abs=2e-5)
    assert abs(errors[0]) > 1e-3
    assert errors[0] / errors[1] == pytest.approx(4, abs=0.8)


def test_equal_seeds_give_equal_draws_and_others_do_not():
    once, again, other = (
        walk(skewed, size=20, draws=5, burnin=5, seed=seed) for seed in ((1, 2), (1, 2), (1, 3))
    )
    assert np.array_equal(once.kept, again.kept)
    assert not np.array_equal(once.kept, other.kept)


def test_a_density_that_ends_is_never_left_and_the_fall_is_counted():
    def walled(white, evidence):
        # NaN below -1
        return -0.5 * tf.reduce_sum(white**2, -1) + tf.reduce_sum(tf.math.log(white + 1.0), -1)

    start = tf.zeros([3, 4])
    done = sample_rotating(
        walled,
        start,
        0.0,
        keep_fn=keep,
        seed=(1, 1),
        settings=SETTINGS._replace(num_draws=200, num_burnin=50),
    )
    assert np.isfinite(done.kept).all() and done.kept.min() > -1
    assert np.isfinite(done.log_density).all()


def test_burning_in_alone_keeps_nothing():
    done = walk(normal, size=10, draws=0, burnin=5)
    assert done.kept is None and np.isnan(done.accept_rate) and done.end.shape == (4, 10)


def test_the_directions_far_from_one_are_those_of_a_full_decomposition(rng):
    size, rank = 80, 6
    turn = np.linalg.qr(rng.normal(size=(size, size)))[0]
    values = np.concatenate([[30, 9, 4, 0.05, 0.1, 2.5], 1 + 0.05 * rng.normal(size=size - rank)])
    matrix = (turn * values) @ turn.T
    found, vectors = far_from_one(
        lambda rows: rows @ matrix.astype(np.float32), size, rank=rank, seed=1
    )
    np.testing.assert_allclose(np.sort(found), np.sort(values[:rank]), rtol=2e-3)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(rank), atol=1e-4)
    np.testing.assert_allclose(matrix @ vectors, vectors * found, atol=0.05)


def test_no_more_directions_than_there_are_dimensions():
    found, vectors = far_from_one(lambda rows: 3 * rows, 5, rank=64, seed=1)
    np.testing.assert_allclose(found, 3, rtol=1e-5)
    assert vectors.shape == (5, 5)
