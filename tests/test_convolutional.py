"""The convolutional prior: derivatives against central differences, scales against scipy, every
method through the contract, a training that is interrupted.
"""

import shutil

import galsim
import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

import astrogen
from astrogen.priors import load_prior
from astrogen.priors.convolutional import ConvPrior, make_networks
from astrogen.priors.galaxy import Population
from astrogen.priors.networks import ResidualMLP
from astrogen.training import convolutional, train_prior
from astrogen.training.basis import Basis
from astrogen.training.galaxy import write_basis
from astrogen.training.records import read_manifest
from astrogen.training.run import Run
from data_pipelines.__main__ import main

NUM = 24  # components of the small priors
SMALL = {
    "latent": 5,
    "width": 16,
    "encoder_channels": [4, 4, 4],
    "decoder_channels": [6, 5, 4],
    "spread_widths": [8],
    "side": 64,
}


@pytest.fixture(scope="module")
def basis():
    """The first components of the shipped basis."""
    shipped = load_prior("galaxy")
    return Basis(
        shipped.basis.numpy()[:NUM],
        shipped.coefficient_mean.numpy()[:NUM],
        shipped.coefficient_std.numpy()[:NUM],
        0.01,
    )


@pytest.fixture(scope="module")
def untrained(basis):
    """Random networks, made rougher than those that training starts from."""
    keras.utils.set_random_seed(3)
    networks = make_networks(SMALL, NUM)
    rng = np.random.default_rng(5)
    for network in networks.values():
        network.set_weights(
            [
                weight + 0.1 * rng.standard_normal(weight.shape).astype(np.float32)
                for weight in network.get_weights()
            ]
        )
    factor = np.linalg.cholesky(np.cov(rng.normal(size=(5, 40))))
    return ConvPrior(
        name="untrained",
        population=Population(
            basis=basis.images,
            coefficient_mean=basis.mean,
            coefficient_std=basis.std,
            log_amplitude=(0, 1),
            tilt=0.0,
            pixel_scale=0.1,
            target_fwhm=0.2,
        ),
        networks=networks,
        residual_std=0.1 * basis.std,
        whitening=(rng.normal(size=5), factor),
        floor=1e-3,
        card={},
    )


def _latents(num, size, seed=1):
    return tf.random.stateless_normal([num, size], [seed, 0])


# The prior


def test_jacobian_agrees_with_central_differences(untrained):
    latent = _latents(3, 5)
    mean, scale, mean_slope, scale_slope = untrained.components_and_jacobian(latent)
    np.testing.assert_allclose(mean, untrained.components(latent)[0], atol=1e-5)
    np.testing.assert_allclose(scale, untrained.components(latent)[1], atol=1e-5)
    for direction in range(5):
        step = 1e-2 * tf.one_hot(direction, 5)
        ahead, behind = untrained.components(latent + step), untrained.components(latent - step)
        for slope, up, down in zip((mean_slope, scale_slope), ahead, behind, strict=True):
            np.testing.assert_allclose(
                slope[:, direction], (up - down) / 0.02, atol=2e-3 * np.abs(slope).max()
            )


def test_the_mean_is_the_projected_image(untrained):
    latent = _latents(2, 5)
    image = untrained.decoder(
        untrained.whitening_mean + latent @ tf.transpose(untrained.whitening_factor)
    ).numpy()
    by_hand = np.einsum("nyx,kyx->nk", image, untrained.basis)
    np.testing.assert_allclose(untrained.components(latent)[0], by_hand, atol=1e-5)
    np.testing.assert_allclose(
        untrained.decode(latent), np.einsum("nk,kyx->nyx", by_hand, untrained.basis), atol=1e-5
    )


def test_galaxies_together_equal_each_alone(untrained):
    latent = _latents(4, 5)
    together = untrained.components_and_jacobian(latent)
    for row in range(4):
        for all_, alone in zip(
            together, untrained.components_and_jacobian(latent[row : row + 1]), strict=True
        ):
            np.testing.assert_allclose(all_[row], alone[0], rtol=1e-4, atol=1e-5)


def test_guess_is_in_the_whitened_space(untrained):
    coefficients = (
        tf.constant(np.random.default_rng(2).normal(size=(3, NUM)), tf.float32)
        * untrained.coefficient_std
    )
    mean = untrained.encoder(untrained.images(coefficients))[:, :5]
    coloured = untrained.whitening_mean + tf.matmul(
        untrained.guess(coefficients), untrained.whitening_factor, transpose_b=True
    )
    np.testing.assert_allclose(coloured, mean, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def shipped():
    return load_prior("galaxy-conv")


def test_shipped_prior_draws_galaxies(shipped):
    images = shipped.sample(64, seed=1).numpy()
    assert images.shape == (64, 64, 64) and np.isfinite(images).all()
    np.testing.assert_allclose(images.sum((1, 2)), 1, atol=1e-4)
    np.testing.assert_array_equal(images, shipped.sample(64, seed=1))
    row = np.arange(64) - 31.5
    weight = np.exp(-0.5 * (row[:, None] ** 2 + row**2) / 2.5**2)
    light = (images * weight).mean(0)
    # centred on pixel (32, 32), or between
    assert (
        abs((light * row).sum() / light.sum()) < 0.7
        and abs((light * row[:, None]).sum() / light.sum()) < 0.7
    )
    # bright in the middle
    assert (images * weight > 0.3 * images.max((1, 2), keepdims=True)).any((1, 2)).mean() > 0.9


def test_decoded_images_lie_in_the_basis(shipped):
    """Projection costs the decoder nothing: what of its images lies outside the basis is less than
    0.1 % of their power.
    """
    coloured = shipped.whitening_mean + _latents(32, shipped.latent_size) @ tf.transpose(
        shipped.whitening_factor
    )
    image = shipped.decoder(coloured).numpy()
    outside = image - shipped.images(shipped.project(image)).numpy()
    assert np.median((outside**2).sum((1, 2)) / (image**2).sum((1, 2))) < 1e-3


@pytest.mark.parametrize("method", ["map", "laplace", "hmc"])
def test_every_method_recovers_a_simulated_galaxy(shipped, method):
    profile, light = (
        galsim.Moffat(beta=3, fwhm=0.7),
        galsim.Sersic(1.5, half_light_radius=0.4).shear(g1=0.2),
    )
    psf = astrogen.make_psf(profile.drawImage(nx=33, ny=33, scale=0.2).array, pixel_scale=0.2)
    clean = galsim.Convolve(light, profile).drawImage(nx=40, ny=40, scale=0.2).array.astype(float)
    sigma = np.sqrt((clean**2).sum()) / 60
    rng = np.random.default_rng(4)
    observations = [
        astrogen.make_observation(
            clean + sigma * rng.standard_normal(clean.shape),
            psf=psf,
            sigma=sigma,
            pixel_scale=0.2,
            name=name,
        )
        for name in "ab"
    ]
    truth = (
        galsim.Convolve(light, galsim.Gaussian(fwhm=0.2))
        .drawImage(nx=64, ny=64, scale=0.1, method="no_pixel")
        .array
    )
    for result in astrogen.deconvolve(
        observations,
        prior=shipped,
        method=method,
        num_draws=16,
        num_chains=2,
        seed=1,
        background="fixed",
    ):
        assert result.draws.shape == (16, 64, 64)
        assert ((result.image - truth) ** 2).sum() / (truth**2).sum() < 0.05
        assert result.flux[0] == pytest.approx(1, abs=0.08)
        assert 0.7 < result.chi2 < 1.4
        assert result.provenance["prior"] == "galaxy-conv"


# Training


def test_evidence_is_that_of_scipy(basis):
    networks, rng = make_networks(SMALL, NUM), np.random.default_rng(7)
    noise = convolutional.PixelNoise(5, rng.uniform(0.01, 0.1, (64, 64)).astype(np.float32))
    images, normals = (
        rng.normal(size=(2, 64, 64)).astype(np.float32),
        rng.normal(size=(2, 5)).astype(np.float32),
    )
    likelihood, divergence = convolutional.evidence_terms(
        networks, noise, tf.constant(images), tf.constant(normals)
    )
    mean, sigma = (x.numpy() for x in convolutional.encode(networks["encoder"], images))
    latent = mean + sigma * normals
    expected = stats.norm.logpdf(
        images, networks["decoder"](latent), noise(latent).numpy().astype(float)
    ).sum((1, 2))
    np.testing.assert_allclose(likelihood, expected, rtol=1e-4)
    np.testing.assert_allclose(
        divergence, (0.5 * (mean**2 + sigma**2 - 1) - np.log(sigma)).sum(1), rtol=1e-4
    )


def test_the_painted_galaxy_is_that_of_the_coefficients(basis):
    white = np.random.default_rng(8).normal(size=(3, NUM)).astype(np.float32)
    np.testing.assert_allclose(
        convolutional.paint(basis, white),
        np.einsum("nk,kyx->nyx", basis.mean + basis.std * white, basis.images),
        atol=1e-5,
    )


def test_the_residual_is_learned_with_the_latent(monkeypatch):
    """Residuals whose true scale is known: it is found, also where the latent decides it."""
    monkeypatch.setattr(convolutional, "SPREAD_STEPS", 400)
    rng = np.random.default_rng(9)
    latent = rng.normal(size=(4000, 3)).astype(np.float32)
    true = 0.05 * np.exp(0.5 * latent[:, :1]) * np.array([1, 2, 4])
    residual = (true * rng.standard_normal(true.shape)).astype(np.float32)
    keras.utils.set_random_seed(1)
    spread = ResidualMLP(3, [16], 3)
    std, told = convolutional.fit_spread(
        spread, latent[:3000], residual[:3000], held_out=(latent[3000:], residual[3000:]), seed=1
    )
    found = (
        std * convolutional.residual_scale(spread(latent[3000:]), convolutional.FLOOR / std).numpy()
    )
    error = np.log(found / true[3000:])
    # without the latent the scatter is 0.5
    assert np.std(error) < 0.15 and abs(np.mean(error)) < 0.1
    assert told["residual_level_held_out"] == pytest.approx(1, abs=0.1)


def test_training_weighs_the_divergence_against_the_likelihood(basis, tmp_path, monkeypatch):
    """A decoder that is deaf to the latent leaves the encoder nothing but its divergence, which
    falls from 1/2 mean^2 per latent towards nothing.
    """
    monkeypatch.setattr(convolutional, "BATCH", 2)
    monkeypatch.setattr(convolutional, "LEARNING_RATE", 0.25)
    networks = make_networks(SMALL, NUM)
    noise = convolutional.PixelNoise(5, np.full((64, 64), 0.05, np.float32))
    encoder, decoder = networks["encoder"], networks["decoder"]
    first = next(weight for weight in decoder.trainable_variables if weight.shape[0] == 5)
    for weight in (first, noise.level.hidden[0].kernel, encoder.last.kernel):
        weight.assign(tf.zeros_like(weight))
        weight.trainable = False
    encoder.last.bias.assign(np.repeat([2.0, 0.0], 5))
    flat = np.random.default_rng(1).normal(size=(16, NUM)).astype(np.float32)
    tf.config.run_functions_eagerly(True)  # tracing takes longer than these steps
    try:
        told = convolutional.train_pixels(
            networks, noise, basis, flat, Run(tmp_path, num_steps=12, seed=1), validation=flat[:2]
        )
    finally:
        tf.config.run_functions_eagerly(False)
    assert told["kl_divergence"] < 0.3 * 0.5 * 2.0**2 * 5


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    directory = tmp_path_factory.mktemp("records")
    assert not main(
        ["galaxies", "--num", "60", "--seed", "1", "--out", str(directory), "--workers", "1"]
    )
    return directory


@pytest.fixture
def tiny(basis, records, monkeypatch, tmp_path):
    """A recipe of seconds, and a folder where the basis has been found already."""
    for name, value in {
        "SHAPE": SMALL,
        "BATCH": 8,
        "CHECKPOINT_EVERY": 3,
        "SPREAD_STEPS": 5,
        "SPREAD_BATCH": 8,
        "NUM_RESIDUALS": 32,
        "NUM_VALIDATION": 8,
    }.items():
        monkeypatch.setattr(convolutional, name, value)
    white = np.random.default_rng(6).normal(size=(8, 40, NUM)).astype(np.float16)
    write_basis(tmp_path, basis, white, f"{read_manifest(records)['sha256']} seed 1")
    return tmp_path


def test_a_resumed_training_ends_where_an_uninterrupted_one_does(tiny, records, monkeypatch):
    other = shutil.copytree(tiny, tiny / "interrupted")
    whole = train_prior("galaxy-conv", records=records, out=tiny, num_steps=6, seed=1, resume=True)
    some = convolutional._some

    def stops(flat, num, seed):
        if seed == [1, 4] and num == convolutional.BATCH:
            raise KeyboardInterrupt
        return some(flat, num, seed)

    monkeypatch.setattr(convolutional, "_some", stops)
    with pytest.raises(KeyboardInterrupt):
        train_prior("galaxy-conv", records=records, out=other, num_steps=6, seed=1, resume=True)
    monkeypatch.setattr(convolutional, "_some", some)
    resumed = train_prior(
        "galaxy-conv", records=records, out=other, num_steps=6, seed=1, resume=True
    )
    first, second = load_prior(whole), load_prior(resumed)
    latent = _latents(3, 5)
    for one, two in zip(first.components(latent), second.components(latent), strict=True):
        # weights are kept in half precision
        np.testing.assert_allclose(one, two, rtol=2e-2, atol=1e-4)
    assert first.name == "galaxy-conv" and first.card["training"]["num_steps"] == 6
    assert (tiny / "sheet.png").stat().st_size > 1000 and list((tiny / "logs").iterdir())


def test_training_starts_from_the_mean_galaxy(basis):
    networks = make_networks(SMALL, NUM)
    convolutional._start_from(
        networks, basis, np.random.default_rng(1).normal(size=(4000, NUM)).astype(np.float32)
    )
    mean = np.einsum("k,kyx->yx", basis.mean, basis.images)
    np.testing.assert_allclose(networks["decoder"].bias, mean, atol=0.05 * mean.max())


@pytest.mark.parametrize(
    "name, real, demand",
    [
        ("galaxies", None, "name must be 'galaxy', 'galaxy-conv', 'kappa', got 'galaxies'"),
        ("galaxy-conv", "DIR", "real must be None for 'galaxy-conv', got 'DIR'"),
    ],
    ids=["name", "real"],
)
def test_wrong_options_are_refused(tmp_path, name, real, demand):
    with pytest.raises(ValueError, match=demand):
        train_prior(name, records=tmp_path, out=tmp_path, real=real)
