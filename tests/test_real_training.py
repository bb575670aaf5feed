"""Real stamps in training: the noise and PSF model against GalSim and brute force, the likelihood
against scipy.
"""

import galsim
import numpy as np
import pytest
import tensorflow as tf
from astropy.io import fits
from astropy.table import Table
from scipy.optimize import minimize_scalar
from scipy.stats import multivariate_normal

from astrogen.errors import RecordsError
from astrogen.galaxies.posterior import LOG_FLUX_STD, Compressed
from astrogen.priors.galaxy import BasisPrior, Population
from astrogen.priors.networks import ResidualMLP
from astrogen.training import real
from data_pipelines.__main__ import main

SCALE = 0.03
CORRELATION_FILE = f"{galsim.meta_data.share_dir}/acs_I_unrot_sci_20_cf.fits"
TARGET = galsim.Gaussian(fwhm=0.2)
# a sharp core, and a wing beside it
PSF = 0.75 * galsim.Gaussian(fwhm=0.08) + 0.25 * galsim.Gaussian(fwhm=0.25).shift(0.06, -0.04)


def _galaxies():
    shapes = [galsim.Exponential(half_light_radius=r) for r in (0.12, 0.2, 0.35, 0.5)] + [
        galsim.Sersic(2, half_light_radius=r) for r in (0.2, 0.4)
    ]
    return [
        shape.shear(q=q, beta=beta * galsim.degrees)
        for shape in shapes
        for q, beta in ((1.0, 0), (0.6, 20), (0.5, 110))
    ]


GALAXIES = _galaxies()


def _at_target(galaxy):
    return (
        galsim.Convolve(galaxy, TARGET)
        .drawImage(nx=64, ny=64, scale=0.1, method="no_pixel")
        .array.astype(float)
    )


def _stamp(galaxy, side, *, shift=(0, 0)):
    return (
        galsim.Convolve(galaxy.shift(*shift), PSF)
        .drawImage(nx=side, ny=side, scale=SCALE)
        .array.astype(float)
    )


@pytest.fixture(scope="module")
def psf():
    image = PSF.drawImage(nx=65, ny=65, scale=SCALE).array.astype(float)
    return image / image.sum()


@pytest.fixture(scope="module")
def correlation():
    """Of drizzled COSMOS images, as records keep it: 11x11 of the 81x81 that GalSim draws from."""
    lags = fits.getdata(CORRELATION_FILE).astype(float)
    return lags[35:46, 35:46] / lags[40, 40]


@pytest.fixture(scope="module")
def truth():
    """Coefficients of GALAXIES, of unit flux, and the prior that spans them."""
    images = np.array([_at_target(galaxy) for galaxy in GALAXIES])
    basis = np.linalg.qr(images.reshape(len(images), -1).T)[0].T
    coefficients = images.reshape(len(images), -1) @ basis.T
    unit = coefficients / np.linalg.norm(coefficients, axis=1, keepdims=True)
    num = len(basis)
    encoder, decoder = ResidualMLP(num, [8], 4), ResidualMLP(2, [8], 2 * num)
    prior = BasisPrior(
        name="span",
        population=Population(
            basis=basis.reshape(num, 64, 64),
            coefficient_mean=unit.mean(0),
            coefficient_std=unit.std(0) + 1e-2,
            log_amplitude=(0, 1),
            tilt=0.0,
            pixel_scale=0.1,
            target_fwhm=0.2,
        ),
        encoder=encoder,
        decoder=decoder,
        whitening=(np.zeros(2), np.eye(2)),
        floor=1e-3,
        card={},
    )
    return coefficients, prior


def _see(image, psf, prior, correlation, *, centre=(0, 0), variance=1.0, mask=None):
    mask = np.zeros(image.shape, bool) if mask is None else mask
    return real._see(
        image,
        mask,
        psf,
        variance=variance,
        correlation=correlation,
        pixel_scale=SCALE,
        prior=prior,
        centre=np.array(centre, float),
    )


@pytest.fixture(scope="module")
def noise_stamps():
    noise = galsim.getCOSMOSNoise(CORRELATION_FILE, rng=galsim.BaseDeviate(11), variance=1.0)
    image = galsim.Image(1500, 1500, scale=SCALE)
    image.addNoise(noise)
    return image.array.astype(float).reshape(30, 50, 30, 50).swapaxes(1, 2).reshape(900, 50, 50)


# Degrading


@pytest.mark.parametrize(
    "fwhm, expected",
    [(0.08, np.sqrt(0.2**2 - 0.08**2)), (0.15, np.sqrt(0.2**2 - 0.15**2)), (0.25, 0)],
    ids=["sharp", "close", "broad"],
)
def test_a_gaussian_psf_is_degraded_by_the_difference_of_squares(fwhm, expected):
    image = (
        galsim.Gaussian(fwhm=fwhm)
        .drawImage(nx=65, ny=65, scale=SCALE, method="no_pixel")
        .array.astype(float)
    )
    sigma = real.degrading_sigma(
        image / image.sum(), pixel_scale=SCALE, prior_scale=0.1, target_fwhm=0.2
    )
    assert sigma * np.sqrt(8 * np.log(2)) == pytest.approx(expected, abs=2e-3)


def test_a_degraded_psf_is_nowhere_sharper_than_the_target(psf):
    sigma = real.degrading_sigma(psf, pixel_scale=SCALE, prior_scale=0.1, target_fwhm=0.2)
    degraded, k = (
        galsim.Convolve(PSF, galsim.Pixel(SCALE), galsim.Gaussian(sigma=sigma)),
        np.linspace(1, 44, 60),
    )
    ratio = [
        [abs(degraded.kValue(a * np.cos(t), a * np.sin(t))) / TARGET.kValue(a, 0).real for a in k]
        for t in (0, 0.8, 1.6)
    ]
    assert 0.9 < np.max(ratio) < 1.01


def test_covariance_is_that_of_brute_force(rng, correlation):
    height, width = 9, 8
    rows, columns = rng.normal(size=(3, height)), rng.normal(size=(4, width))
    y, x = (grid.ravel() for grid in np.mgrid[:height, :width])
    lag_y, lag_x = y[:, None] - y + 5, x[:, None] - x + 5
    inside = (lag_y >= 0) & (lag_y < 11) & (lag_x >= 0) & (lag_x < 11)
    full = np.where(inside, correlation[np.clip(lag_y, 0, 10), np.clip(lag_x, 0, 10)], 0)
    weights = np.einsum("ay,bx->abyx", rows, columns).reshape(12, height * width)
    np.testing.assert_allclose(
        real.degraded_covariance(correlation, rows, columns),
        weights @ full @ weights.T,
        rtol=1e-6,
        atol=1e-8,
    )


@pytest.mark.parametrize("side", [64, 33, 24], ids=["wide", "odd", "smaller than the galaxy"])
@pytest.mark.parametrize("shift", [(0, 0), (0.041, -0.027)], ids=["centred", "moved"])
@pytest.mark.parametrize("number", [1, 9, 14], ids=["small", "large", "cuspy"])
def test_forward_model_is_galsim(truth, psf, correlation, number, side, shift):
    coefficients, prior = truth
    seen = _see(_stamp(GALAXIES[number], side, shift=shift), psf, prior, correlation, centre=shift)
    model = seen.basis @ (coefficients[number] / prior.coefficient_std.numpy())
    assert seen.stamp @ model / (model @ model) == pytest.approx(1, abs=3e-3)
    # What the model cannot hold lies above its band limit. At a signal-to-noise of 100 it moves
    # what the stamp says of the coefficients by less than
    # one standard deviation in all.
    wrong = seen._replace(stamp=(seen.stamp - model) / np.linalg.norm(seen.stamp) * 100)
    assert np.linalg.norm(real._compress(wrong, 1e-3, prior, 64)[0]) < 1


def test_degrading_costs_no_information(truth, psf, correlation):
    """The flux's error is that of a matched filter on the pixels as they were recorded, with their
    full covariance.
    """
    image = _stamp(GALAXIES[7], 33)
    seen = _see(image, psf, truth[1], correlation)
    full = real.degraded_covariance(correlation, np.eye(33), np.eye(33))
    assert seen.stamp @ seen.stamp == pytest.approx(
        image.ravel() @ np.linalg.solve(full, image.ravel()), rel=0.02
    )


# Noise


@pytest.fixture(scope="module")
def seen_noise(truth, psf, correlation, noise_stamps):
    """What an empty stamp says, and 900 whitened noise stamps [d, 900] that GalSim drew."""
    sigma = real.degrading_sigma(psf, pixel_scale=SCALE, prior_scale=0.1, target_fwhm=0.2) / SCALE
    sampling = real._sampling(
        np.zeros((50, 50), bool), sigma, 3, variance=1.0, correlation=correlation
    )
    return _see(noise_stamps[0], psf, truth[1], correlation), sampling.whiten(
        np.stack([sampling.degrade(image) for image in noise_stamps], 1)
    )


def test_pure_noise_has_unit_chi2(truth, seen_noise):
    seen, noise = seen_noise
    np.testing.assert_allclose(noise[:, 0], seen.stamp)
    assert (noise**2).mean() == pytest.approx(1, abs=0.02)
    compressed = [
        real._compress(seen._replace(stamp=stamp), real.BACKGROUND_STD, truth[1], 64)[0]
        for stamp in noise.T[:300]
    ]
    assert np.mean(np.concatenate(compressed) ** 2) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("number", [0, 8, 17])
def test_variance_of_the_flux_is_right(truth, seen_noise, number):
    seen, noise = seen_noise
    coefficients, prior = truth
    bright = 1e4 * seen.basis @ (coefficients[number] / prior.coefficient_std.numpy())
    fluxes = []
    for stamp in noise.T:
        data, forward, *_ = real._compress(
            seen._replace(stamp=bright + stamp), real.BACKGROUND_STD, prior, 64
        )
        lever = forward @ coefficients[number]
        fluxes.append(data @ lever / (lever @ lever))
    assert np.mean(fluxes) == pytest.approx(1e4, abs=3 / 30 / np.linalg.norm(lever))
    assert np.var(fluxes) * (lever @ lever) == pytest.approx(1, rel=0.15)


# Centre and mask


@pytest.mark.parametrize("shift", [(0, 0), (0.14, -0.05)], ids=["centred", "moved"])
@pytest.mark.parametrize("number", [1, 9, 14], ids=["small", "large", "cuspy"])
def test_the_centre_is_measured(truth, psf, correlation, number, shift):
    """To a fifteenth of a pixel of the prior, though a sixth of this PSF's light lies beside its
    core.
    """
    image = _stamp(GALAXIES[number], 64, shift=shift)
    seen = real._see(
        image,
        np.zeros((64, 64), bool),
        psf,
        variance=1.0,
        correlation=correlation,
        pixel_scale=SCALE,
        prior=truth[1],
    )
    np.testing.assert_allclose(seen.centre, shift, atol=0.007)


def test_where_nothing_shines_the_centre_is_the_middle():
    np.testing.assert_array_equal(real._centroid(-np.ones((20, 20)), 5, 10), 0)


def test_a_cut_off_the_middle_is_measured_from_the_middle_of_its_stamp(truth, psf, correlation):
    image, mask = np.zeros((80, 80)), np.ones((80, 80), bool)
    image[3:53, 20:70], mask[3:53, 20:70] = _stamp(GALAXIES[8], 50), False
    seen = real._see(
        image, mask, psf, variance=1.0, correlation=correlation, pixel_scale=SCALE, prior=truth[1]
    )
    np.testing.assert_allclose(seen.centre, [5 * SCALE, -12 * SCALE], atol=0.007)
    alone = _see(
        _stamp(GALAXIES[8], 50),
        psf,
        truth[1],
        correlation,
        centre=seen.centre - [5 * SCALE, -12 * SCALE],
    )
    np.testing.assert_allclose(seen.stamp, alone.stamp)
    np.testing.assert_allclose(seen.basis, alone.basis, atol=2e-5 * np.abs(alone.basis).max())


def test_masked_pixels_never_matter(truth, psf, correlation, rng):
    image, mask = _stamp(GALAXIES[8], 50), np.zeros((50, 50), bool)
    mask[30:32, 20:23], mask[0] = True, True
    wild = np.where(mask, 1e6 * rng.normal(size=mask.shape), image)
    one, other = (_see(pixels, psf, truth[1], correlation, mask=mask) for pixels in (image, wild))
    for name in one._fields:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert 17**2 > len(one.stamp) > 200
    model = one.basis @ (truth[0][8] / truth[1].coefficient_std.numpy())
    assert one.stamp @ model / (model @ model) == pytest.approx(1, abs=3e-3)


# Records


@pytest.fixture(scope="module")
def records(tmp_path_factory, psf):
    """Galaxies with correlated noise as GalSim draws it, through a catalogue and the pipeline; the
    last is masked all over its middle.
    """
    folder = tmp_path_factory.mktemp("real")
    noise, num = (
        galsim.getCOSMOSNoise(CORRELATION_FILE, rng=galsim.BaseDeviate(3), variance=1.0),
        len(GALAXIES),
    )
    sides = [48 + 3 * number for number in range(num)]
    stamps = []
    for galaxy, side, flux in zip(GALAXIES, sides, np.geomspace(1000, 8000, num)):
        image = galsim.Image(flux * _stamp(galaxy, side, shift=(0.02, 0.01)), scale=SCALE)
        image.addNoise(noise)
        stamps.append(image.array)
    stamps[-1][::4, ::4] = np.nan
    for name, images in (("images", stamps), ("psfs", [psf])):
        fits.HDUList([fits.PrimaryHDU(images[0]), *map(fits.ImageHDU, images[1:])]).writeto(
            folder / f"{name}.fits"
        )
    fits.writeto(
        folder / "noise.fits", fits.getdata(CORRELATION_FILE) / fits.getdata(CORRELATION_FILE).max()
    )
    Table(
        {
            "IDENT": range(num),
            "MAG": np.full(num, 22.0),
            "BAND": ["F814W"] * num,
            "WEIGHT": np.ones(num),
            "GAL_FILENAME": ["images.fits"] * num,
            "GAL_HDU": range(num),
            "PSF_FILENAME": ["psfs.fits"] * num,
            "PSF_HDU": np.zeros(num, int),
            "PIXEL_SCALE": np.full(num, SCALE),
            "NOISE_MEAN": np.zeros(num),
            "NOISE_VARIANCE": np.ones(num),
            "NOISE_FILENAME": ["noise.fits"] * num,
        }
    ).write(folder / "catalog.fits")
    assert (
        main(
            [
                "real",
                "--catalog",
                str(folder / "catalog.fits"),
                "--out",
                str(folder / "records"),
                "--workers",
                "1",
            ]
        )
        == 0
    )
    return folder / "records"


@pytest.fixture(scope="module")
def compressed(records, truth):
    with pytest.warns(
        UserWarning,
        match=(
            "compress_real: mask of 17 must leave a clean neighbourhood, got none; the stamp is"
            " left out"
        ),
    ):
        return real.compress_real(records, truth[1])


def test_records_are_compressed_to_what_was_drawn(truth, compressed):
    """The misfit of the true coefficients is that of unit noise, and every flux is right within its
    error.
    """
    num = len(GALAXIES) - 1
    assert (
        compressed.data.shape == (num, 32)
        and compressed.forward.shape == (num, 32, len(GALAXIES))
        and compressed.centre.shape == (num, 2)
    )
    drawn = truth[0][:num] * np.geomspace(1000, 8000, num + 1)[:num, None]
    miss = compressed.data - np.einsum("brk,bk->br", compressed.forward, drawn)
    count = np.any(compressed.forward, -1).sum()
    assert np.sum(miss**2) / count == pytest.approx(1, abs=4 * np.sqrt(2 / count))
    np.testing.assert_allclose(compressed.flux0, np.linalg.norm(drawn, axis=1), rtol=0.15)
    assert np.median(np.abs(compressed.flux0 / np.linalg.norm(drawn, axis=1) - 1)) < 0.04
    np.testing.assert_allclose(
        compressed.coefficients / compressed.flux0[:, None],
        drawn / np.linalg.norm(drawn, axis=1, keepdims=True),
        atol=0.25,
    )
    assert all(np.isfinite(field).all() for field in compressed)


def test_fewer_directions_are_the_strongest(records, truth, compressed):
    with pytest.warns(UserWarning, match="left out"):
        few = real.compress_real(records, truth[1], num_directions=5)
    np.testing.assert_allclose(few.data[:, :5], compressed.data[:, :5], rtol=1e-5)
    assert not few.data[:, 5:].numpy().any() and not few.forward[:, 5:].numpy().any()


def test_a_split_without_stamps_is_refused(records, truth):
    with pytest.raises(
        RecordsError,
        match=(
            "compress_real: split must hold stamps, got none in 'validation'; leave it out, or"
            " write more"
        ),
    ):
        real.compress_real(records, truth[1], split="validation")


# The likelihood


@pytest.fixture
def small(rng):
    """Five stamps of four numbers about three coefficients, mean and scale of which a network would
    give; the last two rows are padding.
    """
    batch, num, size = 5, 4, 3
    forward = np.pad(20 * rng.normal(size=(batch, num, size)), [(0, 0), (0, 2), (0, 0)])
    mean, scale = rng.normal(size=(batch, size)), rng.uniform(0.02, 0.2, size=(batch, size))
    flux = rng.uniform(0.3, 3, size=batch)
    noise = np.pad(rng.normal(size=(batch, num)), [(0, 0), (0, 2)])
    data = (
        flux[:, None] * np.einsum("brk,bk->br", forward, mean + scale * rng.normal(size=mean.shape))
        + noise
    )
    nothing = np.zeros(batch)
    visible = tf.tile(tf.range(size)[None], [batch, 1])
    flux0, *rest = (
        tf.constant(x, tf.float32)
        for x in (
            flux * rng.uniform(0.5, 2, size=batch),
            mean,
            nothing,
            mean,
            nothing,
            np.zeros((batch, 2)),
            nothing,
        )
    )
    return (
        np.float32(mean),
        np.float32(scale),
        Compressed(
            tf.constant(data, tf.float32), tf.constant(forward, tf.float32), visible, flux0, *rest
        ),
    )


def _scipy(log_flux, mean, scale, data, forward, flux0):
    """Likelihood and flux prior of one stamp, without padding."""
    flux = flux0 * np.exp(log_flux)
    covariance = np.eye(4) + flux**2 * forward[:4] * scale**2 @ forward[:4].T
    return (
        multivariate_normal(flux * forward[:4] @ mean, covariance).logpdf(data[:4])
        + 2 * np.log(2 * np.pi)
        - 0.5 * (log_flux / LOG_FLUX_STD) ** 2
    )


def _profiled(mean, scale, compressed):
    best = []
    for each in zip(
        mean,
        scale,
        *(np.asarray(x, float) for x in (compressed.data, compressed.forward, compressed.flux0)),
    ):
        grid = np.linspace(-4, 4, 81)
        start = grid[np.argmax([_scipy(log_flux, *each) for log_flux in grid])]
        best.append(
            -minimize_scalar(
                lambda x: -_scipy(x, *each),
                bounds=(start - 0.1, start + 0.1),
                method="bounded",
                options={"xatol": 1e-9},
            ).fun
        )
    return np.array(best)


def test_likelihood_is_the_normal_of_scipy_at_its_best_flux(small):
    np.testing.assert_allclose(
        real.real_log_likelihood(*small), _profiled(*small), rtol=2e-4, atol=2e-3
    )


def test_likelihood_gradient_is_that_of_central_differences(small):
    mean, scale, compressed = small
    with tf.GradientTape() as tape:
        variables = tf.Variable(mean), tf.Variable(scale)
        total = tf.reduce_sum(real.real_log_likelihood(*variables, compressed))
    for number, gradient in enumerate(tape.gradient(total, variables)):
        for index in np.ndindex(1, 3):
            step = np.zeros_like(mean, float)
            step[index] = 1e-4
            up, down = (
                [value + sign * step * (n == number) for n, value in enumerate((mean, scale))]
                for sign in (1, -1)
            )
            expected = (_profiled(*up, compressed) - _profiled(*down, compressed)).sum() / 2e-4
            assert gradient[index].numpy() == pytest.approx(expected, rel=1e-2, abs=0.1)


def test_a_batch_is_its_stamps_alone(truth, compressed):
    unit = compressed.coefficients / compressed.flux0[:, None]
    scale = 0.05 * tf.ones_like(unit)
    together = real.real_log_likelihood(unit, scale, compressed)
    for number in (0, 7):
        alone = Compressed(*(field[number : number + 1] for field in compressed))
        np.testing.assert_allclose(
            real.real_log_likelihood(unit[number : number + 1], scale[number : number + 1], alone)[
                0
            ],
            together[number],
            rtol=1e-4,
        )


def test_the_true_galaxy_is_the_likeliest(truth, compressed):
    coefficients, prior = truth
    unit = np.float32(coefficients / np.linalg.norm(coefficients, axis=1, keepdims=True))
    scale = np.full((len(GALAXIES) - 1, len(GALAXIES)), 0.01, np.float32)
    table = np.stack(
        [real.real_log_likelihood(np.tile(one, (len(scale), 1)), scale, compressed) for one in unit]
    )
    assert (table.argmax(0) == np.arange(len(scale))).mean() > 0.9
