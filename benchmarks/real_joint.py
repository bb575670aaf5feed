"""Joint fits of real fields: three DECam bands of one galaxy and its neighbours, the blend of
hsc_blend beside sep's fluxes, and hsc_hst_pair in five bands beside the HST view.

    python -m benchmarks.real --shared ../shared/data --out DIR --only joint      # or blend, bands;
    runs this module

How fluxes are compared: sep adds up a circle of APERTURE pixels of the image without astrogen's
background, once as it is and once without the models of the other galaxies, and the light of
astrogen's own galaxy is added up in the same circle of the same pixels. No PSF enters: both see the
galaxy through the telescope. The errors are sep's, from the variance plane, with the background's,
and the relative error of astrogen's flux; a galaxy is isolated where the others put less than
BLENDED of its own light into its circle.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import sep
from astropy.io import fits
from astropy.nddata import Cutout2D
from astropy.table import Table
from astropy.wcs import WCS
from scipy import ndimage

from benchmarks import real
from benchmarks.real import HSC_BANDS, HSC_SCALE, SEED, line

HSC_BAD = 1 | 2 | 8 | 16 | 128 | 256  # BAD, SAT, CR, EDGE, SUSPECT, NO_DATA
NEAR = 4.0  # pixels: a detection so near to a given peak is the same galaxy
APERTURE = 7.0  # pixels, radius of the circle in which fluxes are compared
BLENDED = 0.01  # of its own light
SURVEY_SIZE = 64  # pixels, of the cutouts of the survey run
SKY_LIGHT = 0.3  # sigma: pixels where the model is fainter are blank sky


# --- three bands


def _files(folder):
    """A row of paths for each DECam exposure: image, psf, weight, mask; and its band."""
    exposure = list(real.exposures(folder))[1]
    words = [word for word in exposure.options if isinstance(word, Path)]
    columns = [
        words[first : first + len(exposure.images)]
        for first in range(0, len(words), len(exposure.images))
    ]
    return [
        (*row, row[0].name.split("_ooi_")[1][0])
        for row in zip(exposure.images, *columns, strict=True)
    ]


def read_exposures(folder):
    """(observations, bands) of decam_exposures."""
    from astrogen import read_observation, read_psf
    from astrogen.data.observation import read_frame

    rows = _files(folder)
    psfs = [
        read_psf(model, pixel_scale=read_frame(image).pixel_scale, position=(50, 50))
        for image, model, *_ in rows
    ]
    seen = [
        read_observation(image, psf=psf, weight=weight, mask=mask)
        for (image, _, weight, mask, _), psf in zip(rows, psfs, strict=True)
    ]
    return seen, [band for *_, band in rows]


def survey_exposures(folder, out, *, method, num_draws, prior):
    """The galaxy in the middle of the first exposure through `astrogen survey --joint
    --mask-neighbours`, as a user would run it: its Result.
    """
    from astrogen import read_object

    first = read_exposures(folder)[0][0]
    middle = first.wcs.pixel_to_world(*((side - 1) / 2 for side in first.image.shape[::-1]))
    out.mkdir(parents=True, exist_ok=True)
    Table({"id": ["middle"], "ra": [middle.ra.deg], "dec": [middle.dec.deg]}).write(
        out / "catalogue.ecsv", overwrite=True
    )
    rows = [(*map(str, map(Path.resolve, paths)), band) for *paths, band in _files(folder)]
    Table(rows=rows, names=["image", "psf", "weight", "mask", "band"]).write(
        out / "images.ecsv", overwrite=True
    )
    shutil.rmtree(out / "run", ignore_errors=True)
    command = [
        "survey",
        out / "catalogue.ecsv",
        "--images",
        out / "images.ecsv",
        "--joint",
        "--mask-neighbours",
        "--size",
        SURVEY_SIZE,
        "--method",
        method,
        "--draws",
        num_draws,
        "--prior",
        prior,
        "--seed",
        SEED,
        "--out",
        out / "run",
    ]
    subprocess.run([sys.executable, "-m", "astrogen", *map(str, command)], check=True)
    return read_object(out / "run", "middle")


def fit_exposures(folder, **how):
    """Result of the galaxies of decam_exposures: three exposures of as many bands, by their
    WCS.
    """
    from astrogen import deblend

    seen, bands = read_exposures(folder)
    return deblend(seen, bands=bands, seed=SEED, **how)


# --- a blend


def fit_blend(folder, **how):
    """Result of hsc_blend in five bands: the given peaks, and what sep finds beside them."""
    from astrogen import deblend, make_observation, make_psf
    from astrogen.data.detection import detect

    with np.load(Path(folder) / "hsc_blend/hsc_cosmos_35.npz") as file:
        bad = file["mask"] & HSC_BAD != 0
        seen = [
            make_observation(
                image,
                variance=variance,
                mask=mask,
                psf=make_psf(psf, pixel_scale=HSC_SCALE),
                pixel_scale=HSC_SCALE,
                name=f"hsc_blend {band}",
            )
            for image, variance, mask, psf, band in zip(
                file["images"], file["variance"], bad, file["psfs"], file["filters"], strict=True
            )
        ]
        peaks, bands = (
            np.stack([file["catalog"]["x"], file["catalog"]["y"]], 1),
            [str(name) for name in file["filters"]],
        )
    more = [
        place for place in detect(seen, aligned=True) if np.hypot(*(peaks - place).T).min() > NEAR
    ]
    return deblend(
        seen,
        sources=np.concatenate([peaks, np.reshape(more, (-1, 2))]),
        bands=bands,
        aligned=True,
        seed=SEED,
        **how,
    )


def sky_noise(result):
    """For each exposure: number of pixels of blank sky, their variance over the variance plane, and
    the same times the power of the noise at low frequencies over that of white noise.
    """
    rows = []
    for exposure in result.exposures:
        observation = exposure.observation
        light = (exposure.model - exposure.background[0]) / np.sqrt(observation.variance)
        free = ~observation.mask & ~ndimage.binary_dilation(np.abs(light) > SKY_LIGHT, iterations=1)
        noise = (observation.image - np.median(observation.image[free])) / np.sqrt(
            observation.variance
        )
        ratio = float(np.var(np.clip(noise[free], -4, 4)))
        rows.append(
            (int(free.sum()), ratio, ratio * real.noise_factor(noise / np.sqrt(ratio), free) ** 2)
        )
    return rows


class Flux(NamedTuple):
    """One galaxy in one circle of one exposure: sep's flux of the image, and of the image without
    the other galaxies, its error; astrogen's own light and its error; whether the galaxy
    is isolated."""

    name: str
    band: str
    raw: float
    cleaned: float
    error: float
    ours: float
    ours_error: float
    isolated: bool

    @property
    def pull(self):
        """Difference over the errors of both; from the raw image where the galaxy is isolated."""
        return (self.ours - (self.raw if self.isolated else self.cleaned)) / np.hypot(
            self.error, self.ours_error
        )


def aperture_fluxes(result, *, radius=APERTURE):
    """A Flux for each galaxy and exposure, of those whose circle lies in the image and whose middle
    is not masked.
    """
    rows = []
    for source in result.sources:
        for number, exposure in enumerate(result.exposures):
            observation, band = exposure.observation, exposure.band

            def circle(plane, var=None):
                # sep asks for arrays that it might write to.
                value, error, _ = sep.sum_circle(
                    np.array(plane, np.float64),
                    [source.x],
                    [source.y],
                    radius,
                    mask=observation.mask.copy(),
                    var=var,
                    subpix=0,
                )
                return float(value[0]), float(error[0])

            height, width = observation.image.shape
            inside = (
                radius <= source.x <= width - 1 - radius
                and radius <= source.y <= height - 1 - radius
            )
            if not inside or observation.mask[int(round(source.y)), int(round(source.x))]:
                continue
            level, level_error = exposure.background
            raw, error = circle(observation.image - level, observation.variance.astype(np.float64))
            beside = sum(
                circle(other.models[number])[0] for other in result.sources if other is not source
            )
            ours, area = circle(source.models[number])[0], circle(~observation.mask)[0]
            error = float(np.hypot(error, area * level_error))
            flux, flux_error = (part[source.bands.index(band)] for part in source.flux)
            rows.append(
                Flux(
                    source.name.split()[-1],
                    band,
                    raw,
                    raw - beside,
                    error,
                    ours,
                    abs(flux_error / flux * ours),
                    bool(abs(beside) < BLENDED * abs(ours)),
                )
            )
    return rows


def print_fluxes(rows):
    print(
        line(
            "galaxy, band",
            f"sep in {APERTURE:g} pixels",
            "without the others",
            "error",
            "astrogen",
            "error",
            "difference / sigma",
            "isolated",
        ),
        line(*["---"] * 8),
        sep="\n",
    )
    for row in rows:
        print(
            line(
                f"{row.name} {row.band}",
                *(f"{value:.4g}" for value in row[2:7]),
                f"{row.pull:+.2f}",
                "yes" if row.isolated else "",
            )
        )
    for isolated in (True, False):
        pulls = np.abs([row.pull for row in rows if row.isolated is isolated])
        if len(pulls):
            print(
                f"{'isolated' if isolated else 'others'}: {np.mean(pulls < 1):.2f} within one"
                f" sigma, {np.mean(pulls < 2):.2f} within two, of {len(pulls)}",
                flush=True,
            )


# --- five bands beside the HST view


def fit_bands(folder, pair, **how):
    """Result of hsc_hst_pair in five bands, neighbours fitted with the galaxy; the stamp is
    that of `pair`, the noise of each band as large as its correlation makes it.
    """
    from astrogen import deblend, make_observation, make_psf

    with fits.open(folder / "Cut_HSC.fits") as file, fits.open(folder / "PSF_HSC.fits") as psfs:
        images, kernels, wcs = (
            file[0].data.astype(np.float64),
            psfs[0].data,
            WCS(file[0].header).celestial,
        )
    middle = (np.array(pair.observation.image.shape[::-1]) - 1) / 2
    column, row = (
        int(round(float(place)))
        for place in wcs.world_to_pixel(pair.observation.wcs.pixel_to_world(*middle))
    )
    seen = []
    for image, kernel, band in zip(images, kernels, HSC_BANDS, strict=True):
        _, _, background, sigma, factor = real.detect(image)
        cut = Cutout2D(
            image - background,
            (column, row),
            pair.observation.image.shape,
            wcs=wcs,
            mode="partial",
            fill_value=np.nan,
        )
        seen.append(
            make_observation(
                cut.data,
                psf=make_psf(kernel, pixel_scale=HSC_SCALE),
                sigma=sigma * factor,
                wcs=cut.wcs,
                pixel_scale=HSC_SCALE,
                name=f"HSC {band}",
            )
        )
    return deblend(seen, bands=HSC_BANDS, aligned=True, seed=SEED, **how)


class Scene(NamedTuple):
    """Several views of one sky, added up."""

    views: tuple

    def at(self, x, y):
        return sum(view.at(x, y) for view in self.views)

    def smoothed(self, resolution):
        return Scene(tuple(view.smoothed(resolution) for view in self.views))


def compare_bands(pair, result):
    """Correlation of the deconvolved field in each band with the HST view, all its galaxies
    together: list of Comparison.
    """
    grid, hubbles, rows = (
        pair.grid(),
        [pair.hubble(resolution) for resolution in real.RESOLUTIONS],
        [],
    )
    for number, band in enumerate(result.sources[0].bands):
        scene = Scene(tuple(_view_of(source, number) for source in result.sources))
        found = [
            real.correlate(scene.smoothed(resolution), hubble, grid)
            for resolution, hubble in zip(real.RESOLUTIONS, hubbles, strict=True)
        ]
        rows.append(
            real.Comparison(
                f"joint, {band}",
                *zip(*found, strict=True),
                f"{len(result.sources)} galaxies",
                scene,
            )
        )
    return rows


def _view_of(source, band):
    to_pixels = real.centred_pixels(source.images.shape[1:], source.prior_scale)
    return real.View(
        source.images[band].astype(float),
        source.prior_scale,
        lambda x, y: to_pixels(x - source.place[0], y - source.place[1]),
        source.target_fwhm,
    )


# --- together


def fit_together(options):
    """Print and draw the joint fits that are asked for; with `joint`, what a survey run makes of
    the same exposures, neighbours masked.
    """
    from astrogen.report import write_figure

    how = {"method": options.method, "num_draws": options.draws, "prior": options.prior}
    for name in ("joint", "blend", "bands"):
        if options.only not in (None, name):
            continue
        if name == "bands":
            pair = real.read_pair(options.shared / "hsc_hst_pair")
            result = fit_bands(options.shared / "hsc_hst_pair", pair, **how)
            rows = compare_bands(pair, result)
            real.print_comparison(rows, pair)
            real.draw_comparison(rows, pair, resolution=real.RESOLUTIONS[0]).savefig(
                options.out / "hsc_hst_bands_hst.png", dpi=110, bbox_inches="tight"
            )
        else:
            result = (fit_exposures if name == "joint" else fit_blend)(options.shared, **how)
        print(result.summary(), flush=True)
        if name == "joint":
            alone = survey_exposures(
                options.shared, options.out / "survey", **how | {"method": "auto"}
            )
            print(alone.summary(), flush=True)
            write_figure(alone, options.out / "survey.png")
        if name == "blend":
            for exposure, (num, ratio, power) in zip(
                result.exposures, sky_noise(result), strict=True
            ):
                print(
                    line(
                        exposure.band,
                        f"{num} pixels of blank sky",
                        f"variance {ratio:.2f} of the variance plane",
                        f"power at low frequencies {power:.2f} of it",
                    )
                )
        print_fluxes(aperture_fluxes(result))
        write_figure(result, options.out / f"{name}.png")
        result.write_fits(options.out / f"{name}.fits", num_draws_kept=8)


if __name__ == "__main__":
    fit_together(real.parse(None))
