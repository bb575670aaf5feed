"""What we believe now: the posterior over one galaxy's unconvolved image, in numbers, images and
words.

A `Result` is made by `make_result` from posterior draws. The deconvolved grid and the observed
stamp share their geometric centres; every draw stands where the galaxy stands on the sky. Catalogue
quantities come from the draws, one by one: the mean of many images is rounder and larger than any
of them.
"""

import json
import math
import re
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from astropy.nddata import CCDData, StdDevUncertainty
from astropy.table import Table, vstack
from astropy.units import dimensionless_unscaled
from astropy.wcs.utils import fit_wcs_from_points

from astrogen.errors import InputError, InputFileError, printable
from astrogen.galsim_objects import measure_image
from astrogen.images import read_plane_wcs, read_planes, write_planes
from astrogen.observation import Observation, as_given
from astrogen.psf import PSF
from astrogen.reading import parse_json
from astrogen.units import Brightness, read_unit
from astrogen.verdict import compare, edge_significance, format_p, judge, judge_fit, name_in

MIN_DRAWS = 8  # fewer draws give no error
MOST_LOST = 0.5  # share of the draws without a quantity from which it has no answer
# Of a quantity without an answer, and of one that some draws lack.
SHAPE_WORDS = (
    "no_ellipticity: the adaptive moments gave no answer on {num} draws: the flux is not positive,"
    " or the galaxy reaches the edge of the deconvolved image; give a larger pixel scale, or a"
    " cutout about the galaxy",
    "poor_shape: the adaptive moments gave no answer on {num} draws, which e1 and e2 leave out",
)
RADIUS_WORDS = (
    "no_radius: the flux of {num} draws is not positive, or half of it does not lie within a circle"
    " about the galaxy that the deconvolved image holds; give a larger pixel scale, or a cutout"
    " about the galaxy",
    "poor_radius: {num} draws have no half-light radius, which leaves them out: their flux is not"
    " positive, or too much of it lies beyond the deconvolved image",
)
FORMAT = "astrogen result 2"
QUANTITIES = ("flux", "half_light_radius", "e1", "e2")
TABLE_NUMBERS = ("chi2", "p_value", "prior_scale", "target_fwhm", "method", "converged")
TABLE_UNITS = {
    "half_light_radius": "arcsec",
    "half_light_radius_err": "arcsec",
    "target_fwhm": "arcsec",
    "prior_scale": "arcsec/pix",
}


@dataclass(frozen=True)
class Quantities:
    """Catalogue quantities, each (value, error): the median over the draws and half of their
    central 68 % interval.

    Of the image at the target resolution, about the fitted place. The error is nan with fewer than
    8 draws; a quantity that less than half of the draws have is nan, and `measured_words` says why.
    flux: in the units of the observation; half_light_radius: arcsec; e1, e2: distortion convention,
    along the pixel axes; num_failed: draws without adaptive moments (left out of e1, e2);
    num_no_radius: draws without a half-light radius; covariance [4, 4] of the four in this
    order over the draws where all of them could be measured, as nested tuples, nan with fewer than
    8.
    """

    flux: tuple
    half_light_radius: tuple
    e1: tuple
    e2: tuple
    num_failed: int
    num_no_radius: int
    covariance: tuple


@dataclass(frozen=True, eq=False)
class Result:
    """The posterior of one object. Made by `make_result`; written by `write_fits`, read by
    `read_result`.

    observation : Observation
    prior_scale : float, arcsec per pixel of the deconvolved image
    target_fwhm : float, arcsec, Gaussian resolution of the deconvolved image
    image, image_std : float32 [64, 64], flux per deconvolved pixel, posterior mean and standard
        deviation
    model : float32 [h, w], flux per observed pixel: posterior mean convolved with the PSF, plus
        background
    residual : float32 [h, w], observed minus model, 0 at masked pixels
    draws : float32 [num_draws, 64, 64], flux per deconvolved pixel: equally probable images,
        standing where the galaxy stands
    latent_draws : [num_draws, d]; flux_draws : [num_draws]; shift_draws : [num_draws, 2], (x, y)
        arcsec from the stamp's centre;
    background_draws : [num_draws], flux per observed pixel
    chi2, p_value : float, reduced chi-square inside the galaxy, and the probability of a larger one
    method : str, by which the draws were made: map, laplace, vi, hmc or a kernel's name
    status : tuple of sentences `word: explanation`, empty where nothing is to be said
    converged : bool, the draws can be taken for the posterior
    diagnostics : dict of str -> float
    provenance : dict, what made this (seed, versions, weights, options); JSON types only
    """

    observation: Observation
    prior_scale: float
    target_fwhm: float
    image: np.ndarray
    image_std: np.ndarray
    model: np.ndarray
    residual: np.ndarray
    draws: np.ndarray
    latent_draws: np.ndarray
    flux_draws: np.ndarray
    shift_draws: np.ndarray
    background_draws: np.ndarray
    chi2: float
    p_value: float
    method: str
    status: tuple
    converged: bool
    diagnostics: dict
    provenance: dict
    measured: Quantities | None = None

    @cached_property
    def quantities(self):
        """Quantities, measured on first use (about 1 ms per draw)."""
        return self.measured or measure(
            self.draws,
            pixel_scale=self.prior_scale,
            places=self.shift_draws,
            fluxes=self.flux_draws,
        )

    @property
    def flux(self):
        """(value, error) in the units of the observation."""
        return self.quantities.flux

    @property
    def half_light_radius(self):
        """(value, error) in arcsec, at the target resolution."""
        return self.quantities.half_light_radius

    @property
    def e1(self):
        """(value, error), distortion convention, along the pixel axes."""
        return self.quantities.e1

    @property
    def e2(self):
        """(value, error), distortion convention, along the pixels' diagonal."""
        return self.quantities.e2

    @property
    def background(self):
        """(value, error) of the sky's level in the stamp, flux per observed pixel: mean and
        standard deviation over the draws.
        """
        return mean_and_error(self.background_draws)

    @property
    def name(self):
        """Name of the object."""
        return self.observation.name

    @property
    def wcs(self):
        """WCS of the deconvolved grid, or None where the observation has none."""
        if self.observation.wcs is None:
            return None
        return deconvolved_wcs(
            self.observation.wcs,
            self.observation.image.shape,
            ratio=self.observation.pixel_scale / self.prior_scale,
            shape=self.image.shape,
        )

    def draw_images(self, num, *, seed):
        """Imagined solutions: `num` different images drawn from the posterior.

        Parameters
        ----------
        num : int, at most the number of draws
        seed : int

        Returns
        -------
        float32 [num, 64, 64], flux per deconvolved pixel
        """
        if not 0 <= num <= len(self.draws):
            raise InputError(
                f"draw_images: num must be between 0 and the {len(self.draws)} draws that this"
                f" result holds, got {num}; deconvolve with more draws"
            )
        return self.draws[np.random.default_rng(seed).choice(len(self.draws), num, replace=False)]

    def summary(self):
        """What was found and how far it can be trusted, as text of several lines."""
        height, width = self.observation.image.shape
        lines = [
            f"{self.name}: {width} x {height} pixels of {self.observation.pixel_scale:.4g} arcsec,"
            f" deconvolved to {self.target_fwhm:.4g} arcsec (FWHM) by {self.method},"
            f" {len(self.draws)} draws"
        ]
        unit = f" {self.observation.unit}".rstrip()
        for label, pair, suffix in (
            ("flux", self.flux, unit),
            ("half-light radius", self.half_light_radius, " arcsec"),
            ("e1", self.e1, ""),
            ("e2", self.e2, ""),
            ("background", self.background, f"{unit} a pixel"),
        ):
            lines.append(f"  {label:18s} {format_value(pair)}{suffix}")
        lines.append(
            f"  {'reduced chi2':18s} {self.chi2:.2f} inside the galaxy ({format_p(self.p_value)})"
        )
        lines += [f"  {note}" for note in self.observation.notes]
        lines += [f"  {sentence}" for sentence in all_status(self)] or ["  ok"]
        return "\n".join(map(printable, lines))

    def to_table(self):
        """The catalogue quantities as an astropy Table of one row, with units: each with its error
        (`_err`), the background per observed pixel, chi2, p_value, scales, and what is to be said
        in words.
        """
        unit = self.observation.unit
        row = {"name": self.name}
        for quantity in QUANTITIES:
            row[quantity], row[f"{quantity}_err"] = getattr(self, quantity)
        row["background"], row["background_err"] = self.background
        row |= {name: getattr(self, name) for name in TABLE_NUMBERS} | {
            "unit": str(unit),
            "status": " | ".join(all_status(self)),
        }
        table = Table([row])
        for name, its_unit in (
            TABLE_UNITS
            if unit == dimensionless_unscaled
            else TABLE_UNITS
            | dict.fromkeys(("flux", "flux_err", "background", "background_err"), unit)
        ).items():
            table[name].unit = its_unit
        return table

    def to_ccddata(self):
        """The deconvolved image as an astropy CCDData: flux per deconvolved pixel (or the surface
        brightness that the observation was given in), the posterior's standard deviation, WCS,
        unit, and the FITS header's numbers.

        Neighbouring pixels err together: an error of a sum of pixels is that of the draws, not of
        these standard deviations.
        """
        factor, unit = as_given(self.observation, self.prior_scale)
        return CCDData(
            self.image * np.float32(factor),
            uncertainty=StdDevUncertainty(self.image_std * np.float32(factor)),
            wcs=self.wcs,
            unit=read_unit(unit),
            meta=_header(self),
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
                "unit": str(self.observation.unit),
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
        """Write everything to one FITS file, whole or not at all; see `write_result`."""
        write_result(self, path, num_draws_kept=num_draws_kept)


# --- making


def make_result(
    observation,
    *,
    prior_scale,
    target_fwhm,
    draws,
    model,
    latent_draws,
    flux_draws,
    shift_draws,
    background_draws,
    method,
    diagnostics,
    provenance,
    num_fitted=0.0,
    status=(),
):
    """Turn posterior draws into a Result.

    Parameters
    ----------
    observation : Observation
    prior_scale, target_fwhm : float, arcsec per pixel of the draws, and their resolution
    draws : array [num_draws, height, width], flux per pixel, moved to where the galaxy stands
    model : array [h, w], posterior mean convolved with the PSF, with background, flux per observed
        pixel latent_draws [num_draws, d], flux_draws [num_draws], shift_draws [num_draws, 2]
        (arcsec), background_draws [num_draws]
    method : str, how the draws were made
    diagnostics : dict of str -> float; r_hat, k_hat, num_divergent and map_converged (0 or 1) are
        judged where present
    provenance : dict of JSON types
    num_fitted : float, effective number of parameters that the data fixed; taken off the degrees of
        freedom
    status : further sentences, each `word: explanation`; one that begins with `not_converged` makes
        converged False

    Returns
    -------
    Result

    Raises
    ------
    ValueError : shapes that do not belong together.
    """
    draws, model = np.asarray(draws, np.float32), np.asarray(model, np.float32)
    per_draw = {
        "latent_draws": latent_draws,
        "flux_draws": flux_draws,
        "shift_draws": shift_draws,
        "background_draws": background_draws,
    }
    per_draw = {name: np.asarray(values, np.float32) for name, values in per_draw.items()}
    _check_shapes(observation, draws, model, per_draw)
    finite = np.isfinite(draws).all(axis=(1, 2)) & np.all(
        [np.isfinite(v.reshape(len(v), -1)).all(1) for v in per_draw.values()], axis=0
    )
    if observation.status == "no_data" or not finite.any() or not np.isfinite(model).all():
        return _empty_result(
            observation, prior_scale, target_fwhm, draws, per_draw, method, diagnostics, provenance
        )
    draws, per_draw = draws[finite], {name: values[finite] for name, values in per_draw.items()}
    residual = np.where(observation.mask, 0, observation.image - model).astype(np.float32)
    background = per_draw["background_draws"].mean(dtype=np.float64)
    fit = compare(residual, model - background, observation, num_fitted=num_fitted)
    flux = per_draw["flux_draws"].astype(np.float64)
    status = (
        *judge(
            diagnostics,
            fits=judge_fit(fit, (float(flux.mean()), float(flux.std()))),
            num_lost=int((~finite).sum()),
            edge=edge_significance(model - background, observation),
        ),
        *status,
    )
    image = draws.mean(0, np.float64).astype(np.float32)
    return Result(
        observation=observation,
        prior_scale=float(prior_scale),
        target_fwhm=float(target_fwhm),
        image=image,
        image_std=draws.std(0, dtype=np.float64).astype(np.float32),
        model=model,
        residual=residual,
        draws=draws,
        **per_draw,
        chi2=fit.chi2,
        p_value=fit.p_value,
        method=method,
        status=status,
        converged=not any(sentence.startswith("not_converged") for sentence in status),
        diagnostics=dict(diagnostics) | {"chi2_all": fit.chi2_all},
        provenance=dict(provenance),
    )


def _check_shapes(observation, draws, model, per_draw):
    if draws.ndim != 3:
        raise InputError(
            f"make_result: draws must be [num_draws, height, width], got shape {draws.shape}; keep"
            " the axis of the draws"
        )
    if model.shape != observation.image.shape:
        raise InputError(
            f"make_result: model must have the observation's shape {observation.image.shape}, got"
            f" {model.shape}; render it on the observed grid"
        )
    for name, values in per_draw.items():
        if len(values) != len(draws):
            raise InputError(
                f"make_result: {name} must have one row for each of the {len(draws)} draws, got"
                f" {len(values)}; pass the same draws"
            )


def _empty_result(
    observation, prior_scale, target_fwhm, draws, per_draw, method, diagnostics, provenance
):
    """Zeros and a reason, for an object that cannot be deconvolved."""
    no_data = observation.status == "no_data"
    reason = (
        "no_data: every pixel is masked"
        if no_data
        else "not_converged: the posterior is not finite; look at the input images"
    )
    blank, stamp = (
        np.zeros(draws.shape[1:], np.float32),
        np.zeros(observation.image.shape, np.float32),
    )
    return Result(
        observation=observation,
        prior_scale=float(prior_scale),
        target_fwhm=float(target_fwhm),
        image=blank,
        image_std=blank,
        model=stamp,
        residual=stamp,
        draws=draws[:0],
        **{name: values[:0] for name, values in per_draw.items()},
        chi2=math.nan,
        p_value=math.nan,
        method=method,
        status=(reason,),
        converged=False,
        diagnostics=dict(diagnostics),
        provenance=dict(provenance),
    )


def all_status(result):
    """The sentences of `result.status`, of a Result or JointResult, and what measuring its draws
    adds.
    """
    if not hasattr(result, "sources"):
        return (*result.status, *measured_words(result.quantities))
    return (
        *result.status,
        *(
            name_in(source.name, sentence)
            for source in result.sources
            for sentence in measured_words(source.quantities)
        ),
    )


def measured_words(quantities):
    """Sentences on quantities that some or all draws do not have; none where there are none."""
    sentences = []
    for num, pair, words in (
        (quantities.num_failed, quantities.e1, SHAPE_WORDS),
        (quantities.num_no_radius, quantities.half_light_radius, RADIUS_WORDS),
    ):
        if num:
            sentences.append(words[math.isfinite(pair[0])].format(num=num))
    return tuple(sentences)


# --- measuring


def measure(draws, *, pixel_scale, places=None, fluxes=None):
    """Flux, half-light radius and ellipticity of each draw by GalSim, summed up over the draws.

    Parameters
    ----------
    draws : array [num_draws, height, width], flux per pixel
    pixel_scale : float, arcsec per pixel
    places : array [num_draws, 2] or None, (x, y) arcsec from the images' middle, where the galaxy
        stands in each; None: there
    fluxes : array [num_draws] or None, of all the light; None: of what the images hold

    Returns
    -------
    Quantities
    """
    places = np.zeros((len(draws), 2)) if places is None else places
    fluxes = [None] * len(draws) if fluxes is None else fluxes
    rows = np.array(
        [
            measure_image(draw, pixel_scale=pixel_scale, place=place, flux=flux)
            for draw, place, flux in zip(draws, places, fluxes, strict=True)
        ]
    ).reshape(-1, 4)
    lost = np.isnan(rows).sum(0)
    rows[:, lost > MOST_LOST * len(rows)] = np.nan
    return Quantities(
        *(_median_and_error(column) for column in rows.T),
        num_failed=int(lost[2]),
        num_no_radius=int(lost[1]),
        covariance=_covariance(rows),
    )


def _covariance(rows):
    whole = rows[np.isfinite(rows).all(1)]
    matrix = np.cov(whole.T) if len(whole) >= MIN_DRAWS else np.full((4, 4), np.nan)
    return tuple(tuple(float(value) for value in line) for line in matrix)


def _median_and_error(values):
    values = values[np.isfinite(values)]
    if not len(values):
        return math.nan, math.nan
    low, middle, high = np.quantile(values, [0.16, 0.5, 0.84])
    return float(middle), float((high - low) / 2) if len(values) >= MIN_DRAWS else math.nan


def mean_and_error(draws):
    """(mean, standard deviation) of draws [num_draws] as floats, summed in float64; nan of none."""
    if not len(draws):
        return math.nan, math.nan
    return float(draws.mean(dtype=np.float64)), float(draws.std(dtype=np.float64))


def format_value(pair):
    """`value ± error` with as many digits as the error allows; a dash for what could not be
    measured.
    """
    value, error = pair
    if not math.isfinite(value):
        return "-"
    if not (math.isfinite(error) and error > 0):
        return f"{value:.4g}"
    exponent = math.floor(math.log10(max(abs(value), error)))
    if not -4 < exponent < 6:
        return f"({format_value((value / 10.0**exponent, error / 10.0**exponent))})e{exponent:+03d}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def results_table(results):
    """The rows of `Result.to_table` of several results. Fluxes of different units carry none: the
    column `unit` has that of each row.
    """
    tables = [result.to_table() for result in results]
    if len({str(result.observation.unit) for result in results}) > 1:
        for table in tables:
            for name in ("flux", "flux_err", "background", "background_err"):
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


# --- the sky


def deconvolved_wcs(wcs, observed_shape, *, ratio, shape):
    """WCS of a grid with the same geometric centre and orientation, and another pixel scale.

    The centre of n pixels is the FITS pixel coordinate (n + 1) / 2. Distortions of the observed WCS
    beyond the projection are replaced by their linear part over the stamp.

    Parameters
    ----------
    wcs : astropy WCS [2 axes] of the observed stamp
    observed_shape, shape : (height, width) of the stamp and of the new grid
    ratio : float, observed over new pixel scale

    Returns
    -------
    astropy WCS
    """
    linear = _without_distortion(wcs, observed_shape) if wcs.has_distortion else wcs.deepcopy()
    old_centre, new_centre = ((np.array(sides[::-1]) + 1) / 2 for sides in (observed_shape, shape))
    linear.wcs.crpix = (linear.wcs.crpix - old_centre) * ratio + new_centre
    if linear.wcs.has_cd():
        linear.wcs.cd = linear.wcs.cd / ratio
    else:
        linear.wcs.cdelt = linear.wcs.cdelt / ratio
    linear.pixel_shape = shape[::-1]
    linear.wcs.set()
    return linear


def _without_distortion(wcs, shape):
    x, y = (
        axis.ravel() for axis in np.meshgrid(*(np.linspace(0, side - 1, 5) for side in shape[::-1]))
    )
    return fit_wcs_from_points((x, y), wcs.pixel_to_world(x, y), projection=wcs)


# --- files


def write_result(result, path, *, num_draws_kept=None):
    """Write a Result to one FITS file, whole or not at all.

    Planes: IMAGE, IMAGE_STD and the cube DRAWS on the deconvolved grid with its WCS; MODEL,
    RESIDUAL, OBSERVED, VARIANCE and MASK on the observed one; PSF. Tables: LATENT (a row for each
    draw: latent, flux, shift, background), ABOUT (name, value as JSON: status, diagnostics,
    provenance). The primary header repeats the numbers that a catalogue needs. An image that was
    given as surface brightness has all planes written as such; fluxes (the header's, and those of
    LATENT) are in FLUXUNIT.

    Parameters
    ----------
    result : Result
    path : path
    num_draws_kept : int or None, how many draws to write (the first ones); None: all. The
        quantities stay those of all draws
    """
    observation, kept = result.observation, slice(num_draws_kept)
    deconvolved = {
        "IMAGE": result.image,
        "IMAGE_STD": result.image_std,
        "DRAWS": result.draws[kept],
    }
    observed = {
        "MODEL": result.model,
        "RESIDUAL": result.residual,
        "OBSERVED": observation.image,
        "VARIANCE": observation.variance,
        "MASK": observation.mask,
    }
    if not len(deconvolved["DRAWS"]):
        del deconvolved["DRAWS"]
    wcs = {name: result.wcs for name in deconvolved} | {name: observation.wcs for name in observed}
    deconvolved = _as_files_hold(deconvolved, observation, result.prior_scale)
    observed = _as_files_hold(observed, observation, observation.pixel_scale)
    unit = dict.fromkeys([*deconvolved, *observed], as_given(observation)[1])
    latent = Table(
        {
            "latent": result.latent_draws[kept],
            "flux": result.flux_draws[kept],
            "shift": result.shift_draws[kept],
            "background": result.background_draws[kept],
        }
    )
    about = _about(result)
    tables = {
        "LATENT": latent,
        "ABOUT": Table(
            {"name": list(about), "value": [json.dumps(value) for value in about.values()]}
        ),
    }
    write_planes(
        path,
        {**deconvolved, **observed, "PSF": observation.psf.image},
        wcs=wcs,
        unit=unit,
        header=_header(result),
        tables=tables,
    )


def _as_files_hold(planes, observation, pixel_scale, power=1):
    """Planes of fluxes per pixel of `pixel_scale` as surface brightness, where the observation was
    given as such; with power -1 the inverse.
    """
    factor = as_given(observation, pixel_scale)[0] ** power
    if factor == 1:
        return planes
    powers = {"MASK": 0, "VARIANCE": 2}
    return {
        name: (plane * factor ** powers.get(name, 1)).astype(plane.dtype)
        for name, plane in planes.items()
    }


def _about(result):
    observation = result.observation
    return {
        "format": FORMAT,
        "name": observation.name,
        "unit": str(observation.unit),
        "brightness": observation.brightness,
        "pixel_scale": observation.pixel_scale,
        "notes": list(observation.notes),
        "observation_status": observation.status,
        "psf_pixel_scale": observation.psf.pixel_scale,
        "psf_pixel_response": observation.psf.pixel_response,
        "prior_scale": result.prior_scale,
        "target_fwhm": result.target_fwhm,
        "chi2": result.chi2,
        "p_value": result.p_value,
        "method": result.method,
        "status": list(result.status),
        "converged": bool(result.converged),
        "num_failed": result.quantities.num_failed,
        "num_no_radius": result.quantities.num_no_radius,
        "covariance": result.quantities.covariance,
        "diagnostics": {name: float(value) for name, value in result.diagnostics.items()},
        "provenance": result.provenance,
        **{name: getattr(result.quantities, name) for name in QUANTITIES},
    }


def _header(result):
    header = {
        "OBJECT": result.name,
        "METHOD": result.method,
        "CONVERGD": bool(result.converged),
        "PRIORSCL": result.prior_scale,
        "TARGFWHM": result.target_fwhm,
        "PIXSCALE": result.observation.pixel_scale,
        "CHI2": result.chi2,
        "P_VALUE": result.p_value,
        "NUMDRAWS": len(result.draws),
        "NUMFAIL": result.quantities.num_failed,
        "FLUXUNIT": str(result.observation.unit),
    }
    for keyword, pair in zip(
        ("FLUX", "HLR", "E1", "E2"), (getattr(result, name) for name in QUANTITIES), strict=True
    ):
        header |= {keyword: pair[0], f"{keyword}_ERR": pair[1]}
    header |= dict(zip(("SKY", "SKY_ERR"), result.background, strict=True))
    return header | {
        f"STATUS{number}": sentence for number, sentence in enumerate(all_status(result), 1)
    }


def read_result(path):
    """Read what `write_fits` wrote.

    Parameters
    ----------
    path : path

    Returns
    -------
    Result, with the draws that were kept and the quantities of all

    Raises
    ------
    InputFileError : the file is damaged, or no result of astrogen.
    """
    planes, _, tables = read_planes(path)
    try:
        about = {str(row["name"]): parse_json(row["value"]) for row in tables["ABOUT"]}
        if about["format"] != FORMAT:
            raise InputFileError(path, f"is {about['format']!r}; this version reads {FORMAT!r}")
        return _assemble(path, planes, tables["LATENT"], about)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputFileError(
            path, f"is no result of astrogen, or a damaged one ({type(error).__name__}: {error})"
        ) from error


def _assemble(path, planes, latent, about):
    told = about["brightness"]
    observation = Observation(
        image=planes["OBSERVED"],
        variance=planes["VARIANCE"],
        mask=planes["MASK"].astype(bool),
        psf=PSF(planes["PSF"], about["psf_pixel_scale"], about["psf_pixel_response"]),
        pixel_scale=about["pixel_scale"],
        name=about["name"],
        wcs=read_plane_wcs(path, "OBSERVED"),
        unit=read_unit(about["unit"]),
        notes=tuple(about["notes"]),
        status=about["observation_status"],
        brightness=told and Brightness(*told),
    )
    deconvolved, observed = (
        _as_files_hold(
            {name: planes[name] for name in names if name in planes}, observation, scale, -1
        )
        for names, scale in (
            (("IMAGE", "IMAGE_STD", "DRAWS"), about["prior_scale"]),
            (("OBSERVED", "VARIANCE", "MODEL", "RESIDUAL"), observation.pixel_scale),
        )
    )
    observation = replace(observation, image=observed["OBSERVED"], variance=observed["VARIANCE"])
    draws = deconvolved.get("DRAWS", np.zeros((0, *planes["IMAGE"].shape), np.float32))
    return Result(
        observation=observation,
        image=deconvolved["IMAGE"],
        image_std=deconvolved["IMAGE_STD"],
        model=observed["MODEL"],
        residual=observed["RESIDUAL"],
        draws=draws,
        **{
            f"{name}_draws": np.asarray(latent[name], np.float32)
            for name in ("latent", "flux", "shift", "background")
        },
        **{
            name: about[name]
            for name in (
                "prior_scale",
                "target_fwhm",
                "chi2",
                "p_value",
                "method",
                "converged",
                "diagnostics",
                "provenance",
            )
        },
        status=tuple(about["status"]),
        measured=Quantities(
            *(tuple(about[name]) for name in QUANTITIES),
            num_failed=about["num_failed"],
            num_no_radius=about["num_no_radius"],
            covariance=tuple(map(tuple, about["covariance"])),
        ),
    )
