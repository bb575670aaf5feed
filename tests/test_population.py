"""The simulated population: its painter against GalSim and closed forms, its contents against what
it claims, its random stream against itself.
"""

import galsim
import numpy as np
import pytest

from data_pipelines import population
from data_pipelines.population import (
    FAMILIES,
    MAG_RANGE,
    PIXEL_SCALE,
    SIDE,
    TARGET_FWHM,
    draw_galaxy,
    shifted,
    weighted_centroid,
)

TARGET_SIGMA = TARGET_FWHM / np.sqrt(8 * np.log(2))
FAMILIES_OF_RECIPE_2 = ["disk", "parametric", "parametric", "parametric", "irregular", "parametric"]
NUMBERS_OF_RECIPE_2 = [  # magnitude, half_light_radius, axis_ratio, brightest pixel
    (23.29655, 0.321687, 0.471828, 0.0177311),
    (23.73681, 0.250526, 0.351914, 0.0326005),
    (20.47066, 0.619952, 0.869613, 0.0293554),
    (25.23743, 0.211092, 0.758135, 0.0438379),
    (24.57725, 0.261926, 0.636396, 0.0586302),
    (21.14325, 0.256359, 0.397361, 0.0313356),
]


def _gaussian(x, y, sigma_x, sigma_y):
    """Unit-flux Gaussian sampled at the prior's pixel centres, everything in arcsec."""
    axis = (np.arange(SIDE) - (SIDE - 1) / 2) * PIXEL_SCALE
    across, along = (
        np.exp(-0.5 * ((axis - x) / sigma_x) ** 2),
        np.exp(-0.5 * ((axis - y) / sigma_y) ** 2),
    )
    return along[:, None] * across * PIXEL_SCALE**2 / (2 * np.pi * sigma_x * sigma_y)


@pytest.fixture(scope="module")
def galaxies():
    return [draw_galaxy(7, index) for index in range(120)]


@pytest.mark.parametrize(
    "x, y, size",
    [(0, 0, 0.1), (0.33, -0.71, 0.05), (-1.2, 0.4, 0.4)],
    ids=["centred", "small", "wide"],
)
def test_painted_blob_is_the_gaussian_that_the_target_makes_of_it(x, y, size):
    field = population._unit(
        population._blobs(None, np.array([[x, y]]), np.array([size]), np.array([1.0]))
    )
    sigma = np.hypot(size, TARGET_SIGMA)
    expected = _gaussian(x, y, sigma, sigma)
    assert np.abs(population._observe_field(field) - expected).max() < 1e-5 * expected.max()


@pytest.mark.parametrize(
    "axis_ratio, degrees", [(1.0, 0), (0.5, 30), (0.3, 120)], ids=["round", "inclined", "thin"]
)
def test_painted_exponential_agrees_with_galsim(axis_ratio, degrees):
    angle, radius = np.radians(degrees), 0.4
    x, y = population._elliptical(axis_ratio, angle)
    field = population._unit(population._sersic_field(np.hypot(x, y), radius, 1.0))
    profile = galsim.Exponential(half_light_radius=radius).shear(
        q=axis_ratio, beta=angle * galsim.radians
    )
    expected = (
        galsim.Convolve(profile, galsim.Gaussian(fwhm=TARGET_FWHM))
        .drawImage(nx=SIDE, ny=SIDE, scale=PIXEL_SCALE, method="no_pixel")
        .array
    )
    # The cusp is painted on a grid of 0.025 arcsec, and the light outside of the stamp is lost
    # before normalisation.
    assert np.abs(population._observe_field(field) - expected).max() < 5e-3 * expected.max()


def test_parametric_drawing_agrees_with_galsim_at_full_accuracy():
    profile = galsim.Sersic(n=2.5, half_light_radius=0.3).shear(q=0.6, beta=40 * galsim.degrees)
    exact = (
        galsim.Convolve(profile, galsim.Gaussian(fwhm=TARGET_FWHM))
        .drawImage(nx=SIDE, ny=SIDE, scale=PIXEL_SCALE, method="no_pixel")
        .array
    )
    assert (
        np.abs(population._draw(profile.withGSParams(population.FAST)) - exact).max()
        < 5e-3 * exact.max()
    )


@pytest.mark.parametrize(
    "shift", [(0.3, -0.45), (2.0, 1.0), (-3.7, 0.0)], ids=["subpixel", "whole", "one axis"]
)
def test_shift_moves_a_gaussian_exactly(shift):
    image = shifted(_gaussian(0, 0, 0.25, 0.15), shift)
    np.testing.assert_allclose(
        image, _gaussian(shift[0] * PIXEL_SCALE, shift[1] * PIXEL_SCALE, 0.25, 0.15), atol=5e-7
    )


@pytest.mark.parametrize("x, y", [(0.0, 0.0), (0.17, -0.23), (-0.4, 0.35)])
def test_weighted_centroid_finds_a_gaussian(x, y):
    np.testing.assert_allclose(
        weighted_centroid(_gaussian(x, y, 0.12, 0.12)) * PIXEL_SCALE, [x, y], atol=1e-4
    )


def test_galaxies_are_stamps_of_unit_flux_on_their_centre(galaxies):
    images = np.stack([galaxy.image for galaxy in galaxies])
    assert (
        images.shape == (120, SIDE, SIDE)
        and images.dtype == np.float32
        and np.isfinite(images).all()
    )
    np.testing.assert_allclose(images.sum((1, 2)), 1, atol=1e-5)
    # At two pixels FWHM the target is not quite band-limited: moving the sharpest stamps rings a
    # little.
    assert (images.min((1, 2)) / images.max((1, 2))).min() > -1e-2
    offsets = np.array([weighted_centroid(image.astype(float)) for image in images])
    assert np.median(np.abs(offsets)) < 1e-4 and np.abs(offsets).max() < 0.1


def test_no_galaxy_is_sharper_than_the_target(galaxies):
    point = (
        galsim.Gaussian(fwhm=TARGET_FWHM)
        .drawImage(nx=SIDE + 1, ny=SIDE + 1, scale=PIXEL_SCALE, method="no_pixel")
        .array
    )
    assert max(galaxy.image.max() for galaxy in galaxies) < 1.01 * point.max()


def test_population_spans_what_it_claims(galaxies):
    magnitudes = np.array([galaxy.magnitude for galaxy in galaxies])
    radii = np.array([galaxy.half_light_radius for galaxy in galaxies])
    assert MAG_RANGE[0] <= magnitudes.min() < 21 and 25 < magnitudes.max() <= MAG_RANGE[1]
    assert radii.min() >= 0.035 and radii.max() <= 0.8
    assert np.corrcoef(magnitudes, np.log(radii))[0, 1] < -0.3, "fainter galaxies must be smaller"
    assert {galaxy.family for galaxy in galaxies} == set(FAMILIES)
    assert all(0.15 <= galaxy.axis_ratio <= 1 for galaxy in galaxies)


def test_a_galaxy_does_not_depend_on_what_is_drawn_beside_it(galaxies):
    again = draw_galaxy(7, 100)
    np.testing.assert_array_equal(again.image, galaxies[100].image)
    assert again.magnitude == galaxies[100].magnitude
    assert not np.array_equal(draw_galaxy(8, 100).image, again.image)


def test_random_stream_is_that_of_recipe_2():
    """Trained weights name the recipe they learned from: whoever changes a draw must raise
    RECIPE_VERSION, and these numbers.
    """
    assert population.RECIPE_VERSION == 2
    drawn = [draw_galaxy(1, index) for index in range(6)]
    assert [galaxy.family for galaxy in drawn] == FAMILIES_OF_RECIPE_2
    np.testing.assert_allclose(
        [(g.magnitude, g.half_light_radius, g.axis_ratio, g.image.max()) for g in drawn],
        NUMBERS_OF_RECIPE_2,
        rtol=1e-4,
    )


def test_records_hold_the_galaxies(galaxies):
    records, skipped = population.draw_records(7, 3, 5)
    assert not skipped and [record["index"] for record in records] == [3, 4]
    assert all(set(record) == set(population.FIELDS) for record in records)
    np.testing.assert_array_equal(records[1]["image"], galaxies[4].image)
