"""What we believe of several galaxies, exposures and bands: images and fluxes of each galaxy in
each band, and what each exposure shows of them.

Made by `astrogen.deconvolve_jointly` and `astrogen.deblend`. All galaxies share their draws: draw n
of one belongs to draw n of the others, so that sums and differences of fluxes have the right
errors.
"""

import json
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import numpy as np
from astropy.table import Table

from astrogen.errors import InputFileError, printable
from astrogen.images import read_plane_wcs, read_planes, write_planes
from astrogen.observation import Observation, as_given
from astrogen.psf import PSF
from astrogen.reading import parse_json
from astrogen.result import (
    QUANTITIES,
    Quantities,
    all_status,
    deconvolved_wcs,
    format_value,
    measure,
    measured_words,
)
from astrogen.result import read_result as read_single
from astrogen.units import Brightness, read_unit
from astrogen.verdict import (
    compare,
    edge_significance,
    format_p,
    judge,
    judge_fit,
    judge_flux,
    name_in,
)

FORMAT = "astrogen joint result 2"
# What a file says of each source and each exposure beside its images.
ABOUT_SOURCE = (
    *("name", "bands", "reference", "place", "x", "y", "prior_scale", "target_fwhm"),
    *("colour", "residual_amplitude"),
)
ABOUT_EXPOSURE = ("name", "pixel_scale", "notes", "status")
ABOUT_FIT = ("bands", "chi2", "p_values", "chi2_all", "method", "status", "converged")
CENTRE_SIGMA = 2.5  # deconvolved pixels, of the weight that says where a galaxy is


@dataclass(frozen=True, eq=False)
class Source:
    """One galaxy in all bands.

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
    images, image_std : float32 [band, 64, 64], flux per deconvolved pixel, posterior mean and
        standard deviation
    draws : float32 [num_draws, band, 64, 64], flux per deconvolved pixel, centred on the galaxy's
        first position
    flux_draws : [num_draws, band]; shift_draws : [num_draws, 2], (x, y) arcsec from the middle of
        the first stamp; latent_draws : [num_draws, d]
    models : tuple of float32 [h, w], its light in each exposure, flux per observed pixel
    colour : float, strength of its colour gradients in units of the population's spread of shapes;
        residual_amplitude : float
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
    image_std: np.ndarray
    draws: np.ndarray
    flux_draws: np.ndarray
    shift_draws: np.ndarray
    latent_draws: np.ndarray
    models: tuple
    colour: float
    residual_amplitude: float
    measured: Quantities | None = None

    @property
    def flux(self):
        """(values [band], errors [band]): mean and standard deviation over the draws, in the units
        of the observations.
        """
        return self.flux_draws.mean(0, np.float64), self.flux_draws.std(0, dtype=np.float64)

    @property
    def flux_covariance(self):
        """Covariance [band, band] of the fluxes."""
        return np.atleast_2d(np.cov(self.flux_draws.T.astype(float)))

    @cached_property
    def quantities(self):
        """`astrogen.result.Quantities` in the reference band."""
        band = self.bands.index(self.reference)
        return self.measured or measure(
            self.draws[:, band],
            pixel_scale=self.prior_scale,
            places=self.shift_draws - np.asarray(self.place),
            fluxes=self.flux_draws[:, band],
        )


@dataclass(frozen=True, eq=False)
class JointResult:
    """Galaxies in several exposures.

    observations : tuple of Observation; bands : tuple of str, one for each
    sources : tuple of Source
    models, residuals : tuples of float32 [h, w], one for each exposure; residuals are 0 at masked
        pixels
    background_draws : [num_draws, exposure], flux per observed pixel
    chi2, p_values : tuples of float, one for each exposure: reduced chi-square where the model
        exceeds the noise
    chi2_all : tuple of float, the same over all good pixels
    method, status, converged, diagnostics, provenance : as of `astrogen.Result`
    """

    observations: tuple
    bands: tuple
    sources: tuple
    models: tuple
    residuals: tuple
    background_draws: np.ndarray
    chi2: tuple
    p_values: tuple
    chi2_all: tuple
    method: str
    status: tuple
    converged: bool
    diagnostics: dict
    provenance: dict

    @property
    def name(self):
        """Name of the first exposure."""
        return self.observations[0].name

    @property
    def background(self):
        """(values [exposure], errors [exposure]) of the sky's level, flux per observed pixel: mean
        and standard deviation over the draws.
        """
        return (
            self.background_draws.mean(0, np.float64),
            self.background_draws.std(0, dtype=np.float64),
        )

    @property
    def flux_covariance(self):
        """Covariance [source * band, source * band] of all fluxes, the bands of a source
        together.
        """
        draws = np.concatenate([source.flux_draws for source in self.sources], 1)
        return np.atleast_2d(np.cov(draws.T.astype(float)))

    def deblended(self, source, exposure):
        """What an exposure shows of one galaxy: the image [h, w] without background and the other
        galaxies' models. Masked pixels hold the model.

        source, exposure : int
        """
        observation, ours = self.observations[exposure], self.sources[source].models[exposure]
        return np.where(observation.mask, ours, self.residuals[exposure] + ours)

    def table(self):
        """One row for each source and band, as astropy Table."""
        rows = []
        for source in self.sources:
            shape = {name: getattr(source.quantities, name) for name in QUANTITIES[1:]}
            for band, flux, error in zip(source.bands, *source.flux, strict=True):
                rows.append(
                    {
                        "name": source.name,
                        "band": band,
                        "x": source.x,
                        "y": source.y,
                        "flux": flux,
                        "flux_err": error,
                        **{
                            key: value
                            for name, pair in shape.items()
                            for key, value in ((name, pair[0]), (f"{name}_err", pair[1]))
                        },
                        "prior_scale": source.prior_scale,
                        "method": self.method,
                        "converged": self.converged,
                        "status": " | ".join(self.status + measured_words(source.quantities)),
                    }
                )
        table = Table(rows)
        for name in ("half_light_radius", "half_light_radius_err"):
            table[name].unit = "arcsec"
        table["flux"].unit = table["flux_err"].unit = self.observations[0].unit
        return table

    def exposures(self):
        """One row for each exposure, as astropy Table: what was fitted to it, and how well."""
        level, error = self.background
        table = Table(
            {
                "name": [observation.name for observation in self.observations],
                "band": list(self.bands),
                "background": level,
                "background_err": error,
                "chi2": self.chi2,
                "p_value": self.p_values,
                "chi2_all": self.chi2_all,
            }
        )
        table["background"].unit = table["background_err"].unit = self.observations[0].unit
        return table

    def summary(self):
        """What was found and how far it can be trusted, as text of several lines."""
        lines = [
            f"{self.name}: {_counted(len(self.observations), 'exposure')},"
            f" {_counted(len(self.sources), 'galaxy')}, by {self.method},"
            f" {len(self.background_draws)} draws"
            + (
                f", R-hat of fluxes {self.diagnostics['r_hat_flux']:.3f}, of shapes"
                f" {self.diagnostics['r_hat_shape']:.3f}"
                if "r_hat_flux" in self.diagnostics
                else ""
            )
        ]
        for source in self.sources:
            fluxes = ", ".join(
                f"{band or 'flux'} {format_value(pair)}"
                for band, *pair in zip(source.bands, *source.flux, strict=True)
            )
            lines.append(
                f"  {source.name} at ({source.x:.1f}, {source.y:.1f}): {fluxes}; half-light radius"
                f" {format_value(source.quantities.half_light_radius)} arcsec"
            )
        for observation, band, chi2, p_value, everywhere, *level in zip(
            self.observations,
            self.bands,
            self.chi2,
            self.p_values,
            self.chi2_all,
            *self.background,
            strict=True,
        ):
            lines.append(
                f"  {observation.name} {band}: reduced chi2 {chi2:.2f} inside the galaxies"
                f" ({format_p(p_value)}), {everywhere:.2f} over all good pixels; background"
                f" {format_value(level)} a pixel"
            )
        lines += [f"  {sentence}" for sentence in all_status(self)] or ["  ok"]
        return "\n".join(map(printable, lines))

    def write_fits(self, path, *, num_draws_kept=None):
        """Write everything to one FITS file, whole or not at all.

        For each source n: IMAGEn, IMAGE_STDn, cubes [band, h, w] with their WCS, and DRAWSn_b,
        cubes [draw, h, w] of band b. For each exposure m: OBSERVEDm, VARIANCEm, MASKm, MODELm,
        RESIDUALm, PSFm, and SOURCEn_m, the light of source n. Tables: SOURCES (`table`), EXPOSURES
        (`exposures`), COVARIANCE (of all fluxes), DRAWS (fluxes, shifts and backgrounds), LATENTn,
        ABOUT (name, value as JSON). Images that were given as surface brightness have their planes
        (those of sources in that of the first) as such; fluxes are in FLUXUNIT.
        `astrogen.read_result` reads it.

        num_draws_kept : int or None, how many draws of the images to write; None: all
        """
        planes, wcs, unit = {}, {}, {}
        for number, source in enumerate(self.sources, 1):
            ours = {f"IMAGE{number}": source.images, f"IMAGE_STD{number}": source.image_std}
            ours |= {
                f"DRAWS{number}_{index + 1}": source.draws[:num_draws_kept, index]
                for index in range(len(source.bands))
            }
            factor, given = as_given(self.observations[0], source.prior_scale)
            planes |= {name: plane * np.float32(factor) for name, plane in ours.items()}
            wcs |= dict.fromkeys(ours, source.wcs)
            unit |= dict.fromkeys(ours, given)
        for number, observation in enumerate(self.observations, 1):
            seen = {
                "OBSERVED": observation.image,
                "VARIANCE": observation.variance,
                "MASK": observation.mask,
                "MODEL": self.models[number - 1],
                "RESIDUAL": self.residuals[number - 1],
            }
            ours = {f"{name}{number}": plane for name, plane in seen.items()}
            ours |= {
                f"SOURCE{index}_{number}": source.models[number - 1]
                for index, source in enumerate(self.sources, 1)
            }
            factor, given = as_given(observation)
            for name in ours:
                power = 0 if name.startswith("MASK") else 2 if name.startswith("VARIANCE") else 1
                ours[name] = ours[name] * np.float32(factor**power) if power else ours[name]
            planes, wcs = planes | ours, wcs | dict.fromkeys(ours, observation.wcs)
            unit |= dict.fromkeys(ours, given)
            planes[f"PSF{number}"] = observation.psf.image
        labels = [
            f"{source.name} {band}".strip() for source in self.sources for band in source.bands
        ]
        covariance = Table({"name": labels, "covariance": self.flux_covariance})
        draws = Table(
            {
                "flux": np.stack([source.flux_draws for source in self.sources], 1),
                "shift": np.stack([source.shift_draws for source in self.sources], 1),
                "background": self.background_draws,
            }
        )
        about = {
            "format": FORMAT,
            "exposures": [_about_exposure(observation) for observation in self.observations],
            "sources": [_about_source(source) for source in self.sources],
            **{name: getattr(self, name) for name in ABOUT_FIT},
            "diagnostics": self.diagnostics,
            "provenance": self.provenance,
        }
        tables = {
            "SOURCES": self.table(),
            "EXPOSURES": self.exposures(),
            **{
                f"LATENT{number}": Table({"latent": source.latent_draws})
                for number, source in enumerate(self.sources, 1)
            },
            "COVARIANCE": covariance,
            "DRAWS": draws,
            "ABOUT": Table(
                {"name": list(about), "value": [json.dumps(value) for value in about.values()]}
            ),
        }
        header = {
            "OBJECT": self.name,
            "METHOD": self.method,
            "CONVERGD": self.converged,
            "NUMSRC": len(self.sources),
            "NUMEXP": len(self.observations),
            "FLUXUNIT": str(self.observations[0].unit),
        }
        write_planes(
            path,
            planes,
            wcs=wcs,
            unit=unit,
            header=header
            | {f"STATUS{number}": sentence for number, sentence in enumerate(all_status(self), 1)},
            tables=tables,
        )


def _about_exposure(observation):
    return {name: getattr(observation, name) for name in ABOUT_EXPOSURE} | {
        "unit": str(observation.unit),
        "brightness": observation.brightness,
        "psf": [observation.psf.pixel_scale, observation.psf.pixel_response],
    }


def _about_source(source):
    return {name: getattr(source, name) for name in ABOUT_SOURCE} | {
        "quantities": asdict(source.quantities)
    }


def read_result(path):
    """Read what `Result.write_fits` or `JointResult.write_fits` wrote.

    Parameters
    ----------
    path : path

    Returns
    -------
    Result or JointResult, with the draws of images that were kept and the quantities of all

    Raises
    ------
    InputFileError : the file is damaged, or no result of astrogen.
    """
    planes, _, tables = read_planes(path)
    try:
        about = {str(row["name"]): parse_json(row["value"]) for row in tables["ABOUT"]}
        if about["format"] == FORMAT:
            return _assemble(path, planes, tables, about)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputFileError(
            path, f"is no result of astrogen, or a damaged one ({type(error).__name__}: {error})"
        ) from error
    return read_single(path)


def _assemble(path, planes, tables, about):
    observations = tuple(
        _read_exposure(path, planes, number, told)
        for number, told in enumerate(about["exposures"], 1)
    )
    draws = tables["DRAWS"]
    sources = tuple(
        _read_source(path, planes, tables, number, told, observations)
        for number, told in enumerate(about["sources"], 1)
    )
    models, residuals = (
        tuple(_fluxes(planes[f"{name}{m}"], seen) for m, seen in enumerate(observations, 1))
        for name in ("MODEL", "RESIDUAL")
    )
    return JointResult(
        observations=observations,
        sources=sources,
        models=models,
        residuals=residuals,
        background_draws=np.asarray(draws["background"], np.float32),
        diagnostics=about["diagnostics"],
        provenance=about["provenance"],
        **{name: _tuple(about[name]) for name in ABOUT_FIT},
    )


def _read_exposure(path, planes, number, told):
    brightness = told["brightness"]
    seen = Observation(
        image=planes[f"OBSERVED{number}"],
        variance=planes[f"VARIANCE{number}"],
        mask=planes[f"MASK{number}"].astype(bool),
        psf=PSF(planes[f"PSF{number}"], *told["psf"]),
        wcs=read_plane_wcs(path, f"OBSERVED{number}"),
        unit=read_unit(told["unit"]),
        brightness=brightness and Brightness(*brightness),
        **{name: _tuple(told[name]) for name in ABOUT_EXPOSURE},
    )
    return replace(
        seen, image=_fluxes(seen.image, seen), variance=_fluxes(seen.variance, seen, power=2)
    )


def _fluxes(plane, observation, pixel_scale=None, power=1):
    """Fluxes of a plane that a file holds as surface brightness, where the image was given as
    such.
    """
    return plane / np.float32(as_given(observation, pixel_scale)[0] ** power)


def _read_source(path, planes, tables, number, told, observations):
    def scaled(plane):
        return _fluxes(plane, observations[0], told["prior_scale"])

    images = planes[f"IMAGE{number}"]
    nothing = np.zeros((0, *images.shape[1:]), np.float32)
    draws = [
        planes.get(f"DRAWS{number}_{band}", nothing) for band in range(1, len(told["bands"]) + 1)
    ]
    quantities = {name: _tuple(value) for name, value in told["quantities"].items()}
    quantities["covariance"] = tuple(map(tuple, quantities["covariance"]))
    return Source(
        wcs=read_plane_wcs(path, f"IMAGE{number}"),
        images=scaled(images),
        image_std=scaled(planes[f"IMAGE_STD{number}"]),
        draws=scaled(np.stack(draws, 1)),
        flux_draws=np.asarray(tables["DRAWS"]["flux"][:, number - 1]),
        shift_draws=np.asarray(tables["DRAWS"]["shift"][:, number - 1]),
        latent_draws=np.asarray(tables[f"LATENT{number}"]["latent"]),
        models=tuple(
            _fluxes(planes[f"SOURCE{number}_{m}"], seen) for m, seen in enumerate(observations, 1)
        ),
        measured=Quantities(**quantities),
        **{name: _tuple(told[name]) for name in ABOUT_SOURCE},
    )


def _tuple(value):
    """JSON has no tuples."""
    return tuple(value) if isinstance(value, list) else value


def _counted(number, noun):
    return (
        f"{number} {noun}"
        if number == 1
        else f"{number} {noun[:-1]}ies"
        if noun.endswith("y")
        else f"{number} {noun}s"
    )


def make_source(
    first,
    *,
    name,
    bands,
    reference,
    place,
    prior_scale,
    target_fwhm,
    draws,
    latent_draws,
    shift_draws,
    models,
    colour,
    residual_amplitude,
):
    """One galaxy, from draws [draw, band, h, w] of its images centred on `place`, (x, y) in arcsec
    from the middle of the first stamp; the rest as in `Source`.
    """
    middle = (np.array(first.image.shape[::-1]) - 1) / 2
    draws = np.asarray(draws, np.float32)
    images = draws.mean(0, np.float64).astype(np.float32)
    x, y = (
        np.asarray(place) + prior_scale * _centroid(images[list(bands).index(reference)])
    ) / first.pixel_scale + middle
    wcs = None
    if first.wcs is not None:
        wcs = deconvolved_wcs(
            first.wcs,
            first.image.shape,
            ratio=first.pixel_scale / prior_scale,
            shape=draws.shape[2:],
        )
        wcs.wcs.crpix = wcs.wcs.crpix - np.asarray(place) / prior_scale
        wcs.wcs.set()
    return Source(
        name=name,
        bands=tuple(bands),
        reference=reference,
        place=tuple(map(float, place)),
        x=float(x),
        y=float(y),
        prior_scale=float(prior_scale),
        target_fwhm=float(target_fwhm),
        wcs=wcs,
        images=images,
        image_std=draws.std(0, dtype=np.float64).astype(np.float32),
        draws=draws,
        flux_draws=draws.sum((2, 3), np.float64),
        shift_draws=np.asarray(shift_draws),
        latent_draws=np.asarray(latent_draws, np.float32),
        models=tuple(np.asarray(model, np.float32) for model in models),
        colour=float(colour),
        residual_amplitude=residual_amplitude,
    )


def _centroid(image):
    """Gaussian-weighted centroid (x, y) in pixels from the middle; the weight follows it."""
    y, x = (np.arange(side) - (side - 1) / 2 for side in image.shape)
    centre = np.zeros(2)
    for _ in range(20):
        light = image * np.exp(
            -0.5 * (((x - centre[0]) ** 2 + (y[:, None] - centre[1]) ** 2) / CENTRE_SIGMA**2)
        )
        if not light.sum() > 0:
            return np.zeros(2)
        # A Gaussian-weighted offset of a Gaussian is half of the true one.
        centre = np.clip(
            centre + 1.5 * (np.array([light.sum(0) @ x, light.sum(1) @ y]) / light.sum() - centre),
            -len(x) / 4,
            len(x) / 4,
        )
    return centre


def make_joint_result(
    observations,
    *,
    bands,
    sources,
    models,
    background_draws,
    num_fitted,
    method,
    diagnostics,
    status,
    provenance,
):
    """A JointResult, with its residuals, goodness of fit and words.

    models : sequence of [h, w], with background; num_fitted : sequence of float, effective
        parameters that each exposure fixed; the rest as in `JointResult`
    """
    models = [np.asarray(model, np.float32) for model in models]
    levels = np.mean(background_draws, 0, dtype=np.float64)
    residuals = [
        np.where(observation.mask, 0, observation.image - model).astype(np.float32)
        for observation, model in zip(observations, models, strict=True)
    ]
    fits = [
        compare(residual, model - level, observation, num_fitted=fitted)
        for observation, model, residual, level, fitted in zip(
            observations, models, residuals, levels, num_fitted, strict=True
        )
    ]
    # A galaxy that one exposure does not show may stand in the others.
    detection = float(np.sqrt(sum(max(fit.detection, 0.0) ** 2 for fit in fits)))
    # Galaxies at the edge of a field are cut off as a matter of course; of a lone one the exposure
    # that shows most of it counts.
    edge = (
        min(
            edge_significance(model - level, observation)
            for observation, model, level in zip(observations, models, levels, strict=True)
        )
        if len(sources) == 1
        else 0.0
    )
    words = [
        name_in(f"{observation.name} {band}".strip(), sentence)
        for observation, band, fit in zip(observations, bands, fits, strict=True)
        for sentence in judge_fit(fit._replace(detection=detection))
    ]
    words += [
        name_in(source.name, sentence)
        for source in sources
        for sentence in judge_flux(
            [float(part[source.bands.index(source.reference)]) for part in source.flux]
        )
    ]
    sentences = list(judge(diagnostics, fits=words, edge=edge))
    sentences += status
    return JointResult(
        observations=tuple(observations),
        bands=tuple(bands),
        sources=tuple(sources),
        models=tuple(models),
        residuals=tuple(residuals),
        background_draws=np.asarray(background_draws, np.float32),
        chi2=tuple(fit.chi2 for fit in fits),
        p_values=tuple(fit.p_value for fit in fits),
        chi2_all=tuple(fit.chi2_all for fit in fits),
        method=method,
        status=tuple(sentences),
        converged=not any(sentence.startswith("not_converged") for sentence in sentences),
        diagnostics=dict(diagnostics),
        provenance=dict(provenance),
    )
