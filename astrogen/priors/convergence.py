"""What dark matter looks like: maps of the convergence from white noise, as a Gaussian field, a
lognormal field, or one that a network has corrected.

    gaussian:   kappa = g
    lognormal:  kappa = exp(g) - lambda(cosmology)
    network:    kappa = exp(g + N(g; cosmology)) - lambda(cosmology)

`g` is white noise, one standard normal per pixel of a periodic grid of any size, coloured so that
the spectrum of kappa is that of theory, from the lowest mode of the grid up (`grid_power`): nothing
is fitted for the first two. What the network adds to the spectrum is taken out of that of `g` by a
smooth factor (`Change`); with a network of zeros, and no change, the third field is the second,
exactly. The network commutes with the eight flips and transposes of a grid, and so do the maps.

Everything is a smooth function of the latent and of the cosmology (Omega_m, sigma_8): log C, log
lambda and the mean of g are biquadratic polynomials of their logarithms.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from astrogen.errors import InputError
from astrogen.priors.correction import Correction
from astrogen.priors.grid_power import ARCMIN, grid_power, pixel_covariance, pixel_variance
from astrogen.priors.storage import refuse_change
from astrogen.types import Tensor

MEMBERS = ("network", "gaussian", "lognormal")
CENTRE = (0.3, 0.8)  # Omega_m and sigma_8 where the polynomials are expanded
# of the polynomials: biquadratic, of which the first are those of second order
TERMS, SECOND_ORDER = 9, 6
# and of what a network changes, which has its own way with the cosmology: of fourth order in each
CHANGE_ORDER = 4
CHANGE_TERMS = (CHANGE_ORDER + 1) ** 2
REACH = 8  # pixels, of the lags of a change: as far as the network's kernels see
LAGS = (REACH + 1) * (REACH + 2) // 2 - 1
EXTRAPOLATE = "choose one inside, or extrapolate (--extrapolate) at your own risk"
MARGIN = 16  # pixels by which the periodic grid is larger than the map that is cut from it


class Theory(NamedTuple):
    """The spectrum of the convergence itself, before pixels: log_spectrum [TERMS, knots] at log_l
    [knots], polynomials (see `polynomial_terms`) of the logarithm of C(l) in steradian.
    """

    log_l: np.ndarray
    log_spectrum: np.ndarray


class Change(NamedTuple):
    """By what the coloured noise of a network's field differs from that of the lognormal field, as
    polynomials of the cosmology (`change_terms`): log_gain [CHANGE_TERMS, knots] of the power at
    log_l [knots], the same in all directions; log_lags [CHANGE_TERMS, LAGS], of the cosines of
    `lag_pairs`, which have the pattern that the network's kernels leave on the grid of pixels;
    mean [CHANGE_TERMS] of g.
    """

    log_l: np.ndarray
    log_gain: np.ndarray
    log_lags: np.ndarray
    mean: np.ndarray


class MapFrame(NamedTuple):
    """The maps that a prior learned from: pixel_scale, arcmin per pixel; image_shape (height,
    width); cosmology_range {"omega_m": (low, high), "sigma_8": (low, high)}.
    """

    pixel_scale: float
    image_shape: tuple[int, int]
    cosmology_range: Mapping[str, tuple[float, float]]


class GridTable(NamedTuple):
    """A field on one grid, as polynomials of the cosmology: log_power [TERMS, n, m // 2 + 1] of g
    and log_kappa_power of the convergence, steradian; mean and log_std [TERMS] of the lognormal
    field's g; log_kappa_std [TERMS].
    """

    log_power: np.ndarray
    log_kappa_power: np.ndarray
    mean: np.ndarray
    log_std: np.ndarray
    log_kappa_std: np.ndarray


class ConvergencePrior:
    """Convergence maps of sources at one redshift, given (Omega_m, sigma_8).

    Shapes: latent [batch, n, m] ~ N(0, 1), n and m even; cosmology [batch or 1, 2]; maps [batch, n,
    m]. Spectra are in steradian, for a flat sky: C(l) = <|FFT|^2> A_pix / N_pix. The value of a
    pixel is the mean over it.

    Parameters
    ----------
    kind : str, one of MEMBERS
    theory : Theory
    log_shift : array [TERMS], of lambda
    change : Change, or None without a network
    network : Correction or None
    frame : MapFrame
    card : dict
    """

    __setattr__ = refuse_change

    def __init__(
        self,
        *,
        kind: str,
        name: str,
        theory: Any,
        log_shift: np.ndarray,
        change: Any,
        network: Any,
        frame: MapFrame,
        card: dict[str, Any],
    ) -> None:
        self.kind, self.name, self.pixel_scale = kind, name, frame.pixel_scale
        height, width = frame.image_shape
        self.image_shape = (int(height), int(width))
        self.cosmology_range = {
            parameter: tuple(limits) for parameter, limits in frame.cosmology_range.items()
        }
        self.card, self.network = card, network
        self.theory = Theory(*(np.asarray(part, np.float64) for part in theory))
        self.change = change and Change(*(np.asarray(part, np.float64) for part in change))
        self.log_shift = np.asarray(log_shift, np.float64)

    def kappa_spectrum(self, l: npt.ArrayLike, cosmology: npt.ArrayLike) -> np.ndarray:
        """Spectrum [batch, ...] (steradian) of the convergence itself, before pixels, at multipoles
        l [...]; constant beyond the first and last knot.
        """
        knots = tf.matmul(polynomial_terms(cosmology), _constant(self.theory.log_spectrum))
        weights = _constant(hat_weights(l, self.theory.log_l))
        return tf.exp(tf.einsum("bk,...k->b...", knots, weights))

    def kappa_power(self, n: int, m: int, cosmology: npt.ArrayLike) -> np.ndarray:
        """Power [batch, n, m // 2 + 1] (steradian) of the convergence on a periodic grid of pixels:
        what a Wiener filter uses.
        """
        return tf.exp(_polynomial(grid_table(self, n, m).log_kappa_power, cosmology))

    def shift(self, cosmology: Tensor) -> Tensor:
        """lambda [batch]: no convergence is below its negative."""
        return tf.exp(_polynomial(self.log_shift, cosmology))

    def moments(
        self, cosmology: Tensor, shape: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [batch, 1, 1] of the lognormal field's g, the network's unit,
        on a grid (by default that of the maps it learned from).
        """
        table = grid_table(self, *(shape or self.grid_shape))
        mean, log_std = (_polynomial(part, cosmology) for part in (table.mean, table.log_std))
        return mean[:, None, None], tf.exp(log_std)[:, None, None]

    def kappa_std(self, cosmology: Tensor) -> Tensor:
        """Standard deviation [batch, 1, 1] of a pixel."""
        return tf.exp(_polynomial(grid_table(self, *self.grid_shape).log_kappa_std, cosmology))[
            :, None, None
        ]

    @property
    def grid_shape(self) -> tuple[int, int]:
        """Sides of the periodic grid that maps of `image_shape` are cut from."""
        height, width = self.image_shape
        return height + MARGIN, width + MARGIN

    def colour(self, latent: Tensor, cosmology: Tensor) -> Tensor:
        """The field g [batch, n, m]."""
        n, m = latent.shape[-2:]
        log_power = _polynomial(grid_table(self, n, m).log_power, cosmology)
        if self.kind == "network":
            log_power += self._log_gain(n, m, cosmology)
        gain = tf.exp(0.5 * log_power) / (self.pixel_scale * ARCMIN)
        field = tf.signal.irfft2d(tf.signal.rfft2d(latent) * tf.cast(gain, tf.complex64), [n, m])
        return field if self.kind == "gaussian" else field + self.mean_of_log(n, m, cosmology)

    def decode(self, latent: Tensor, cosmology: Tensor) -> Tensor:
        """The convergence [batch, n, m]."""
        field = self.colour(latent, cosmology)
        return (
            field
            if self.kind == "gaussian"
            else tf.exp(self.log_map(field, cosmology)) - self.shift(cosmology)[:, None, None]
        )

    def log_map(self, field: Tensor, cosmology: Tensor, *, network: Any = None) -> Tensor:
        """log(kappa + lambda) [batch, n, m] of a coloured field g: the field itself, and for the
        network its correction, or by another network.
        """
        if self.kind != "network":
            return field
        n, m = field.shape[-2:]
        _, std = self.moments(cosmology, (n, m))
        unit = (field - self.mean_of_log(n, m, cosmology)) / std
        return field + std * (network or self.network)(unit, scaled_cosmology(cosmology))

    def mean_of_log(self, n: int, m: int, cosmology: Tensor) -> Tensor:
        """The mean [batch, 1, 1] of g on a grid."""
        mean, _ = self.moments(cosmology, (n, m))
        if self.kind == "network":
            change = tf.tensordot(change_terms(cosmology), _constant(self.change.mean), 1)
            mean += change[:, None, None]
        return mean

    def _log_gain(self, n, m, cosmology):
        weights = _constant(change_weights(n, m, self.pixel_scale, tuple(self.change.log_l)))
        pairs = np.tensordot(self.change.log_lags, lag_pairs(), 1)
        knots, lags = (
            tf.tensordot(change_terms(cosmology), _constant(part), 1)
            for part in (self.change.log_gain, pairs)
        )
        along_y, along_x = (_constant(part) for part in lag_cosines(n, m))
        return tf.einsum("bk,nmk->bnm", knots, weights) + tf.einsum(
            "bij,ni,mj->bnm", lags, along_y, along_x
        )

    def sample(
        self,
        num: int,
        *,
        omega_m: float,
        sigma_8: float,
        shape: tuple[int, int] | None = None,
        seed: int,
        extrapolate: bool = False,
    ) -> Tensor:
        """Draw maps of one cosmology, cut from larger periodic grids so that opposite edges know
        nothing of each other.

        Map i depends on (seed, i) alone.

        Parameters
        ----------
        shape : (height, width) or None for `image_shape`; even
        extrapolate : bool, allow a cosmology outside `cosmology_range`

        Returns
        -------
        Tensor [num, height, width]

        Raises
        ------
        ValueError : cosmology outside the range.
        """
        self.check_cosmology(omega_m, sigma_8, extrapolate=extrapolate)
        return self.draw(
            draw_latent(range(num), shape or self.image_shape, seed=seed),
            tf.constant([[omega_m, sigma_8]], tf.float32),
        )

    def draw(self, latent: Tensor, cosmology: Tensor) -> Tensor:
        """Maps [batch, n - MARGIN, m - MARGIN] cut from the periodic grids of `latent` [batch, n,
        m].
        """
        return self.decode(latent, cosmology)[
            :, : latent.shape[1] - MARGIN, : latent.shape[2] - MARGIN
        ]

    def check_cosmology(
        self,
        omega_m: float,
        sigma_8: float,
        *,
        extrapolate: bool = False,
        advice: str = EXTRAPOLATE,
    ) -> bool:
        """Is the cosmology inside the range that the prior was fitted in?

        Parameters
        ----------
        extrapolate : bool, allow one that is not
        advice : str, what to do about one that is not

        Returns
        -------
        bool

        Raises
        ------
        ValueError : it is not, or is not a positive number; with `extrapolate` only the latter.
        """
        inside = True
        for name, value in (("omega_m", omega_m), ("sigma_8", sigma_8)):
            low, high = self.cosmology_range[name]
            if not (np.isfinite(value) and value > 0):
                raise InputError(
                    f"check_cosmology: {name} must be a positive number, got {value}; the prior"
                    f" knows {low} to {high}"
                )
            if not low <= value <= high:
                inside = False
                if not extrapolate:
                    raise InputError(
                        f"check_cosmology: {name} must be within {low} to {high}, got {value};"
                        f" {advice}"
                    )
        return inside


def polynomial_terms(cosmology: Tensor) -> Tensor:
    """The terms 1, x, y, x^2, x y, y^2, x^2 y, x y^2, x^2 y^2 [batch, TERMS] with x = ln(Omega_m /
    0.3), y = ln(sigma_8 / 0.8).
    """
    scaled = tf.math.log(tf.convert_to_tensor(cosmology, tf.float32) / tf.constant(CENTRE))
    return tf.stack(_monomials(*tf.unstack(scaled, axis=-1)), -1)


def exact_terms(cosmology: npt.ArrayLike) -> np.ndarray:
    """`polynomial_terms` in double precision, by NumPy."""
    return np.stack(_monomials(*np.log(np.asarray(cosmology, np.float64) / CENTRE).T), -1)


def _monomials(x, y):
    return [x * 0 + 1, x, y, x * x, x * y, y * y, x * x * y, x * y * y, x * x * y * y]


def change_terms(cosmology: Tensor) -> Tensor:
    """The products x^a y^b [batch, CHANGE_TERMS], a and b from 0 to CHANGE_ORDER, of the scaled
    cosmology.
    """
    x, y = tf.unstack(scaled_cosmology(cosmology), axis=-1)
    orders = range(CHANGE_ORDER + 1)
    return tf.stack([x**a * y**b for a in orders for b in orders], -1)


def change_design(cosmology_range: Any) -> np.ndarray:
    """The cosmologies [CHANGE_TERMS, 2] of a range that the polynomials of a Change are fixed by,
    denser towards its ends.
    """
    places = 0.5 - 0.5 * np.cos(np.pi * np.arange(CHANGE_ORDER + 1) / CHANGE_ORDER)
    limits = [cosmology_range[name] for name in ("omega_m", "sigma_8")]
    axes = [low + (high - low) * places for low, high in limits]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)


def design(cosmology_range: Any) -> np.ndarray:
    """The nine cosmologies [TERMS, 2] of a range that biquadratic polynomials are fixed by."""
    limits = [
        np.linspace(low, high, 3)
        for low, high in (cosmology_range[name] for name in ("omega_m", "sigma_8"))
    ]
    return np.stack(np.meshgrid(*limits, indexing="ij"), -1).reshape(-1, 2)


def _polynomial(coefficients, cosmology):
    """The value [batch, ...] of polynomials [TERMS, ...]."""
    return tf.tensordot(polynomial_terms(cosmology), _constant(coefficients), 1)


def _constant(array):
    return tf.constant(array, tf.float32)


@lru_cache(maxsize=8)
def grid_table(prior: ConvergencePrior, n: int, m: int) -> GridTable:
    """The GridTable of a prior, exact at the nine cosmologies of its range."""
    points, shape, scale = design(prior.cosmology_range), (n, m), prior.pixel_scale
    terms = exact_terms(points)
    covariance = pixel_covariance(
        prior.theory.log_l, terms @ prior.theory.log_spectrum, shape, pixel_scale=scale
    )
    kappa_power = grid_power(covariance, pixel_scale=scale)
    shift = np.exp(terms @ prior.log_shift)
    # The logarithm of a lognormal field with correlation xi has ln(1 + xi) (Coles & Jones 1991,
    # equation 9).
    power = grid_power(np.log1p(covariance / shift[:, None, None] ** 2), pixel_scale=scale)
    variance = pixel_variance(power, shape, pixel_scale=scale)
    kappa_variance = pixel_variance(kappa_power, shape, pixel_scale=scale)
    values = (
        np.log(kappa_power if prior.kind == "gaussian" else power),
        np.log(kappa_power),
        np.log(shift) - 0.5 * variance,
        0.5 * np.log(variance),
        0.5 * np.log(kappa_variance),
    )
    inverse = np.linalg.pinv(terms)  # a range may be a single cosmology
    return GridTable(*(np.tensordot(inverse, value, 1).astype(np.float32) for value in values))


def scaled_cosmology(cosmology: Tensor) -> Tensor:
    """The cosmology [batch, 2] as networks see it: of order one over the range."""
    return tf.math.log(
        tf.convert_to_tensor(cosmology, tf.float32) / tf.constant(CENTRE)
    ) / tf.constant([0.3, 0.25])


def multipoles(n: int, m: int, pixel_scale: float) -> np.ndarray:
    """l = |2 pi k / theta| [n, m // 2 + 1] on the half-plane of a real transform; pixel_scale in
    arcmin per pixel.
    """
    step = pixel_scale * ARCMIN
    ky, kx = 2 * np.pi * np.fft.fftfreq(n, step), 2 * np.pi * np.fft.rfftfreq(m, step)
    return np.hypot(ky[:, None], kx)


def hat_weights(l: npt.ArrayLike, log_l: np.ndarray) -> np.ndarray:
    """Weights [..., knots] of linear interpolation in log l, at multipoles l [...]; constant beyond
    the first and last knot.
    """
    position = np.interp(np.log(np.maximum(l, 1e-3)), log_l, np.arange(len(log_l)))
    return np.maximum(0.0, 1.0 - np.abs(position[..., None] - np.arange(len(log_l)))).astype(
        np.float32
    )


def draw_latent(indices: Tensor, shape: tuple[int, int], *, seed: Any) -> Tensor:
    """White noise [num, height + MARGIN, width + MARGIN] for maps of a shape; that of index i
    depends on (seed, i) alone.
    """
    grid = [side + MARGIN for side in shape]
    return tf.stack([tf.random.stateless_normal(grid, [seed, index]) for index in indices])


@lru_cache(maxsize=8)
def change_weights(n: int, m: int, pixel_scale: float, log_l: tuple[float, ...]) -> np.ndarray:
    """Weights [n, m // 2 + 1, knots] of a Change's round gains on the modes of a grid."""
    return hat_weights(multipoles(n, m, pixel_scale), np.array(log_l))


def lag_pairs() -> np.ndarray:
    """Where each of a Change's lags stands [LAGS, REACH + 1, REACH + 1] among the products
    cos(i ky) cos(j kx): at (i, j) and (j, i), not both zero, for a grid has no preferred axis.
    """
    first, second = np.triu_indices(REACH + 1)
    pairs = np.zeros((len(first), REACH + 1, REACH + 1))
    pairs[np.arange(len(first)), first, second] = 1.0
    pairs[np.arange(len(first)), second, first] = 1.0
    return pairs[1:]


def lag_cosines(n: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    """cos(i k) at the frequencies of a grid's half-plane, along y [n, REACH + 1] and along x
    [m // 2 + 1, REACH + 1].
    """
    lags = 2 * np.pi * np.arange(REACH + 1)
    return np.cos(np.fft.fftfreq(n)[:, None] * lags), np.cos(np.fft.rfftfreq(m)[:, None] * lags)


def convergence_prior(
    card: dict[str, Any], arrays: dict[str, dict[str, np.ndarray]], member: str = "network"
) -> ConvergencePrior:
    """The prior that a card and its arrays describe (see `astrogen.priors.storage`); `member` is
    one of MEMBERS.
    """
    spectra = arrays["spectra"]
    network = change = None
    if member == "network":
        network = Correction(**card["network"])
        network.set_weights(
            [arrays["network"][f"weight_{index:02d}"] for index in range(len(network.weights))]
        )
        gain, lags = (_stored_rows(spectra, name, CHANGE_TERMS) for name in ("round", "lags"))
        change = Change(spectra["change_log_l"], gain, lags, spectra["change_mean"])
    return ConvergencePrior(
        kind=member,
        name=card["name"] + ("" if member == "network" else f"-{member}"),
        theory=Theory(spectra["log_l"], _stored_rows(spectra, "theory", TERMS)),
        log_shift=spectra["log_shift"],
        change=change,
        network=network,
        frame=MapFrame(
            pixel_scale=card["pixel_scale"],
            image_shape=card["image_shape"],
            cosmology_range=card["cosmology_range"],
        ),
        card=card,
    )


def stored_arrays(prior: ConvergencePrior) -> dict[str, dict[str, np.ndarray]]:
    """Arrays {file: {name: array}} of a prior with a network on disk: what `convergence_prior`
    reads.

    Spectra are vectors, which keep single precision.
    """
    rows = {
        "theory": prior.theory.log_spectrum,
        "round": prior.change.log_gain,
        "lags": prior.change.log_lags,
    }
    spectra = {
        "log_l": prior.theory.log_l,
        "log_shift": prior.log_shift,
        "change_log_l": prior.change.log_l,
        "change_mean": prior.change.mean,
    } | {f"{name}_{term}": row for name, part in rows.items() for term, row in enumerate(part)}
    weights = prior.network.get_weights()
    return {
        "spectra": spectra,
        "network": {f"weight_{index:02d}": value for index, value in enumerate(weights)},
    }


def _stored_rows(spectra, name, num):
    return np.stack([spectra[f"{name}_{term}"] for term in range(num)])
