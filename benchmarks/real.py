"""Real galaxies: is the deconvolved image what the Hubble telescope sees, and do survey cutouts go
through the command line?

    python -m benchmarks.real --shared ../shared/data --out DIR

`compare_with_hubble` deconvolves the HSC i band of hsc_hst_pair and correlates the result with the
HST view of the same sky, next to the HSC image itself and to Richardson-Lucy. The HST view is
brought to each common resolution by its own PSF, everything is sampled on one grid by the WCS, and
each method is granted the same small shift. Only correlations and the best case of Richardson-Lucy
know the HST view. `deconvolve_exposures` runs `astrogen deconvolve` on hsc_galaxy and
decam_exposures, and again with 1e6 in every masked pixel. The joint fits are those of
`benchmarks.real_joint`.
"""

import argparse
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import sep
from astropy.io import fits
from astropy.nddata import Cutout2D
from astropy.wcs import WCS
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy import ndimage, optimize

HSC_SCALE, HST_SCALE = 0.168, 0.03  # arcsec per pixel
HSC_BANDS, I_BAND = tuple("grizy"), 2
STAGES = ("pair", "exposures", "joint", "blend", "bands")
DETECTION = 1.5  # sigma, per pixel
# observed pixels: beyond the neighbours' detected light; beyond the galaxy's
MASK_GROWTH, APERTURE_GROWTH = 2, 2
GRID_SCALE = 0.084  # arcsec, of the grid on which images are compared
MAX_SHIFT = 0.15  # arcsec
MAX_ITERATIONS = 300
# sigma, that Richardson-Lucy adds to data and model: else clipping at zero makes light from noise
PEDESTAL = 4.0
RESOLUTIONS = (0.25, 0.3, 0.4)  # FWHM, arcsec
COARSER = 0.14  # arcsec per deconvolved pixel, tried beside the scale that astrogen chooses
SEED = 1
FILL = 1e6  # what masked pixels hold in the second run


def gaussian_transform(fwhm, frequency_x, frequency_y):
    """Fourier transform of a Gaussian; fwhm in arcsec, frequencies in cycles per arcsec."""
    sigma = fwhm / np.sqrt(8 * np.log(2))
    return np.exp(-2 * (np.pi * sigma) ** 2 * (frequency_x**2 + frequency_y[:, None] ** 2))


def _frequencies(shape, pixel_scale):
    return np.fft.rfftfreq(shape[1], pixel_scale), np.fft.fftfreq(shape[0], pixel_scale)


def smooth(image, fwhm, *, pixel_scale):
    """Convolve with a Gaussian (FWHM in arcsec), with zeros beyond the image."""
    padded = np.pad(image, [(0, side) for side in image.shape])
    transform = np.fft.rfft2(padded) * gaussian_transform(
        fwhm, *_frequencies(padded.shape, pixel_scale)
    )
    return np.fft.irfft2(transform, padded.shape)[: image.shape[0], : image.shape[1]]


# --- one sky, two telescopes


@dataclass(frozen=True, eq=False)
class View:
    """An image on the sky: positions are arcsec (x, y) from the middle of the HSC stamp, along its
    pixel axes.

    image [h, w]; to_pixels(x, y) -> (column, row); resolution : FWHM of its Gaussian PSF in arcsec,
    nan where it is something else
    """

    image: np.ndarray
    pixel_scale: float
    to_pixels: callable
    resolution: float = np.nan

    def at(self, x, y):
        """Sample at positions."""
        column, row = self.to_pixels(x, y)
        return ndimage.map_coordinates(self.image, [row, column], order=3)

    def smoothed(self, resolution):
        """The view at a coarser resolution (FWHM in arcsec); itself where its own is not Gaussian,
        or no finer.
        """
        if not resolution > self.resolution:
            return self
        image = smooth(
            self.image, np.sqrt(resolution**2 - self.resolution**2), pixel_scale=self.pixel_scale
        )
        return View(image, self.pixel_scale, self.to_pixels, resolution)


@dataclass(frozen=True, eq=False)
class Pair:
    """observation : Observation of the HSC i band, neighbours masked; noise_factor : by which the
    noise is larger where several pixels are averaged than
    independent pixels would be; hsc [h, w] : the stamp with the neighbours; galaxy [h, w] : its
    detected pixels, grown; hst, psf_hst : images of 0.03"/px.
    """

    observation: object
    noise_factor: float
    hsc: np.ndarray
    galaxy: np.ndarray
    hst: np.ndarray
    hst_wcs: WCS
    psf_hst: np.ndarray

    def hubble(self, resolution):
        """View of the HST image at a Gaussian resolution: its own PSF is divided out where the
        Gaussian is multiplied on.
        """
        image = np.pad(self.hst, [(0, side) for side in self.hst.shape])
        kernel = np.zeros_like(image)
        side = len(self.psf_hst)
        kernel[:side, :side] = self.psf_hst
        x, y = _frequencies(image.shape, HST_SCALE)
        row, column = _core_centre(self.psf_hst)
        centred = np.fft.rfft2(kernel) * np.exp(
            2j * np.pi * HST_SCALE * (x * column + y[:, None] * row)
        )
        wanted = gaussian_transform(resolution, x, y)
        ratio = np.where(
            wanted > 1e-4, wanted / np.where(np.abs(centred) > 1e-6, centred, np.inf), 0
        )
        image = np.fft.irfft2(np.fft.rfft2(image) * ratio, image.shape)[
            : self.hst.shape[0], : self.hst.shape[1]
        ]
        return View(image, HST_SCALE, self._to_hubble, resolution)

    def _to_hubble(self, x, y):
        middle = (np.array(self.observation.image.shape) - 1) / 2
        sky = self.observation.wcs.pixel_to_world(
            x / HSC_SCALE + middle[1], y / HSC_SCALE + middle[0]
        )
        return self.hst_wcs.world_to_pixel(sky)

    def grid(self):
        """Positions (x, y) of the comparison grid, and which of them lie in the aperture: the
        galaxy, without its neighbours' pixels.
        """
        side = int(round(min(self.observation.image.shape) * HSC_SCALE / GRID_SCALE))
        x, y = np.meshgrid(*[(np.arange(side) - (side - 1) / 2) * GRID_SCALE] * 2)
        column, row = centred_pixels(self.observation.image.shape, HSC_SCALE)(x, y)
        index = np.clip(
            np.rint([row, column]).astype(int),
            0,
            np.array(self.observation.image.shape)[:, None, None] - 1,
        )
        return x, y, (self.galaxy & ~self.observation.mask)[tuple(index)]


def centred_pixels(shape, pixel_scale):
    """to_pixels of an image whose middle is that of the HSC stamp."""
    middle = (np.array(shape) - 1) / 2
    return lambda x, y: (x / pixel_scale + middle[1], y / pixel_scale + middle[0])


def _core_centre(psf):
    """(row, column) of the light above half the maximum."""
    core = np.where(psf > psf.max() / 2, psf, 0)
    return ndimage.center_of_mass(core)


def read_pair(folder, *, side=49):
    """Read hsc_hst_pair, find the galaxy in the middle, and mask what is not it.

    Parameters
    ----------
    folder : path
    side : int, pixels of the HSC stamp, cut about the galaxy

    Returns
    -------
    Pair
    """
    from astrogen import make_observation, make_psf

    folder = Path(folder)
    with fits.open(folder / "Cut_HSC.fits") as file:
        image, wcs = file[0].data[I_BAND].astype(np.float64), WCS(file[0].header).celestial
    galaxy, neighbours, background, sigma, factor = detect(image)
    row, column = (int(round(place)) for place in ndimage.center_of_mass(image * galaxy))
    cut = [
        Cutout2D(plane, (column, row), side, wcs=wcs, mode="partial", fill_value=fill)
        for plane, fill in ((image - background, np.nan), (galaxy, False), (neighbours, True))
    ]
    with fits.open(folder / "Cut_HST.fits") as file:
        hst, hst_wcs = file[0].data.astype(np.float64), WCS(file[0].header)
    with fits.open(folder / "PSF_HSC.fits") as file:
        psf = make_psf(file[0].data[I_BAND], pixel_scale=HSC_SCALE)
    with fits.open(folder / "PSF_HST.fits") as file:
        psf_hst = file[0].data.astype(np.float64)
    observation = make_observation(
        cut[0].data,
        psf=psf,
        sigma=sigma,
        mask=cut[2].data,
        wcs=cut[0].wcs,
        pixel_scale=HSC_SCALE,
        name="HSC i",
    )
    return Pair(
        observation,
        factor,
        np.nan_to_num(cut[0].data),
        cut[1].data,
        hst - np.median(hst),
        hst_wcs,
        psf_hst / psf_hst.sum(),
    )


def detect(image):
    """(galaxy, neighbours, background, sigma, noise_factor): masks [h, w] of the object in the
    middle and of the others, both grown; level and noise of the
    free sky, and the square root of its power at low frequencies over that of white noise."""
    background, sigma = np.median(image), sep.Background(np.ascontiguousarray(image)).globalrms
    for _ in range(3):
        objects, segments = sep.extract(
            image - background, DETECTION, err=sigma, segmentation_map=True
        )
        free = ~ndimage.binary_dilation(segments > 0, iterations=4)
        background = np.median(image[free])
        sigma = 1.4826 * np.median(np.abs(image[free] - background))
    middle = (np.array(image.shape) - 1) / 2
    central = 1 + np.argmin(np.hypot(objects["x"] - middle[1], objects["y"] - middle[0]))
    neighbours = ndimage.binary_dilation(
        (segments > 0) & (segments != central), iterations=MASK_GROWTH
    )
    galaxy = ndimage.binary_dilation(segments == central, iterations=APERTURE_GROWTH) & ~neighbours
    return (
        galaxy,
        neighbours,
        float(background),
        float(sigma),
        noise_factor((image - background) / sigma, free),
    )


def noise_factor(noise, free):
    """Square root of the sum of the noise's autocorrelation over neighbouring pixels: resampled
    survey images have correlated noise.
    """
    noise = np.where(free, np.clip(noise, -4, 4), 0)
    total = 1.0
    for lag in ((0, 1), (1, 0), (1, 1), (1, -1)):
        both = free & np.roll(free, lag, (0, 1))
        total += (
            2 * (noise * np.roll(noise, lag, (0, 1)))[both].mean() / np.square(noise[free]).mean()
        )
    return float(np.sqrt(max(total, 1.0)))


# --- the rival


def richardson_lucy(
    observation, *, prior_scale, target_fwhm, side=64, num_iterations=MAX_ITERATIONS
):
    """Richardson-Lucy on the deconvolved grid, through the same PSF and to the same resolution;
    masked pixels are left out.

    Parameters
    ----------
    observation : Observation, background subtracted
    prior_scale, target_fwhm : float, arcsec, of the grid that is solved for
    side, num_iterations : int

    Returns
    -------
    (images [iteration, side, side], chi2 [iteration]) : after each iteration, and the mean squared
    residual over sigma of the good pixels
    """
    see, spread = _telescope(observation, prior_scale, target_fwhm, side)
    good, sigma = ~observation.mask, np.sqrt(observation.variance)
    level = PEDESTAL * sigma
    counts = np.clip(observation.image + level, 0, None) * good
    image = np.full((side, side), max(observation.image[good].sum(), sigma[good].mean()) / side**2)
    share = np.clip(spread(good.astype(float)), 1e-3, None)
    images, chi2 = [], []
    for _ in range(num_iterations):
        image = np.clip(
            image * spread(counts / (np.clip(see(image), 0, None) + level)) / share, 0, None
        )
        images.append(image)
        chi2.append(np.square((observation.image - see(image)) / sigma)[good].mean())
    return np.array(images), np.array(chi2)


def _telescope(observation, prior_scale, target_fwhm, side):
    """What the telescope makes of an image [side, side], and the transpose of that."""
    from astrogen.instruments import telescope

    psf = observation.psf
    kernel = telescope.kernel_transform(
        psf.image,
        psf_scale=psf.pixel_scale,
        pixel_response=psf.pixel_response,
        pixel_scale=observation.pixel_scale,
        prior_scale=prior_scale,
        target_fwhm=target_fwhm,
    )
    rows, columns = (
        telescope.interpolation_matrix(
            num, observation.pixel_scale, prior_scale, np.zeros(1, np.float32)
        ).numpy()[0]
        for num in observation.image.shape
    )
    rows = rows * (observation.pixel_scale / prior_scale) ** 2  # flux per pixel
    grid, first = telescope.GRID, (telescope.GRID - side) // 2
    stamp = slice(first, first + side)

    def see(image):
        padded = np.zeros((grid, grid))
        padded[stamp, stamp] = image
        return rows @ np.fft.irfft2(np.fft.rfft2(padded) * kernel, (grid, grid)) @ columns.T

    def spread(counts):
        return np.fft.irfft2(
            np.fft.rfft2(rows.T @ counts @ columns) * np.conj(kernel), (grid, grid)
        )[stamp, stamp]

    return see, spread


def stop_at_noise(chi2):
    """Index of the first iteration whose residual is as small as the noise (Morozov's discrepancy
    principle), else the last.
    """
    reached = np.flatnonzero(chi2 <= 1)
    return int(reached[0]) if len(reached) else len(chi2) - 1


# --- the comparison


def correlate(view, hubble, grid):
    """Best Pearson correlation within the aperture, and the shift (x, y) in arcsec that it takes,
    at most MAX_SHIFT along each axis.
    """
    x, y, aperture = grid
    wanted = hubble.at(x, y)[aperture]

    def loss(shift):
        return -np.corrcoef(view.at(x[aperture] + shift[0], y[aperture] + shift[1]), wanted)[0, 1]

    best = optimize.minimize(
        loss,
        np.zeros(2),
        method="L-BFGS-B",
        bounds=[(-MAX_SHIFT, MAX_SHIFT)] * 2,
        options={"eps": 1e-3},
    )
    return -best.fun, best.x


@dataclass(frozen=True, eq=False)
class Comparison:
    """One method: its name, correlations and shifts (x, y in arcsec) at each resolution, what is to
    be said, and the view that the figure shows.
    """

    name: str
    correlations: tuple
    shifts: tuple
    remark: str
    view: View


def compare_with_hubble(
    pair,
    *,
    resolutions=RESOLUTIONS,
    prior="galaxy",
    method="laplace",
    num_draws=200,
    prior_scales=(None, COARSER),
):
    """Correlation with the HST view of the HSC image, of Richardson-Lucy and of deconvolved images.

    Parameters
    ----------
    pair : Pair
    resolutions : sequence of float, FWHM in arcsec of the Gaussians to which images are brought; a
        coarser image is compared as it is
    prior, method, num_draws : as in `astrogen.deconvolve`
    prior_scales : sequence of float or None, arcsec; each is a row

    Returns
    -------
    (list of Comparison, list of Result) : the HSC image, Richardson-Lucy twice, and a row for each
    Result
    """
    from astrogen import deconvolve

    seen = replace(
        pair.observation, variance=pair.observation.variance * np.float32(pair.noise_factor**2)
    )
    results = [
        deconvolve(
            seen, prior=prior, method=method, num_draws=num_draws, prior_scale=scale, seed=SEED
        )
        for scale in prior_scales
    ]
    grid, hubbles = pair.grid(), [pair.hubble(resolution) for resolution in resolutions]

    def compare(name, view, remark):
        found = [
            correlate(view.smoothed(resolution), hubble, grid)
            for resolution, hubble in zip(resolutions, hubbles, strict=True)
        ]
        return Comparison(name, *zip(*found, strict=True), remark, view)

    stopped, tries = [], []
    for result in results:
        first, others = _rows_of_richardson_lucy(pair, result, compare)
        stopped.append(first)
        tries += others
    hsc = View(pair.hsc, HSC_SCALE, centred_pixels(pair.hsc.shape, HSC_SCALE))
    rows = [
        compare("HSC image", hsc, f"PSF of {pair.observation.psf.fwhm:.2f} arcsec"),
        max(stopped, key=_mean_correlation),
        max(tries, key=_mean_correlation),
    ]
    for result in results:
        view = _view_like(result, result.image)
        rows.append(compare(f"astrogen {result.method}", view, _about(result, pair)))
    return rows, results


def _view_like(result, image):
    """An image on the pixels of a result, as it sees the sky."""
    pixels = centred_pixels(image.shape, result.prior_scale)
    return View(image.astype(float), result.prior_scale, pixels, result.target_fwhm)


def _rows_of_richardson_lucy(pair, result, compare):
    """Richardson-Lucy on the pixels of a result: stopped at the noise, and after every other number
    of iterations.
    """
    images, chi2 = richardson_lucy(
        pair.observation,
        prior_scale=result.prior_scale,
        target_fwhm=result.target_fwhm,
        side=len(result.image),
    )
    stop, about = stop_at_noise(chi2), f"{result.prior_scale:.3f} arcsec per pixel"
    stopped = compare(
        "RL, stopped at the noise",
        _view_like(result, images[stop]),
        f"{about}, {stop + 1} iterations, the first with chi2 <= 1",
    )
    return stopped, [
        compare(
            "RL, best case",
            _view_like(result, images[num - 1]),
            f"{about}, {num} iterations, both chosen by the HST view",
        )
        for num in (*range(20, 100, 20), *range(100, len(images) + 1, 50))
    ]


def _mean_correlation(row):
    return np.mean(row.correlations)


def _about(result, pair):
    """Scale, misfit in units of the pixels' own noise, and whether the posterior can be trusted."""
    return (
        f"{result.prior_scale:.3f} arcsec per pixel, chi2 {result.chi2 * pair.noise_factor**2:.2f},"
        f" {'converged' if result.converged else '; '.join(word[:60] for word in result.status)}"
    )


def noise_ceiling(pair, resolution):
    """Correlation that the noiseless truth would have with the HST view: the view's own noise, from
    its corners without objects.
    """
    hubble, (x, y, aperture) = pair.hubble(resolution), pair.grid()
    margin = len(hubble.image) // 5
    noise = np.median(
        [
            hubble.image[rows, columns].var()
            for rows in (slice(margin), slice(-margin, None))
            for columns in (slice(margin), slice(-margin, None))
        ]
    )
    return float(np.sqrt(max(1 - noise / hubble.at(x, y)[aperture].var(), 0)))


# --- survey cutouts through the command line


class Exposure(NamedTuple):
    """name; images [n] of one command, and the options that stand for its other files."""

    name: str
    images: list
    options: list


def exposures(folder):
    """The two commands, over the files of the shared data's folder."""
    hsc, decam = Path(folder) / "hsc_galaxy", Path(folder) / "decam_exposures"
    yield Exposure(
        "hsc_galaxy",
        [hsc / "gal1_im.npy"],
        [
            "--psf",
            hsc / "gal1_psf.npy",
            "--sigma",
            hsc / "gal1_sig.npy",
            "--mask",
            hsc / "gal1_mask.npy",
            "--pixel-scale",
            HSC_SCALE,
        ],
    )
    images = sorted(path for path in decam.glob("*_ooi_*.fits") if "psfex" not in path.name)
    others = {
        kind: [path.with_name(path.name.replace("_ooi_", f"_{kind}_")) for path in images]
        for kind in ("oow", "ood")
    }
    models = [
        path.with_name("-".join([*path.name.removesuffix(".fits").rsplit(".", 1), "psfex.fits"]))
        for path in images
    ]
    yield Exposure(
        "decam_exposures",
        images,
        [
            "--psf",
            *models,
            "--psf-position",
            50,
            50,
            "--weight",
            *others["oow"],
            "--mask",
            *others["ood"],
        ],
    )


def deconvolve_exposure(exposure, out, *, method, num_draws):
    """Run the command, then again with `FILL` in every masked pixel.

    Returns
    -------
    list of (Result, bool): whether the second run gave the same arrays to the last bit
    """
    first = _run(exposure.images, exposure.options, out / exposure.name, method, num_draws)
    filled = [
        _fill(path, result.observation.mask, out / f"{exposure.name}_input")
        for path, result in zip(exposure.images, first, strict=True)
    ]
    second = _run(filled, exposure.options, out / f"{exposure.name}_filled", method, num_draws)
    return [(one, _same(one, other)) for one, other in zip(first, second, strict=True)]


def _run(images, options, out, method, num_draws):
    from astrogen import read_result

    command = [
        "deconvolve",
        *images,
        *options,
        "--method",
        method,
        "--draws",
        num_draws,
        "--seed",
        SEED,
        "--out",
        out,
    ]
    code = subprocess.run(
        [sys.executable, "-m", "astrogen", *map(str, command)], check=False
    ).returncode
    if code != 0:
        raise RuntimeError(f"astrogen {' '.join(map(str, command))}: exit code {code}")
    files = [
        f"{path.name.removesuffix('.fits').removesuffix('.npy').replace('.', '_')}.fits"
        for path in images
    ]
    return [read_result(out / file) for file in files]


def _fill(path, mask, folder):
    """A copy of the image, of the same name, with `FILL` where the mask is set."""
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / path.name
    if path.suffix == ".npy":
        np.save(copy, np.where(mask, np.float32(FILL), np.load(path)))
        return copy
    with fits.open(path) as file:
        image = next(hdu for hdu in file if hdu.data is not None)
        image.data = np.where(mask, np.float32(FILL), image.data)
        file.writeto(copy, overwrite=True)
    return copy


def _same(one, other):
    names = (
        "image",
        "image_std",
        "model",
        "residual",
        "draws",
        "latent_draws",
        "flux_draws",
        "shift_draws",
        "background_draws",
    )
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


# --- figures and words


def draw_comparison(rows, pair, *, resolution):
    """One figure: the methods and the HST view at one resolution, each on its own asinh stretch of
    equal softness relative to its peak in the aperture.
    """
    x, y, aperture = pair.grid()
    panels = [
        (
            f"{row.name}\nr = {row.correlations[RESOLUTIONS.index(resolution)]:.3f}",
            row.view.smoothed(resolution).at(x, y),
        )
        for row in rows
    ]
    panels.append((f"HST at {resolution} arcsec", pair.hubble(resolution).at(x, y)))
    figure = Figure(figsize=(3.2 * len(panels), 3.7), layout="constrained")
    FigureCanvasAgg(figure)
    side = np.abs(x).max()
    for axes, (title, image) in zip(
        figure.subplots(1, len(panels), sharey=True), panels, strict=True
    ):
        axes.imshow(
            np.arcsinh(20 * image / np.percentile(image[aperture], 99.5)),
            origin="lower",
            cmap="magma",
            vmin=-1,
            vmax=np.arcsinh(20),
            extent=[-side, side] * 2,
        )
        axes.contour(x, y, aperture, [0.5], colors="white", linewidths=0.6)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("arcsec")
    return figure


def line(*cells):
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def print_comparison(rows, pair):
    """The table of correlations."""
    print(
        line("correlation with HST at FWHM (arcsec)", *RESOLUTIONS, "shift x, y (arcsec)", "about"),
        line(*["---"] * (len(RESOLUTIONS) + 3)),
        sep="\n",
    )
    for row in rows:
        print(
            line(
                row.name,
                *(f"{value:.4f}" for value in row.correlations),
                f"{row.shifts[0][0]:+.3f}, {row.shifts[0][1]:+.3f}",
                row.remark,
            )
        )
    print(
        line(
            "ceiling by the noise of HST",
            *(f"{noise_ceiling(pair, resolution):.3f}" for resolution in RESOLUTIONS),
            "",
            "",
        ),
        flush=True,
    )


def print_exposure(name, pairs):
    """A line for each image of one command."""
    for result, same in pairs:
        num_masked = int(result.observation.mask.sum())
        told = (
            f"{num_masked} masked pixels "
            + ("never change the answer" if same else "CHANGE THE ANSWER")
            if num_masked
            else "no masked pixel"
        )
        print(
            line(
                name,
                result.name,
                f"chi2 {result.chi2:.2f}",
                told,
                "; ".join(result.status) or "converged",
            ),
            flush=True,
        )


def parse(arguments):
    """The options of this benchmark and of `benchmarks.real_joint`; the folder for figures is
    made.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.real",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--shared", type=Path, required=True, metavar="DIR", help="folder data of the shared files"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="for the figures and the results"
    )
    parser.add_argument("--only", choices=STAGES, help="one part of it")
    parser.add_argument("--prior", default="galaxy", metavar="NAME")
    parser.add_argument(
        "--method",
        choices=("map", "laplace", "hmc", "auto"),
        default="laplace",
        help="(default laplace)",
    )
    parser.add_argument(
        "--prior-scales",
        type=float,
        nargs="+",
        default=[None, COARSER],
        metavar="ARCSEC",
        help=(
            "of the deconvolved images of the pair (default: the one astrogen chooses, and"
            f" {COARSER})"
        ),
    )
    parser.add_argument("--draws", type=int, default=200, metavar="N", help="(default 200)")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    return options


def main(arguments=None):
    """Run the benchmark; the exit code is 1 where a masked pixel changed an answer or the
    deconvolved image is no better than its rivals.
    """
    options = parse(arguments)
    passed = True
    if options.only in (None, "pair"):
        passed &= _compare_pair(options)
    if options.only not in ("pair", "exposures"):
        subprocess.run(
            [
                sys.executable,
                "-m",
                "benchmarks.real_joint",
                *(sys.argv[1:] if arguments is None else map(str, arguments)),
            ],
            check=True,
        )
    for exposure in exposures(options.shared) if options.only in (None, "exposures") else ():
        done = deconvolve_exposure(
            exposure, options.out, method=options.method, num_draws=options.draws
        )
        print_exposure(exposure.name, done)
        passed &= all(same for _, same in done)
    return 0 if passed else 1


def _compare_pair(options):
    """Print and draw; whether, at all resolutions, a deconvolved image is closer to the HST view
    than the HSC image and Richardson-Lucy stopped at the noise.

    Which one is asked for is decided without the HST view: the first whose posterior converged,
    else the last.
    """
    from astrogen import write_report

    pair = read_pair(options.shared / "hsc_hst_pair")
    rows, results = compare_with_hubble(
        pair,
        prior=options.prior,
        method=options.method,
        num_draws=options.draws,
        prior_scales=options.prior_scales,
    )
    chosen = next(
        (index for index, result in enumerate(results) if result.converged), len(results) - 1
    )
    print_comparison(rows, pair)
    print(
        f"noise larger by {pair.noise_factor:.2f} than that of its pixels; shown:"
        f" {rows[3 + chosen].remark}",
        flush=True,
    )
    write_report(results, options.out / "hsc_hst_pair", title="HSC i band of hsc_hst_pair")
    shown = [*rows[:3], rows[3 + chosen]]
    for resolution in RESOLUTIONS:
        draw_comparison(shown, pair, resolution=resolution).savefig(
            options.out / f"hsc_hst_pair_{resolution}.png", dpi=110, bbox_inches="tight"
        )
    hsc, stopped, _, ours = (np.array(row.correlations) for row in shown)
    return bool((ours > np.maximum(hsc, stopped)).all())


if __name__ == "__main__":
    sys.exit(main())
