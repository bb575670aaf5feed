"""What we believe now: the posterior over the unconvolved images of one galaxy or several, in the
exposures that show them, as numbers, images and words.

A `Result` holds its sources (galaxies, each in one band or several) and its exposures. One galaxy
in one exposure is the common case: all that is said of either can then be asked of the result.
Catalogue quantities come from the draws (`quantities`). All galaxies share their draws: draw n of
one belongs to draw n of the others, so that sums and differences of fluxes have the right errors.
"""

import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from astropy.nddata import CCDData, StdDevUncertainty
from astropy.table import Table, vstack
from astropy.units import dimensionless_unscaled

from astrogen.data.observation import Observation, as_given
from astrogen.data.units import read_unit
from astrogen.errors import InputError, printable
from astrogen.galaxies import result_files
from astrogen.galaxies.quantities import (
    QUANTITIES,
    Quantities,
    covariance_of,
    format_value,
    mean_and_error,
    measure,
    measured_words,
)
from astrogen.inference.verdict import Fit, format_p, name_in

TABLE_UNITS = {
    "half_light_radius": "arcsec",
    "half_light_radius_err": "arcsec",
    "target_fwhm": "arcsec",
    "prior_scale": "arcsec/pix",
}
FLUX_COLUMNS = ("flux", "flux_err", "background", "background_err")


@dataclass(frozen=True, eq=False)
class Source:
    """One galaxy in all bands. Made by `conclude.make_source`.

    name : str
    bands : tuple of str; reference : the one whose image the prior describes, the others differ
        from it by colour gradients
    place : (x, y) arcsec of the middle of the deconvolved images from the middle of the first
        stamp, along its pixel axes
    x, y : float, pixels from 0 of the first exposure: weighted centroid of the mean image in the
        reference band
    prior_scale, target_fwhm : float, arcsec per pixel of the deconvolved images, and their Gaussian
        resolution
    wcs : astropy WCS of the deconvolved images, or None
    images, images_std : float32 [band, 64, 64], flux per deconvolved pixel, posterior mean and
        standard deviation
    draws : float32 [num_draws, band, 64, 64], flux per deconvolved pixel: equally probable images
    flux_draws : [num_draws, band]; shift_draws : [num_draws, 2], (x, y) arcsec from the middle of
        the first stamp; latent_draws : [num_draws, d]
    models : tuple of float32 [h, w], its light in each exposure, flux per observed pixel; none of
        the only galaxy, whose light is all that the exposures' models hold (`Result.light_of`)
    colour : float, strength of its colour gradients in units of the population's spread of shapes;
        residual_amplitude : float, of the prior's own error
    measured : Quantities in the reference band where they are known, or None
    """

    name: str
    bands: tuple
    reference: str
    place: tuple
    x: float
    y: float
    prior_scale: float
    target_fwhm: float
    wcs: object
    images: np.ndarray
    images_std: np.ndarray
    draws: np.ndarray
    flux_draws: np.ndarray
    shift_draws: np.ndarray
    latent_draws: np.ndarray
    colour: float
    residual_amplitude: float
    models: tuple = ()
    measured: Quantities | None = None

    @property
    def reference_band(self):
        """Place of the reference band among the bands."""
        return self.bands.index(self.reference)

    @property
    def flux(self):
        """(values [band], errors [band]) in the units of the observations: of one band that of
        `quantities`; of several mean and standard deviation over the draws, which belong to
        `flux_covariance`.
        """
        if len(self.bands) == 1:
            return tuple(np.array([number]) for number in self.quantities.flux)
        return self.flux_draws.mean(0, np.float64), self.flux_draws.std(0, dtype=np.float64)

    @property
    def flux_covariance(self):
        """Covariance [band, band] of the fluxes."""
        return covariance_of(self.flux_draws)

    @cached_property
    def quantities(self):
        """Quantities in the reference band, measured on first use (about 1 ms per draw)."""
        return self.measured or measure(
            self.draws[:, self.reference_band],
            pixel_scale=self.prior_scale,
            places=self.shift_draws - np.asarray(self.place),
            fluxes=self.flux_draws[:, self.reference_band],
        )


@dataclass(frozen=True, eq=False)
class ExposureFit:
    """What was fitted to one exposure. Made by `conclude.make_exposure`.

    observation : Observation; band : str
    model : float32 [h, w], flux per observed pixel: the light of all galaxies, convolved with the
        PSF, plus background
    residual : float32 [h, w], observed minus model, 0 at masked pixels
    background_draws : [num_draws], flux per observed pixel
    fit : `verdict.Fit`, how the model compares with the noise
    """

    observation: Observation
    band: str
    model: np.ndarray
    residual: np.ndarray
    background_draws: np.ndarray
    fit: Fit

    @property
    def background(self):
        """(value, error) of the sky's level, flux per observed pixel: mean and standard deviation
        over the draws.
        """
        return mean_and_error(self.background_draws)

    @property
    def name(self):
        """Name of the image, and its band."""
        return f"{self.observation.name} {self.band}".strip()


def _of_the_only(kind, name, text, of_fn=None):
    """A property of a Result: what its only source or exposure says."""

    def get(result):
        parts = getattr(result, f"{kind}s")
        if len(parts) != 1:
            raise InputError(
                f"Result.{name}: result must hold one {kind}, got {len(parts)}; take it from one of"
                f" result.{kind}s"
            )
        return of_fn(parts[0]) if of_fn else getattr(parts[0], name)

    return property(get, doc=text)


def _of_the_source(name, text, of_fn=None):
    return _of_the_only("source", name, f"Of the only galaxy: {text}", of_fn)


def _of_the_exposure(name, text, of_fn=None):
    return _of_the_only("exposure", name, f"Of the only exposure: {text}", of_fn)


@dataclass(frozen=True, eq=False)
class Result:
    """The posterior of the galaxies of one field. Made by `conclude.make_result`; written by
    `write_fits`, read by `read_result`.

    sources : tuple of Source; exposures : tuple of ExposureFit
    method : str, how the draws were made
    status : tuple of sentences `word: explanation`, empty where nothing is to be said
    converged : bool, the draws can be taken for the posterior
    diagnostics : dict of str -> float
    provenance : dict, what made this (seed, versions, weights, options); JSON types only

    Of one galaxy in one exposure the deconvolved grid and the stamp share their geometric centres,
    and every draw stands where the galaxy stands on the sky.
    """

    sources: tuple
    exposures: tuple
    method: str
    status: tuple
    converged: bool
    diagnostics: dict
    provenance: dict

    prior_scale = _of_the_source("prior_scale", "arcsec per pixel of the deconvolved image.")
    target_fwhm = _of_the_source("target_fwhm", "arcsec, resolution of the deconvolved image.")
    wcs = _of_the_source("wcs", "WCS of the deconvolved image, or None.")
    image = _of_the_source(
        "image",
        "float32 [64, 64], flux per deconvolved pixel in the reference band, posterior mean.",
        lambda source: source.images[source.reference_band],
    )
    image_std = _of_the_source(
        "image_std",
        "float32 [64, 64], posterior standard deviation of the image.",
        lambda source: source.images_std[source.reference_band],
    )
    draws = _of_the_source(
        "draws",
        "float32 [num_draws, 64, 64], equally probable images in the reference band.",
        lambda source: source.draws[:, source.reference_band],
    )
    flux_draws = _of_the_source(
        "flux_draws",
        "[num_draws], in the reference band.",
        lambda source: source.flux_draws[:, source.reference_band],
    )
    latent_draws = _of_the_source("latent_draws", "[num_draws, d].")
    shift_draws = _of_the_source("shift_draws", "[num_draws, 2], arcsec from the stamp's middle.")
    quantities = _of_the_source("quantities", "Quantities, measured on first use.")
    flux = _of_the_source(
        "flux",
        "(value, error) in the units of the observation.",
        lambda source: source.quantities.flux,
    )
    half_light_radius = _of_the_source(
        "half_light_radius",
        "(value, error) in arcsec, at the target resolution.",
        lambda source: source.quantities.half_light_radius,
    )
    e1 = _of_the_source(
        "e1",
        "(value, error), distortion convention, along the pixel axes.",
        lambda source: source.quantities.e1,
    )
    e2 = _of_the_source(
        "e2",
        "(value, error), distortion convention, along the pixels' diagonal.",
        lambda source: source.quantities.e2,
    )
    residual_amplitude = _of_the_source("residual_amplitude", "of the prior's own error.")
    observation = _of_the_exposure("observation", "the Observation.")
    model = _of_the_exposure("model", "float32 [h, w], flux per observed pixel.")
    residual = _of_the_exposure("residual", "float32 [h, w], observed minus model.")
    background_draws = _of_the_exposure("background_draws", "[num_draws], per observed pixel.")
    background = _of_the_exposure("background", "(value, error) of the sky's level.")
    chi2 = _of_the_exposure(
        "chi2", "reduced chi-square inside the galaxy.", lambda exposure: exposure.fit.chi2
    )
    p_value = _of_the_exposure(
        "p_value", "probability of a larger chi2.", lambda exposure: exposure.fit.p_value
    )

    @property
    def is_lone(self):
        """Whether this is of one galaxy in one exposure."""
        return len(self.sources) == len(self.exposures) == 1

    @property
    def observations(self):
        """The Observation of each exposure."""
        return tuple(exposure.observation for exposure in self.exposures)

    @property
    def bands(self):
        """The band of each exposure."""
        return tuple(exposure.band for exposure in self.exposures)

    @property
    def models(self):
        """The model [h, w] of each exposure, with background."""
        return tuple(exposure.model for exposure in self.exposures)

    @property
    def residuals(self):
        """The residual [h, w] of each exposure."""
        return tuple(exposure.residual for exposure in self.exposures)

    @property
    def unit(self):
        """Unit of all fluxes."""
        return self.exposures[0].observation.unit

    @property
    def name(self):
        """Name of the first exposure."""
        return self.exposures[0].observation.name

    @property
    def num_draws(self):
        """Number of draws, images among them or not."""
        return len(self.sources[0].flux_draws)

    @property
    def flux_covariance(self):
        """Covariance [source * band, source * band] of all fluxes, the bands of a source
        together.
        """
        return covariance_of(np.concatenate([source.flux_draws for source in self.sources], 1))

    def draw_images(self, num, *, seed):
        """Imagined solutions: `num` different images drawn from the posterior of the only galaxy.

        Parameters
        ----------
        num : int, at most the number of draws
        seed : int

        Returns
        -------
        float32 [num, 64, 64], flux per deconvolved pixel
        """
        draws = self.draws
        if not 0 <= num <= len(draws):
            raise InputError(
                f"draw_images: num must be between 0 and the {len(draws)} draws that this result"
                f" holds, got {num}; deconvolve with more draws"
            )
        return draws[np.random.default_rng(seed).choice(len(draws), num, replace=False)]

    def light_of(self, source, exposure):
        """What the telescope would see of one galaxy alone: [h, w], flux per observed pixel.

        source, exposure : int
        """
        seen = self.exposures[exposure]
        if len(self.sources) == 1:
            return seen.model - np.float32(seen.background[0])
        return self.sources[source].models[exposure]

    def deblended(self, source, exposure):
        """What an exposure shows of one galaxy: the image [h, w] without background and the other
        galaxies' models. Masked pixels hold the model.

        source, exposure : int
        """
        seen, ours = self.exposures[exposure], self.light_of(source, exposure)
        return np.where(seen.observation.mask, ours, seen.residual + ours)

    def summary(self):
        """What was found and how far it can be trusted, as text of several lines."""
        lines = _lines_of_one(self) if self.is_lone else _lines_of_several(self)
        lines += [f"  {sentence}" for sentence in all_status(self)] or ["  ok"]
        return "\n".join(map(printable, lines))

    def to_table(self):
        """The catalogue as an astropy Table, one row for each galaxy and band, with units: each
        quantity with its error (`_err`), shapes in the reference band; background per observed
        pixel, chi2 and p_value of the band's worst exposure; scales, and what is to be said in
        words.
        """
        table = Table(
            [
                _row(self, source, band, pair)
                for source in self.sources
                for band, *pair in zip(source.bands, *source.flux, strict=True)
            ]
        )
        for name, unit in TABLE_UNITS.items():
            table[name].unit = unit
        if self.unit != dimensionless_unscaled:
            for name in FLUX_COLUMNS:
                table[name].unit = self.unit
        return table

    table = to_table  # as Astropy's own objects say it, and as people do

    def exposure_table(self):
        """One row for each exposure, as astropy Table: what was fitted to it, and how well."""
        levels, errors = zip(*(exposure.background for exposure in self.exposures), strict=True)
        table = Table(
            {
                "name": [exposure.observation.name for exposure in self.exposures],
                "band": [exposure.band for exposure in self.exposures],
                "background": levels,
                "background_err": errors,
                **{
                    name: [getattr(exposure.fit, name) for exposure in self.exposures]
                    for name in ("chi2", "p_value", "chi2_all")
                },
            }
        )
        if self.unit != dimensionless_unscaled:
            table["background"].unit = table["background_err"].unit = self.unit
        return table

    def to_ccddata(self):
        """The deconvolved image of the only galaxy as an astropy CCDData: flux per deconvolved
        pixel (or the surface brightness that the observation was given in), the posterior's
        standard deviation, WCS, unit, and the FITS header's numbers.

        Neighbouring pixels err together: an error of a sum of pixels is that of the draws, not of
        these standard deviations.
        """
        factor, unit = as_given(self.exposures[0].observation, self.prior_scale)
        return CCDData(
            self.image * np.float32(factor),
            uncertainty=StdDevUncertainty(self.image_std * np.float32(factor)),
            wcs=self.wcs,
            unit=read_unit(unit),
            meta=result_files.header_of(self, all_status(self)),
        )

    def to_arviz(self):
        """The draws for ArviZ: an InferenceData, or from ArviZ 1 on a DataTree.

        posterior: latent, flux, shift (arcsec), background and image, as one chain: the draws of
        the chains have been thinned and joined, those of the Laplace approximation resampled.
        observed_data: image; constant_data: variance, mask, model. What was found about convergence
        stands in the attributes.

        Raises
        ------
        ImportError : ArviZ is not installed.
        """
        try:
            import arviz
            import xarray
        except ImportError as error:
            raise ImportError(
                f"to_arviz: arviz must be installed, got {error}; pip install 'astrogen[arviz]'"
            ) from error
        draws = {
            "latent": (self.latent_draws, "latent_dim"),
            "flux": (self.flux_draws,),
            "shift": (self.shift_draws, "axis"),
            "background": (self.background_draws,),
            "image": (self.draws, "y", "x"),
        }
        posterior = xarray.Dataset(
            {
                name: (("chain", "draw", *dims), values[None])
                for name, (values, *dims) in draws.items()
            },
            coords={"chain": [0], "draw": np.arange(len(self.flux_draws)), "axis": ["x", "y"]},
            attrs={
                "inference_library": "astrogen",
                "created_by": "astrogen.Result.to_arviz",
                "object": self.name,
                "method": self.method,
                "converged": int(self.converged),
                "status": " | ".join(all_status(self)),
                "unit": str(self.unit),
                **self.diagnostics,
            },
        )
        observation = self.observation
        stamp = {
            name: (("row", "column"), values)
            for name, values in (
                ("image", observation.image),
                ("variance", observation.variance),
                ("mask", observation.mask),
                ("model", self.model),
            )
        }
        groups = {
            "posterior": posterior,
            "observed_data": xarray.Dataset({"image": stamp.pop("image")}),
            "constant_data": xarray.Dataset(stamp),
        }
        return (
            xarray.DataTree.from_dict(groups)
            if int(arviz.__version__.split(".")[0]) >= 1  # its InferenceData only warns
            else arviz.InferenceData(**groups)
        )

    def write_fits(self, path, *, num_draws_kept=None):
        """Write everything to one FITS file, whole or not at all.

        For each galaxy n: IMAGEn, IMAGE_STDn, with their WCS, and DRAWSn: images [h, w] and cubes
        [draw, h, w] of one band, or cubes [band, h, w] and DRAWSn_b [draw, h, w] of band b. For
        each exposure m: OBSERVEDm, VARIANCEm, MASKm, MODELm, RESIDUALm, PSFm, and of several
        galaxies SOURCEn_m, the light of each. Where there is one galaxy, or one exposure, its
        number is left out. Tables: SOURCES (`to_table`), EXPOSURES (`exposure_table`), COVARIANCE
        (of all fluxes), LATENT (a row for each draw: latent, flux, shift, background), ABOUT (name,
        value as JSON: status, diagnostics, provenance). The primary header repeats the numbers that
        a catalogue needs. Images that were given as surface brightness have their planes (those of
        galaxies in that of the first) as such; fluxes are in FLUXUNIT.

        Parameters
        ----------
        path : path
        num_draws_kept : int or None, how many draws of images to write (the first ones); None: all.
            The quantities stay those of all draws
        """
        result_files.write_result(
            self,
            path,
            status=all_status(self),
            tables={
                "SOURCES": self.to_table(),
                "EXPOSURES": self.exposure_table(),
                "COVARIANCE": Table(
                    {"name": _flux_labels(self), "covariance": self.flux_covariance}
                ),
            },
            num_draws_kept=num_draws_kept,
        )


def read_result(path):
    """Read what `Result.write_fits` wrote.

    Parameters
    ----------
    path : path

    Returns
    -------
    Result, with the draws of images that were kept and the quantities of all

    Raises
    ------
    InputFileError : the file is damaged, or no result of astrogen.
    """
    sources, exposures, rest = result_files.read_parts(path)
    return Result(
        sources=tuple(Source(**one) for one in sources),
        exposures=tuple(ExposureFit(**one) for one in exposures),
        **rest,
    )


# --- telling


def all_status(result):
    """The sentences of `result.status`, and what measuring its draws adds."""
    several = len(result.sources) > 1
    return (
        *result.status,
        *(
            name_in(source.name, sentence) if several else sentence
            for source in result.sources
            for sentence in measured_words(source.quantities)
        ),
    )


def _row(result, source, band, flux):
    """A row of the catalogue: one galaxy in one band."""
    seen = [exposure for exposure in result.exposures if exposure.band == band]
    worst = min(seen, key=lambda exposure: exposure.fit.p_value)
    row = {"name": source.name, "band": band, "x": source.x, "y": source.y}
    row["flux"], row["flux_err"] = flux
    for quantity in QUANTITIES[1:]:
        row[quantity], row[f"{quantity}_err"] = getattr(source.quantities, quantity)
    row["background"], row["background_err"] = seen[0].background
    words = (*result.status, *measured_words(source.quantities))
    return row | {
        "chi2": worst.fit.chi2,
        "p_value": worst.fit.p_value,
        "prior_scale": source.prior_scale,
        "target_fwhm": source.target_fwhm,
        "method": result.method,
        "converged": result.converged,
        "unit": str(result.unit),
        "status": " | ".join(words),
    }


def _lines_of_one(result):
    observation = result.observation
    height, width = observation.image.shape
    lines = [
        f"{result.name}: {width} x {height} pixels of {observation.pixel_scale:.4g} arcsec,"
        f" deconvolved to {result.target_fwhm:.4g} arcsec (FWHM) by {result.method},"
        f" {result.num_draws} draws"
    ]
    unit = f" {result.unit}".rstrip()
    for label, pair, suffix in (
        ("flux", result.flux, unit),
        ("half-light radius", result.half_light_radius, " arcsec"),
        ("e1", result.e1, ""),
        ("e2", result.e2, ""),
        ("background", result.background, f"{unit} a pixel"),
    ):
        lines.append(f"  {label:18s} {format_value(pair)}{suffix}")
    chi2 = f"{result.chi2:.2f} inside the galaxy ({format_p(result.p_value)})"
    return [*lines, f"  {'reduced chi2':18s} {chi2}", *(f"  {note}" for note in observation.notes)]


def _lines_of_several(result):
    lines = [
        f"{result.name}: {_counted(len(result.exposures), 'exposure')},"
        f" {_counted(len(result.sources), 'galaxy')}, by {result.method},"
        f" {result.num_draws} draws"
        + (
            f", R-hat of fluxes {result.diagnostics['r_hat_flux']:.3f}, of shapes"
            f" {result.diagnostics['r_hat_shape']:.3f}"
            if "r_hat_flux" in result.diagnostics
            else ""
        )
    ]
    for source in result.sources:
        fluxes = ", ".join(
            f"{band or 'flux'} {format_value(pair)}"
            for band, *pair in zip(source.bands, *source.flux, strict=True)
        )
        lines.append(
            f"  {source.name} at ({source.x:.1f}, {source.y:.1f}): {fluxes}; half-light radius"
            f" {format_value(source.quantities.half_light_radius)} arcsec"
        )
    for exposure in result.exposures:
        fit = exposure.fit
        lines.append(
            f"  {exposure.observation.name} {exposure.band}: reduced chi2 {fit.chi2:.2f} inside the"
            f" galaxies ({format_p(fit.p_value)}), {fit.chi2_all:.2f} over all good pixels;"
            f" background {format_value(exposure.background)} a pixel"
        )
    return lines


def _counted(number, noun):
    return (
        f"{number} {noun}"
        if number == 1
        else f"{number} {noun[:-1]}ies"
        if noun.endswith("y")
        else f"{number} {noun}s"
    )


def _flux_labels(result):
    return [f"{source.name} {band}".strip() for source in result.sources for band in source.bands]


def results_table(results):
    """The rows of `Result.to_table` of several results. Fluxes of different units carry none: the
    column `unit` has that of each row.
    """
    tables = [result.to_table() for result in results]
    if len({str(result.unit) for result in results}) > 1:
        for table in tables:
            for name in FLUX_COLUMNS:
                table[name].unit = None
    return vstack(tables)


def file_names(results):
    """One file name without ending for each result, made from the objects' names: safe in any file
    system, all different.
    """
    names = []
    for result in results:
        plain = re.sub(r"[^A-Za-z0-9+_-]+", "_", result.name)[:100].strip("_") or "object"
        number = sum(
            re.fullmatch(re.escape(plain) + r"(\.\d+)?", other) is not None for other in names
        )
        names.append(f"{plain}.{number + 1}" if number else plain)
    return names
