"""Training: the terms of the evidence against TensorFlow Probability, the basis's symmetry, and
whole tiny runs, stopped and resumed.
"""

import json
from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import stats

from astrogen import priors, training
from astrogen.errors import RecordsError
from astrogen.priors.distributions import normals
from astrogen.priors.galaxy import residual_scale
from astrogen.training import galaxy, vae
from astrogen.training.basis import Basis, fit_basis, oriented, whiten
from astrogen.training.run import Run
from data_pipelines.__main__ import main
from data_pipelines.population import draw_galaxy

tfd = tfp.distributions
LATENT, WIDTHS, NUM_COMPONENTS, NUM_STEPS = 5, (24, 24), 20, 4


@pytest.fixture(scope="module")
def population():
    """The middle of sixty galaxies: a side of 24 pixels keeps the eigenproblem small."""
    return np.array([draw_galaxy(4, index).image for index in range(60)])[:, 20:44, 20:44]


@pytest.fixture(scope="module")
def basis(population):
    return fit_basis(population, num_components=NUM_COMPONENTS, seed=1)


# ---- the basis ----


def test_basis_is_orthonormal(basis):
    flat = basis[0].images.reshape(NUM_COMPONENTS, -1)
    np.testing.assert_allclose(flat @ flat.T, np.eye(NUM_COMPONENTS), atol=1e-5)


def test_basis_is_the_same_in_every_orientation(basis):
    """The space that it spans: what one orientation of a component leaves out of it.

    The last ones may be torn from their equals.
    """
    flat = basis[0].images.reshape(NUM_COMPONENTS, -1)
    for orientation in range(8):
        turned = oriented(basis[0].images[:10], orientation).reshape(10, -1)
        assert np.linalg.norm(turned - turned @ flat.T @ flat, axis=1).max() < 0.02


def test_orientations_are_the_eight_of_the_square(population):
    images = np.array([oriented(population[0], orientation) for orientation in range(8)])
    assert len(np.unique(images.reshape(8, -1), axis=0)) == 8
    for image in images:
        np.testing.assert_array_equal(np.sort(image.ravel()), np.sort(population[0].ravel()))
    np.testing.assert_array_equal(oriented(population[0], 4), population[0][:, ::-1])


def test_basis_holds_as_much_as_it_says(population, basis):
    """Its residual is the mean share of the power left out, about that of a singular value
    decomposition of the same galaxies in all orientations.
    """
    unit = np.concatenate(
        [oriented(population, orientation).reshape(len(population), -1) for orientation in range(8)]
    )
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    power = np.linalg.svd(unit, compute_uv=False) ** 2
    best = power[NUM_COMPONENTS:].sum() / power.sum()
    flat = basis[0].images.reshape(NUM_COMPONENTS, -1)
    assert best <= 1 - np.sum((unit @ flat.T) ** 2) / len(unit) < 1.3 * best
    assert basis[0].residual == pytest.approx(best, rel=0.3)


def test_coefficients_are_white_and_those_of_the_images(population, basis):
    basis, white = basis
    assert white.shape == (8, 60, NUM_COMPONENTS) and white.dtype == np.float16
    plain = whiten(population, basis)
    # The jitter of a fifth of a pixel moves fine components more than coarse ones.
    correlation = [
        np.corrcoef(plain[:, row], white[0, :, row].astype(float))[0, 1]
        for row in range(NUM_COMPONENTS)
    ]
    assert min(correlation[:5]) > 0.9
    second = (white.astype(float) ** 2).mean((0, 1))
    np.testing.assert_allclose(second, 1, atol=0.02)
    back = basis.mean + basis.std * plain
    unit = population.reshape(60, -1) / np.linalg.norm(
        population.reshape(60, -1), axis=1, keepdims=True
    )
    np.testing.assert_allclose(back, unit @ basis.images.reshape(NUM_COMPONENTS, -1).T, atol=1e-5)


def test_equal_seeds_give_equal_bases(population, basis):
    again, white = fit_basis(population, num_components=NUM_COMPONENTS, seed=1)
    np.testing.assert_array_equal(again.images, basis[0].images)
    np.testing.assert_array_equal(white, basis[1])


# ---- the evidence ----


def test_log_density_and_divergence_agree_with_their_formulas(rng):
    value, mean = rng.normal(size=(2, 7, 4)).astype(np.float32)
    sigma = rng.uniform(0.1, 3, (7, 4)).astype(np.float32)
    np.testing.assert_allclose(
        normals(mean, sigma).log_prob(value),
        stats.norm(mean, sigma).logpdf(value).sum(1),
        rtol=1e-4,
    )
    expected = 0.5 * (mean**2 + sigma**2 - 1 - 2 * np.log(sigma)).sum(1)
    np.testing.assert_allclose(vae.divergence_of(mean, sigma), expected, rtol=1e-4)


def test_the_evidence_is_summed_over_coefficients_and_not_over_galaxies(rng):
    """Both terms against the distributions that the networks stand for."""
    networks = vae.make_networks(9, latent=3, widths=(8,))
    white, noise, floor = (
        rng.normal(size=shape).astype(np.float32) for shape in ((6, 9), (6, 3), (9,))
    )
    floor = np.abs(floor)
    likelihood, divergence = vae.evidence_terms(networks, white, floor, noise)
    assert likelihood.shape == divergence.shape == (6,)
    mean, log_sigma = tf.split(networks.encoder(6 * tf.tanh(white / 6)), 2, -1)
    log_sigma = tf.clip_by_value(log_sigma, -8, 3)  # an untrained encoder reaches it
    centre, raw = tf.split(networks.decoder(mean + tf.exp(log_sigma) * noise), 2, -1)
    scale = (np.log1p(np.exp(raw.numpy() + np.log(np.e - 1))) + floor).astype(np.float32)
    np.testing.assert_allclose(
        likelihood, tfd.Normal(centre, scale).log_prob(white).numpy().sum(1), rtol=1e-4
    )
    standard = tfd.Normal(tf.zeros([6, 3]), 1.0)
    np.testing.assert_allclose(
        divergence,
        tf.reduce_sum(tfd.kl_divergence(tfd.Normal(mean, tf.exp(log_sigma)), standard), 1),
        rtol=1e-4,
        atol=1e-5,
    )


def test_the_evidence_is_a_bound(rng):
    """Of a linear decoder, whose evidence is a Gaussian integral; it is reached by the exact
    posterior and by no other.
    """
    num, latent = 6, 2
    networks = vae.make_networks(num, latent=latent, widths=())
    networks.decoder.hidden.clear()
    kernel, scale, white = (
        rng.normal(size=(latent, num)),
        rng.uniform(0.5, 1, num),
        0.1 * rng.normal(size=num),
    )
    covariance = kernel.T @ kernel + np.diag(scale**2)
    evidence = (
        tfd.MultivariateNormalFullCovariance(np.zeros(num), covariance).log_prob(white).numpy()
    )
    posterior = np.linalg.inv(np.eye(latent) + kernel @ np.diag(scale**-2) @ kernel.T)
    noise = rng.normal(size=(40000, latent))

    def bound(mean, sigma):
        centre = (mean + sigma * noise) @ kernel
        likelihood = normals(centre, scale).log_prob(white).numpy()
        return likelihood.mean() - float(vae.divergence_of(mean[None], sigma[None])[0])

    best = np.sqrt(1 / np.diag(np.linalg.inv(posterior)))  # of the independent normals, the closest
    mean = posterior @ kernel @ (white / scale**2)
    gap = 0.5 * np.log(np.prod(np.diag(np.linalg.inv(posterior))) * np.linalg.det(posterior))
    assert bound(mean, best) == pytest.approx(evidence - gap, abs=0.05)
    assert bound(mean + 0.5, best) < bound(mean, best) < evidence + 0.02


def test_residual_scale_is_positive_and_one_at_zero():
    raw = tf.constant([-50.0, 0.0, 50.0])
    np.testing.assert_allclose(
        residual_scale(raw, 0.01), [0.01, 1.01, 50 + np.log(np.e - 1) + 0.01], rtol=1e-5
    )


def test_aggregate_posterior_whitens_the_population(rng):
    """The latent of the population, drawn from the encoder's normals, is white after it."""
    keras.utils.set_random_seed(1)
    networks = vae.make_networks(8, latent=3, widths=(16,))
    # sigmas without long tails
    networks.encoder.last.kernel.assign(0.3 * networks.encoder.last.kernel)
    white = rng.normal(size=(8, 500, 8)).astype(np.float32)
    centre, factor = vae.aggregate_posterior(networks, white, seed=1, num=4000)
    mean, sigma = vae.encode(networks.encoder, white.reshape(-1, 8))
    latent = np.linalg.solve(
        factor, (mean + sigma * rng.normal(size=mean.shape).astype(np.float32) - centre).numpy().T
    )
    np.testing.assert_allclose(latent.mean(1), 0, atol=0.1)
    np.testing.assert_allclose(np.cov(latent), np.eye(3), atol=0.15)


def test_training_weighs_the_divergence_against_the_likelihood(tmp_path, monkeypatch):
    """A decoder that is deaf to the latent leaves the encoder nothing but its divergence, which
    falls from 1/2 mean^2 per latent towards nothing.
    """
    monkeypatch.setattr(vae, "BATCH", 16)
    monkeypatch.setattr(vae, "LEARNING_RATE", 0.25)
    networks = vae.make_networks(NUM_COMPONENTS, latent=LATENT, widths=(8,))
    decoder, encoder = networks.decoder, networks.encoder
    for layer in (decoder.hidden[0], encoder.last):
        layer.kernel.assign(tf.zeros_like(layer.kernel))
        layer.kernel.trainable = False
    encoder.last.bias.assign(np.repeat([2.0, 0.0], LATENT))
    white = np.random.default_rng(1).normal(size=(8, 20, NUM_COMPONENTS)).astype(np.float32)
    nought, one = np.float32([np.zeros(NUM_COMPONENTS), np.ones(NUM_COMPONENTS)])
    tf.config.run_functions_eagerly(True)  # XLA would compile for longer than this runs
    try:
        told = vae.train_vae(
            networks,
            Basis(None, nought, one, 0.0),
            white,
            Run(tmp_path, num_steps=12, seed=1),
            validation=white[0],
        )
    finally:
        tf.config.run_functions_eagerly(False)
    assert told["kl_divergence"] < 0.3 * 0.5 * 2.0**2 * LATENT


# ---- whole runs ----


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    directory = tmp_path_factory.mktemp("training") / "records"
    assert (
        main(["galaxies", "--num", "80", "--seed", "3", "--workers", "1", "--out", str(directory)])
        == 0
    )
    return directory


@pytest.fixture
def small(monkeypatch):
    """Networks and stamps that train in seconds."""
    load_images = galaxy.load_images

    def cropped(*arguments, **options):
        loaded = load_images(*arguments, **options)
        return {**loaded, "image": np.ascontiguousarray(loaded["image"][:, 20:44, 20:44])}

    monkeypatch.setattr(galaxy, "load_images", cropped)
    monkeypatch.setattr(
        galaxy, "make_networks", partial(vae.make_networks, latent=LATENT, widths=WIDTHS)
    )
    for name, value in (("LATENT", LATENT), ("WIDTHS", WIDTHS), ("NUM_COMPONENTS", NUM_COMPONENTS)):
        monkeypatch.setattr(galaxy, name, value)
    monkeypatch.setattr(vae, "BATCH", 32)
    monkeypatch.setattr(vae, "CHECKPOINT_EVERY", 2)
    tf.config.run_functions_eagerly(True)  # XLA would compile for longer than these runs take
    yield
    tf.config.run_functions_eagerly(False)


class StoppedError(Exception):
    pass


def _stopping(after):
    """Progress that ends the run in the middle of a step's bookkeeping."""

    class Progress(vae.tqdm):
        def update(self, num=1):
            super().update(num)
            if self.n > after:
                raise StoppedError

    return Progress


def test_a_training_run_writes_a_prior(records, small, tmp_path):
    weights = training.train_prior(
        "galaxy", records=records, out=tmp_path, num_steps=NUM_STEPS, seed=2
    )
    prior = priors.load_prior(weights)
    assert (prior.latent_size, prior.image_shape) == (LATENT, (24, 24))
    images = prior.sample(3, seed=1).numpy()
    assert np.isfinite(images).all()
    card = json.loads((weights / "card.json").read_text())
    assert card["training"]["records"]["num"] == 80 and card["training"]["num_steps"] == NUM_STEPS
    assert np.isfinite(
        [
            card["metrics"][name]
            for name in ("elbo", "log_likelihood", "kl_divergence", "basis_residual")
        ]
    ).all()
    assert card["metrics"]["elbo"] == pytest.approx(
        card["metrics"]["log_likelihood"] - card["metrics"]["kl_divergence"], rel=1e-4
    )
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "logs").glob("events.*"))
    assert str(tmp_path) not in (weights / "card.json").read_text()


def test_a_resumed_run_ends_with_the_same_weights(records, small, tmp_path, monkeypatch):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    training.train_prior("galaxy", records=records, out=whole, num_steps=NUM_STEPS, seed=2)
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(vae, "tqdm", _stopping(2))
        training.train_prior("galaxy", records=records, out=stopped, num_steps=NUM_STEPS, seed=2)
    assert not (stopped / "weights").exists()
    training.train_prior(
        "galaxy", records=records, out=stopped, num_steps=NUM_STEPS, seed=2, resume=True
    )
    expected, got = (
        priors.storage.read_weights(folder / "weights")[1] for folder in (whole, stopped)
    )
    for name, arrays in expected.items():
        for key, value in arrays.items():
            np.testing.assert_array_equal(got[name][key], value, err_msg=f"{name}/{key}")


def test_a_strategy_of_one_device_changes_nothing(records, small, tmp_path):
    """The whole road; what several devices do is in test_replicas.py."""
    folders = {"plain": None, "strategy": tf.distribute.OneDeviceStrategy("CPU:0")}
    weights = [
        training.train_prior(
            "galaxy", records=records, out=tmp_path / name, num_steps=2, seed=2, strategy=strategy
        )
        for name, strategy in folders.items()
    ]
    plain, other = (priors.storage.read_weights(folder)[1]["decoder"] for folder in weights)
    for key, value in plain.items():
        np.testing.assert_allclose(other[key], value, atol=1e-5, err_msg=key)


def test_a_run_of_other_records_or_seed_is_not_resumed(records, small, tmp_path):
    training.train_prior("galaxy", records=records, out=tmp_path, num_steps=2, seed=2)
    with pytest.raises(
        RecordsError,
        match=(
            "train_galaxy: records and seed must be those of the run in .* seed 2.*, got .* seed 3;"
            " resume with those"
        ),
    ):
        training.train_prior(
            "galaxy", records=records, out=tmp_path, num_steps=2, seed=3, resume=True
        )


def test_training_learns(records, small, tmp_path, monkeypatch):
    """Forty hasty steps raise the evidence of the galaxies that they see by nats per galaxy.

    (On four held-out ones, eighty galaxies are soon overfitted.)
    """
    load_images = galaxy.load_images
    monkeypatch.setattr(
        galaxy, "load_images", lambda records, split: load_images(records, split="train")
    )
    monkeypatch.setattr(vae, "LEARNING_RATE", 1e-2)
    monkeypatch.setattr(vae, "CHECKPOINT_EVERY", 100)
    values = []
    for num_steps in (1, 40):
        weights = training.train_prior(
            "galaxy", records=records, out=tmp_path / str(num_steps), num_steps=num_steps, seed=2
        )
        values.append(json.loads((weights / "card.json").read_text())["metrics"]["elbo"])
    assert values[1] > values[0] + 2, values


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("stars", {}, "train_prior: name must be 'galaxy', 'galaxy-conv', 'kappa', got 'stars'"),
        (
            "galaxy-conv",
            {"real": "folder"},
            "train_prior: real must be None for 'galaxy-conv', got 'folder'",
        ),
    ],
    ids=["name", "real"],
)
def test_what_cannot_be_trained_is_refused(tmp_path, name, options, message):
    with pytest.raises(ValueError, match=message):
        training.train_prior(name, records=tmp_path, out=tmp_path, num_steps=1, **options)
