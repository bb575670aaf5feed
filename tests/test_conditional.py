"""Many draws at once against the model for one set of parameters, which tests/test_posterior.py
checks against dense Gaussians.
"""

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT
from scipy.sparse import linalg
from test_posterior import make_case, places

from astrogen import load_prior
from astrogen.data.observation import read_planes
from astrogen.demo import galaxies as demo
from astrogen.galaxies import conditional, plans, posterior
from astrogen.galaxies import deconvolve as deconvolution
from astrogen.inference import diagnostics, draw_gaussian, find_map, gaussian_log_density, resample

NUM_DRAWS = 120


@pytest.fixture(scope="module")
def tiny():
    return make_case(np.random.default_rng(1))


def at_places(case, num=7):
    """Parameters [draw, batch, p], other ones for each object, and standard normals for them."""
    batch = case.compressed.data.shape[0]
    parameters = tf.constant(places(case, num * batch).reshape(num, batch, -1), tf.float32)
    size = case.prior.coefficient_std.shape[0] + case.compressed.data.shape[1] + 1
    return parameters, tf.constant(
        np.random.default_rng(2).normal(size=(num, batch, size)), tf.float32
    )


def one_by_one(prior, compressed, parameters, normals):
    """Log-densities, coefficients and background by `posterior`, draw by draw."""
    density, _ = posterior.target(prior)
    values = np.stack([density(some, compressed) for some in parameters])
    drawn, level = zip(
        *(
            posterior.draw_coefficients(prior, compressed, *pair)
            for pair in zip(parameters, normals, strict=True)
        ),
        strict=True,
    )
    return values, np.stack(drawn), np.stack(level)


@pytest.mark.parametrize("chunk", [50, 3], ids=["one chunk", "chunks, the last not full"])
def test_nothing_is_approximated_where_all_directions_are_followed(tiny, chunk, monkeypatch):
    monkeypatch.setattr(conditional, "CHUNK", chunk)
    conditional._evaluators.cache_clear()
    parameters, normals = at_places(tiny)
    values, coefficients, level = one_by_one(tiny.prior, tiny.compressed, parameters, normals)
    here = conditional.focus(tiny.prior, tiny.compressed, parameters[0])
    ours, decoded = conditional.log_densities(tiny.prior, here, parameters)
    np.testing.assert_allclose(ours, values, rtol=1e-5, atol=1e-3)
    drawn, background, followed = conditional.draw_coefficients(
        tiny.prior, tiny.compressed, here, parameters, normals
    )
    np.testing.assert_allclose(drawn, coefficients, atol=2e-3 * np.abs(coefficients).max())
    again, *_ = conditional.draw_coefficients(
        tiny.prior, tiny.compressed, here, parameters, normals, decoded
    )
    np.testing.assert_allclose(again, drawn, rtol=1e-5, atol=1e-5 * np.abs(coefficients).max())
    np.testing.assert_allclose(background, level, atol=1e-3 * np.abs(level).max())
    seen = np.stack([posterior.seen_by(tiny.compressed, some) for some in coefficients])
    np.testing.assert_allclose(followed, seen.var(0).sum(-1), rtol=1e-2)


def test_equations_are_solved_as_scipy_does_where_few_directions_are_followed(monkeypatch):
    """Two steps of conjugate gradients, preconditioned by what is followed whole and by the
    diagonal of the rest: the same search directions give the same quadratic form.
    """
    case = make_case(np.random.default_rng(5), num=14, latent=4, flux=30.0)
    followed = 3
    monkeypatch.setattr(conditional, "NUM_FOLLOWED", followed)
    monkeypatch.setattr(conditional, "NUM_STEPS", 2)
    parameters, _ = at_places(case, 2)
    here = conditional.focus(case.prior, case.compressed, parameters[0])
    batch, rows, size = here.forward.shape
    rng = np.random.default_rng(6)
    loud = np.linalg.norm(here.forward, axis=1)[:, None]  # residuals above the noise
    scale = rng.uniform(1.0, 3.0, (batch, 1, size)) / loud
    miss = rng.normal(size=(batch, 1, rows))
    nothing = tf.zeros([batch, 1, 1])
    draws = conditional.spread(here, nothing, tf.constant(scale, tf.float32), nothing)
    found = conditional.log_normal(here, draws, tf.constant(miss, tf.float32)).numpy()
    for row in range(batch):
        root = here.forward[row].numpy().astype(float) * scale[row, 0]
        covariance = root @ root.T + np.eye(rows)
        near = np.diag(np.diag(covariance))
        near[:followed, :followed] = covariance[:followed, :followed]
        solved, _ = linalg.cg(
            covariance, miss[row, 0], maxiter=2, rtol=0, atol=0, M=np.linalg.inv(near)
        )
        exact = miss[row, 0] @ np.linalg.solve(covariance, miss[row, 0])
        form = miss[row, 0] @ solved
        assert 0.001 < 1 - form / exact < 0.5  # two steps are not enough to be exact
        expected = -0.5 * (form + np.linalg.slogdet(near)[1])
        assert found[row, 0] == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_an_object_without_a_finite_mode_does_not_harm_the_others(tiny):
    parameters, normals = at_places(tiny)
    broken = parameters[0].numpy()
    broken[0] = np.nan
    here = conditional.focus(tiny.prior, tiny.compressed, tf.constant(broken))
    values, *_ = one_by_one(tiny.prior, tiny.compressed, parameters, normals)
    np.testing.assert_allclose(
        conditional.log_densities(tiny.prior, here, parameters)[0][:, 1:],
        values[:, 1:],
        rtol=1e-5,
        atol=1e-3,
    )


@pytest.fixture(scope="module")
def galaxies():
    """Shipped prior and stamps of the demonstration, the approximation in earnest: (prior,
    compressed, climb, proposals, seeds).
    """
    folder = ROOT / "astrogen" / "demo" / "data"
    prior = load_prior("galaxy")
    stamps = demo._cut_out(
        folder / "exposure.fits", read_planes(folder / "truth.fits")[2]["CATALOGUE"]
    )[:4]
    planned = [plans.plan_of(stamp, (1, number), prior, 0.1) for number, stamp in enumerate(stamps)]
    compressed = deconvolution._compress(
        sorted(planned, key=lambda plan: plan.kernel_key), prior, {}, "fit"
    )
    climb = find_map(*posterior.target(prior), compressed, posterior.start(prior, compressed))
    seeds = np.array([plan.seed for plan in planned], np.int32)
    return prior, compressed, climb, draw_gaussian(climb, num_draws=NUM_DRAWS, seed=seeds), seeds


def test_real_sizes(galaxies):
    """More directions than are followed: weights and draws must be those of the exact model, far
    within their own scatter.
    """
    prior, compressed, climb, proposals, seeds = galaxies
    assert compressed.data.shape[1] > conditional.NUM_FOLLOWED
    size = prior.coefficient_std.shape[0] + compressed.data.shape[1] + 1
    normals = tf.constant(
        np.random.default_rng(2).normal(size=(NUM_DRAWS, len(seeds), size)), tf.float32
    )
    exact = tf.map_fn(
        tf.function(lambda some: posterior.target(prior)[0](some, compressed)), proposals
    ).numpy()
    here = conditional.focus(prior, compressed, climb.parameters)
    near = conditional.log_densities(prior, here, proposals)[0].numpy()
    log_weights = exact - gaussian_log_density(climb, proposals).numpy()
    heavy = log_weights > np.median(log_weights, 0)
    off = near - exact
    off -= np.nanmedian(np.where(heavy, off, np.nan), axis=0)
    # nats; the weights themselves scatter by several
    assert np.sqrt((off[heavy] ** 2).mean()) < 0.15
    chosen = resample(diagnostics.smooth_weights(log_weights)[0], num_draws=NUM_DRAWS, seed=seeds)
    parameters = tf.constant(np.take_along_axis(proposals.numpy(), chosen[..., None], 0))
    drawn = conditional.draw_coefficients(prior, compressed, here, parameters, normals)[0].numpy()
    rival = tf.map_fn(
        tf.function(lambda pair: posterior.draw_coefficients(prior, compressed, *pair)[0]),
        (parameters, normals),
        fn_output_signature=tf.float32,
    ).numpy()
    assert np.sqrt(((drawn - rival) ** 2).mean(0) / rival.var(0)).max() < 0.15
