"""What dark matter looks like: maps of the convergence from white noise, as a Gaussian field, a
lognormal field, or one that a network has corrected.

    gaussian:   kappa = g
    lognormal:  kappa = exp(g) - lambda(cosmology)
    network:    kappa = exp(g + N(g; cosmology)) - lambda(cosmology)

`g` is white noise, one standard normal per pixel of a periodic grid of any size, coloured with the
spectrum C_g(l; cosmology). With a network of zeros the third field is the second, exactly.
Everything is a smooth function of the latent and of the cosmology (Omega_m, sigma_8): log C_g, log
lambda and the mean of g are biquadratic polynomials of their logarithms.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from astrogen.errors import InputError
from astrogen.priors.correction import Correction
from astrogen.priors.storage import refuse_change

MEMBERS = ("network", "gaussian", "lognormal")
CENTRE = (0.3, 0.8)  # Omega_m and sigma_8 where the polynomials are expanded
TERMS, SECOND_ORDER = (
    9,
    6,
)  # of the polynomials: biquadratic, of which the first are those of second order
MARGIN = 16  # pixels by which the periodic grid is larger than the map that is cut from it
ARCMIN = np.pi / 180 / 60  # radian


class Table(NamedTuple):
    """Spectrum and numbers of one field: polynomials of the cosmology, see `polynomial_terms`.

    log_spectrum [TERMS, knots] of C_g in steradian at the multipoles exp(log_l), shared by the
    members; mean [TERMS] of g; log_std [TERMS] of g, the network's unit.
    """

    log_spectrum: np.ndarray
    mean: np.ndarray
    log_std: np.ndarray


class ConvergencePrior:
    """Convergence maps of sources at one redshift, given (Omega_m, sigma_8).

    Shapes: latent [batch, n, m] ~ N(0, 1), n and m even; cosmology [batch or 1, 2]; maps [batch, n,
    m]. Spectra are in steradian, for a flat sky: C(l) = <|FFT|^2> A_pix / N_pix.

    Parameters
    ----------
    kind : str, one of MEMBERS
    log_l : array [knots]
    table : Table of g; kappa_table : Table of the convergence itself
    log_shift : array [TERMS], of lambda
    network : Correction or None
    pixel_scale : float, arcmin per pixel
    image_shape : (height, width), of the maps that it was fitted to
    cosmology_range : {"omega_m": (low, high), "sigma_8": (low, high)}
    card : dict
    """

    __setattr__ = refuse_change

    def __init__(
        self,
        *,
        kind,
        name,
        log_l,
        table,
        kappa_table,
        log_shift,
        network,
        pixel_scale,
        image_shape,
        cosmology_range,
        card,
    ):
        self.kind, self.name, self.pixel_scale, self.image_shape = (
            kind,
            name,
            pixel_scale,
            tuple(image_shape),
        )
        self.cosmology_range = {
            parameter: tuple(limits) for parameter, limits in cosmology_range.items()
        }
        self.card, self.network = card, network
        self.log_l, self.log_shift = (
            np.asarray(log_l, np.float64),
            tf.constant(log_shift, tf.float32),
        )
        self.table, self.kappa_table = (
            Table(*(tf.constant(x, tf.float32) for x in t)) for t in (table, kappa_table)
        )

    def log_spectrum(self, l, cosmology):
        """Log of the spectrum [batch, ...] (steradian) that colours the white noise, at multipoles
        l [...]; constant beyond the first and last knot.
        """
        return self._interpolate(self.table, hat_weights(l, self.log_l), cosmology)

    def kappa_spectrum(self, l, cosmology):
        """Spectrum [batch, ...] (steradian) of the convergence: what a Wiener filter uses."""
        return tf.exp(self._interpolate(self.kappa_table, hat_weights(l, self.log_l), cosmology))

    def shift(self, cosmology):
        """lambda [batch]: no convergence is below its negative."""
        return tf.exp(tf.linalg.matvec(polynomial_terms(cosmology), self.log_shift))

    def colour(self, latent, cosmology):
        """The field g [batch, n, m]."""
        n, m = latent.shape[-2:]
        log_power = self._interpolate(
            self.table, _grid_weights(n, m, self.pixel_scale, tuple(self.log_l)), cosmology
        )
        gain = tf.exp(0.5 * log_power) / (self.pixel_scale * ARCMIN)
        field = tf.signal.irfft2d(tf.signal.rfft2d(latent) * tf.cast(gain, tf.complex64), [n, m])
        return field + self._number(self.table.mean, cosmology)

    def decode(self, latent, cosmology):
        """The convergence [batch, n, m]."""
        field = self.colour(latent, cosmology)
        return (
            field
            if self.kind == "gaussian"
            else tf.exp(self.log_map(field, cosmology)) - self.shift(cosmology)[:, None, None]
        )

    def log_map(self, field, cosmology, *, network=None):
        """log(kappa + lambda) [batch, n, m] of a coloured field g: the field itself, and for the
        network its correction, or by another network.
        """
        if self.kind != "network":
            return field
        mean, std = (
            self._number(self.table.mean, cosmology),
            tf.exp(self._number(self.table.log_std, cosmology)),
        )
        return field + std * (network or self.network)(
            (field - mean) / std, scaled_cosmology(cosmology)
        )

    def sample(self, num, *, omega_m, sigma_8, shape=None, seed, extrapolate=False):
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

    def draw(self, latent, cosmology):
        """Maps [batch, n - MARGIN, m - MARGIN] cut from the periodic grids of `latent` [batch, n,
        m].
        """
        return self.decode(latent, cosmology)[
            :, : latent.shape[1] - MARGIN, : latent.shape[2] - MARGIN
        ]

    def check_cosmology(self, omega_m, sigma_8, *, extrapolate=False):
        """Is the cosmology inside the range that the prior was fitted in?

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
                        " choose one inside, or extrapolate (--extrapolate) at your own risk"
                    )
        return inside

    def _interpolate(self, table, weights, cosmology):
        knots = tf.matmul(polynomial_terms(cosmology), table.log_spectrum)
        return tf.einsum("bk,...k->b...", knots, tf.constant(weights, tf.float32))

    def _number(self, coefficients, cosmology):
        return tf.linalg.matvec(polynomial_terms(cosmology), coefficients)[:, None, None]


def polynomial_terms(cosmology):
    """The terms 1, x, y, x^2, x y, y^2, x^2 y, x y^2, x^2 y^2 [batch, TERMS] with x = ln(Omega_m /
    0.3), y = ln(sigma_8 / 0.8).
    """
    x, y = tf.unstack(
        tf.math.log(tf.convert_to_tensor(cosmology, tf.float32) / tf.constant(CENTRE)), axis=-1
    )
    return tf.stack(
        [tf.ones_like(x), x, y, x * x, x * y, y * y, x * x * y, x * y * y, x * x * y * y], -1
    )


def scaled_cosmology(cosmology):
    """The cosmology [batch, 2] as networks see it: of order one over the range."""
    return tf.math.log(
        tf.convert_to_tensor(cosmology, tf.float32) / tf.constant(CENTRE)
    ) / tf.constant([0.3, 0.25])


def multipoles(n, m, pixel_scale):
    """l = |2 pi k / theta| [n, m // 2 + 1] on the half-plane of a real transform; pixel_scale in
    arcmin per pixel.
    """
    step = pixel_scale * ARCMIN
    ky, kx = 2 * np.pi * np.fft.fftfreq(n, step), 2 * np.pi * np.fft.rfftfreq(m, step)
    return np.hypot(ky[:, None], kx)


def hat_weights(l, log_l):
    """Weights [..., knots] of linear interpolation in log l, at multipoles l [...]; constant beyond
    the first and last knot.
    """
    position = np.interp(np.log(np.maximum(l, 1e-3)), log_l, np.arange(len(log_l)))
    return np.maximum(0.0, 1.0 - np.abs(position[..., None] - np.arange(len(log_l)))).astype(
        np.float32
    )


def draw_latent(indices, shape, *, seed):
    """White noise [num, height + MARGIN, width + MARGIN] for maps of a shape; that of index i
    depends on (seed, i) alone.
    """
    grid = [side + MARGIN for side in shape]
    return tf.stack([tf.random.stateless_normal(grid, [seed, index]) for index in indices])


@lru_cache(maxsize=8)
def _grid_weights(n, m, pixel_scale, log_l):
    return hat_weights(multipoles(n, m, pixel_scale), np.array(log_l))


def convergence_prior(card, arrays, member="network"):
    """The prior that a card and its arrays describe (see `astrogen.priors.storage`); `member` is
    one of MEMBERS.
    """
    spectra = arrays["spectra"]
    tables = {kind: _stored_table(spectra, kind) for kind in MEMBERS}
    network = None
    if member == "network":
        network = Correction(**card["network"])
        network.set_weights(
            [arrays["network"][f"weight_{index:02d}"] for index in range(len(network.weights))]
        )
    return ConvergencePrior(
        kind=member,
        name=card["name"] + ("" if member == "network" else f"-{member}"),
        log_l=spectra["log_l"],
        table=tables[member],
        kappa_table=tables["gaussian"],
        log_shift=spectra["log_shift"],
        network=network,
        pixel_scale=card["pixel_scale"],
        image_shape=card["image_shape"],
        cosmology_range=card["cosmology_range"],
        card=card,
    )


def stored_arrays(log_l, log_shift, tables, network):
    """Arrays {file: {name: array}} of a prior on disk: what `convergence_prior` reads.

    Spectra are vectors, which keep single precision.
    """
    spectra = {"log_l": log_l, "log_shift": log_shift}
    for kind, table in tables.items():
        spectra |= {f"{kind}_{term}": row for term, row in enumerate(table.log_spectrum)} | {
            f"{kind}_mean": table.mean,
            f"{kind}_log_std": table.log_std,
        }
    return {
        "spectra": spectra,
        "network": {
            f"weight_{index:02d}": value for index, value in enumerate(network.get_weights())
        },
    }


def _stored_table(spectra, kind):
    return Table(
        np.stack([spectra[f"{kind}_{term}"] for term in range(TERMS)]),
        spectra[f"{kind}_mean"],
        spectra[f"{kind}_log_std"],
    )
