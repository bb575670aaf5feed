"""The three fields of convergence: spectra and moments in closed form, one inside the other,
derivatives, translations, and weights that must not be loaded.
"""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT
from map_oracles import (
    AREA,
    LOG_L,
    NETWORK,
    PIXEL_SCALE,
    SHIFT,
    small_prior,
    true_covariance,
    true_power,
    true_spectrum,
)
from scipy import stats

from astrogen.errors import WeightsError
from astrogen.priors import SHIPPED, load_prior
from astrogen.priors.convergence import (
    MARGIN,
    draw_latent,
    hat_weights,
    multipoles,
    polynomial_terms,
    stored_arrays,
)
from astrogen.priors.correction import Correction, smoothed, wrapped
from astrogen.priors.storage import write_weights

FIDUCIAL = tf.constant([[0.3, 0.8]])
OTHER = tf.constant([[0.25, 0.9]])
KINDS = ("gaussian", "lognormal", "network")


def noise(num, n=32, m=48, seed=1):
    return tf.random.stateless_normal([num, n, m], [seed, 2])


# ---- spectra ----


def test_multipoles_are_those_of_plane_waves():
    l = multipoles(12, 20, PIXEL_SCALE)
    step = np.radians(PIXEL_SCALE / 60)
    assert l[0, 0] == 0
    np.testing.assert_allclose(l[1, 0], 2 * np.pi / (12 * step))
    np.testing.assert_allclose(l[2, 3], np.hypot(2 / 12, 3 / 20) * 2 * np.pi / step)
    np.testing.assert_allclose(l[-1, -1], np.hypot(1 / 12, 1 / 2) * 2 * np.pi / step)


def test_interpolation_agrees_with_numpy(rng):
    l, values = np.array([0.0, 20, 50, 777, 3000, 6700, 9000]), rng.normal(size=len(LOG_L))
    np.testing.assert_allclose(
        hat_weights(l, LOG_L) @ values,
        np.interp(np.log(np.maximum(l, 1e-9)), LOG_L, values),
        atol=1e-5,
    )


@pytest.mark.parametrize("cosmology", [(0.3, 0.8), (0.22, 0.95)], ids=["fiducial", "other"])
def test_spectra_are_polynomials_of_the_cosmology(cosmology):
    l = np.exp(LOG_L[5::25])
    spectrum = small_prior("gaussian").kappa_spectrum(l, tf.constant([cosmology]))
    np.testing.assert_allclose(spectrum[0], true_spectrum(l, *cosmology), rtol=1e-4)
    np.testing.assert_allclose(
        small_prior("lognormal").kappa_spectrum(l, tf.constant([cosmology])), spectrum, rtol=1e-5
    )
    x, y = np.log(cosmology[0] / 0.3), np.log(cosmology[1] / 0.8)
    np.testing.assert_allclose(
        polynomial_terms([cosmology])[0],
        [1, x, y, x * x, x * y, y * y, x * x * y, x * y * y, x * x * y * y],
        atol=1e-6,
    )


def test_coloured_noise_has_the_spectrum():
    """Every mode of the grid: the mean of |FFT|^2 over 600 draws follows a chi-squared law about C
    N / A of fields that are averaged over pixels.
    """
    prior, num = small_prior("gaussian"), 600
    field = prior.decode(noise(num), OTHER).numpy()
    power = (np.abs(np.fft.rfft2(field)) ** 2).mean(0) * AREA / (32 * 48)
    ratio = power / true_power(true_covariance((32, 48), 0.25, 0.9))[:, :25]
    complex_modes = ratio[1:16, 1:-1]
    assert stats.kstest(complex_modes.ravel() * 2 * num, stats.chi2(2 * num).cdf).pvalue > 1e-3
    np.testing.assert_allclose(complex_modes.mean(), 1, atol=4 / np.sqrt(num * complex_modes.size))


@pytest.mark.parametrize("kind", ["gaussian", "lognormal"])
def test_pixels_covary_as_those_of_the_sky(kind):
    """On any grid, up to half of it: also after the exponential."""
    expected = true_covariance((64, 64))
    for shape in ((32, 48), (64, 24)):
        field = small_prior(kind).decode(noise(1600, *shape), FIDUCIAL).numpy()
        for row, column in ((0, 0), (0, 1), (3, 2), (10, 8)):
            np.testing.assert_allclose(
                (field * np.roll(field, (row, column), (1, 2))).mean(),
                expected[row, column],
                atol=0.03 * expected[0, 0],
            )


# ---- one field inside the other ----


def test_a_network_of_zeros_is_the_lognormal_field():
    network, lognormal = small_prior("network", scale=0.0), small_prior("lognormal")
    np.testing.assert_array_equal(
        network.decode(noise(3), OTHER), lognormal.decode(noise(3), OTHER)
    )


def test_the_network_starts_as_zeros():
    assert not Correction(**NETWORK)(noise(2), tf.constant([[0.1, -0.5]])).numpy().any()


@pytest.mark.parametrize("shape", [(32, 48), (96, 96)], ids=["small", "large"])
def test_lognormal_moments(shape):
    """Mean zero, skewness (e^(s^2) + 2) sqrt(e^(s^2) - 1) whatever the grid; all pixels of
    periodic maps.
    """
    prior, num = small_prior("lognormal"), 614400 // np.prod(shape)
    kappa = prior.decode(noise(num, *shape), FIDUCIAL).numpy()
    variance = np.log1p(true_covariance((32, 32))[0, 0] / SHIFT**2)
    error = kappa.mean((1, 2)).std() / np.sqrt(num)
    np.testing.assert_allclose(kappa.mean(), 0, atol=4 * error)
    np.testing.assert_allclose(
        stats.skew(kappa.ravel()), (np.exp(variance) + 2) * np.sqrt(np.expm1(variance)), rtol=0.05
    )
    assert kappa.min() > -SHIFT


def test_no_convergence_is_below_the_shift():
    prior = small_prior(scale=3.0)
    assert float(tf.reduce_min(prior.decode(noise(8), OTHER) + prior.shift(OTHER))) > 0
    np.testing.assert_allclose(
        prior.shift(OTHER), SHIFT * (0.25 / 0.3) ** 0.8 * (0.9 / 0.8) ** 0.5, rtol=1e-5
    )


# ---- translations, orientations, sizes, derivatives ----


def oriented(field, flip, turns):
    """Fields [..., n, m] in one of the eight orientations of the square."""
    return np.rot90(field[..., ::-1] if flip else field, turns, (-2, -1))


@pytest.mark.parametrize("name", ["shipped", *KINDS])
@pytest.mark.parametrize("flip", [False, True], ids=["unflipped", "flipped"])
@pytest.mark.parametrize("turns", range(4))
def test_turning_the_noise_turns_the_map(name, flip, turns):
    prior = load_prior("kappa") if name == "shipped" else small_prior(name, scale=1.0)
    latent = noise(2).numpy()
    turned = prior.decode(tf.constant(oriented(latent, flip, turns).copy()), OTHER)
    np.testing.assert_allclose(
        turned, oriented(prior.decode(latent, OTHER).numpy(), flip, turns), atol=3e-6
    )


@pytest.mark.parametrize("kind", KINDS)
def test_moving_the_noise_moves_the_map(kind):
    prior, latent = small_prior(kind, scale=1.0), noise(2)
    moved = prior.decode(tf.roll(latent, [3, 5], [1, 2]), FIDUCIAL)
    np.testing.assert_allclose(
        moved, np.roll(prior.decode(latent, FIDUCIAL), (3, 5), (1, 2)), atol=1e-6
    )


def test_a_smooth_field_keeps_the_fourier_modes():
    x = np.arange(24)
    wave = np.cos(2 * np.pi * 2 * x / 24)[None, None] * np.ones((1, 16, 1))
    (found,) = smoothed(tf.constant(wave, tf.float32), [1.5])
    np.testing.assert_allclose(
        found, wave * np.exp(-0.5 * (2 * np.pi * 2 / 24 * 1.5) ** 2) * np.sqrt(2.5), atol=1e-5
    )


def test_wrapping_agrees_with_numpy(rng):
    value = rng.normal(size=(2, 6, 8, 3))
    np.testing.assert_array_equal(
        wrapped(tf.constant(value), 2), np.pad(value, [(0, 0), (2, 2), (2, 2), (0, 0)], mode="wrap")
    )


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_agree_with_central_differences(kind, rng):
    prior, latent, weight = (
        small_prior(kind, scale=1.0),
        noise(1),
        tf.constant(rng.normal(size=(1, 32, 48)), tf.float32),
    )

    def value(latent, cosmology):
        return 100 * tf.reduce_sum(weight * prior.decode(latent, cosmology))

    with tf.GradientTape() as tape:
        tape.watch([latent, OTHER])
        result = value(latent, OTHER)
    slopes = tape.gradient(result, [latent, OTHER])
    directions = [tf.constant(rng.normal(size=x.shape), tf.float32) for x in (latent, OTHER)]
    for index, step in ((0, 0.02), (1, 0.002)):
        up, down = [
            value(
                *[
                    x + (index == i) * sign * step * directions[i]
                    for i, x in enumerate((latent, OTHER))
                ]
            )
            for sign in (1, -1)
        ]
        np.testing.assert_allclose(
            (up - down) / (2 * step),
            tf.reduce_sum(slopes[index] * directions[index]),
            rtol=0.02,
            atol=0.02,
        )


def test_a_batch_equals_its_members():
    prior, latent, cosmology = small_prior(scale=1.0), noise(2), tf.concat([FIDUCIAL, OTHER], 0)
    together = prior.decode(latent, cosmology)
    for index in range(2):
        np.testing.assert_allclose(
            together[index],
            prior.decode(latent[index : index + 1], cosmology[index : index + 1])[0],
            atol=1e-6,
        )


# ---- drawing ----


def test_drawn_maps_depend_on_seed_and_index_alone():
    prior = small_prior()
    maps = prior.sample(3, omega_m=0.3, sigma_8=0.8, seed=5).numpy()
    assert maps.shape == (3, 64, 64)
    np.testing.assert_allclose(
        prior.sample(2, omega_m=0.3, sigma_8=0.8, seed=5), maps[:2], atol=1e-6
    )
    np.testing.assert_allclose(
        prior.draw(draw_latent([2], (64, 64), seed=5), FIDUCIAL)[0], maps[2], atol=1e-6
    )
    assert np.abs(prior.sample(1, omega_m=0.3, sigma_8=0.8, seed=6) - maps[:1]).max() > 1e-3
    assert prior.sample(1, omega_m=0.3, sigma_8=0.8, shape=(32, 128), seed=5).shape == (1, 32, 128)


def test_opposite_edges_of_a_cut_map_are_not_neighbours():
    """In a periodic field the two edges covary like neighbouring pixels (0.6 of the variance);
    MARGIN pixels apart, as the spectrum says.
    """
    maps = (
        small_prior("gaussian")
        .sample(300, omega_m=0.3, sigma_8=0.8, shape=(32, 32), seed=3)
        .numpy()
    )
    n = 32 + MARGIN
    l = np.hypot(*np.meshgrid(*[2 * np.pi * np.fft.fftfreq(n, np.sqrt(AREA))] * 2, indexing="ij"))
    covariance = np.fft.ifft2(true_spectrum(l)).real / AREA
    np.testing.assert_allclose(
        (maps[:, 0] * maps[:, -1]).mean(), covariance[31, 0], atol=0.04 * covariance[0, 0]
    )
    assert covariance[31, 0] < 0.2 * covariance[0, 0] < 0.5 * covariance[1, 0]


@pytest.mark.parametrize(
    "cosmology, demand",
    [
        ((0.5, 0.8), "omega_m must be within 0.2 to 0.4, got 0.5"),
        ((0.3, 0.55), "sigma_8 must be within 0.6 to 1.0, got 0.55"),
        ((float("nan"), 0.8), "omega_m must be a positive number, got nan"),
    ],
    ids=["omega_m", "sigma_8", "nan"],
)
def test_a_cosmology_outside_the_range_is_refused(cosmology, demand):
    with pytest.raises(ValueError, match=demand):
        small_prior().sample(1, omega_m=cosmology[0], sigma_8=cosmology[1], seed=1)


def test_extrapolation_is_a_choice():
    prior = small_prior()
    assert prior.sample(1, omega_m=0.5, sigma_8=0.8, seed=1, extrapolate=True).shape == (1, 64, 64)
    assert (
        prior.check_cosmology(0.5, 0.8, extrapolate=True) is False
        and prior.check_cosmology(0.3, 0.8) is True
    )
    with pytest.raises(ValueError, match="sigma_8 must be a positive number, got -1"):
        prior.check_cosmology(0.3, -1, extrapolate=True)


# ---- weights ----


@pytest.fixture
def stored(tmp_path):
    prior = small_prior(scale=1.0)
    card = {
        "kind": "convergence",
        "name": "kappa",
        "pixel_scale": PIXEL_SCALE,
        "image_shape": [64, 64],
        "source_redshift": 1.0,
        "network": NETWORK,
        "cosmology_range": {"omega_m": [0.2, 0.4], "sigma_8": [0.6, 1.0]},
    }
    write_weights(tmp_path / "weights", card=card, arrays=stored_arrays(prior))
    return tmp_path / "weights"


@pytest.mark.parametrize("kind", KINDS)
def test_one_folder_holds_three_fields(stored, kind):
    prior = load_prior(stored if kind == "network" else f"{stored}-{kind}")
    assert (prior.kind, prior.name) == (kind, "kappa" if kind == "network" else f"kappa-{kind}")
    assert (prior.pixel_scale, prior.image_shape, prior.cosmology_range["omega_m"]) == (
        PIXEL_SCALE,
        (64, 64),
        (0.2, 0.4),
    )
    # half precision of the network
    np.testing.assert_allclose(
        prior.decode(noise(2), OTHER),
        small_prior(kind, scale=1.0).decode(noise(2), OTHER),
        atol=2e-4,
    )


def test_a_card_without_its_arrays_is_refused(stored):
    card = json.loads((stored / "card.json").read_text())
    card["network"]["channels"] = 5
    (stored / "card.json").write_text(json.dumps(card))
    with pytest.raises(
        WeightsError, match="must describe a whole convergence prior, got ValueError"
    ):
        load_prior(stored)
    del card["files"]["spectra.npz"]
    (stored / "card.json").write_text(json.dumps(card))
    with pytest.raises(
        WeightsError, match="must describe a whole convergence prior, got KeyError: 'spectra'"
    ):
        load_prior(stored)


def test_a_changed_file_is_refused(stored):
    content = bytearray((stored / "spectra.npz").read_bytes())
    content[200] ^= 1
    (stored / "spectra.npz").write_bytes(content)
    with pytest.raises(WeightsError, match="sha256 must be"):
        load_prior(stored)


@pytest.mark.parametrize("kind", KINDS)
def test_the_shipped_maps_are_whole_small_and_centred(kind):
    prior = load_prior("kappa" if kind == "network" else f"kappa-{kind}")
    assert (prior.kind, prior.pixel_scale, prior.image_shape, prior.card["source_redshift"]) == (
        kind,
        PIXEL_SCALE,
        (64, 64),
        1.0,
    )
    assert sum(path.stat().st_size for path in (SHIPPED / "kappa").iterdir()) < 5e6
    assert str(ROOT) not in (SHIPPED / "kappa" / "card.json").read_text()
    assert {"records", "num_simulations", "num_steps", "seed", "loss"} <= set(
        prior.card["training"]
    ) and prior.card["metrics"]["statistic"] > 0
    maps = prior.sample(64, omega_m=0.3, sigma_8=0.8, seed=1).numpy()
    error = maps.mean((1, 2)).std() / 8
    # camb (HMCode-2020) and the pixel give 0.0147
    assert abs(maps.mean()) < 4 * error < 2e-3 and abs(maps.std() / 0.0147 - 1) < 0.05
    assert float(tf.reduce_max(prior.shift(OTHER))) < 0.08  # an empty beam to a redshift of one


def test_members_are_of_convergence_maps_only(stored, tmp_path):
    with pytest.raises(
        WeightsError,
        match=(
            "name must end in -lognormal for convergence maps only, got 'galaxy-lognormal' of kind"
            " 'basis'"
        ),
    ):
        load_prior("galaxy-lognormal")
    shutil.move(stored, tmp_path / "my-gaussian")
    # a folder of that name goes first
    assert load_prior(tmp_path / "my-gaussian").kind == "network"
