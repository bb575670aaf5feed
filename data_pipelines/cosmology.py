"""The flat LCDM universes of the simulations: distances, growth and power spectra.

Lengths are comoving and in Mpc/h, wavenumbers in h/Mpc, `a` is the scale factor. Radiation is left
out of expansion and growth, as in the simulations; the power spectra are camb's: linear (the start
of the simulations) and HMCode-2020 (what they are compared with).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.interpolate import CubicSpline, RectBivariateSpline
from scipy.special import hyp2f1

HUBBLE_DISTANCE = 2997.92458  # Mpc/h
K_MAX = 50.0  # h/Mpc of the spectra; continued as a power law beyond
LINEAR_K_MAX = 10.0  # h/Mpc of the linear spectrum, where a simulation's finest waves have 3
REDSHIFTS = np.linspace(0, 1.2, 13)


@dataclass(frozen=True)
class Cosmology:
    """A flat LCDM universe without massive neutrinos.

    Parameters
    ----------
    omega_m, sigma_8 : float, total matter density and linear rms in spheres of 8 Mpc/h, today
    hubble, omega_b, spectral_index : float, H0 / (100 km/s/Mpc), baryon density, n_s
    """

    omega_m: float
    sigma_8: float
    hubble: float = 0.7
    omega_b: float = 0.046
    spectral_index: float = 0.97


def expansion(omega_m: float, a: Any) -> Any:
    """E(a) = H(a) / H0."""
    return np.sqrt(omega_m / np.asarray(a, float) ** 3 + 1 - omega_m)


def growth(omega_m: float, a: Any) -> Any:
    """The linear growth factor D(a), 1 today; agrees with its integral
    (tests/test_convergence_physics.py).
    """

    def _growing_mode(scale):
        # The integral of Heath (1977) for a cosmological constant, in closed form.
        return scale * hyp2f1(1 / 3, 1, 11 / 6, -(1 - omega_m) / omega_m * scale**3)

    return _growing_mode(np.asarray(a, float)) / _growing_mode(1.0)


def growth_slope(omega_m: float, a: Any) -> Any:
    """dD/da of `growth`."""
    a = np.asarray(a, float)
    squared = expansion(omega_m, a) ** 2
    today = hyp2f1(1 / 3, 1, 11 / 6, -(1 - omega_m) / omega_m)
    return growth(omega_m, a) * -1.5 * omega_m / (a**4 * squared) + 2.5 * omega_m / (
        a**3 * squared * today
    )


@lru_cache(maxsize=64)
def _distances(omega_m):
    redshift = np.linspace(0, 3, 3001)
    inverse = HUBBLE_DISTANCE / expansion(omega_m, 1 / (1 + redshift))
    return redshift, np.concatenate(
        [[0], np.cumsum(0.5 * (inverse[1:] + inverse[:-1]) * np.diff(redshift))]
    )


def distance(omega_m: float, redshift: Any) -> Any:
    """Comoving distance to a redshift up to 3, Mpc/h."""
    return np.interp(redshift, *_distances(omega_m))


def scale_factor_at(omega_m: float, chi: Any) -> Any:
    """The scale factor when the light left that reaches us from the comoving distance chi
    (Mpc/h).
    """
    redshift, distances = _distances(omega_m)
    return 1 / (1 + np.interp(chi, distances, redshift))


def _camb_parameters(cosmology, redshifts, k_max):
    import camb  # optional: the extra `simulations`

    parameters = camb.CAMBparams(WantCls=False)
    h2 = cosmology.hubble**2
    parameters.set_cosmology(
        H0=100 * cosmology.hubble,
        ombh2=cosmology.omega_b * h2,
        omch2=(cosmology.omega_m - cosmology.omega_b) * h2,
        mnu=0,
        omk=0,
    )
    parameters.NonLinearModel.set_params(halofit_version="mead2020")
    parameters.set_matter_power(
        redshifts=redshifts[::-1], kmax=k_max * cosmology.hubble, silent=True
    )
    return parameters


def _camb_results(cosmology, redshifts, k_max):
    """camb's results with the primordial amplitude that gives the cosmology's sigma_8."""
    import camb  # optional: the extra `simulations`

    parameters = _camb_parameters(cosmology, redshifts, k_max)
    results = camb.get_transfer_functions(parameters)
    parameters.InitPower.set_params(As=2e-9, ns=cosmology.spectral_index)
    results.calc_power_spectra(parameters)
    parameters.InitPower.set_params(
        As=2e-9 * (cosmology.sigma_8 / results.get_sigma8_0()) ** 2, ns=cosmology.spectral_index
    )
    results.calc_power_spectra(parameters)
    return results


@lru_cache(maxsize=8)
def linear_spectrum(cosmology: Cosmology) -> Callable[[Any], Any]:
    """camb's linear spectrum today: a callable k (h/Mpc, up to LINEAR_K_MAX) -> P (Mpc/h)^3, 0 at k
    = 0. Takes 1 s.
    """
    k, _, power = _camb_results(cosmology, [0.0], LINEAR_K_MAX).get_linear_matter_power_spectrum(
        hubble_units=True, k_hunit=True
    )
    spline = CubicSpline(np.log(k), np.log(power[0]))

    def _power(wavenumber):
        wavenumber = np.asarray(wavenumber, float)
        return np.where(wavenumber > 0, np.exp(spline(np.log(np.clip(wavenumber, k[0], None)))), 0)

    return _power


@lru_cache(maxsize=8)
def nonlinear_spectrum(cosmology: Cosmology) -> Callable[[Any, Any], Any]:
    """camb's HMCode-2020 spectrum: a callable k (h/Mpc), a (down to redshift 1.2) -> P (Mpc/h)^3.

    Takes 4 s.
    """
    k, redshift, power = _camb_results(
        cosmology, REDSHIFTS, K_MAX
    ).get_nonlinear_matter_power_spectrum(hubble_units=True, k_hunit=True)
    keep = k <= K_MAX
    log_k = np.log(k[keep])
    spline = RectBivariateSpline(log_k, redshift, np.log(power.T[keep]), kx=3, ky=3)

    def _power(wavenumber, a):
        wanted = np.log(wavenumber)
        # Far beyond K_MAX nothing is left; HMCode falls there about as k^-2.5.
        beyond = np.maximum(wanted - log_k[-1], 0)
        return np.exp(
            spline.ev(np.clip(wanted, log_k[0], log_k[-1]), 1 / np.asarray(a, float) - 1)
            - 2.5 * beyond
        )

    return _power
