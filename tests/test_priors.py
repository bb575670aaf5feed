"""Priors: what they decode and draw, their derivatives and moves against differences and Fourier,
and weights that must not be loaded.
"""

import hashlib
import io
import json
import shutil
import socket
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT
from oracles import shift_operators, tiny_prior
from scipy import stats

from astrogen.errors import WeightsError
from astrogen.priors import SHIPPED, load_prior, shipped_priors
from astrogen.priors.networks import ResidualMLP
from astrogen.priors.storage import read_weights, weights_hash, write_weights
from data_pipelines.population import draw_galaxy

GALAXIES = ("galaxy", "galaxy-conv")


@pytest.fixture(scope="module")
def galaxy():
    return load_prior("galaxy")


def latents(prior, num, seed=1):
    return tf.random.stateless_normal([num, prior.latent_size], [seed, 2])


# ---- the shipped priors ----


def test_what_is_shipped_can_be_listed():
    assert shipped_priors() == [*GALAXIES, "kappa"]


@pytest.mark.parametrize("name", GALAXIES)
def test_shipped_weights_are_whole_small_and_load_offline(name, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    prior = load_prior(name)
    assert prior.name == name
    assert prior.image_shape == (64, 64)
    assert (prior.pixel_scale, prior.target_fwhm) == (0.1, 0.2)
    assert max(path.stat().st_size for path in (SHIPPED / name).iterdir()) < 5e6
    assert str(ROOT) not in (SHIPPED / name / "card.json").read_text()


@pytest.mark.parametrize("name", GALAXIES)
def test_shipped_priors_keep_the_contract(name):
    prior = load_prior(name)
    latent, num = latents(prior, 4), prior.coefficient_std.shape[0]
    mean, scale, mean_slope, scale_slope = prior.components_and_jacobian(latent)
    assert mean.shape == scale.shape == (4, num)
    assert mean_slope.shape == scale_slope.shape == (4, prior.latent_size, num)
    assert float(tf.reduce_min(scale)) > 0
    np.testing.assert_allclose(prior.components(latent)[0], mean, atol=1e-4)
    np.testing.assert_allclose(prior.components(latent)[1], scale, rtol=1e-3)
    assert prior.decode(latent).shape == (4, 64, 64)
    assert prior.guess(mean).shape == (4, prior.latent_size)
    np.testing.assert_allclose(
        prior.basis_transform[:, 0, 0],
        tf.reduce_sum(prior.basis, [1, 2]) * prior.coefficient_std,
        atol=1e-3,
    )


def test_shipped_basis_is_orthonormal(galaxy):
    flat = tf.reshape(galaxy.basis, [galaxy.basis.shape[0], -1])
    # half precision on disk
    np.testing.assert_allclose(
        tf.matmul(flat, flat, transpose_b=True), np.eye(len(flat)), atol=3e-3
    )


def test_drawn_galaxies_have_unit_flux_and_sit_in_the_middle(galaxy):
    images = galaxy.sample(64, seed=1).numpy()
    assert images.shape == (64, 64, 64)
    np.testing.assert_allclose(images.sum((1, 2)), 1, rtol=1e-4)
    x = np.arange(64) - 31.5
    window = np.exp(-0.5 * (x / 4) ** 2)
    light = images * window[:, None] * window
    centres = np.stack([(light * x).sum((1, 2)), (light * x[:, None]).sum((1, 2))]) / light.sum(
        (1, 2)
    )
    assert np.abs(np.median(centres, 1)).max() < 0.15
    assert np.quantile(np.abs(centres), 0.9) < 1
    # Light is positive up to the ripples of a band-limited image.
    assert np.quantile(images.min((1, 2)) / images.max((1, 2)), 0.1) > -0.15


def test_equal_seeds_draw_equal_galaxies(galaxy):
    np.testing.assert_array_equal(galaxy.sample(3, seed=5), galaxy.sample(3, seed=5))
    assert not np.allclose(galaxy.sample(3, seed=5), galaxy.sample(3, seed=6))


def test_the_encoder_finds_what_the_decoder_drew(galaxy):
    latent = latents(galaxy, 200)
    mean, scale = galaxy.components(latent)
    coefficients = mean + scale * tf.random.stateless_normal(scale.shape, [3, 4])
    guess = galaxy.guess(coefficients / tf.norm(coefficients, axis=1, keepdims=True)).numpy()
    correlation = [
        stats.pearsonr(guess[:, row], latent.numpy()[:, row])[0]
        for row in range(galaxy.latent_size)
    ]
    assert np.median(correlation) > 0.25  # many latents hold little; some hold nearly everything
    assert max(correlation) > 0.9


def test_the_latent_of_the_population_is_a_standard_normal(galaxy):
    """Galaxies that the prior never saw: their guesses are centred, and spread by no more than one,
    since a guess lacks its own uncertainty.
    """
    images = np.array([draw_galaxy(987, index).image for index in range(100)])
    coefficients = images.reshape(100, -1) @ galaxy.basis.numpy().reshape(len(galaxy.basis), -1).T
    guess = galaxy.guess(
        tf.constant(coefficients / np.linalg.norm(coefficients, axis=1, keepdims=True), tf.float32)
    ).numpy()
    assert np.abs(guess.mean(0)).max() < 0.5  # of 64 numbers with an error of 0.1
    assert guess.std(0).max() < 1.4
    assert 0.6 < np.sqrt((guess**2).mean()) < 1.1


# ---- derivatives ----


@pytest.mark.parametrize("name", GALAXIES)
def test_jacobian_agrees_with_central_differences(name):
    prior = load_prior(name)
    latent, step = latents(prior, 2), 0.02
    _, _, mean_slope, scale_slope = prior.components_and_jacobian(latent)
    for index in (0, prior.latent_size // 2, prior.latent_size - 1):
        unit = step * tf.one_hot(index, prior.latent_size)
        (up, up_scale), (down, down_scale) = (
            prior.components(latent + unit),
            prior.components(latent - unit),
        )
        for slope, numeric in (
            (mean_slope, (up - down) / (2 * step)),
            (scale_slope, (up_scale - down_scale) / (2 * step)),
        ):
            np.testing.assert_allclose(
                slope[:, index], numeric, atol=0.02 * float(tf.reduce_max(tf.abs(slope)))
            )


@pytest.mark.parametrize("widths", [(), (7,), (7, 7), (8, 6, 6, 9)], ids=str)
def test_network_jacobian_agrees_with_automatic_differentiation(widths):
    keras.utils.set_random_seed(3)
    network = ResidualMLP(5, widths, 4)
    inputs = tf.random.stateless_normal([3, 5], [1, 2])
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        expected = network(inputs)
    value, slope = network.call_with_jacobian(inputs)
    np.testing.assert_allclose(value, expected, atol=1e-5)
    np.testing.assert_allclose(
        tf.transpose(slope, [0, 2, 1]), tape.batch_jacobian(expected, inputs), atol=1e-5
    )


def test_tiny_prior_decodes_what_its_numbers_say(rng):
    prior, n = tiny_prior(rng)
    latent = rng.normal(size=(3, prior.latent_size)).astype(np.float32)
    white, raw = np.split(
        (n["whitening_mean"] + latent @ n["whitening_factor"].T) @ n["kernel"] + n["bias"], 2, 1
    )
    mean, scale = prior.components(tf.constant(latent))
    np.testing.assert_allclose(mean, n["mean"] + n["std"] * white, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        scale, n["std"] * np.log1p(np.exp(raw) * (np.e - 1)) + n["floor"], rtol=1e-4
    )
    np.testing.assert_allclose(
        prior.decode(latent), np.einsum("nk,kyx->nyx", mean, n["basis"]), atol=1e-5
    )


# ---- moves ----


@pytest.mark.parametrize("shift", [(0.3, 0.0), (0.0, -0.3), (0.2, 0.25)], ids=["x", "y", "both"])
def test_moved_coefficients_are_moved_images(galaxy, shift):
    """Against a shift in Fourier space. To second order, and for what the basis holds: 1 % of the
    norm at a third of a pixel.
    """
    coefficients = galaxy.components(latents(galaxy, 8))[0]
    moved = galaxy.images(galaxy.move_coefficients(coefficients, tf.constant([shift] * 8))).numpy()
    k = np.fft.fftfreq(64)
    phase = np.exp(-2j * np.pi * (k * shift[0] + k[:, None] * shift[1]))
    images = galaxy.images(coefficients).numpy()
    expected = np.fft.ifft2(np.fft.fft2(images) * phase).real
    error = np.linalg.norm(moved - expected, axis=(1, 2)) / np.linalg.norm(expected, axis=(1, 2))
    still = np.linalg.norm(images - expected, axis=(1, 2)) / np.linalg.norm(expected, axis=(1, 2))
    assert error.max() < 0.02
    assert np.median(error) < 0.07 * np.median(still)


def test_slopes_of_a_move_agree_with_central_differences(rng):
    """On a basis so small that the moves along x and along y do not commute."""
    prior, n = tiny_prior(rng)
    operators = shift_operators(n["basis"])
    assert np.abs(operators[0] @ operators[1] - operators[1] @ operators[0]).max() > 0.01
    coefficients, shift, step = rng.normal(size=6), np.array([0.4, -0.7]), 1e-5

    def moved(value):
        first = value[0] * operators[0] + value[1] * operators[1]
        return coefficients + first @ coefficients + 0.5 * first @ first @ coefficients

    numeric = [
        (moved(shift + step * unit) - moved(shift - step * unit)) / (2 * step) for unit in np.eye(2)
    ]
    np.testing.assert_allclose(
        prior.move_slopes(
            tf.constant(coefficients[None], tf.float32), tf.constant(shift[None], tf.float32)
        )[0],
        numeric,
        atol=1e-4,
    )
    np.testing.assert_allclose(
        prior.move_coefficients(
            tf.constant(coefficients[None], tf.float32), tf.constant(shift[None], tf.float32)
        )[0],
        moved(shift),
        atol=1e-4,
    )


# ---- weights that must not be loaded ----


@pytest.fixture
def folder(tmp_path, rng):
    """A small prior on disk."""
    prior, n = tiny_prior(rng)
    card = {
        "kind": "basis",
        "name": "tiny",
        "pixel_scale": 0.1,
        "target_fwhm": 0.2,
        "latent": 3,
        "encoder_widths": [],
        "decoder_widths": [],
        "floor": 0.01,
        "log_amplitude": [0.3, 0.5],
        "tilt": 0.4,
    }
    networks = {
        name: {f"weight_{index:02d}": value for index, value in enumerate(network.get_weights())}
        for name, network in (("encoder", prior.encoder), ("decoder", prior.decoder))
    }
    networks["decoder"] |= {
        "whitening_mean": n["whitening_mean"],
        "whitening_factor": n["whitening_factor"],
    }
    write_weights(
        tmp_path / "tiny",
        card=card,
        arrays={"basis": {"images": n["basis"], "mean": n["mean"], "std": n["std"]}, **networks},
    )
    return tmp_path / "tiny"


def edit_card(folder, **changes):
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps({**card, **changes}))


def replace_file(folder, content, arrays=None, name="decoder.npz"):
    """Put other bytes in place of a file, with a card that vouches for them."""
    card = json.loads((folder / "card.json").read_text())
    (folder / name).write_bytes(content)
    card["files"][name]["sha256"] = hashlib.sha256(content).hexdigest()
    if arrays is not None:
        card["files"][name]["arrays"] = {
            key: [list(value.shape), str(value.dtype)] for key, value in arrays.items()
        }
    (folder / "card.json").write_text(json.dumps(card))


def replace_arrays(folder, change, name="decoder.npz"):
    with np.load(folder / name) as stored:
        arrays = change(dict(stored))
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    replace_file(folder, buffer.getvalue(), arrays, name)


def test_weights_survive_the_disk(folder, rng):
    prior, _ = tiny_prior(np.random.default_rng(20240229))
    again = load_prior(folder)
    for name in ("components", "decode"):
        np.testing.assert_allclose(
            *(tf.nest.flatten(getattr(p, name)(latents(prior, 3)))[0] for p in (prior, again)),
            atol=3e-3,
        )
    card, _ = read_weights(folder)
    assert weights_hash(card) == weights_hash(again.card)
    edit_card(folder, floor=0.02)
    assert weights_hash(read_weights(folder)[0]) != weights_hash(card)


def _no_latent(folder):
    card = json.loads((folder / "card.json").read_text())
    del card["latent"]
    (folder / "card.json").write_text(json.dumps(card))


def _without_decoder(folder):
    card = json.loads((folder / "card.json").read_text())
    del card["files"]["decoder.npz"]
    (folder / "card.json").write_text(json.dumps(card))


def _keras_archive(folder):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("config.json", '{"class_name": "Lambda"}')
        archive.writestr("model.weights.h5", b"\x89HDF")
    replace_file(folder, buffer.getvalue())


def _object_array(folder):
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"code": 1}], object), allow_pickle=True)
    replace_file(folder, buffer.getvalue())


def _object_in_archive(folder):
    buffer = io.BytesIO()
    np.savez(buffer, weight_00=np.array([{"code": 1}], object))
    replace_file(folder, buffer.getvalue())


def _plain_npy(folder):
    buffer = io.BytesIO()
    np.save(buffer, np.ones(3))
    replace_file(folder, buffer.getvalue())


def _cut(folder):
    content = (folder / "decoder.npz").read_bytes()
    (folder / "decoder.npz").write_bytes(content[: len(content) // 2])


def _cut_and_vouched_for(folder):
    replace_file(folder, (folder / "decoder.npz").read_bytes()[:200])


FAULTS = {
    "no_folder": (shutil.rmtree, "name must be one of .*'galaxy'.* or a folder"),
    "no_card": (lambda f: (f / "card.json").unlink(), "must hold a card.json"),
    "card_cut_short": (
        lambda f: (f / "card.json").write_text((f / "card.json").read_text()[:100]),
        "card must be JSON",
    ),
    "card_is_a_list": (lambda f: (f / "card.json").write_text("[]"), "format must be .* got list"),
    "other_format": (lambda f: edit_card(f, format="other"), "format must be .*astrogen prior"),
    "newer_version": (
        lambda f: edit_card(f, version=99),
        r"format must be \('astrogen prior', 1\), got \('astrogen prior', 99\)",
    ),
    "unknown_kind": (
        lambda f: edit_card(f, kind="diffusion"),
        "kind must be one of .* got 'diffusion'",
    ),
    "no_latent_size": (_no_latent, "must describe a whole basis prior, got KeyError: 'latent'"),
    "other_latent_size": (lambda f: edit_card(f, latent=7), "must describe a whole basis prior"),
    "files_is_a_list": (
        lambda f: edit_card(f, files=["decoder.npz"]),
        "files must name the sha256",
    ),
    "file_outside": (
        lambda f: edit_card(f, files={"../x.npz": {"sha256": "", "arrays": {}}}),
        "files must be .npz files of the same folder",
    ),
    "file_not_an_archive": (
        lambda f: edit_card(f, files={"x.pkl": {"sha256": "", "arrays": {}}}),
        "arrays are all that is loaded",
    ),
    "file_not_named": (
        _without_decoder,
        "must describe a whole basis prior, got KeyError: 'decoder'",
    ),
    "file_missing": (lambda f: (f / "decoder.npz").unlink(), "weights must be readable"),
    "file_truncated": (_cut, "sha256 must be [0-9a-f]{64}, got [0-9a-f]{64}"),
    "truncated_and_vouched_for": (_cut_and_vouched_for, "must be plain arrays"),
    "wrong_shapes": (
        lambda f: replace_arrays(f, lambda a: {**a, "weight_00": a["weight_00"].T}),
        "must describe a whole basis prior",
    ),
    "shapes_not_as_stated": (
        lambda f: replace_file(f, (f / "encoder.npz").read_bytes()),
        "arrays must be .* got",
    ),
    "nan": (
        lambda f: replace_arrays(f, lambda a: {**a, "weight_01": a["weight_01"] * np.nan}),
        "must be finite",
    ),
    "pickle": (_object_array, "pickles and archives with code are refused"),
    "pickle_in_an_archive": (_object_in_archive, "pickles and archives with code are refused"),
    "keras_archive": (_keras_archive, "pickles and archives with code are refused"),
    "bare_npy": (_plain_npy, "must be plain arrays"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_damaged_weights_are_refused(folder, fault):
    damage, message = FAULTS[fault]
    damage(folder)
    with pytest.raises(WeightsError, match=message) as caught:
        load_prior(folder)
    assert str(folder) in str(caught.value)
    assert str(caught.value.path).startswith(str(folder))


def test_a_file_too_large_to_be_weights_is_refused(folder, monkeypatch):
    monkeypatch.setattr("astrogen.priors.storage.LARGEST", 100)
    with pytest.raises(WeightsError, match="holds more than 100 bytes"):
        load_prior(folder)


def test_a_prior_is_loaded_once(folder):
    """Everybody of a process has the same object, and with it the graphs that belong to it, until
    the folder changes.
    """
    first = load_prior(folder)
    assert load_prior(str(folder)) is first and load_prior(folder / ".." / folder.name) is first
    edit_card(folder, name="another")
    assert load_prior(folder) is not first and load_prior(folder).name == "another"


def test_a_loaded_prior_cannot_be_changed(folder):
    with pytest.raises(AttributeError, match="target_fwhm must stay as it was loaded"):
        load_prior(folder).target_fwhm = 1.0
    assert load_prior(folder).basis_transform is load_prior(folder).basis_transform


def test_the_folder_of_a_training_is_a_prior(folder, tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(
        WeightsError, match="has not finished .checkpoints, but no weights.*--resume"
    ):
        load_prior(run)
    shutil.copytree(folder, run / "weights")
    assert load_prior(run).card == load_prior(folder).card


def test_any_flipped_byte_is_found(folder, rng):
    original = (folder / "decoder.npz").read_bytes()
    for place in rng.integers(0, len(original), 30):
        (folder / "decoder.npz").write_bytes(
            original[:place]
            + bytes([original[place] ^ (1 << int(rng.integers(8)))])
            + original[place + 1 :]
        )
        with pytest.raises(WeightsError, match="sha256 must be"):
            load_prior(folder)


def test_coefficients_are_those_that_galaxies_are_drawn_from(galaxy):
    """Of the training population, whose residual has no roughness added."""
    latent = galaxy.latent.sample(3, seed=[1, 2])
    assert latent.shape == (3, galaxy.latent_size)
    given = galaxy.coefficients(latent, log_amplitude=0.6)
    mean, scale = galaxy.components(latent)
    np.testing.assert_allclose(given.mean(), mean)
    np.testing.assert_allclose(given.stddev(), np.exp(0.3) * galaxy.roughness * scale, rtol=1e-5)
