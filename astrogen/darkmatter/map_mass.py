"""From the shear of a field to its mass: draws of the convergence under a learned prior, with
Kaiser-Squires and Wiener maps beside them.

    field = read_field(["e1.fits", "e2.fits"], noise=["std1.fits", "std2.fits"],
                       mask="mask.fits", pixel_scale=0.29)
    result = map_mass(field, seed=1)
    result.mean, result.std, result.draws

The mode of thousands of white noise values is no typical map, and is not offered; the estimate is
the mean of the draws.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from dataclasses import field as of_field
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from astropy.table import Table

import astrogen
from astrogen.darkmatter.b_modes import measure_modes, sentences_of
from astrogen.darkmatter.posterior import CENTRE, gaussian_start, make_target
from astrogen.darkmatter.wiener import ARCMIN, wiener_filter
from astrogen.data.field import LensingField, rebin_field
from astrogen.data.images import read_plane_wcs, read_planes, write_planes
from astrogen.data.reading import parse_json
from astrogen.errors import InputError, InputFileError
from astrogen.inference import diagnostics
from astrogen.inference.rotation import SETTINGS, sample_rotating
from astrogen.inference.verdict import R_HAT_DRIFT, R_HAT_MAX
from astrogen.instruments.lensing import embed, kaiser_squires, make_grid, observe, shear_kernels
from astrogen.priors import load_prior
from astrogen.priors.convergence import ConvergencePrior
from astrogen.priors.storage import weights_hash
from astrogen.processes import refuse_fork
from astrogen.types import FilePath

FORMAT = "astrogen mass map 1"
SAMPLED = "sampled"  # for `cosmology`
FIRST_STEP = 0.3
# trajectories of each chain; a network starts from its lognormal field's posterior, and needs half
# as many again
BURNIN, SAMPLED_BURNIN = 40, 120
THIN = 3  # trajectories for each draw that is kept
POOR_FIT = 5.0  # standard deviations of chi2
KS_SMOOTHING = 5.0  # arcmin, FWHM
NUM_POSSIBLE = 32  # draws whose B modes are those to expect
INSIDE = "choose one inside (--omega-m, --sigma-8)"
# Fourier modes to this order, and pixels on a grid of this side, are watched for convergence
NUM_MODES, NUM_SITES = 3, 4


@dataclass(frozen=True, eq=False)
class MassMap:
    """What is believed about the convergence of a field.

    Parameters
    ----------
    field : LensingField, at the prior's pixel scale
    mean, std : arrays [height, width], float32, of the posterior: over all trajectories, THIN times
        as many as draws
    draws : array [draw, height, width], float32, of the posterior, the chains in turn
    cosmology_draws : array [draw, 2], (Omega_m, sigma_8)
    ks : array [2, height, width], E and B modes of Kaiser-Squires, smoothed with a Gaussian of FWHM
        provenance["ks_smoothing"] arcmin; None for a convergence map
    wiener : array [height, width], Wiener filter with the prior's spectrum
    diagnostics : dict of name -> float
    converged : bool
    status : tuple of str, what is not as it should be, each with the next step
    provenance : dict
    """

    field: LensingField
    mean: np.ndarray = of_field(repr=False)
    std: np.ndarray = of_field(repr=False)
    draws: np.ndarray = of_field(repr=False)
    cosmology_draws: np.ndarray = of_field(repr=False)
    ks: np.ndarray | None = of_field(repr=False)
    wiener: np.ndarray = of_field(repr=False)
    diagnostics: dict
    converged: bool
    status: tuple[str, ...]
    provenance: dict

    @property
    def signal_to_noise(self) -> np.ndarray:
        """Mean over standard deviation [height, width]."""
        return self.mean / self.std

    def summary(self) -> str:
        """One line about the whole."""
        height, width = self.mean.shape
        text = (
            f"{height} x {width} pixels of {self.field.pixel_scale:g} arcmin, {len(self.draws)}"
            f" draws, R-hat {self.diagnostics['r_hat']:.3f}"
        )
        if self.provenance["cosmology"] == SAMPLED:
            (omega_m, sigma_8), errors = (
                self.cosmology_draws.mean(0),
                self.cosmology_draws.std(0, ddof=1),
            )
            text += (
                f", Omega_m {omega_m:.3f} +- {errors[0]:.3f}, sigma_8 {sigma_8:.3f} +-"
                f" {errors[1]:.3f}"
            )
        return f"{text}: {'; '.join(self.status) or 'ok'}"

    def write_fits(self, path: FilePath) -> None:
        """Write everything to one FITS file, whole or not at all; `read_massmap` reads it."""
        planes = {
            "MEAN": self.mean,
            "STD": self.std,
            "SNR": self.signal_to_noise,
            "WIENER": self.wiener,
            "DRAWS": self.draws,
            "MAPS": self.field.maps,
            "VARIANCE": self.field.variance,
            "MASK": self.field.mask,
        }
        if self.ks is not None:
            planes |= {"KS_E": self.ks[0], "KS_B": self.ks[1]}
        about = {
            "format": FORMAT,
            "pixel_scale": self.field.pixel_scale,
            "beam": self.field.beam,
            "notes": list(self.field.notes),
            "diagnostics": self.diagnostics,
            "converged": self.converged,
            "status": list(self.status),
            "provenance": self.provenance,
        }
        tables = {
            "COSMOLOGY": Table(
                {"omega_m": self.cosmology_draws[:, 0], "sigma_8": self.cosmology_draws[:, 1]}
            ),
            "ABOUT": Table(
                {"name": list(about), "value": [json.dumps(value) for value in about.values()]}
            ),
        }
        header = {
            "PIXSCALE": self.field.pixel_scale,
            "PIXUNIT": "arcmin",
            "NUMDRAWS": len(self.draws),
            "CONVERGD": self.converged,
            "R_HAT": self.diagnostics["r_hat"],
            **{f"STATUS{number}": sentence for number, sentence in enumerate(self.status, 1)},
        }
        write_planes(path, planes, wcs=self.field.wcs, header=header, tables=tables)


def map_mass(
    field: LensingField,
    *,
    prior: Any = "kappa",
    cosmology: tuple[float, float] | str = CENTRE,
    num_draws: int = 200,
    num_chains: int = 4,
    num_burnin: int | None = None,
    seed: int,
    progress: Callable[[range], Iterable[int]] = lambda steps: steps,
) -> MassMap:
    """Draw convergence maps given what was seen of a field.

    With a Gaussian prior the mean is that of the Wiener filter and the standard deviation the
    analytic one (tests/test_massmap.py). Chains start at exact draws of the Gaussian posterior; for
    a network they first go to the posterior of its lognormal start, which costs a tenth.

    Parameters
    ----------
    field : LensingField; one of finer pixels than the prior's is averaged to them (`rebin_field`)
    prior : str, path or ConvergencePrior: network, lognormal or gaussian; see `load_prior`
    cosmology : (Omega_m, sigma_8), or "sampled": uniform over the prior's range
    num_draws : int, of all chains together
    num_burnin : int or None, trajectories of each chain that are thrown away, half as many again
        for a network;
        None: BURNIN, or SAMPLED_BURNIN where the cosmology is sampled
    seed : int
    progress : callable that wraps the iteration over trajectories

    Returns
    -------
    MassMap

    Raises
    ------
    ValueError : a prior of something else, pixels larger than the prior's, a cosmology outside its
        range, too few draws.
    """
    refuse_fork("map_mass")
    prior, sampled = _settle(prior, cosmology)
    if num_chains < 2 or num_draws < 8 * num_chains:
        raise InputError(
            "map_mass: num_chains and num_draws must be at least 2 and 8 for each chain, got"
            f" {num_chains} and {num_draws} (--chains, --draws); R-hat compares halves of chains"
        )
    where = CENTRE if sampled else (float(cosmology[0]), float(cosmology[1]))
    prior.check_cosmology(*where, advice=INSIDE)
    field = rebin_field(field, prior.pixel_scale)
    grid = make_grid(field.mask.shape)
    evidence, white = gaussian_start(
        field, prior, grid, where, num_chains=num_chains, sampled=sampled, seed=(seed, 0)
    )
    num_burnin = (SAMPLED_BURNIN if sampled else BURNIN) if num_burnin is None else num_burnin
    step = FIRST_STEP
    if prior.kind == "network":
        start = make_target(prior, grid, sampled=sampled, corrected=False)
        walk = sample_rotating(
            start.density_fn,
            white,
            evidence,
            keep_fn=start.draw_fn,
            seed=(seed, 1),
            settings=SETTINGS._replace(num_draws=0, num_burnin=num_burnin),
            progress=progress,
        )
        white, step, num_burnin = walk.end, walk.step, num_burnin // 2
    target = make_target(prior, grid, sampled=sampled)
    walk = sample_rotating(
        target.density_fn,
        white,
        evidence,
        keep_fn=target.draw_fn,
        seed=(seed, 2),
        settings=SETTINGS._replace(
            num_draws=THIN * -(-num_draws // num_chains), num_burnin=num_burnin
        ),
        first_step=step,
        progress=progress,
    )
    return _result(field, grid, prior, where, walk, sampled=sampled, num_draws=num_draws, seed=seed)


def _settle(prior, cosmology):
    """The prior itself, and whether the cosmology is sampled."""
    prior = load_prior(prior) if isinstance(prior, (str, Path)) else prior
    if not isinstance(prior, ConvergencePrior):
        raise InputError(
            "map_mass: prior must be one of convergence maps, got"
            f" {getattr(prior, 'name', prior)!r}; take load_prior('kappa') (--prior kappa)"
        )
    sampled = isinstance(cosmology, str)
    if (sampled and cosmology != SAMPLED) or (not sampled and np.shape(cosmology) != (2,)):
        raise InputError(
            f"map_mass: cosmology must be (Omega_m, sigma_8) or {SAMPLED!r}, got {cosmology!r};"
            " give one of the two"
        )
    return prior, sampled


def _result(field, grid, prior, where, walk, *, sampled, num_draws, seed):
    power = prior.kappa_power(grid.n, grid.m, tf.constant([where], tf.float32))[0].numpy()
    found, status = _diagnose(field, walk, sampled=sampled), ()
    if field.is_shear:
        modes = _modes_of(field, grid, power, walk.kept.kappa, seed)
        found |= {"b_mode_excess": modes.excess, "b_over_e": modes.b_over_e}
        status = sentences_of(modes, field.wcs)
    status = (*status, *_status(found))
    ks = (
        kaiser_squires(field.maps, grid, smoothing=KS_SMOOTHING / field.pixel_scale)
        if field.is_shear
        else None
    )
    everything = walk.kept.kappa.reshape(-1, *walk.kept.kappa.shape[2:])
    draws, cosmologies = (
        np.concatenate(draw[THIN - 1 :: THIN])[:num_draws]
        for draw in (walk.kept.kappa, walk.kept.cosmology)
    )
    provenance = {
        "astrogen": astrogen.__version__,
        "prior": prior.name,
        "weights": weights_hash(prior.card),
        "kind": prior.kind,
        "seed": seed,
        "cosmology": SAMPLED if sampled else list(where),
        "chains": int(walk.log_density.shape[1]),
        "ks_smoothing": KS_SMOOTHING,
    }
    return MassMap(
        field=field,
        mean=everything.mean(0),
        std=everything.std(0, ddof=1),
        draws=draws,
        cosmology_draws=cosmologies,
        ks=ks,
        wiener=wiener_filter(field, grid, power),
        diagnostics=found,
        converged=not any(sentence.startswith("not converged") for sentence in status),
        status=status,
        provenance=provenance,
    )


def _modes_of(field, grid, power, kappa, seed):
    """E and B modes of a field, beside those of what some of the draws [draw, chain, height, width]
    would show.
    """
    draws = kappa.reshape(-1, *kappa.shape[2:])
    chosen = draws[np.linspace(0, len(draws) - 1, NUM_POSSIBLE).astype(int)]
    seen = observe(embed(chosen, grid), shear_kernels(grid.n, grid.m), grid).numpy()
    area = (field.pixel_scale * ARCMIN) ** 2
    return measure_modes(field, grid, power / area, seen, seed=(seed, 3))


def watched(kappa: np.ndarray) -> np.ndarray:
    """What is watched for convergence: pixels on a grid of NUM_SITES x NUM_SITES, and the Fourier
    modes of the field to order NUM_MODES; [..., watched] of [..., h, w].
    """
    height, width = kappa.shape[-2:]
    rows, columns = (
        ((np.arange(NUM_SITES) + 0.5) * side / NUM_SITES).astype(int) for side in (height, width)
    )
    sites = kappa[..., rows[:, None], columns].reshape(*kappa.shape[:-2], -1)
    modes = np.fft.rfft2(kappa)[..., :NUM_MODES, :NUM_MODES].reshape(*kappa.shape[:-2], -1)
    # the mean has no imaginary part
    return np.concatenate([sites, modes.real, modes.imag[..., 1:]], -1)


def _diagnose(field, walk, *, sampled):
    """Numbers that say whether to believe the draws."""
    values = np.moveaxis(
        np.concatenate([watched(walk.kept.kappa), *([walk.kept.cosmology] if sampled else [])], -1),
        0,
        1,
    )
    ess = diagnostics.effective_draws(values)
    num_data = field.maps.size - len(field.maps) * np.count_nonzero(field.mask)
    return {
        "r_hat": float(diagnostics.r_hat(values).max()),
        "r_hat_log_density": float(diagnostics.r_hat(walk.log_density.T)),
        "ess": float(ess.min()),
        "ess_median": float(np.median(ess)),
        "accept_rate": walk.accept_rate,
        "divergent": float(walk.divergent),
        "step": walk.step,
        "gradients": float(walk.num_gradients),
        "reduced_chi2": float(walk.kept.chi2.mean() / num_data),
        "num_data": float(num_data),
    }


def _status(found):
    """What is not as it should be, in words."""
    sentences = []
    if not found["r_hat"] < R_HAT_MAX:
        sentences.append(
            f"not converged: R-hat {found['r_hat']:.3f} over the watched pixels and modes is not"
            f" below {R_HAT_MAX}; take more draws (--draws), or a longer burn-in (--burn-in)"
        )
    if not found["r_hat_log_density"] < R_HAT_DRIFT:
        sentences.append(
            f"not converged: R-hat {found['r_hat_log_density']:.2f} of the log-density is not below"
            f" {R_HAT_DRIFT}; take a longer burn-in (--burn-in)"
        )
    if found["divergent"]:
        sentences.append(
            f"not converged: {found['divergent']:.0f} trajectories diverged; look for noise that is"
            " far too small, or a field unlike the prior"
        )
    excess = (found["reduced_chi2"] - 1) * np.sqrt(found["num_data"] / 2)
    if not abs(excess) < POOR_FIT:
        sentences.append(
            f"poor fit: reduced chi2 {found['reduced_chi2']:.3f} of the draws is {abs(excess):.0f}"
            " sigma from 1; check the noise, which seems too"
            f" {'small' if excess > 0 else 'large'} (by about"
            f" {np.exp(abs(np.log(found['reduced_chi2'])) / 2):.2g}), and the units of the maps"
        )
    return tuple(sentences)


def read_massmap(path: FilePath) -> MassMap:
    """Read what `MassMap.write_fits` wrote.

    Raises
    ------
    InputFileError : the file is damaged, or no mass map of astrogen.
    """
    planes, _, tables = read_planes(path)
    try:
        about = {str(row["name"]): parse_json(row["value"]) for row in tables["ABOUT"]}
        if about["format"] != FORMAT:
            raise InputFileError(path, f"is {about['format']!r}; this version reads {FORMAT!r}")
        field = LensingField(
            planes["MAPS"],
            planes["VARIANCE"],
            planes["MASK"].astype(bool),
            about["pixel_scale"],
            about["beam"],
            read_plane_wcs(path, "MEAN"),
            tuple(about["notes"]),
        )
        cosmology = np.stack(
            [np.asarray(tables["COSMOLOGY"][name], np.float32) for name in ("omega_m", "sigma_8")],
            -1,
        )
        return MassMap(
            field=field,
            mean=planes["MEAN"],
            std=planes["STD"],
            draws=planes["DRAWS"],
            cosmology_draws=cosmology,
            ks=np.stack([planes["KS_E"], planes["KS_B"]]) if "KS_E" in planes else None,
            wiener=planes["WIENER"],
            **{name: about[name] for name in ("diagnostics", "converged", "provenance")},
            status=tuple(about["status"]),
        )
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputFileError(
            path, f"is no mass map of astrogen, or a damaged one ({type(error).__name__}: {error})"
        ) from error
