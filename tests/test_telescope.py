"""The forward model against GalSim's drawImage, and its derivatives, symmetries and edges.

GalSim draws each galaxy at the target PSF on the prior's grid; astrogen makes of it what the
telescope records; GalSim draws that too, from the profile.
"""

import galsim
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from astrogen.data.psf import make_psf
from astrogen.galsim_objects import psf_from_galsim
from astrogen.instruments import telescope

PRECISE = galsim.GSParams(
    folding_threshold=1e-4, maxk_threshold=2e-5, kvalue_accuracy=1e-8, maximum_fft_size=16384
)
GALAXIES = {
    "gaussian": galsim.Gaussian(half_light_radius=0.35),
    "exponential": galsim.Exponential(half_light_radius=0.35),
    "de_vaucouleurs": galsim.DeVaucouleurs(half_light_radius=0.25),
}
PSFS = {"gaussian": galsim.Gaussian(fwhm=1.0), "moffat": galsim.Moffat(beta=3.5, fwhm=1.0)}
# PSFs that no mirror, turn or transposition leaves as they are; the second one no point reflection
# either.
ODD_PSFS = {
    "elliptical": galsim.Gaussian(fwhm=1.0).shear(g1=0.12, g2=0.2),
    "coma": (
        galsim.Gaussian(fwhm=0.9).shear(g1=-0.1, g2=0.15)
        + 0.35 * galsim.Gaussian(fwhm=1.3).shift(0.25, 0.5)
    )
    / 1.35,
}
# Observed pixel (arcsec), FWHM of the PSF (arcsec), shape: even, odd and mixed. An image of a
# Moffat PSF that is twice as wide as the stamp (the most that an
# observation takes) holds all but a few 1e-5 of its light: what lies outside is missing from the
# wings.
TELESCOPES = {
    "lsst_even": (0.2, 0.7, (32, 32)),
    "lsst_mixed": (0.2, 0.7, (33, 32)),
    "hsc_oblong": (0.168, 0.6, (41, 48)),
    "decam_odd": (0.262, 1.1, (33, 33)),
    "fine_even": (0.1, 0.35, (64, 64)),
    "fine_odd": (0.1, 0.35, (63, 63)),
}
SHIFT = (0.061, -0.043)  # arcsec
MODEL_ERROR = {"gaussian": 1e-4, "exponential": 1e-4, "de_vaucouleurs": 1e-3}


def sheared(name):
    return GALAXIES[name].shear(g1=0.2, g2=-0.1).withGSParams(PRECISE)


def at_target(galaxy, *, prior_scale=0.1, side=64):
    """The galaxy as the prior holds it: at the Gaussian target PSF, whose FWHM is two of the
    prior's pixels.
    """
    target = galsim.Gaussian(fwhm=2 * prior_scale, gsparams=PRECISE)
    return (
        galsim.Convolve(galaxy, target)
        .drawImage(nx=side, ny=side, scale=prior_scale, method="no_pixel", dtype=float)
        .array
    )


def drawn_by_galsim(galaxy, psf, *, shape, pixel_scale, shift=SHIFT):
    seen = galsim.Convolve(galaxy, psf.withGSParams(PRECISE)).shift(*shift)
    return seen.drawImage(nx=shape[1], ny=shape[0], scale=pixel_scale, dtype=float).array


def kernel_of(psf, *, pixel_scale, prior_scale=0.1):
    return telescope.kernel_transform(
        psf.image,
        psf_scale=psf.pixel_scale,
        pixel_response=psf.pixel_response,
        pixel_scale=pixel_scale,
        prior_scale=prior_scale,
        target_fwhm=2 * prior_scale,
    )


def rendered(image, psf, *, shape, pixel_scale, prior_scale=0.1, shift=SHIFT):
    kernel = kernel_of(psf, pixel_scale=pixel_scale, prior_scale=prior_scale)
    seen = telescope.render(
        tf.constant(image[None], tf.float32),
        kernel[None],
        shape=shape,
        pixel_scale=pixel_scale,
        prior_scale=prior_scale,
        shift=tf.constant([shift], tf.float32),
    )
    return seen.numpy()[0].astype(float)


def centroid(image):
    y, x = np.indices(image.shape)
    return np.array([(image * x).sum(), (image * y).sum()]) / image.sum()


def assert_agrees(seen, truth, *, peak, flux=1e-3, centre=1e-3):
    assert np.abs(seen - truth).max() <= peak * truth.max()
    assert abs(seen.sum() / truth.sum() - 1) <= flux
    assert np.abs(centroid(seen) - centroid(truth)).max() <= centre


# ---- GalSim ----


@pytest.mark.parametrize("psf_name", PSFS)
@pytest.mark.parametrize("kernels", TELESCOPES)
@pytest.mark.parametrize("galaxy_name", GALAXIES)
def test_agrees_with_galsim(galaxy_name, kernels, psf_name):
    """A PSF without pixel, oversampled.

    De Vaucouleurs' wings leave any 64-pixel stamp, so that they are given on the whole padded grid.
    """
    pixel_scale, fwhm, shape = TELESCOPES[kernels]
    galaxy, psf_object = sheared(galaxy_name), PSFS[psf_name].dilate(fwhm)
    psf = psf_from_galsim(psf_object, pixel_scale=pixel_scale, num_pixels=2 * max(shape) - 1)
    image = at_target(galaxy, side=telescope.GRID if galaxy_name == "de_vaucouleurs" else 64)
    seen = rendered(image, psf, shape=shape, pixel_scale=pixel_scale)
    assert_agrees(
        seen,
        drawn_by_galsim(galaxy, psf_object, shape=shape, pixel_scale=pixel_scale),
        peak=MODEL_ERROR[galaxy_name],
    )


@pytest.mark.parametrize("kernels", ["lsst_even", "hsc_oblong", "fine_odd"])
def test_de_vaucouleurs_in_the_priors_stamp(kernels):
    """What lies outside the prior's stamp (1 % of the light) is lost, but nothing else: compared
    where the stamp's edge is out of the PSF's reach.
    """
    pixel_scale, fwhm, shape = TELESCOPES[kernels]
    galaxy, psf_object = sheared("de_vaucouleurs"), PSFS["gaussian"].dilate(fwhm)
    seen = rendered(
        at_target(galaxy),
        psf_from_galsim(psf_object, pixel_scale=pixel_scale),
        shape=shape,
        pixel_scale=pixel_scale,
    )
    truth = drawn_by_galsim(galaxy, psf_object, shape=shape, pixel_scale=pixel_scale)
    edge = [max(0, round(side / 2 - (3.2 - 1.5 * fwhm) / pixel_scale)) for side in shape]
    inside = np.s_[edge[0] : shape[0] - edge[0], edge[1] : shape[1] - edge[1]]
    assert min(seen[inside].shape) * pixel_scale > 3
    assert_agrees(seen[inside], truth[inside], peak=1e-3)


@pytest.mark.parametrize(
    "pixel_scale, fwhm, shape",
    [
        pytest.param(0.2, 0.7, (41, 41), id="lsst"),
        pytest.param(0.168, 0.6, (48, 41), id="hsc"),
        pytest.param(0.262, 1.1, (40, 33), id="decam"),
    ],
)
@pytest.mark.parametrize("psf_name, peak", [("gaussian", 1e-4), ("moffat", 1e-3)])
def test_an_effective_psf_on_the_observed_pixels(psf_name, peak, pixel_scale, fwhm, shape):
    """Its samples say nothing beyond their Nyquist frequency, and its image ends: a Moffat PSF has
    light in both places.
    """
    galaxy, psf_object = sheared("exponential"), PSFS[psf_name].dilate(fwhm)
    side = 2 * max(shape) - 1
    star = (
        psf_object.withGSParams(PRECISE)
        .drawImage(nx=side, ny=side, scale=pixel_scale, dtype=float)
        .array
    )
    seen = rendered(
        at_target(galaxy),
        make_psf(star, pixel_scale=pixel_scale),
        shape=shape,
        pixel_scale=pixel_scale,
    )
    assert_agrees(
        seen, drawn_by_galsim(galaxy, psf_object, shape=shape, pixel_scale=pixel_scale), peak=peak
    )


@pytest.mark.parametrize(
    "oversampling, contained",
    [
        pytest.param(1, 0.0, id="native_without_pixel"),
        pytest.param(4, 0.2, id="oversampled_effective"),
        pytest.param(4, 0.1, id="half_the_pixel"),
        pytest.param(3, 0.0, id="three_times"),
    ],
)
def test_the_pixel_is_applied_once(oversampling, contained):
    pixel_scale, shape, psf_object = 0.2, (33, 33), galsim.Gaussian(fwhm=0.7)
    star = galsim.Convolve(psf_object, galsim.Pixel(contained)) if contained else psf_object
    side = 32 * oversampling + 1
    drawn = (
        star.withGSParams(PRECISE)
        .drawImage(
            nx=side, ny=side, scale=pixel_scale / oversampling, method="no_pixel", dtype=float
        )
        .array
    )
    psf = make_psf(drawn, pixel_scale=pixel_scale / oversampling, pixel_response=contained)
    galaxy = sheared("exponential")
    assert_agrees(
        rendered(at_target(galaxy), psf, shape=shape, pixel_scale=pixel_scale),
        drawn_by_galsim(galaxy, psf_object, shape=shape, pixel_scale=pixel_scale),
        peak=1e-4,
    )


@pytest.mark.parametrize(
    "prior_scale, pixel_scale, fwhm", [(0.15, 0.262, 1.1), (0.084, 0.168, 0.6), (0.05, 0.1, 0.2)]
)
def test_the_prior_may_have_any_pixel_scale(prior_scale, pixel_scale, fwhm):
    galaxy = galsim.Exponential(half_light_radius=3 * prior_scale, gsparams=PRECISE).shear(
        g1=0.2, g2=-0.1
    )
    psf_object = PSFS["gaussian"].dilate(fwhm)
    seen = rendered(
        at_target(galaxy, prior_scale=prior_scale),
        psf_from_galsim(psf_object, pixel_scale=pixel_scale),
        shape=(33, 40),
        pixel_scale=pixel_scale,
        prior_scale=prior_scale,
    )
    assert_agrees(
        seen,
        drawn_by_galsim(galaxy, psf_object, shape=(33, 40), pixel_scale=pixel_scale),
        peak=1e-4,
    )


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.1, 0.1), (0.5, -0.37), (-1.234, 0.9)])
def test_shifts_agree_with_galsim(shift):
    galaxy, psf_object = sheared("exponential"), PSFS["gaussian"].dilate(0.7)
    seen = rendered(
        at_target(galaxy),
        psf_from_galsim(psf_object, pixel_scale=0.2),
        shape=(41, 41),
        pixel_scale=0.2,
        shift=shift,
    )
    assert_agrees(
        seen,
        drawn_by_galsim(galaxy, psf_object, shape=(41, 41), pixel_scale=0.2, shift=shift),
        peak=1e-4,
    )


def test_each_stamp_of_a_batch_has_its_own_kernel_scale_and_shift(rng):
    images = tf.constant(rng.random((3, 64, 64)), tf.float32)
    psfs = [
        psf_from_galsim(galsim.Gaussian(fwhm=fwhm), pixel_scale=0.2) for fwhm in (0.7, 0.8, 0.9)
    ]
    prior_scales, shifts = [0.08, 0.1, 0.12], [[0.1, 0.0], [0.0, -0.3], [0.05, 0.07]]
    kernels = np.stack(
        [
            kernel_of(psf, pixel_scale=0.2, prior_scale=scale)
            for psf, scale in zip(psfs, prior_scales)
        ]
    )
    together = telescope.render(
        images,
        kernels,
        shape=(20, 21),
        pixel_scale=0.2,
        prior_scale=tf.constant(prior_scales),
        shift=tf.constant(shifts),
        background=0.5,
    )
    for row in range(3):
        alone = rendered(
            images[row].numpy(),
            psfs[row],
            shape=(20, 21),
            pixel_scale=0.2,
            prior_scale=prior_scales[row],
            shift=shifts[row],
        )
        np.testing.assert_allclose(together[row], alone + 0.5, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("drawn", ["oversampled", "effective"])
@pytest.mark.parametrize("psf_name", ODD_PSFS)
def test_a_psf_that_is_not_round_lies_as_it_was_drawn(psf_name, drawn):
    """Mirrored in x or y, turned or transposed, it would miss by per cents."""
    galaxy, psf_object = sheared("exponential"), ODD_PSFS[psf_name].dilate(0.7)
    if drawn == "oversampled":
        psf = psf_from_galsim(psf_object, pixel_scale=0.2)
    else:
        star = psf_object.withGSParams(PRECISE).drawImage(nx=65, ny=65, scale=0.2, dtype=float)
        psf = make_psf(star.array, pixel_scale=0.2)
    assert_agrees(
        rendered(at_target(galaxy), psf, shape=(33, 40), pixel_scale=0.2),
        drawn_by_galsim(galaxy, psf_object, shape=(33, 40), pixel_scale=0.2),
        peak=1e-4,
    )


def test_a_psf_with_more_pixel_than_the_observation_is_sharpened_to_its_band():
    """It holds the response of pixels twice as wide: a ratio of two sincs, to nearly the zero of
    the wider one, halfway to which a small galaxy still has a twentieth of its light.
    """
    galaxy, psf_object = sheared("gaussian").dilate(0.2), PSFS["gaussian"].dilate(0.35)
    star = galsim.Convolve(psf_object, galsim.Pixel(0.2)).withGSParams(PRECISE)
    drawn = star.drawImage(nx=101, ny=101, scale=0.05, method="no_pixel", dtype=float).array
    assert_agrees(
        rendered(
            at_target(galaxy),
            make_psf(drawn, pixel_scale=0.05, pixel_response=0.2),
            shape=(48, 48),
            pixel_scale=0.1,
        ),
        drawn_by_galsim(galaxy, psf_object, shape=(48, 48), pixel_scale=0.1),
        peak=1e-4,
    )


# ---- exposures that are turned, mirrored or sheared against the images ----

TURN = np.array([[np.cos(0.7), -np.sin(0.7)], [np.sin(0.7), np.cos(0.7)]])
MATRICES = {
    "same": np.eye(2),
    "turned": TURN,
    "mirrored": TURN @ np.diag([-1.0, 1.0]),
    "sheared": np.array([[1.08, 0.2], [-0.06, 0.95]]) / np.sqrt(1.038),
    "larger": 1.15 * TURN,
    "smaller and sheared": 0.9 * np.array([[1.05, 0.0], [0.15, 0.9]]),
}


@pytest.mark.parametrize("psf_name", ODD_PSFS)
@pytest.mark.parametrize("name", MATRICES)
def test_an_exposure_seen_through_a_jacobian_agrees_with_galsim(name, psf_name):
    """GalSim draws through the Jacobian from pixels to the images' axes, also where it changes the
    area of the sky that a pixel covers; the PSF lies along the pixels.
    """
    pixel_scale, centre, shape = 0.2, (0.31, -0.17), (45, 52)
    galaxy, psf_object = sheared("exponential"), ODD_PSFS[psf_name].dilate(0.8)
    psf, matrix = psf_from_galsim(psf_object, pixel_scale=pixel_scale), MATRICES[name]
    image = at_target(galaxy, side=telescope.GRID)
    seen = telescope.see_affine(
        np.fft.rfft2(image)[None],
        psf,
        pixel_scale=pixel_scale,
        prior_scale=0.1,
        target_fwhm=0.2,
        matrix=matrix,
        centre=centre,
        shape=shape,
    )
    inverse = np.linalg.inv(matrix)
    on_the_sky = psf_object.withGSParams(PRECISE).transform(*inverse.ravel()).withFlux(1.0)
    truth = galsim.Convolve(galaxy, on_the_sky).drawImage(
        nx=shape[1],
        ny=shape[0],
        wcs=galsim.JacobianWCS(*(inverse * pixel_scale).ravel()),
        offset=(centre[0] / pixel_scale, centre[1] / pixel_scale),
        dtype=float,
    )
    assert_agrees(seen.reshape(shape).astype(float), truth.array, peak=1e-4)


def test_an_affine_view_ends_where_the_padded_grid_does():
    """Corners of the stamp lie off the grid, whose axes are turned by 45 degrees, and see nothing;
    within it a uniform sheet of light is seen everywhere.
    """
    turn = np.array([[1.0, -1.0], [1.0, 1.0]]) / np.sqrt(2)
    matrix, shape = turn @ np.diag([1.0, 0.5]), (81, 81)
    sheet = np.ones((1, telescope.GRID, telescope.GRID))
    seen = telescope.see_affine(
        np.fft.rfft2(sheet),
        make_psf(np.ones((1, 1)), pixel_scale=0.2),
        pixel_scale=0.2,
        prior_scale=0.1,
        target_fwhm=0.2,
        matrix=matrix,
        centre=(0.0, 0.0),
        shape=shape,
    ).reshape(shape)
    y, x = (np.indices(shape) - 40) * 0.2
    along, across = (x + y) / np.sqrt(2), (y - x) / np.sqrt(2) / 0.5
    inside = (np.abs(along) <= 6.4) & (np.abs(across) <= 6.4)
    assert 0.2 < inside.mean() < 0.5
    np.testing.assert_allclose(seen[inside], 4 / 0.5, rtol=1e-5)
    assert not seen[~inside].any()


# ---- edges ----


def test_nothing_wraps_around():
    """A galaxy near the left edge of the prior's stamp, seen on a stamp twice as wide: its PSF's
    wings leave, and do not come back on the right.
    """
    galaxy, psf_object = (
        galsim.Gaussian(fwhm=0.3, gsparams=PRECISE).shift(-2.6, 2.6),
        galsim.Gaussian(fwhm=1.6),
    )
    seen = rendered(
        at_target(galaxy),
        psf_from_galsim(psf_object, pixel_scale=0.2),
        shape=(63, 63),
        pixel_scale=0.2,
    )
    truth = drawn_by_galsim(galaxy, psf_object, shape=(63, 63), pixel_scale=0.2)
    assert np.abs(seen - truth).max() < 1e-4 * truth.max()
    assert np.abs(seen[:, 40:]).max() < 1e-5 * truth.max()


def test_pixels_beyond_the_padded_grid_see_nothing():
    seen = rendered(
        at_target(sheared("gaussian")),
        psf_from_galsim(galsim.Gaussian(fwhm=0.7), pixel_scale=0.2),
        shape=(101, 101),
        pixel_scale=0.2,
    )
    assert np.isfinite(seen).all()
    assert not seen[:17].any() and not seen[:, -17:].any()
    assert seen.sum() == pytest.approx(1, abs=1e-4)


def test_the_padded_grid_ends_where_the_galaxy_has_moved_it():
    """A uniform sheet of light, moved by 2 and -1 arcsec: pixels see it whole or not at all."""
    shape, shift = (81, 90), (2.0, -1.0)
    kernel = telescope.kernel_transform(
        np.ones((1, 1)),
        psf_scale=0.2,
        pixel_response=0.2,
        pixel_scale=0.2,
        prior_scale=0.1,
        target_fwhm=1e-9,
    )
    seen = telescope.render(
        tf.ones([1, telescope.GRID, telescope.GRID]),
        kernel[None],
        shape=shape,
        pixel_scale=0.2,
        prior_scale=0.1,
        shift=tf.constant([shift]),
    ).numpy()[0]
    inside = [
        np.abs((np.arange(side) - (side - 1) / 2) * 0.2 - moved) <= 6.4
        for side, moved in zip(shape, shift[::-1], strict=True)
    ]
    np.testing.assert_allclose(seen, 4.0 * np.outer(*inside), atol=1e-4)


def test_a_psf_as_wide_as_the_target_changes_nothing():
    """On the prior's own pixels and with a PSF equal to the target, the telescope is the identity
    for what lies below the Nyquist frequency:
    the waves at it, 6e-6 of the peak, are left out."""
    image = at_target(sheared("exponential"))
    kernel = telescope.kernel_transform(
        np.ones((1, 1)),
        psf_scale=0.1,
        pixel_response=0.1,
        pixel_scale=0.1,
        prior_scale=0.1,
        target_fwhm=1e-9,
    )
    seen = telescope.render(
        tf.constant(image[None], tf.float32),
        kernel[None],
        shape=(64, 64),
        pixel_scale=0.1,
        prior_scale=0.1,
        shift=tf.zeros([1, 2]),
    )
    np.testing.assert_allclose(seen[0], image, atol=1e-5 * image.max())


def test_move_shifts_images_as_galsim_does():
    galaxy = sheared("gaussian")
    moved = telescope.move(
        tf.constant(at_target(galaxy)[None], tf.float32), (0.137, -0.26), 0.1
    ).numpy()[0]
    truth = at_target(galaxy.shift(0.137, -0.26))
    assert np.abs(moved - truth).max() < 1e-4 * truth.max()


# ---- derivatives ----


@pytest.fixture(scope="module")
def kernels():
    psf = psf_from_galsim(galsim.Gaussian(fwhm=0.7), pixel_scale=0.2)
    return kernel_of(psf, pixel_scale=0.2)[None]


def _summed(image, shift, kernel, weights):
    seen = telescope.render(
        image, kernel, shape=weights.shape[1:], pixel_scale=0.2, prior_scale=0.1, shift=shift
    )
    return tf.reduce_sum(seen * weights)


def test_gradients_agree_with_central_differences(kernels, rng):
    image = tf.constant(at_target(sheared("exponential"))[None], tf.float32)
    shift, weights = (
        tf.constant([SHIFT], tf.float32),
        tf.constant(rng.normal(size=(1, 24, 25)), tf.float32),
    )
    with tf.GradientTape() as tape:
        tape.watch([image, shift])
        value = _summed(image, shift, kernels, weights)
    by_image, by_shift = tape.gradient(value, [image, shift])
    direction = tf.constant(rng.normal(size=(1, 64, 64)), tf.float32)
    numeric = (
        _summed(image + direction, shift, kernels, weights)
        - _summed(image - direction, shift, kernels, weights)
    ) / 2
    assert float(tf.reduce_sum(by_image * direction)) == pytest.approx(float(numeric), rel=1e-4)
    for axis in range(2):
        step = tf.constant(5e-3 * np.eye(2)[axis], tf.float32)
        numeric = (
            _summed(image, shift + step, kernels, weights)
            - _summed(image, shift - step, kernels, weights)
        ) / 1e-2
        assert float(by_shift[0, axis]) == pytest.approx(float(numeric), rel=2e-3)


@pytest.mark.parametrize(
    "shift",
    [0.0, 0.05, 0.1, 0.0137, 6.4],
    ids=["on_the_pixels", "halfway", "one_pixel", "anywhere", "half_the_grid"],
)
def test_interpolation_has_the_derivative_of_its_values(shift):
    """In float64, where differences are exact enough; at whole pixels the periodic sinc is 0/0."""

    def matrix(value):
        return telescope.interpolation_matrix(20, 0.1, 0.1, tf.reshape(value, [1]))

    middle = tf.constant(shift, tf.float64)
    with tf.autodiff.ForwardAccumulator(middle, tf.ones_like(middle)) as forward_mode:
        value = matrix(middle)
    numeric = (matrix(middle + 1e-6) - matrix(middle - 1e-6)) / 2e-6
    assert np.isfinite(value).all()
    np.testing.assert_allclose(forward_mode.jvp(value), numeric, atol=1e-5)


# ---- laws ----


def few(test):
    return settings(max_examples=10, deadline=None, derandomize=True)(test)


@few
@given(st.integers(0, 1000), st.floats(-5, 5), st.floats(-0.3, 0.3))
def test_linear_in_flux(kernels, seed, factor, shift):
    first, second = np.random.default_rng(seed).normal(size=(2, 1, 64, 64)).astype(np.float32)

    def seen(image):
        return telescope.render(
            tf.constant(image),
            kernels,
            shape=(22, 31),
            pixel_scale=0.2,
            prior_scale=0.1,
            shift=tf.constant([[shift, 0.1]]),
        )

    np.testing.assert_allclose(
        seen(first + np.float32(factor) * second), seen(first) + factor * seen(second), atol=2e-4
    )


@few
@given(st.integers(0, 1000), st.floats(-0.3, 0.3), st.floats(-0.3, 0.3))
def test_flux_is_kept(kernels, seed, dx, dy):
    """Any image on the stamp, seen on pixels that cover the whole padded grid."""
    image = np.random.default_rng(seed).random((1, 64, 64)).astype(np.float32)
    seen = telescope.render(
        tf.constant(image),
        kernels,
        shape=(60, 60),
        pixel_scale=0.2,
        prior_scale=0.1,
        shift=tf.constant([[dx, dy]]),
    )
    assert float(tf.reduce_sum(seen)) == pytest.approx(image.sum(), rel=1e-4)


@few
@given(st.integers(0, 1000), st.integers(-4, 4), st.integers(-4, 4))
def test_a_shift_by_whole_pixels_is_a_roll(kernels, seed, dx, dy):
    image = tf.constant(np.random.default_rng(seed).random((1, 64, 64)), tf.float32)
    still, moved = (
        telescope.render(
            image,
            kernels,
            shape=(40, 40),
            pixel_scale=0.2,
            prior_scale=0.1,
            shift=tf.constant([shift]),
        ).numpy()[0]
        for shift in ((0.0, 0.0), (0.2 * dx, 0.2 * dy))
    )
    np.testing.assert_allclose(
        moved[5:-5, 5:-5], np.roll(still, (dy, dx), (0, 1))[5:-5, 5:-5], atol=1e-4 * still.max()
    )
