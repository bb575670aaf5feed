"""Map statistics against the closed forms of Gaussian fields, direct sums, and SciPy, scikit-image
and astropy.
"""

import numpy as np
import pytest
from astropy.stats import jackknife_stats
from scipy import ndimage, stats
from skimage.feature import peak_local_max

from astrogen.darkmatter import statistics

SCALE = 2.3  # arcmin per pixel
SIDE = np.deg2rad(SCALE / 60)  # radian per pixel
EDGES = np.geomspace(250, 3000, 12)
LIMITS = np.linspace(-3, 3, 61)  # thresholds in standard deviations


def spectrum_like_kappa(l):
    """About that of the convergence of sources at z = 1, steradian."""
    return 5e-9 * (1 + l / 250) ** -1.3


def random_frequency(shape):
    return (
        2
        * np.pi
        * np.hypot(*np.meshgrid(*(np.fft.fftfreq(side, SIDE) for side in shape), indexing="ij"))
    )


def random_maps(num, shape, *, seed, spectrum_fn=spectrum_like_kappa, grid=None):
    """Gaussian maps, cut out of a periodic grid."""
    grid = grid or shape
    white = np.random.default_rng(seed).normal(size=(num, *grid))
    amplitude = np.sqrt(spectrum_fn(np.maximum(random_frequency(grid), 1e-9))) / SIDE
    amplitude[0, 0] = 0
    return np.fft.ifft2(np.fft.fft2(white) * amplitude).real[:, : shape[0], : shape[1]]


def lattice_variance(shape, transfer, spectrum_fn=spectrum_like_kappa):
    """Variance of a linear function of a periodic Gaussian map, whose squared transfer function
    depends on the phases along y and x.
    """
    y, x = np.meshgrid(*(2 * np.pi * np.fft.fftfreq(side) for side in shape), indexing="ij")
    power = spectrum_fn(np.maximum(random_frequency(shape), 1e-9)) / (SIDE**2 * y.size)
    power[0, 0] = 0
    return float(np.sum(power * transfer(y, x)))


@pytest.fixture(scope="module")
def maps():
    return random_maps(400, (64, 64), seed=1)


# --- power spectrum


def expected_bands(shape, edges, spectrum_fn=spectrum_like_kappa):
    frequency = random_frequency(shape)
    return np.array(
        [
            spectrum_fn(frequency[(frequency >= low) & (frequency < high)]).mean()
            for low, high in zip(edges[:-1], edges[1:], strict=True)
        ]
    )


@pytest.mark.parametrize("shape", [(64, 64), (48, 63)], ids=["even", "odd"])
def test_power_spectrum_of_a_periodic_field_is_its_input(shape):
    spectrum = statistics.power_spectrum(
        random_maps(600, shape, seed=2), pixel_scale=SCALE, edges=EDGES
    )
    mean, error = statistics.jackknife(spectrum)
    assert np.max(np.abs(mean - expected_bands(shape, EDGES)) / error) < 3.5
    assert np.all(error < 0.05 * mean)


def test_scatter_of_the_spectrum_is_that_of_its_modes(maps):
    """Each band of n independent modes scatters by sqrt(2 / n), less what the slope within the band
    makes unequal.
    """
    edges = np.geomspace(1500, 3000, 6)
    spectrum = statistics.power_spectrum(maps, pixel_scale=SCALE, edges=edges)
    frequency = random_frequency((64, 64))
    num = np.array(
        [
            np.sum((frequency >= low) & (frequency < high))
            for low, high in zip(edges[:-1], edges[1:], strict=True)
        ]
    )
    np.testing.assert_allclose(spectrum.std(0) / spectrum.mean(0), np.sqrt(2 / num), rtol=0.12)


def blocks(sky):
    """Maps of 64x64 cut out of larger ones."""
    num, side = len(sky), sky.shape[1] // 64
    return sky.reshape(num, side, 64, side, 64).swapaxes(2, 3).reshape(-1, 64, 64)


@pytest.mark.parametrize(
    ("taper", "low", "high"), [(0.0, 0.05, 0.012), (0.15, 0.02, 0.012)], ids=["bare", "taper"]
)
def test_power_spectrum_of_a_crop_is_that_of_the_sky(taper, low, high):
    """l from 310 to 600 (`low`) and beyond (`high`), of 1024 crops."""
    spectrum = statistics.power_spectrum(
        blocks(random_maps(64, (256, 256), seed=3)), pixel_scale=SCALE, edges=EDGES, taper=taper
    ).mean(0)
    departure = np.abs(spectrum / expected_bands((64, 64), EDGES) - 1)
    assert departure[1:4].max() < low and departure[4:].max() < high


def test_a_taper_saves_a_steep_spectrum():
    def steep(l):
        return spectrum_like_kappa(l) * np.exp(-((l / 800) ** 2))

    crops, edges = (
        blocks(random_maps(24, (256, 256), seed=4, spectrum_fn=steep)),
        np.array([1500, 2000]),
    )
    ratio = {
        taper: (
            statistics.power_spectrum(crops, pixel_scale=SCALE, edges=edges, taper=taper).mean()
            / expected_bands((256, 256), edges, steep)[0]
        )
        for taper in (0, 0.5)
    }
    assert ratio[0] > 1.5 and abs(ratio[0.5] - 1) < 0.05


def test_mean_frequency_is_that_of_the_modes():
    frequency = random_frequency((64, 64))
    expected = [
        frequency[(frequency >= low) & (frequency < high)].mean()
        for low, high in zip(EDGES[:-1], EDGES[1:], strict=True)
    ]
    np.testing.assert_allclose(
        statistics.mean_frequency((64, 64), pixel_scale=SCALE, edges=EDGES), expected
    )


# --- bispectrum


def direct_bispectrum(image, triangle):
    """The mean of F1 F2 F3 over closed triangles, written as a sum over pairs of modes."""
    rows, columns = (np.fft.fftfreq(side, 1 / side).astype(int) for side in image.shape)
    modes = [(y, x) for y in rows for x in columns]
    length = {
        mode: (
            2
            * np.pi
            * np.hypot(mode[0] / (image.shape[0] * SIDE), mode[1] / (image.shape[1] * SIDE))
        )
        for mode in modes
    }
    bands = [[mode for mode in modes if low <= length[mode] < high] for low, high in triangle]
    transform, last = np.fft.fft2(image), set(bands[2])
    products = [
        transform[one] * transform[two] * transform[third]
        for one in bands[0]
        for two in bands[1]
        if (third := (-one[0] - two[0], -one[1] - two[1])) in last
    ]
    return np.mean(products).real * SIDE**4 / image.size


@pytest.mark.parametrize(
    "triangle",
    [
        ((900, 1500),) * 3,
        ((500, 900), (1100, 1700), (1100, 1700)),
        ((500, 1000), (800, 1300), (1000, 1700)),
    ],
    ids=["equilateral", "squeezed", "any"],
)
def test_bispectrum_equals_the_direct_sum(triangle):
    image = random_maps(1, (18, 21), seed=5) ** 2
    np.testing.assert_allclose(
        statistics.bispectrum(image, pixel_scale=SCALE, triangles=[triangle])[0, 0],
        direct_bispectrum(image[0], triangle),
        rtol=1e-10,
    )


TRIANGLES = statistics.equilateral(np.linspace(400, 2800, 5)) + statistics.squeezed(
    np.linspace(1000, 2800, 3), long=(250, 500)
)


def test_bispectrum_of_a_gaussian_field_is_zero(maps):
    mean, error = statistics.jackknife(
        statistics.bispectrum(maps, pixel_scale=SCALE, triangles=TRIANGLES)
    )
    assert np.max(np.abs(mean) / error) < 3.5


def tree_level(triangle):
    """Mean of C1 C2 + C2 C3 + C3 C1 over the closed triangles of a band."""
    frequency = random_frequency((64, 64))
    inside = [(frequency >= low) & (frequency < high) for low, high in triangle]
    number, power = (
        [np.fft.ifft2(weight * band).real for band in inside]
        for weight in (1.0, spectrum_like_kappa(frequency))
    )
    return sum(
        np.sum(power[i] * power[j] * number[k]) for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1))
    ) / np.sum(number[0] * number[1] * number[2])


def test_bispectrum_of_a_quadratic_field(maps):
    """kappa = g + f (g^2 - <g^2>) has B = 2 f (C1 C2 + C2 C3 + C3 C1) to first order in f; what is
    odd in g cancels between g and -g.
    """
    small = 0.05 / maps.std()
    mean, error = statistics.jackknife(
        np.mean(
            [
                statistics.bispectrum(
                    sign * maps + small * maps**2, pixel_scale=SCALE, triangles=TRIANGLES
                )
                for sign in (1, -1)
            ],
            0,
        )
    )
    expected = 2 * small * np.array([tree_level(triangle) for triangle in TRIANGLES])
    # terms of f^3 take 1 to 2 %, the scatter of 400 maps as much
    np.testing.assert_allclose(mean, expected, rtol=0.05)
    assert np.all(error < 0.03 * expected)


# --- pixels


def test_pdf_of_a_gaussian_field(maps):
    edges = maps.std() * np.linspace(-3, 3, 25)
    mean, error = statistics.jackknife(statistics.pixel_pdf(maps, edges=edges))
    expected = np.diff(
        stats.norm.cdf(edges, scale=np.sqrt(lattice_variance((64, 64), lambda y, x: 1.0)))
    ) / np.diff(edges)
    assert np.max(np.abs(mean - expected) / error) < 4
    np.testing.assert_allclose(mean[5:-5], expected[5:-5], rtol=0.02)


def test_pdf_agrees_with_numpy_and_counts_what_lies_outside():
    maps, edges = random_maps(2, (16, 16), seed=6), np.array([-0.01, -0.002, 0.001, 0.015])
    expected = [np.histogram(image, edges)[0] / (256 * np.diff(edges)) for image in maps]
    np.testing.assert_allclose(statistics.pixel_pdf(maps, edges=edges), expected)


def test_moments_agree_with_scipy(maps):
    skewed = np.exp(30 * maps[:7])
    pixels = skewed.reshape(7, -1)
    expected = np.stack(
        [pixels.mean(1), pixels.std(1), stats.skew(pixels, axis=1), stats.kurtosis(pixels, axis=1)],
        1,
    )
    np.testing.assert_allclose(statistics.moments(skewed), expected, rtol=1e-10)


def test_peaks_and_minima_agree_with_scikit_image_and_scipy(maps):
    edges = np.array([-np.inf, -0.005, 0, 0.01, 0.02, np.inf])
    heights = [
        image[tuple(peak_local_max(image, min_distance=1, threshold_abs=-1, exclude_border=1).T)]
        for image in maps[:20]
    ]
    np.testing.assert_array_equal(
        statistics.peak_counts(maps[:20], edges=edges),
        [np.histogram(height, edges)[0] for height in heights],
    )
    lowest = ndimage.minimum_filter(maps, (1, 3, 3)) == maps
    depths = [image[1:-1, 1:-1][low[1:-1, 1:-1]] for image, low in zip(maps, lowest, strict=True)]
    np.testing.assert_array_equal(
        statistics.minimum_counts(maps, edges=edges),
        [np.histogram(depth, edges)[0] for depth in depths],
    )


def test_peaks_of_white_noise_are_one_pixel_in_nine(rng):
    counts = statistics.peak_counts(rng.normal(size=(200, 64, 64)), edges=[-np.inf, np.inf])
    mean, error = statistics.jackknife(counts)
    assert abs(mean[0] - 62**2 / 9) < 3.5 * error[0]


# --- Minkowski functionals


def test_minkowski_functionals_of_a_gaussian_field(maps):
    """Tomita (1986); with central differences on a grid, the variance of the first derivative
    enters V1 and that of the second difference V2.
    """
    variance = lattice_variance((64, 64), lambda y, x: 1.0)
    sigma = np.sqrt(variance)
    first = lattice_variance((64, 64), lambda y, x: np.sin(x) ** 2) / (variance * SCALE**2)
    second = lattice_variance((64, 64), lambda y, x: 2 - 2 * np.cos(x)) / (variance * SCALE**2)
    expected = [
        stats.norm.sf(LIMITS),
        np.sqrt(first) / 8 * np.exp(-(LIMITS**2) / 2),
        second * (2 * np.pi) ** -1.5 * LIMITS * np.exp(-(LIMITS**2) / 2),
    ]
    mean, error = statistics.jackknife(
        statistics.minkowski_functionals(maps, pixel_scale=SCALE, thresholds=sigma * LIMITS)
    )
    for measured, wanted, scatter in zip(mean, expected, error, strict=True):
        np.testing.assert_allclose(measured, wanted, atol=0.02 * np.abs(wanted).max())
        assert np.max(np.abs(measured - wanted)) < 4 * scatter.max()


def test_minkowski_functionals_of_a_smooth_field_are_those_of_the_continuum():
    """V1 = sigma1 / (8 sqrt 2 sigma0) exp(-nu^2 / 2), V2 = (sigma1 / sigma0)^2 nu exp(-nu^2 / 2) /
    (2 (2 pi)^(3/2)), sigma1 of the length of the gradient.
    """

    def smooth(l):
        return spectrum_like_kappa(l) * np.exp(-((l / 600) ** 2))

    maps = random_maps(300, (64, 64), seed=7, spectrum_fn=smooth)
    variance = lattice_variance((64, 64), lambda y, x: 1.0, smooth)
    ratio = lattice_variance((64, 64), lambda y, x: x**2 + y**2, smooth) / (variance * SCALE**2)
    mean = statistics.minkowski_functionals(
        maps, pixel_scale=SCALE, thresholds=np.sqrt(variance) * LIMITS
    ).mean(0)
    expected = [
        stats.norm.sf(LIMITS),
        np.sqrt(ratio / 2) / 8 * np.exp(-(LIMITS**2) / 2),
        ratio / 2 * (2 * np.pi) ** -1.5 * LIMITS * np.exp(-(LIMITS**2) / 2),
    ]
    for measured, wanted in zip(mean, expected, strict=True):
        np.testing.assert_allclose(measured, wanted, atol=0.03 * np.abs(wanted).max())


def test_minkowski_functionals_of_a_disc():
    """exp(-r^2 / 2 s^2) above t is a disc of radius r = s sqrt(-2 ln t): one piece without a
    hole.
    """
    y, x = np.mgrid[:128, :128] - 63.3
    width, thresholds = 18.0, np.linspace(0.2, 0.8, 7)
    area = 126**2 * SCALE**2
    measured = statistics.minkowski_functionals(
        np.exp(-(x**2 + y**2) / (2 * width**2))[None], pixel_scale=SCALE, thresholds=thresholds
    )[0]
    radius = SCALE * width * np.sqrt(-2 * np.log(thresholds))
    np.testing.assert_allclose(measured[0], np.pi * radius**2 / area, rtol=0.01)
    np.testing.assert_allclose(measured[1], 2 * np.pi * radius / (4 * area), rtol=0.02)
    np.testing.assert_allclose(measured[2], 1 / area, rtol=0.03)


# --- scatter


def test_jackknife_agrees_with_astropy(rng):
    values = rng.gamma(2.0, size=40)
    for summary_fn in (np.mean, np.std, stats.skew):
        summary, error = statistics.jackknife(values, summary_fn=summary_fn)
        _, _, expected, _ = jackknife_stats(values, summary_fn, 0.95)
        np.testing.assert_allclose([summary, error], [summary_fn(values), expected])


def test_jackknife_of_a_mean_is_the_standard_error_of_the_groups(rng):
    values = rng.normal(size=(12, 5, 3)) + 2 * rng.normal(size=(12, 1, 3))
    groups = np.repeat(np.arange(12), 5)
    order = rng.permutation(60)
    shuffled = values.reshape(60, 3)[order]
    mean, error = statistics.jackknife(shuffled, groups=groups[order])
    np.testing.assert_allclose(mean, values.mean((0, 1)))
    np.testing.assert_allclose(error, values.mean(1).std(0, ddof=1) / np.sqrt(12))
    np.testing.assert_allclose(
        statistics.jackknife(shuffled, groups=groups[order], summary_fn=lambda v: v.mean(0))[1],
        error,
    )


def test_diversity_of_independent_maps_and_of_a_collapsed_generator(maps, rng):
    varied = statistics.diversity(maps)
    assert abs(varied.spread - 1) < 0.02
    assert varied.nearest.max() < 0.6
    collapsed = statistics.diversity(maps[rng.integers(0, 4, 400)])
    assert collapsed.spread == pytest.approx(statistics.diversity(maps[:4]).spread * 3 / 4, abs=0.1)
    np.testing.assert_allclose(collapsed.nearest, 1)
    assert statistics.diversity(np.repeat(maps[:1], 3, 0)).spread == pytest.approx(0, abs=1e-12)


def test_mean_distance_is_what_it_says(maps):
    few = maps[:10]
    distance = np.mean(
        [np.mean((few[i] - few[j]) ** 2) for i in range(10) for j in range(10) if i != j]
    )
    assert statistics.diversity(few).spread == pytest.approx(distance / (2 * few.var()))


# --- laws and refusals

STATISTICS = {
    "power_spectrum": lambda maps: statistics.power_spectrum(maps, pixel_scale=SCALE, edges=EDGES),
    "bispectrum": lambda maps: statistics.bispectrum(maps, pixel_scale=SCALE, triangles=TRIANGLES),
    "pixel_pdf": lambda maps: statistics.pixel_pdf(maps, edges=0.01 * LIMITS),
    "moments": statistics.moments,
    "peak_counts": lambda maps: statistics.peak_counts(maps, edges=0.01 * LIMITS),
    "minimum_counts": lambda maps: statistics.minimum_counts(maps, edges=0.01 * LIMITS),
    "minkowski_functionals": lambda maps: statistics.minkowski_functionals(
        maps, pixel_scale=SCALE, thresholds=0.01 * LIMITS
    ),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_many_maps_equal_each_alone(name, maps):
    np.testing.assert_allclose(
        STATISTICS[name](maps[:3]),
        np.concatenate([STATISTICS[name](image[None]) for image in maps[:3]]),
        rtol=1e-10,
        atol=1e-30,
    )


@pytest.mark.parametrize("name", [*STATISTICS, "diversity"])
def test_maps_of_no_use_are_refused(name, maps):
    function = STATISTICS.get(name, statistics.diversity)
    broken = maps[:2].copy()
    broken[0, 3, 3] = np.nan
    with pytest.raises(ValueError, match=f"{name}: maps must be finite, got 1 pixels"):
        function(broken)
    with pytest.raises(
        ValueError, match=rf"{name}: maps must be \[batch, height, width\] .*, got shape \(64, 64\)"
    ):
        function(maps[0])


REFUSED = {
    "edges": (
        lambda maps: statistics.power_spectrum(maps, pixel_scale=SCALE, edges=[500, 250]),
        "power_spectrum: edges must be at least two ascending",
    ),
    "empty band": (
        lambda maps: statistics.power_spectrum(maps, pixel_scale=SCALE, edges=[250, 251]),
        "every band must hold a mode, got none for l from 250 to 251",
    ),
    "taper": (
        lambda maps: statistics.power_spectrum(maps, pixel_scale=SCALE, edges=EDGES, taper=0.6),
        "taper must lie between 0 and 0.5 of the side, got 0.6",
    ),
    "pixel scale": (
        lambda maps: statistics.power_spectrum(maps, pixel_scale=np.nan, edges=EDGES),
        "pixel_scale must be a positive number of arcmin, got nan",
    ),
    "triangle around the grid": (
        lambda maps: statistics.bispectrum(
            maps, pixel_scale=SCALE, triangles=[((3000, 3500),) * 3]
        ),
        "must stay below l = 9391 together",
    ),
    "no triangle": (
        lambda maps: statistics.bispectrum(
            maps, pixel_scale=SCALE, triangles=[((100, 300), (300, 500), (2000, 2500))]
        ),
        "must form a triangle of modes",
    ),
    "thresholds": (
        lambda maps: statistics.minkowski_functionals(
            maps, pixel_scale=SCALE, thresholds=[0, 1, 3]
        ),
        "thresholds must be evenly spaced, got steps from 1.0 to 2.0",
    ),
    "constant map": (
        lambda maps: statistics.moments(np.zeros((2, 8, 8))),
        "every map must vary, got 2 constant maps",
    ),
    "one map": (
        lambda maps: statistics.diversity(maps[:1]),
        "diversity: maps must be at least two that vary, got 1 with 0 constant",
    ),
    "labels": (
        lambda maps: statistics.jackknife(np.ones(4), groups=[1, 2]),
        "one label for each of 4 maps, got shape",
    ),
    "one group": (
        lambda maps: statistics.jackknife(np.ones(4), groups=np.ones(4)),
        "groups must be at least two, got 1",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_meaning_is_refused(name, maps):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call(maps[:2])
