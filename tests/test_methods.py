"""The table of methods against closed forms, kernels of TensorFlow Probability among them."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from conftest import ROOT
from test_inference import (
    Stamps,
    assert_draws_follow,
    banana,
    banana_curvature,
    cauchy,
    cauchy_curvature,
    climb_of,
    linear_log_density,
    linear_posterior,
    linear_stamps,
)

from astrogen.inference import Sampling, find_map, kernels, methods
from astrogen.inference.contracts import Drawn, Settings, Target
from astrogen.inference.vi import fit_normal


def parameters_of(parameters, evidence, seeds):
    return parameters.numpy()


def target_of(log_density_fn, evidence):
    def weigh(parameters, evidence):
        return log_density_fn(parameters, evidence), (2 * parameters,)

    return Target(log_density_fn, weigh, parameters_of, evidence)


def seeds_of(num):
    return np.stack([np.arange(num), np.full(num, 3)], 1).astype(np.int32)


def one_kernel(target_log_prob_fn, num_burnin):
    """Another's kernel, adapted as another adapts it."""
    return tfp.mcmc.SimpleStepSizeAdaptation(
        tfp.mcmc.HamiltonianMonteCarlo(target_log_prob_fn, step_size=0.5, num_leapfrog_steps=4),
        num_adaptation_steps=num_burnin,
    )


@pytest.mark.parametrize("method", ["laplace", "hmc", "vi", "auto", one_kernel])
def test_draws_are_those_of_the_exact_posterior(rng, method):
    stamps = linear_stamps(rng, 3)
    mean, covariance = linear_posterior(stamps)
    drawn = methods.draw(
        method,
        target_of(linear_log_density, stamps),
        climb_of(stamps),
        seeds_of(3),
        Settings(1600),
    )
    assert drawn.draws.shape == (1600, 3, 5)
    assert_draws_follow(drawn.draws, mean, covariance, num_effective=500)
    expected = {"auto": "laplace", one_kernel: "one_kernel"}.get(method, method)
    assert drawn.methods.tolist() == [expected] * 3
    told = drawn.diagnostics
    if "k_hat" in told:
        assert (told["k_hat"] < 0.2).all() and (told["k_hat_error"] < 0.15).all()
        np.testing.assert_allclose(drawn.made[0], 2 * drawn.draws)
    else:
        assert (told["r_hat"] < 1.02).all() and (told["accept_rate"] > 0.5).all()


def test_the_mode_is_all_that_map_draws(rng):
    stamps = linear_stamps(rng, 2)
    climb = climb_of(stamps)
    target = target_of(linear_log_density, stamps)
    drawn = methods.draw("map", target, climb, seeds_of(2), Settings(9))
    np.testing.assert_array_equal(drawn.draws, np.repeat(climb.parameters.numpy()[None], 9, 0))


@pytest.mark.parametrize("method", ["hmc", "vi", one_kernel])
def test_draws_do_not_depend_on_the_batch(rng, method):
    stamps, settings = linear_stamps(rng, 3), Settings(16, Sampling(num_burnin=10))
    target, climb, seeds = target_of(linear_log_density, stamps), climb_of(stamps), seeds_of(3)
    together = methods.draw(method, target, climb, seeds, settings)
    rows = np.array([1])
    alone = methods.draw(
        method, methods.target_of(target, rows), methods.take(climb, rows), seeds[rows], settings
    )
    np.testing.assert_allclose(alone.draws[:, 0], together.draws[:, 1], atol=2e-2)


# ---- auto ----


def test_auto_decides_where_k_hat_is_stable(monkeypatch):
    """Near the limit k-hat is taken again, from 1500 proposals; those above 0.7 (Vehtari et al.
    2024, section 3.2.4) then, and no others, are sampled.
    """
    first = np.array([0.1, 0.72, 0.60, np.inf, 0.69, 3.0])
    again = {0.72: 0.5, 0.60: 0.9, 0.69: 0.65}
    asked = {"laplace": [], "hmc": []}

    def weighted(target, climb, seeds, settings, *, num_proposals=None):
        k_hat = climb[0].numpy().astype(float)
        if num_proposals == 1500:
            asked["laplace"].extend(np.round(k_hat, 2))
            k_hat = np.array([again[value] for value in np.round(k_hat, 2)])
        told = {"k_hat": k_hat, "k_hat_error": np.full(len(seeds), 0.2)}
        names = np.full(len(seeds), "laplace", dtype=object)
        told["k_hat"] = np.round(k_hat, 2)
        return Drawn(np.zeros((8, len(seeds), 2)), told, names, ())

    def sampled(target, climb, seeds, settings):
        asked["hmc"].extend(np.round(climb[0].numpy().astype(float), 2))
        names = np.full(len(seeds), "hmc", dtype=object)
        return Drawn(np.ones((8, len(seeds), 2)), {"r_hat": np.ones(len(seeds))}, names)

    monkeypatch.setattr(methods, "draw_laplace", weighted)
    monkeypatch.setattr(methods, "draw_hmc", sampled)
    target = Target(None, None, None, (tf.zeros([6]),))
    climb = (tf.constant(first, tf.float32),)
    drawn = methods.draw_auto(target, climb, seeds_of(6), Settings(8))
    assert set(asked["laplace"]) == {0.72, 0.6, 0.69}
    assert set(asked["hmc"]) == {0.6, np.inf, 3.0}
    assert (drawn.methods == "hmc").tolist() == [False, False, True, True, False, True]
    np.testing.assert_array_equal(drawn.draws[0, :, 0], [0, 0, 1, 1, 0, 1])
    np.testing.assert_array_equal(np.isfinite(drawn.diagnostics["r_hat"]), drawn.draws[0, :, 0])
    np.testing.assert_array_equal(
        drawn.diagnostics["k_hat"], [0.1, 0.5, np.nan, np.nan, 0.65, np.nan]
    )


def test_chains_go_on_until_they_agree(rng):
    """A whitening that is ten times too narrow in one direction makes chains crawl along it: those
    objects, and no others, take more rounds, and end in the right posterior.
    """
    size = 3
    stamps = Stamps(tf.zeros([4, size]), tf.tile(tf.eye(size)[None], [4, 1, 1]))
    climb = climb_of(stamps)
    slow = np.tile(np.eye(size, dtype=np.float32), [4, 1, 1])
    slow[1, 0, 0] = slow[3, 0, 0] = 100.0
    drawn = methods.draw(
        "hmc",
        target_of(linear_log_density, stamps),
        climb._replace(precision=climb.precision * slow),
        seeds_of(4),
        Settings(400),
    )
    told = drawn.diagnostics
    assert (told["rounds"][[1, 3]] > 1).all() and (told["rounds"][[0, 2]] <= 2).all()
    assert (told["r_hat"] <= 1.02).all()
    assert (told["num_gradients"][[1, 3]] > 2 * told["num_gradients"][0]).all()
    assert_draws_follow(drawn.draws, *linear_posterior(stamps), num_effective=80)


def test_rounds_end_where_they_do_not_help():
    """Two hills that no chain leaves."""

    def hills(parameters, height):
        x = parameters[..., 0]
        return height + tf.reduce_logsumexp(tf.stack([-50 * (x - 8) ** 2, -50 * (x + 8) ** 2]), 0)

    climb = climb_of(Stamps(tf.zeros([1, 1]), tf.ones([1, 1, 1])))
    climb = climb._replace(precision=tf.constant([[[0.04]]]))
    settings = Settings(8, Sampling(num_burnin=10), max_rounds=2)
    drawn = methods.draw("hmc", target_of(hills, tf.zeros([1])), climb, seeds_of(1), settings)
    assert drawn.diagnostics["r_hat"][0] > 1.05 and drawn.diagnostics["rounds"][0] == 2


# ---- a normal that is fitted ----


def test_where_the_posterior_is_normal_nothing_is_left_to_fit(rng):
    """The gradient along the path has no noise there."""
    stamps = linear_stamps(rng, 2)
    mean, covariance = linear_posterior(stamps)
    fitted, factor = fit_normal(linear_log_density, climb_of(stamps), stamps, seed=[1, 2])
    width = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    np.testing.assert_allclose((fitted - mean) / width, 0, atol=0.02)
    np.testing.assert_allclose(
        (factor @ tf.linalg.matrix_transpose(factor)) / (width[:, :, None] * width[:, None]),
        covariance / (width[:, :, None] * width[:, None]),
        atol=0.03,
    )


def test_the_fit_finds_the_place_and_width_of_a_skewed_density():
    """exp(-x - exp(-x)): of normals the nearest has mean m and variance v with exp(-m + v / 2) = 1
    and v = 1, by setting the bound's derivatives to zero; the Laplace approximation has m = 0.
    """

    def gumbel(parameters, _):
        return tf.reduce_sum(-parameters - tf.exp(-parameters), -1)

    climb = climb_of(Stamps(tf.zeros([1, 2]), tf.zeros([1, 2, 2])))
    mean, factor = fit_normal(gumbel, climb, tf.zeros([1]), seed=[1, 2], num_steps=800)
    np.testing.assert_allclose(mean, 0.5, atol=0.06)
    np.testing.assert_allclose(tf.linalg.diag_part(factor), 1.0, atol=0.06)


@pytest.mark.parametrize(
    "log_density_fn, curvature_fn",
    [(banana, banana_curvature), (cauchy, cauchy_curvature)],
    ids=["banana", "heavy-tails"],
)
def test_k_hat_warns_where_no_normal_fits(log_density_fn, curvature_fn):
    evidence = tf.constant([1.5])
    climb = find_map(log_density_fn, curvature_fn, evidence, tf.zeros([1, 10]), tolerance=1e-5)
    drawn = methods.draw("vi", target_of(log_density_fn, evidence), climb, seeds_of(1), Settings())
    assert drawn.diagnostics["k_hat"][0] > 0.7


# ---- kernels ----


def test_our_kernel_runs_in_their_loops_with_their_adaptation(rng):
    stamps = linear_stamps(rng, 1)
    mean, covariance = linear_posterior(stamps)
    factor = tf.constant(np.linalg.cholesky(covariance), tf.float32)

    def density(white):
        place = tf.constant(mean, tf.float32) + tf.linalg.matvec(factor, white)
        return linear_log_density(place, stamps)[:, 0]

    kernel = tfp.mcmc.SimpleStepSizeAdaptation(
        kernels.Hamiltonian(lambda white: density(white[:, None]), 0.2), num_adaptation_steps=60
    )
    assert kernel.is_calibrated
    draws = tf.function(tfp.mcmc.sample_chain, autograph=False)(
        400, tf.zeros([4, 5]), kernel=kernel, num_burnin_steps=80, trace_fn=None, seed=[1, 2]
    )
    flat = draws.numpy().reshape(-1, 5)
    np.testing.assert_allclose(flat.mean(0), 0, atol=0.15)
    np.testing.assert_allclose(np.cov(flat.T), np.eye(5), atol=0.15)


def test_a_new_name_is_refused_and_says_what_there_is():
    with pytest.raises(ValueError, match="f: method must be one of .*'vi', 'auto'.*, got 'best'"):
        methods.check_method("f", "best")


def test_the_laplace_approximation_does_without_tensorflow_probability():
    """Its import costs half a second."""
    program = (
        "import sys, astrogen.galaxies.deconvolve, astrogen.galaxies.deblend;"
        "print([name for name in sys.modules if name.startswith('tensorflow_probability')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "[]", done.stderr[-500:]
