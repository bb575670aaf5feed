"""The galaxy prior: a VAE whose decoder ends in a fixed image basis, with a residual that is
integrated out exactly.

    image = basis @ a,    a | latent ~ N( m(W latent + w), amplitude * diag (roughness * s(W latent
    + w))^2 ),    latent ~ N(0, I)

`W, w` whiten the VAE's aggregate posterior, so that the prior is a standard normal where inference
happens. Images are centred, at the target PSF, and of unit L2 norm up to the flux. The residual's
amplitude is a population quantity: log amplitude ~ N(log_amplitude_mean, log_amplitude_std^2),
inferred per object; `roughness` grows with the number of the component, because real galaxies have
more fine structure than simulated ones.
"""

from abc import ABC, abstractmethod
from functools import cached_property
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from astrogen.priors.networks import ResidualMLP
from astrogen.priors.storage import refuse_change
from astrogen.types import Tensor

RAW_ONE = float(np.log(np.expm1(1.0)))  # softplus(RAW_ONE) = 1
PIVOT = 50.0  # component whose residual the tilt leaves alone
GRID = 128  # side on which `basis_transform` is taken: the forward model's padded grid


class Population(NamedTuple):
    """What is known of the galaxies that a prior learned from, before any network.

    basis : array [k, height, width], orthonormal images
    coefficient_mean, coefficient_std : arrays [k], of the training population
    log_amplitude : (float, float), mean and standard deviation of the log of the residual's
        variance factor
    tilt : float, component n of a real galaxy's residual has its scale times (n / PIVOT)^tilt: what
        a simulation lacks is fine structure
    pixel_scale, target_fwhm : float, arcsec: nominal, a prior is scale-free within its range of
        sizes
    """

    basis: np.ndarray
    coefficient_mean: np.ndarray
    coefficient_std: np.ndarray
    log_amplitude: Any
    tilt: Any
    pixel_scale: float
    target_fwhm: float


class ImagePrior(ABC):
    """What every galaxy prior promises to the posterior: images on a fixed orthonormal basis, their
    residual, and how they move.

        image = basis @ a,    a | latent ~ N( mean(latent), amplitude * diag (roughness *
        scale(latent))^2 ),    latent ~ N(0, I)

    Parameters
    ----------
    population : Population
    whitening : (array [d], array [d, d]), mean and lower Cholesky factor of the VAE's aggregate
        posterior
    """

    __setattr__ = refuse_change

    def __init__(
        self,
        *,
        name: str,
        population: Population,
        whitening: tuple[np.ndarray, np.ndarray],
        card: dict[str, Any],
    ) -> None:
        self.name, self.card = name, card
        self.pixel_scale, self.target_fwhm = population.pixel_scale, population.target_fwhm
        self.basis = tf.constant(population.basis, tf.float32)
        self.image_shape = tuple(self.basis.shape[1:])
        self.coefficient_mean = tf.constant(population.coefficient_mean, tf.float32)
        self.coefficient_std = tf.constant(population.coefficient_std, tf.float32)
        self.whitening_mean, self.whitening_factor = (tf.constant(x, tf.float32) for x in whitening)
        self.latent_size = self.whitening_mean.shape[0]
        self.log_amplitude_mean, self.log_amplitude_std = (
            float(x) for x in population.log_amplitude
        )
        self.roughness = tf.constant(
            (np.arange(1, len(self.coefficient_std) + 1) / PIVOT) ** population.tilt, tf.float32
        )
        self.move_x, self.move_y = (tf.constant(x) for x in _shift_operators(population.basis))

    @abstractmethod
    def components(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and residual scale of the coefficients, each [batch, k], for latents [batch, d]."""

    @abstractmethod
    def components_and_jacobian(self, latent: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As `components`, and the derivatives of mean and scale, each [batch, d, k]."""

    @abstractmethod
    def guess(self, coefficients: Tensor) -> Tensor:
        """The encoder's latent [batch, d] for coefficients [batch, k] of a unit-norm galaxy."""

    @property
    def latent(self) -> Any:
        """The latent's distribution, N(0, I), one of TensorFlow Probability's."""
        return _distributions().standard_normals(self.latent_size)

    def coefficients(self, latent: Tensor, *, log_amplitude: float = 0.0) -> Any:
        """The distribution of the coefficients [batch, k] of a unit-norm galaxy given its latent
        [batch, d] and the log of its residual's variance factor.
        """
        mean, scale = self.components(latent)
        return _distributions().normals(mean, tf.exp(0.5 * log_amplitude) * self.roughness * scale)

    @cached_property
    def basis_transform(self) -> np.ndarray:
        """Transform of the whitened basis on the padded grid, complex64 [k, GRID, GRID // 2 + 1],
        images centred.
        """
        basis = self.basis.numpy() * self.coefficient_std.numpy()[:, None, None]
        height, width = self.image_shape
        top, left = (GRID - height) // 2, (GRID - width) // 2
        padded = np.pad(basis, [(0, 0), (top, GRID - height - top), (left, GRID - width - left)])
        return np.fft.rfft2(padded).astype(np.complex64)

    def move_coefficients(self, coefficients: Tensor, shift: Tensor) -> Tensor:
        """Coefficients [..., k] of the images moved by `shift` [..., 2] prior pixels, to second
        order in the shift.
        """
        first = self._derivative(coefficients, shift)
        return coefficients + first + 0.5 * self._derivative(first, shift)

    def _derivative(self, coefficients, shift):
        return shift[..., :1] * _apply(self.move_x, coefficients) + shift[..., 1:] * _apply(
            self.move_y, coefficients
        )

    def move_slopes(self, coefficients: Tensor, shift: Tensor) -> Tensor:
        """Derivatives [batch, 2, k] of `move_coefficients` with respect to the shift."""
        along_x, along_y = _apply(self.move_x, coefficients), _apply(self.move_y, coefficients)
        first = shift[..., :1] * along_x + shift[..., 1:] * along_y
        # On a finite basis the two moves do not commute: both orders count.
        second_x = 0.5 * (self._derivative(along_x, shift) + _apply(self.move_x, first))
        second_y = 0.5 * (self._derivative(along_y, shift) + _apply(self.move_y, first))
        return tf.stack([along_x + second_x, along_y + second_y], 1)

    def decode(self, latent: Tensor) -> Tensor:
        """Mean images [batch, height, width], of unit norm about, for latents [batch, d] ~
        N(0, I).
        """
        return self.images(self.components(latent)[0])

    def images(self, coefficients: Tensor) -> Tensor:
        """Images [..., height, width] of coefficients [..., k]."""
        flat = tf.matmul(
            tf.reshape(coefficients, [-1, self.basis.shape[0]]),
            tf.reshape(self.basis, [self.basis.shape[0], -1]),
        )
        return tf.reshape(flat, [*tf.unstack(tf.shape(coefficients)[:-1]), *self.image_shape])

    def sample(self, num: int, *, seed: int) -> Tensor:
        """Draw galaxies of unit flux like those of the training population, residual included:
        Tensor [num, height, width].

        The residual is that of this population; inference of real galaxies allows for a larger and
        rougher one (`log_amplitude`, `tilt`).
        """
        seeds = tf.random.experimental.stateless_split([seed, 0], 2)
        return self.draw(
            *(
                tf.random.stateless_normal([num, size], one)
                for size, one in zip(self.draw_sizes, seeds, strict=True)
            )
        )

    @property
    def draw_sizes(self) -> tuple[int, int]:
        """Standard normals behind one galaxy: those of the latent, and those of its residual."""
        return self.latent_size, self.basis.shape[0]

    def draw(self, latent: Tensor, normals: Tensor | None = None) -> Tensor:
        """Images [batch, height, width] of unit flux, of standard normals [batch, d] and, for the
        residual, [batch, k]; without these, its mean.
        """
        mean, scale = self.components(latent)
        images = self.images(mean if normals is None else mean + scale * normals)
        return images / tf.reduce_sum(images, [1, 2], keepdims=True)

    def _colour(self, latent):
        return self.whitening_mean + tf.matmul(latent, self.whitening_factor, transpose_b=True)

    def _whiten(self, latent):
        return tf.transpose(
            tf.linalg.triangular_solve(
                self.whitening_factor, tf.transpose(latent - self.whitening_mean)
            )
        )


class BasisPrior(ImagePrior):
    """The VAE on the coefficients themselves: encoder and decoder are small dense networks.

    Parameters
    ----------
    encoder, decoder : ResidualMLP, whitened coefficients [k] -> 2 * latent, latent -> 2 * k
    floor : float, least residual scale, in units of the (unit-norm) coefficients
    the others : as of `ImagePrior`
    """

    def __init__(
        self,
        *,
        name: str,
        population: Population,
        encoder: Any,
        decoder: Any,
        whitening: tuple[np.ndarray, np.ndarray],
        floor: float,
        card: dict[str, Any],
    ) -> None:
        super().__init__(name=name, population=population, whitening=whitening, card=card)
        self.encoder, self.decoder, self.floor = encoder, decoder, floor

    def components(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        return self._split(self.decoder(self._colour(latent)))

    def components_and_jacobian(self, latent: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        output, slope = self.decoder.call_with_jacobian(self._colour(latent))
        mean_slope, raw_slope = tf.split(
            tf.matmul(self.whitening_factor, slope, transpose_a=True), 2, -1
        )
        # of the softplus in `residual_scale`
        rate = tf.sigmoid(tf.split(output, 2, -1)[1] + RAW_ONE)
        return (
            *self._split(output),
            mean_slope * self.coefficient_std,
            raw_slope * (rate * self.coefficient_std)[:, None],
        )

    def _split(self, output):
        white, raw = tf.split(output, 2, -1)
        return (
            self.coefficient_mean + self.coefficient_std * white,
            residual_scale(raw, self.floor / self.coefficient_std) * self.coefficient_std,
        )

    def guess(self, coefficients: Tensor) -> Tensor:
        white = squash((coefficients - self.coefficient_mean) / self.coefficient_std)
        return self._whiten(self.encoder(white)[:, : self.latent_size])


def population_of(card: dict[str, Any], basis: dict[str, np.ndarray]) -> Population:
    """The population that a card and the arrays of its basis describe."""
    return Population(
        basis=basis["images"],
        coefficient_mean=basis["mean"],
        coefficient_std=basis["std"],
        log_amplitude=card["log_amplitude"],
        tilt=card["tilt"],
        pixel_scale=card["pixel_scale"],
        target_fwhm=card["target_fwhm"],
    )


def basis_prior(card: dict[str, Any], arrays: dict[str, dict[str, np.ndarray]]) -> BasisPrior:
    """The prior that a card and its arrays describe (see `astrogen.priors.storage`)."""
    basis, whitening = arrays["basis"], arrays["decoder"]
    num, latent = len(basis["std"]), card["latent"]
    encoder = ResidualMLP(num, card["encoder_widths"], 2 * latent, name="encoder")
    decoder = ResidualMLP(latent, card["decoder_widths"], 2 * num, name="decoder")
    for network, name in ((encoder, "encoder"), (decoder, "decoder")):
        network.set_weights(
            [arrays[name][f"weight_{index:02d}"] for index in range(len(network.weights))]
        )
    return BasisPrior(
        name=card["name"],
        population=population_of(card, basis),
        encoder=encoder,
        decoder=decoder,
        whitening=(whitening["whitening_mean"], whitening["whitening_factor"]),
        floor=card["floor"],
        card=card,
    )


def _distributions():
    return import_module("astrogen.priors.distributions")


def squash(white: Tensor) -> Tensor:
    """Whitened coefficients as the encoder sees them: outliers are bent back smoothly beyond six
    standard deviations.
    """
    return 6.0 * tf.tanh(white / 6.0)


def residual_scale(raw: Tensor, floor: float) -> Tensor:
    """Positive residual scales from the decoder's raw output, 1 at raw = 0, never below the
    floor.
    """
    return tf.nn.softplus(raw + RAW_ONE) + floor


def _apply(operator, coefficients):
    flat = tf.matmul(tf.reshape(coefficients, [-1, operator.shape[0]]), operator, transpose_b=True)
    return tf.reshape(flat, tf.shape(coefficients))


def _shift_operators(basis):
    """Matrices [k, k] that move coefficients by one pixel along x and along y, to first order:
    minus the derivative, projected on the basis.
    """
    num, height, width = basis.shape
    flat = np.asarray(basis, np.float32).reshape(num, -1)
    spectrum = np.fft.rfft2(basis)
    kx, ky = 2j * np.pi * np.fft.rfftfreq(width)[None], 2j * np.pi * np.fft.fftfreq(height)[:, None]
    kx[..., -1], ky[height // 2] = 0, 0  # the Nyquist wave has no derivative on the grid
    return [
        flat @ np.fft.irfft2(-spectrum * k, s=(height, width)).astype(np.float32).reshape(num, -1).T
        for k in (kx, ky)
    ]
