"""Training of convergence maps: penalty, losses and features in closed form, spectra that are found
again, and a run that goes on where it was stopped.
"""

import itertools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from astropy.io import fits
from map_oracles import (
    AREA,
    PIXEL_SCALE,
    SHIFT,
    power_law_theory,
    row,
    simulated_maps,
    small_prior,
    true_spectrum,
)

from astrogen.errors import InputFileError
from astrogen.galsim_objects import emulate
from astrogen.priors import load_prior
from astrogen.priors.convergence import MEMBERS, TERMS, multipoles
from astrogen.priors.correction import Correction
from astrogen.priors.storage import write_weights
from astrogen.training import kappa, spectra, symmetry, train_prior, wgan
from astrogen.training.critic import Critic, critic_loss, generator_loss, gradient_penalty
from astrogen.training.map_features import (
    CURVATURE_LEVELS,
    LEVELS,
    MINIMUM_LEVELS,
    NUM_BANDS,
    PEAK_LEVELS,
    THIRD_EDGES,
    band_edges,
    band_matrix,
    map_features,
)

NUM_THIRD = len(THIRD_EDGES) - 1
CURVATURE = slice(3 * NUM_BANDS + NUM_THIRD, 3 * NUM_BANDS + NUM_THIRD + len(CURVATURE_LEVELS))
PIXELS = slice(CURVATURE.stop + len(LEVELS), CURVATURE.stop + 2 * len(LEVELS))
PEAKS = slice(-len(PEAK_LEVELS) - len(MINIMUM_LEVELS), -len(MINIMUM_LEVELS))


# ---- critic ----


@pytest.mark.parametrize("norm", [0.5, 1.0, 3.0])
def test_the_penalty_of_a_linear_critic(norm, rng):
    """The gradient of a . x is a, wherever on the line."""
    direction = rng.normal(size=(8, 8)).astype(np.float32)
    direction *= norm / np.linalg.norm(direction)
    real, fake = (tf.constant(rng.normal(size=(5, 8, 8)), tf.float32) for _ in range(2))
    penalty = gradient_penalty(
        lambda maps: tf.reduce_sum(direction * maps, [1, 2]),
        real,
        fake,
        tf.constant(rng.uniform(size=(5, 1, 1)), tf.float32),
    )
    np.testing.assert_allclose(penalty, np.full(5, (norm - 1) ** 2), atol=1e-5)


def test_the_penalty_is_of_each_sample_where_it_lies_on_the_line(rng):
    """The gradient of |x|^2 / 2 is x, the point between."""
    real, fake, mix = (
        rng.normal(size=(4, 8, 8)),
        rng.normal(size=(4, 8, 8)),
        rng.uniform(size=(4, 1, 1)),
    )
    penalty = gradient_penalty(
        lambda maps: tf.reduce_sum(maps**2, [1, 2]) / 2,
        *(tf.constant(x) for x in (real, fake, mix)),
    )
    np.testing.assert_allclose(
        penalty, (np.linalg.norm((1 - mix) * real + mix * fake, axis=(1, 2)) - 1) ** 2, rtol=1e-6
    )


def test_the_critic_scores_each_map_alone(rng):
    critic, maps, cosmology = (
        Critic(64, (4, 8)),
        tf.constant(rng.normal(size=(3, 64, 64)), tf.float32),
        tf.constant(rng.normal(size=(3, 2)), tf.float32),
    )
    together = critic(maps, cosmology)
    np.testing.assert_allclose(
        together,
        [critic(maps[i : i + 1], cosmology[i : i + 1])[0] for i in range(3)],
        rtol=1e-4,
        atol=1e-4,
    )


def test_losses_agree_with_the_cross_entropy_and_the_distance(rng):
    real, fake = (tf.constant(rng.normal(size=20), tf.float32) for _ in range(2))
    entropy = keras.losses.BinaryCrossentropy(from_logits=True)
    np.testing.assert_allclose(
        critic_loss("gan", real, fake),
        entropy(np.ones(20), real) + entropy(np.zeros(20), fake),
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        generator_loss("gan", fake), -float(entropy(np.zeros(20), fake)), rtol=1e-5
    )
    np.testing.assert_allclose(
        critic_loss("wgan-gp", real, fake), fake.numpy().mean() - real.numpy().mean(), rtol=1e-5
    )
    np.testing.assert_allclose(generator_loss("wgan-gp", fake), -fake.numpy().mean(), rtol=1e-5)


def test_the_first_gan_has_no_gradient_where_the_critic_wins():
    score = tf.constant([-20.0])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(score)
        losses = {loss: generator_loss(loss, score) for loss in ("gan", "wgan-gp")}
    assert abs(float(tape.gradient(losses["gan"], score)[0])) < 1e-8
    assert float(tape.gradient(losses["wgan-gp"], score)[0]) == -1


# ---- features ----


def test_every_band_has_modes_and_a_wave_falls_into_its_own():
    edges = band_edges()
    matrix, l = band_matrix(64, 64, PIXEL_SCALE, edges)
    assert np.isfinite(matrix).all() and ((edges[:-1] <= l) & (l < edges[1:])).all()
    np.testing.assert_allclose(matrix.sum(1), 1, rtol=1e-5)
    x = np.arange(64)
    wave = np.cos(2 * np.pi * (5 * x[:, None] + 9 * x) / 64)[None]
    power = map_features(
        tf.constant(wave, tf.float32), tf.zeros([1, 64, 64]), pixel_scale=PIXEL_SCALE
    )[0, NUM_BANDS : 2 * NUM_BANDS].numpy()
    own = np.digitize(multipoles(64, 64, PIXEL_SCALE)[5, 9], edges) - 1
    assert np.argmax(power) == own and np.delete(power, own).max() < 1e-6 * power[own]


def test_power_along_an_axis_is_told_from_that_along_a_diagonal():
    """A wave along an axis counts in full among those along axes, one along a diagonal not at
    all.
    """
    x = np.arange(64)
    straight, oblique = (
        np.cos(2 * np.pi * (k * x[:, None] + l * x) / 64)[None] for k, l in ((0, 14), (10, 10))
    )
    for wave, share in ((straight, 1.0), (oblique, 0.0)):
        found = map_features(
            tf.constant(wave, tf.float32), tf.zeros([1, 64, 64]), pixel_scale=PIXEL_SCALE
        )[0].numpy()
        sectors, power = found[:NUM_BANDS], found[NUM_BANDS : 2 * NUM_BANDS]
        assert (sectors.max() / power.max() > 1.5) == bool(share) and (
            sectors.max() < 1e-6 * power.max()
        ) == (not share)


def test_curvature_is_that_of_a_paraboloid():
    y, x = np.mgrid[:64, :64] - 32.0
    # over the mean of its neighbours: 0.2 everywhere
    log_map = tf.constant(-0.2 * (x**2 + y**2)[None], tf.float32)
    found = map_features(log_map, log_map, pixel_scale=PIXEL_SCALE)[0].numpy()[CURVATURE]
    level = int(np.argmin(np.abs(CURVATURE_LEVELS - 0.25)))
    np.testing.assert_allclose(found[level - 1 : level + 1], [0.2, 0.8], atol=1e-4)


def test_pixels_are_shared_by_the_two_levels_beside_them():
    log_map = tf.fill([1, 64, 64], LEVELS[6] + 0.1)
    found = map_features(log_map, log_map, pixel_scale=PIXEL_SCALE)[0].numpy()[PIXELS]
    np.testing.assert_allclose(
        found, np.eye(len(LEVELS))[6] * 0.8 + np.eye(len(LEVELS))[7] * 0.2, atol=1e-4
    )


def test_a_peak_is_counted_at_its_height(rng):
    log_map = 1e-3 * rng.normal(size=(1, 64, 64)).astype(np.float32) - 30.0
    for place in ((10, 10), (20, 33), (50, 7)):
        log_map[0, *place] = PEAK_LEVELS[4]
    found = (
        map_features(tf.constant(log_map), tf.constant(log_map), pixel_scale=PIXEL_SCALE)[
            0
        ].numpy()[PEAKS]
        * 62**2
    )
    np.testing.assert_allclose(found, 3 * np.eye(len(PEAK_LEVELS))[4], atol=0.05)


def test_every_orientation_is_another():
    image = np.arange(16).reshape(4, 4)
    assert len({wgan.oriented(image, one).tobytes() for one in range(8)}) == 8


# ---- spectra ----


@pytest.fixture(scope="module")
def maps():
    return simulated_maps(24, 20, seed=3)


def test_band_powers_are_the_spectrum_of_white_noise(rng):
    power = spectra.measured_bands(rng.normal(size=(200, 64, 64)) * 0.1, PIXEL_SCALE).mean(0)
    np.testing.assert_allclose(power, 0.01 * AREA, rtol=0.1)


def test_polynomials_are_found_again(rng):
    cosmology, true = rng.uniform((0.2, 0.6), (0.4, 1.0), (40, 2)), rng.normal(size=6)
    x, y = np.log(cosmology[:, 0] / 0.3), np.log(cosmology[:, 1] / 0.8)
    values = np.stack([x**0, x, y, x * x, x * y, y * y], 1) @ true
    np.testing.assert_allclose(spectra.fit_polynomial(cosmology, values), row(*true), atol=1e-4)
    np.testing.assert_array_equal(spectra.fit_polynomial(cosmology, values, num_terms=3)[3:], 0)


def test_the_shift_lies_below_every_void(maps):
    prior = small_prior("lognormal")
    prior.log_shift = spectra.fit_shift(maps)
    shift = prior.shift(maps["cosmology"]).numpy()
    assert (maps["kappa"] > -shift[:, None, None]).all()
    assert (
        shift
        < 1.4
        * SHIFT
        * (maps["cosmology"][:, 0] / 0.3) ** 0.8
        * (maps["cosmology"][:, 1] / 0.8) ** 0.5
    ).all()


def test_without_theory_the_spectrum_is_that_of_the_simulations():
    """From a spectrum of twice the power and another slope to that of maps made by NumPy, edges
    and pixels accounted for; below the lowest mode of the maps the factor is constant.
    """
    theory = power_law_theory()
    start = theory._replace(
        log_spectrum=theory.log_spectrum
        + np.outer(np.eye(TERMS)[0], np.log(2) + 0.2 * (theory.log_l - 6))
    )
    found = spectra.fit_theory(simulated_maps(24, 20, seed=3, lognormal=False), start)
    inside = (theory.log_l > np.log(400)) & (theory.log_l < np.log(4000))
    np.testing.assert_allclose(
        found.log_spectrum[0, inside], theory.log_spectrum[0, inside], atol=0.12
    )
    factor = (found.log_spectrum - start.log_spectrum)[:, theory.log_l < np.log(140)]
    np.testing.assert_allclose(factor, factor[:, :1] * np.ones(factor.shape[1]), atol=1e-9)


def test_what_a_network_does_to_the_spectrum_is_taken_out():
    """A network that adds to the field and whose kernels reach 1 and 4 pixels along the axes and
    the diagonals: afterwards the maps have the spectrum of the lognormal field, in bands and all
    over the plane of waves, and mean zero.
    """
    prior = small_prior("network", scale=0.0)

    def around(field, width, *axes):
        return sum(
            tf.roll(field, [sign * width for sign in signs], axes)
            for signs in itertools.product((1, -1), repeat=len(axes))
        )

    prior.network = lambda field, cosmology: (
        0.2 * field
        + 0.03 * (around(field, 1, 1) + around(field, 1, 2))
        - 0.02 * around(field, 4, 1, 2)
    )
    spectra.match_theory(prior, num_maps=10, num_rounds=5, seed=1, side=96)
    cosmology, latent = (
        tf.constant([[0.3, 0.8]]),
        tf.random.stateless_normal([24, 128, 128], [2, 3]),
    )
    maps = [one.decode(latent, cosmology) for one in (prior, small_prior("lognormal"))]
    ours, theirs = (spectra.measured_bands(kappa.numpy(), PIXEL_SCALE).mean(0) for kappa in maps)
    np.testing.assert_allclose(ours[:-1], theirs[:-1], rtol=0.02)
    assert abs(float(tf.reduce_mean(maps[0] - maps[1]))) < 1e-4
    power = [np.mean(np.abs(np.fft.rfft2(kappa)[:, :, :64]) ** 2, 0) for kappa in maps]
    blocks = [one.reshape(16, 8, 8, 8).mean((1, 3)) for one in power]
    np.testing.assert_allclose(blocks[0] / blocks[1], 1, atol=0.04)


def theory_file(path, **changes):
    """A file of spectra, 1.3 times `true_spectrum`, as `python -m data_pipelines
    expected-spectrum` writes it.
    """
    points = [(omega_m, sigma_8) for omega_m in (0.2, 0.3, 0.4) for sigma_8 in (0.6, 0.8, 1.0)]
    l = np.geomspace(50, 6700, 30)
    stored = {
        "what": "a power law",
        "source_redshift": 1.0,
        "cosmologies": points,
        "multipoles": l.tolist(),
        "spectrum": [(1.3 * true_spectrum(l, *point)).tolist() for point in points],
    }
    path.write_text(json.dumps(stored | changes))
    return path


def test_theory_is_read_as_polynomials(tmp_path):
    theory, redshift = spectra.read_theory(theory_file(tmp_path / "f.json"))
    assert redshift == 1.0
    np.testing.assert_allclose(
        theory.log_spectrum[0], np.log(1.3 * true_spectrum(np.exp(theory.log_l))), atol=1e-6
    )
    np.testing.assert_allclose(
        theory.log_spectrum[1:], row(1.2, 2.3)[:-1, None] * np.ones(30), atol=1e-6
    )


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"spectrum": [[1.0]]},
            "positive at rising multipoles, at 9 cosmologies or more, got shape",
        ),
        ({"spectrum": "many"}, "be a file of `python -m data_pipelines expected-spectrum`, got"),
        ({"source_redshift": None}, "be a file of `python -m data_pipelines expected-spectrum`"),
    ],
    ids=["shape", "none", "no redshift"],
)
def test_spectra_of_something_else_are_refused(tmp_path, changes, message):
    with pytest.raises(InputFileError, match=f"read_theory: spectrum must .*{message}"):
        spectra.read_theory(theory_file(tmp_path / "f.json", **changes))
    with pytest.raises(InputFileError, match="read_theory: spectrum must be a file of"):
        spectra.read_theory(tmp_path / "missing.json")


# ---- a symmetric network from one that is not ----


def test_the_mean_of_eight_is_symmetric_and_learned(tmp_path, monkeypatch):
    """Random free kernels: their mean over the orientations commutes with a turn; a network learns
    it, and the written prior is one of theory's sources and of the teacher's training.
    """
    monkeypatch.setattr(symmetry, "NUM_FIELDS", 32)
    monkeypatch.setattr(symmetry, "NUM_APART", 8)
    monkeypatch.setattr(kappa, "TEACHER_MAPS", 1)
    monkeypatch.setattr(kappa, "TEACHER_ROUNDS", 1)
    monkeypatch.setattr(kappa, "FINAL_MAPS", 1)
    monkeypatch.setattr(kappa, "FINAL_ROUNDS", 1)
    monkeypatch.setattr(kappa, "NETWORK", {"channels": 4, "dilations": [1], "smoothing": [2.0]})
    monkeypatch.setattr(spectra, "SIDE", 96)
    rng = np.random.default_rng(2)
    weights = [(3, 3, 2, 4), (4, 1), (1,), (5, 4), (4,)]
    network = {
        f"weight_{index:02d}": 0.3 * rng.normal(size=shape) for index, shape in enumerate(weights)
    }
    card = {
        "kind": "convergence",
        "name": "kappa",
        "pixel_scale": PIXEL_SCALE,
        "image_shape": [64, 64],
        "source_redshift": 1.0,
        "transform": "kappa",
        "cosmology_range": {"omega_m": [0.2, 0.4], "sigma_8": [0.6, 1.0]},
        "network": {"dilations": [1], "smoothing": [2.0]},
        "training": {"num_steps": 7},
        "metrics": {"step": 7.0},
    }
    start = {"network_log_std": row(np.log(0.3)), "log_shift": row(np.log(SHIFT), 0.8, 0.5)}
    write_weights(tmp_path / "old", card=card, arrays={"network": network, "spectra": start})
    teacher = symmetry.Teacher(tmp_path / "old", small_prior())
    field = rng.normal(size=(1, 12, 16)).astype(np.float32)
    one, turned = (teacher.average(x, [[0.1, -0.2]]) for x in (field, np.rot90(field, 1, (1, 2))))
    np.testing.assert_allclose(turned, np.rot90(one, 1, (1, 2)), atol=1e-5)
    alone = teacher.correct(np.rot90(field, 1, (1, 2)).copy(), [[0.1, -0.2]])
    assert np.abs(alone - np.rot90(teacher.correct(field, [[0.1, -0.2]]), 1, (1, 2))).max() > 0.01
    path = theory_file(tmp_path / "f.json")
    written = kappa.symmetrise_kappa(
        tmp_path / "old", tmp_path / "new", spectrum=path, num_steps=60, seed=1
    )
    prior = load_prior(written)
    assert prior.card["training"]["num_steps"] == 7 and prior.card["source_redshift"] == 1.0
    assert prior.card["training"]["symmetrised"]["missed_of_the_mean_of_eight"] < 0.5
    path = theory_file(tmp_path / "g.json", source_redshift=0.7)
    with pytest.raises(ValueError, match="source_redshift must be one for all maps, got 1.0 in"):
        kappa.symmetrise_kappa(tmp_path / "old", tmp_path, spectrum=path, num_steps=1, seed=1)


# ---- the whole training ----


@pytest.fixture
def quick(maps, monkeypatch):
    """Training of a few steps on synthetic maps in place of records."""
    manifest = {
        "kind": "convergence",
        "num": len(maps["kappa"]),
        "seed": 3,
        "sha256": "0" * 64,
        "pixel_scale": PIXEL_SCALE,
        "source_redshift": 0.7,
        "transform": "kappa",
    }
    monkeypatch.setattr(kappa, "load_maps", lambda directory: maps)
    monkeypatch.setattr(kappa, "read_manifest", lambda directory: manifest)
    monkeypatch.setattr(kappa, "FINAL_MAPS", 1)
    monkeypatch.setattr(kappa, "FINAL_ROUNDS", 1)
    monkeypatch.setattr(spectra, "SIDE", 96)
    monkeypatch.setattr(kappa, "NETWORK", {"channels": 4, "dilations": [1, 2], "smoothing": [2.0]})
    monkeypatch.setattr(wgan, "CHECKPOINT_EVERY", 4)
    monkeypatch.setattr(wgan, "WARM_UP", 2)
    monkeypatch.setattr(wgan, "NUM_VALIDATION", 32)
    return maps


@pytest.fixture
def stop_after(monkeypatch):
    """Make the training stop, as by Ctrl-C, at a step."""

    def stop(last):
        draw = wgan.draw_batch

        def batch(maps, seed):
            if seed[1] == last:
                raise KeyboardInterrupt
            return draw(maps, seed)

        monkeypatch.setattr(wgan, "draw_batch", batch)
        return lambda: monkeypatch.setattr(wgan, "draw_batch", draw)

    return stop


def test_what_the_records_are_of_goes_to_card_and_header(quick, tmp_path):
    """Sources, pixels, and the range of the cosmology: from manifest and maps to an emulated
    cube.
    """
    network = Correction(**kappa.NETWORK)
    few = {name: value[:90] if np.ndim(value) else value for name, value in quick.items()}
    about = kappa.read_manifest("maps")
    prior = kappa.make_prior("network", power_law_theory(), row(np.log(SHIFT)), network, few)
    kappa.write_prior(tmp_path / "weights", prior, about, {}, {}, seed=1)
    card = load_prior(tmp_path / "weights").card
    assert (card["source_redshift"], card["pixel_scale"], card["transform"]) == (
        0.7,
        PIXEL_SCALE,
        "kappa",
    )
    for (low, high), values in zip(card["cosmology_range"].values(), few["cosmology"].T):
        assert low <= values.min() <= low + 0.01 and high - 0.01 <= values.max() <= high
    middle = [float(np.mean(limits)) for limits in card["cosmology_range"].values()]
    emulate.write_maps(
        tmp_path / "maps.fits",
        1,
        omega_m=middle[0],
        sigma_8=middle[1],
        seed=1,
        prior=str(tmp_path / "weights"),
    )
    header = fits.getheader(tmp_path / "maps.fits")
    assert (header["ZSOURCE"], header["PIXSCALE"]) == (0.7, PIXEL_SCALE)


def test_maps_of_one_cosmology_make_a_prior_of_it(maps):
    one = maps | {"cosmology": np.tile(np.float32([0.31, 0.82]), (len(maps["kappa"]), 1))}
    prior = kappa.make_prior("lognormal", power_law_theory(), row(np.log(SHIFT)), None, one)
    assert prior.cosmology_range == {"omega_m": (0.31, 0.31), "sigma_8": (0.82, 0.82)}
    drawn = prior.sample(8, omega_m=0.31, sigma_8=0.82, seed=1).numpy()
    assert 0.5 < drawn.var() / small_prior("lognormal").kappa_std([[0.31, 0.82]])[0, 0, 0] ** 2 < 2


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("source_redshift", 1.0, "source_redshift must be one for all maps, got 0.7 in maps and"),
        ("pixel_scale", 1.0, "pixel_scale must be one for all maps, got 2.3 in maps and 1.0 in b"),
        ("transform", "log", "transform must be one for all maps, got kappa in maps and log in b"),
        ("corrected", False, "corrected must be one for all maps, got True in maps and False in b"),
    ],
    ids=["sources", "pixels", "transform", "corrected"],
)
def test_unlike_records_are_refused_with_both_values(
    quick, monkeypatch, tmp_path, name, value, words
):
    """As validation, as theory, and as what an interrupted run was started with."""
    about = kappa.read_manifest("maps") | {"corrected": True}
    other = about | {name: value}
    monkeypatch.setattr(kappa, "read_manifest", lambda path: other if path == "b" else about)
    with pytest.raises(ValueError, match=words):
        train_prior("kappa", records="maps", validation="b", out=tmp_path, num_steps=1)
    start = dict(spectrum=theory_file(tmp_path / "f.json", source_redshift=0.7), out=tmp_path)
    kappa.start_of_run(quick, about, "maps", **start, resume=False)
    kappa.start_of_run(quick, about, "maps", **start, resume=True)
    with pytest.raises(ValueError, match=f"{name} must be one for all maps, got {value} in b and"):
        kappa.start_of_run(quick, other, "b", **start, resume=True)


def test_theory_of_other_sources_is_refused(quick, tmp_path):
    with pytest.raises(
        ValueError, match="source_redshift must be one .*got 0.7 in maps and 1.0 in"
    ):
        train_prior(
            "kappa",
            records="maps",
            out=tmp_path,
            spectrum=theory_file(tmp_path / "f.json"),
            num_steps=1,
        )


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_weights(quick, tmp_path, stop_after):
    whole = train_prior("kappa", records="maps", out=tmp_path / "whole", num_steps=6)
    go_on = stop_after(5)
    with pytest.raises(KeyboardInterrupt):
        train_prior("kappa", records="maps", out=tmp_path / "parts", num_steps=6)
    go_on()
    parts = train_prior("kappa", records="maps", out=tmp_path / "parts", num_steps=6, resume=True)
    cards = [json.loads((path / "card.json").read_text()) for path in (whole, parts)]
    assert cards[0]["files"] == cards[1]["files"]  # the hashes of all arrays
    assert cards[0]["metrics"] == cards[1]["metrics"]
    assert (
        cards[0]["training"]["num_simulations"] == 22 and cards[0]["training"]["num_held_out"] == 40
    )
    assert list((tmp_path / "whole" / "logs").iterdir()) and cards[0]["metrics"]["statistic"] > 0
    for member in MEMBERS:
        assert np.isfinite(
            load_prior(whole if member == "network" else f"{whole}-{member}").sample(
                2, omega_m=0.3, sigma_8=0.8, seed=1
            )
        ).all()


def test_a_checkpoint_holds_every_weight(tmp_path):
    """Also those of layers in lists, and the moments of the optimisers."""
    target = wgan.Target(np.zeros((TERMS, 3)), np.ones(3))
    steps = [
        wgan.Step(
            small_prior(seed=seed), small_prior(seed=seed + 9).network, target, loss="gan", seed=1
        )
        for seed in (1, 2)
    ]

    def everything(step):
        layers = (step.prior.network, step.average, step.critic)
        weights = [variable for one in layers for variable in one.weights]
        return [
            variable.numpy()
            for variable in [
                *weights,
                *(variable for one in step.optimizers.values() for variable in one.variables),
            ]
        ]

    for variable in steps[0].optimizers["critic"].variables[2:]:
        variable.assign_add(tf.ones_like(variable))
    path = steps[0].checkpoint.save(str(tmp_path / "step"))
    steps[1].checkpoint.restore(path).assert_existing_objects_matched()
    for one, two in zip(*map(everything, steps), strict=True):
        np.testing.assert_array_equal(one, two)


class Linear(keras.layers.Layer):
    """A critic whose slope is its weights, whatever the maps and the cosmology."""

    def __init__(self, slope):
        super().__init__()
        self.slope = self.add_weight(shape=slope.shape, name="slope")
        self.slope.assign(slope)
        self.built = True

    def call(self, maps, cosmology):
        return tf.reduce_sum(self.slope * maps, [1, 2])


@pytest.mark.parametrize("norm", [0.4, 2.5], ids=["too flat", "too steep"])
def test_the_critic_descends_its_loss_and_ten_times_the_penalty(norm, rng, monkeypatch):
    """Of a linear critic w the gradient of both is known: the mean drawn less the mean simulated
    map, and 2 (|w| - 1) w / |w| (Gulrajani et al. 2017, eq. 3, with their weight of ten).
    """
    slope = rng.normal(size=(6, 6))
    slope *= norm / np.linalg.norm(slope)
    monkeypatch.setattr(wgan, "Critic", lambda side: Linear(slope.astype(np.float32)))
    target = wgan.Target(np.zeros((TERMS, 3)), np.ones(3))
    step = wgan.Step(small_prior(), small_prior().network, target, loss="wgan-gp", seed=1)
    step.optimizers["critic"] = keras.optimizers.SGD(1e-3)
    real, fake = rng.normal(size=(2, 4, 6, 6)).astype(np.float32)
    told = step._update_critic(
        tf.constant(real), tf.constant(fake), tf.zeros([4, 2]), tf.fill([4, 1, 1], 0.3)
    )
    assert float(told["penalty"]) == pytest.approx((norm - 1) ** 2, rel=1e-4)
    gradient = fake.mean(0) - real.mean(0) + 10 * 2 * (norm - 1) * slope / norm
    np.testing.assert_allclose(step.critic.slope, slope - 1e-3 * gradient, atol=1e-6)


def test_the_plain_loss_trains_without_penalty_and_steering(quick):
    maps, _ = kappa.split_maps(quick, None)
    prior = small_prior(scale=0.0)
    step = wgan.Step(prior, prior.network, wgan.fit_features(prior, maps), loss="gan", seed=1)
    told = step.run(*wgan.draw_batch(maps, [1, 0]), tf.constant(0), True)
    assert float(told["penalty"]) == 0 and float(told["difference"]) == 0
    assert (
        all(np.isfinite(float(value)) for value in told.values()) and float(told["critic_loss"]) > 0
    )


def test_steering_brings_the_means_of_the_features_together(quick):
    """Without critic: the running difference between drawn maps and simulations of another spectrum
    falls.
    """
    prior, average = small_prior(scale=0.0), small_prior(scale=0.0).network
    target = wgan.fit_features(prior, quick)
    moved = 0.5 * target.scatter * (np.arange(len(target.scatter)) < 8)
    target = target._replace(
        coefficients=(target.coefficients + np.eye(TERMS, 1) * moved).astype(np.float32)
    )
    step, told = wgan.Step(prior, average, target, loss="wgan-gp", seed=1), []
    step.optimizers["generator"].learning_rate.assign(1e-2)
    for index in range(30):
        told.append(
            float(
                step.run(*wgan.draw_batch(quick, [1, index]), tf.constant(index), False)[
                    "difference"
                ]
            )
        )
    assert np.mean(told[-5:]) < 0.6 * max(told[:10])


def test_simulations_are_kept_apart_whole(maps):
    kept, held_out = kappa.split_maps(maps, None)
    assert not set(kept["simulation"]) & set(held_out["simulation"]) and len(kept["kappa"]) + len(
        held_out["kappa"]
    ) == len(maps["kappa"])
    assert kappa.split_maps(maps, held_out)[1] is held_out


def test_too_few_simulations_are_refused():
    few = simulated_maps(3, 4, seed=3)
    with pytest.raises(
        ValueError,
        match=(
            "split_maps: records must hold maps of at least 4 simulations to train on, got 3;"
            " simulate more"
        ),
    ):
        kappa.split_maps(few, few)


@pytest.mark.parametrize(
    "index, generator",
    [
        (0, wgan.WARM_RATE),
        (399, wgan.WARM_RATE * 0.055),
        (400, 4e-4),
        (1000, 4e-4),
        (1999, 4e-4 * 0.05),
    ],
)
def test_learning_rates_fall_at_the_end_of_either_part(index, generator):
    np.testing.assert_allclose(
        wgan.learning_rates(index, 2000, 400)["generator"], generator, rtol=1e-6
    )


@pytest.mark.parametrize(
    "name, options, demand",
    [
        ("galaxy", {"loss": "gan"}, "loss must be None for 'galaxy', got 'gan'"),
        ("kappa", {"real": "DIR"}, "real must be None for 'kappa', got 'DIR'"),
    ],
    ids=["loss", "real"],
)
def test_options_of_other_priors_are_refused(tmp_path, name, options, demand):
    with pytest.raises(ValueError, match=demand):
        train_prior(name, records=tmp_path, out=tmp_path, **options)


def test_the_best_network_is_read_as_it_was_written_or_refused(tmp_path):
    """Also where the file was packed again with another number, which the archive's own checksums
    do not notice.
    """
    path, told = tmp_path / "best.npz", dict(zip(wgan.TOLD, (7, 0.25, 1.0, 0.5), strict=True))
    network = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    wgan.write_best(path, network, told)
    weights = network.get_weights()
    network.set_weights([0 * weight for weight in weights])
    assert wgan.read_best(path, network) == told
    for one, other in zip(network.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(one, other)
    with np.load(path) as found:
        arrays = dict(found)
    arrays["arr_0"][0, 0] += 1
    np.savez(path, **arrays)
    with pytest.raises(InputFileError, match="sha256 must be that of the arrays"):
        wgan.read_best(path, network)
