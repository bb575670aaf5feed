"""Training of convergence maps: penalty, losses and features in closed form, spectra that are found
again, and a run that goes on where it was stopped.
"""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from map_oracles import AREA, PIXEL_SCALE, SHIFT, row, simulated_maps, small_prior, true_spectrum

from astrogen.errors import AstrogenError, InputFileError
from astrogen.priors import load_prior
from astrogen.priors.convergence import MEMBERS, TERMS, multipoles
from astrogen.training import kappa, spectra, train_prior, wgan
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
    log_map = tf.constant(
        -0.2 * (x**2 + y**2)[None], tf.float32
    )  # over the mean of its neighbours: 0.2 everywhere
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
    prior.log_shift = tf.constant(spectra.fit_shift(maps))
    shift = prior.shift(maps["cosmology"]).numpy()
    assert (maps["kappa"] > -shift[:, None, None]).all()
    assert (
        shift
        < 1.4
        * SHIFT
        * (maps["cosmology"][:, 0] / 0.3) ** 0.8
        * (maps["cosmology"][:, 1] / 0.8) ** 0.5
    ).all()


@pytest.mark.parametrize("kind", ["gaussian", "lognormal"])
def test_drawn_maps_get_the_spectrum_of_the_simulations(kind):
    """From a spectrum that is wrong by a factor of two to that of maps made by NumPy: cutting and
    the exponential are accounted for.
    """
    maps = simulated_maps(24, 20, seed=3, lognormal=kind == "lognormal")
    prior, target = small_prior(kind), spectra.fit_target(maps)
    prior.table = prior.table._replace(
        log_spectrum=prior.table.log_spectrum + np.log(2) * np.eye(TERMS, 1).astype(np.float32)
    )
    left = spectra.match_spectrum(prior, target, num_maps=32, num_iterations=5, seed=1)
    assert left < 0.05
    drawn, l = (
        prior.sample(96, omega_m=0.3, sigma_8=0.8, seed=9).numpy(),
        spectra.band_multipoles((64, 64), PIXEL_SCALE),
    )
    power = spectra.measured_bands(drawn, PIXEL_SCALE).mean(0)
    np.testing.assert_allclose(power[l > 400], np.exp(target[0])[l > 400], rtol=0.1)
    assert abs(drawn.mean()) < 6e-4
    colour = np.exp(prior.log_spectrum(l, tf.constant([[0.3, 0.8]]))[0]) * (
        1 if kind == "gaussian" else SHIFT**2
    )
    np.testing.assert_allclose(
        colour[3:], true_spectrum(l[3:]), rtol=0.15
    )  # what NumPy coloured its noise with


def expected_file(path, **changes):
    """A file of expected band powers, 1.3 times `true_spectrum`, as `python -m data_pipelines
    expected-spectrum` writes it.
    """
    points, l = (
        [(omega_m, sigma_8) for omega_m in (0.2, 0.3, 0.4) for sigma_8 in (0.6, 0.8, 1.0)],
        spectra.band_multipoles((64, 64), PIXEL_SCALE),
    )
    power = [(1.3 * true_spectrum(l, *point)).tolist() for point in points]
    path.write_text(
        json.dumps(
            {
                "what": "a power law",
                "pixel_scale": PIXEL_SCALE,
                "image_shape": [64, 64],
                "source_redshift": 1.0,
                "cosmologies": points,
                "multipoles": l.tolist(),
                "power": power,
            }
            | changes
        )
    )
    return path


def test_an_expected_spectrum_is_read_as_polynomials(tmp_path):
    coefficients = spectra.read_target(
        expected_file(tmp_path / "f.json"), shape=(64, 64), pixel_scale=PIXEL_SCALE
    )
    l = spectra.band_multipoles((64, 64), PIXEL_SCALE)
    np.testing.assert_allclose(coefficients[0], np.log(1.3 * true_spectrum(l)), atol=1e-4)
    np.testing.assert_allclose(coefficients[1:], row(1.2, 2.3)[:-1, None] * np.ones(20), atol=1e-3)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"pixel_scale": 0.3},
            "of maps of .64, 64. pixels of 2.3 arcmin as the records are, got .64, 64. of 0.3",
        ),
        (
            {"power": [[1.0]]},
            "positive powers in the 20 bands of this release at 9 cosmologies or more, got shape",
        ),
        ({"power": "many"}, "be a file of `python -m data_pipelines expected-spectrum`, got"),
    ],
    ids=["pixels", "bands", "none"],
)
def test_expected_spectra_of_something_else_are_refused(tmp_path, changes, message):
    with pytest.raises(AstrogenError, match=f"read_target: spectrum must .*{message}"):
        spectra.read_target(
            expected_file(tmp_path / "f.json", **changes), shape=(64, 64), pixel_scale=PIXEL_SCALE
        )
    with pytest.raises(InputFileError, match="read_target: spectrum must be a file of"):
        spectra.read_target(tmp_path / "missing.json", shape=(64, 64), pixel_scale=PIXEL_SCALE)


def test_fields_are_brought_to_an_expected_spectrum(maps, tmp_path, monkeypatch):
    """Tables of another spectrum become ones whose maps have the powers of the file, of both
    fields.
    """
    monkeypatch.setattr(kappa, "FINAL_MAPS", 96)
    monkeypatch.setattr(kappa, "FINAL_ITERATIONS", 4)
    target, log_shift = (
        spectra.read_target(
            expected_file(tmp_path / "f.json"), shape=(64, 64), pixel_scale=PIXEL_SCALE
        ),
        small_prior().log_shift,
    )
    moved = kappa.rematched(
        {kind: small_prior(kind).table for kind in ("gaussian", "lognormal")},
        target,
        log_shift,
        maps,
        seed=1,
    )
    for kind, table in moved.items():
        drawn = (
            kappa.make_prior(kind, table, moved["gaussian"], log_shift, None, maps)
            .sample(192, omega_m=0.35, sigma_8=0.7, seed=5)
            .numpy()
        )
        expected = 1.3 * true_spectrum(spectra.band_multipoles((64, 64), PIXEL_SCALE), 0.35, 0.7)
        np.testing.assert_allclose(
            spectra.measured_bands(drawn, PIXEL_SCALE).mean(0)[2:],
            expected[2:],
            rtol=0.1,
            err_msg=kind,
        )


# ---- the whole training ----


@pytest.fixture
def quick(maps, monkeypatch):
    """Training of a few steps on synthetic maps in place of records."""
    manifest = {"kind": "convergence", "num": len(maps["kappa"]), "seed": 3, "sha256": "0" * 64}
    monkeypatch.setattr(kappa, "load_maps", lambda directory: maps)
    monkeypatch.setattr(kappa, "read_manifest", lambda directory: manifest)
    monkeypatch.setattr(kappa, "NUM_MAPS", 32)
    monkeypatch.setattr(kappa, "FINAL_MAPS", 32)
    monkeypatch.setattr(kappa, "FINAL_ITERATIONS", 1)
    monkeypatch.setattr(kappa, "NUM_ITERATIONS", 1)
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
