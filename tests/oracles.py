"""Independent references: the posterior in pixel space, in float64, with dense covariance matrices
and no compression; and a tiny prior that it can follow.
"""

import numpy as np
from scipy import linalg, stats

from astrogen.galaxies.posterior import LOG_FLUX_STD, SHIFT_STD
from astrogen.instruments import telescope
from astrogen.priors.galaxy import BasisPrior, Population
from astrogen.priors.networks import ResidualMLP

SIDE = 16  # pixels of the tiny prior's images
RAW_ONE = np.log(np.expm1(1.0))


def smooth_images(num, rng, side=SIDE):
    """Orthonormal images that the prior's grid resolves: Gaussians of several sizes and places."""
    x = np.arange(side) - (side - 1) / 2
    places, sizes = rng.normal(0, 1.2, (num, 2)), rng.uniform(1.6, 2.4, num)
    places[0] = 0
    images = np.exp(
        -0.5
        * (
            ((x[:, None] - places[:, :1, None]) / sizes[:, None, None]) ** 2
            + ((x - places[:, 1:, None]) / sizes[:, None, None]) ** 2
        )
    )
    return np.linalg.qr(images.reshape(num, -1).T)[0].T.reshape(num, side, side) * np.sign(
        images[0].sum()
    )


def tiny_prior(rng, *, num=6, latent=3, rough=0.3):
    """A basis prior whose decoder is one linear layer. rough = 0: the residual's scale does not
    depend on the latent.

    Returns
    -------
    (BasisPrior, dict of the float64 arrays that define it)
    """
    images = smooth_images(num, rng).astype(np.float32).astype(float)
    numbers = {
        "basis": images,
        "mean": np.r_[0.9, 0.2 * rng.normal(size=num - 1)],
        "std": rng.uniform(0.1, 0.4, num),
        "floor": 0.01,
        "kernel": np.concatenate(
            [0.5 * rng.normal(size=(latent, num)), rough * rng.normal(size=(latent, num))], 1
        ),
        "bias": np.r_[np.zeros(num), rng.normal(-1.5, 0.3, num)],
        "whitening_mean": 0.3 * rng.normal(size=latent),
        "whitening_factor": np.tril(0.2 * rng.normal(size=(latent, latent)), -1) + np.eye(latent),
        "log_amplitude": (0.3, 0.5),
        "tilt": 0.4,
    }
    numbers = {name: np.asarray(value, np.float32).astype(float) for name, value in numbers.items()}
    encoder, decoder = ResidualMLP(num, (), 2 * latent), ResidualMLP(latent, (), 2 * num)
    decoder.set_weights([numbers["kernel"], numbers["bias"]])
    # a guess that knows nothing, the same in every run
    encoder.set_weights([np.zeros_like(weight) for weight in encoder.get_weights()])
    prior = BasisPrior(
        name="tiny",
        population=Population(
            basis=images,
            coefficient_mean=numbers["mean"],
            coefficient_std=numbers["std"],
            log_amplitude=numbers["log_amplitude"],
            tilt=0.4,
            pixel_scale=0.1,
            target_fwhm=0.2,
        ),
        encoder=encoder,
        decoder=decoder,
        whitening=(numbers["whitening_mean"], numbers["whitening_factor"]),
        floor=0.01,
        card={},
    )
    return prior, numbers


def telescope_matrix(images, kernel, *, shape, pixel_scale, prior_scale, shift):
    """Pixels [height * width, num] of images at the prior's resolution, by a direct sum over waves
    in float64.
    """
    num, height, width = images.shape
    grid, top, left = telescope.GRID, (telescope.GRID - height) // 2, (telescope.GRID - width) // 2
    padded = np.zeros((num, grid, grid))
    padded[:, top : top + height, left : left + width] = images
    spectrum = np.fft.fft2(padded)
    rows = -np.arange(grid) % grid
    # the other half of a real kernel's transform
    full = np.concatenate([kernel, np.conj(kernel[rows][:, grid // 2 - 1 : 0 : -1])], 1)

    def waves(num_pixels, moved):
        position = (
            (np.arange(num_pixels) - (num_pixels - 1) / 2) * pixel_scale - moved
        ) / prior_scale + (grid - 1) / 2
        return np.exp(2j * np.pi * np.fft.fftfreq(grid) * position[:, None]) / grid

    seen = waves(shape[0], shift[1]) @ (spectrum * full) @ waves(shape[1], shift[0]).T
    return seen.real.reshape(num, -1).T * (pixel_scale / prior_scale) ** 2


def shift_operators(images):
    """Minus the derivatives along x and y, projected on the basis: [2, k, k] float64."""
    frequency = 2j * np.pi * np.fft.fftfreq(images.shape[-1])
    frequency[images.shape[-1] // 2] = 0
    flat = images.reshape(len(images), -1)
    spectrum = np.fft.fft2(images)
    moved = [
        np.fft.ifft2(-spectrum * k).real.reshape(len(images), -1)
        for k in (frequency[None, :], frequency[:, None])
    ]
    return np.stack([flat @ m.T for m in moved])


class PixelPosterior:
    """The posterior of one stamp under a tiny prior: all of it is the covariance matrix of the
    pixels.

    Parameters
    ----------
    numbers : of `tiny_prior`; matrix : of `telescope_matrix`; image, sigma : [pixels], good pixels
        only; background_std : of the prior of the level, inf where it is flat
    reference : [k], the coefficients to whose amplitude as seen the amplitude parameter is relative
    """

    def __init__(self, numbers, matrix, image, sigma, background_std, reference):
        self.numbers, self.matrix, self.image = numbers, matrix, image
        self.flat = np.isinf(background_std)
        self.noise = np.diag(sigma**2) + (0 if self.flat else background_std**2)
        self.background_std, self.reference = background_std, reference
        self.operators = shift_operators(numbers["basis"])

    def coefficients(self, parameters):
        """Flux, mean and scale [k] of the coefficients of unit flux, given parameters [d + 4]."""
        n, size = self.numbers, len(self.numbers["whitening_mean"])
        latent, (log_flux, dx, dy, log_amplitude) = parameters[:size], parameters[size:]
        output = (n["whitening_mean"] + n["whitening_factor"] @ latent) @ n["kernel"] + n["bias"]
        white, raw = np.split(output, 2)
        mean = n["mean"] + n["std"] * white
        first = dx * self.operators[0] + dy * self.operators[1]
        mean = mean + first @ mean + 0.5 * first @ first @ mean
        scale = (np.log1p(np.exp(raw + RAW_ONE)) * n["std"] + n["floor"]) * (
            np.arange(1, len(raw) + 1) / 50
        ) ** n["tilt"]
        flux = np.exp(log_flux) * self._norm(self.reference) / self._norm(mean)
        return flux, mean, np.exp(0.5 * log_amplitude) * scale

    def _norm(self, coefficients):
        seen = self.matrix @ coefficients
        return np.sqrt(seen @ self._precision(self.noise) @ seen)

    def _precision(self, covariance):
        """Inverse of a covariance, of pixels that share a level of any height where the prior of
        the background is flat: the limit of a large background_std.
        """
        inverse = np.linalg.inv(covariance)
        if not self.flat:
            return inverse
        ones = inverse.sum(0)
        return inverse - np.outer(ones, ones) / ones.sum()

    def moments(self, parameters):
        """Mean [pixels] and covariance [pixels, pixels] of the data given parameters."""
        flux, mean, scale = self.coefficients(parameters)
        spread = self.matrix * (flux * scale)
        return flux * self.matrix @ mean, spread @ spread.T + self.noise

    def log_prior(self, parameters):
        size = len(self.numbers["whitening_mean"])
        extra = stats.norm.logpdf(
            parameters[size:],
            [0, 0, 0, self.numbers["log_amplitude"][0]],
            [LOG_FLUX_STD, SHIFT_STD, SHIFT_STD, self.numbers["log_amplitude"][1]],
        )
        return stats.norm.logpdf(parameters[:size]).sum() + extra.sum()

    def log_density(self, parameters):
        mean, covariance = self.moments(parameters)
        log_prior = self.log_prior(parameters)
        if not self.flat:
            return stats.multivariate_normal(mean, covariance).logpdf(self.image) + log_prior
        # The integral over all levels, up to a constant: differences of pixels alone are normal.
        ones = np.ones(len(mean))
        differences = linalg.null_space(ones[None]).T
        return (
            stats.multivariate_normal(
                differences @ mean, differences @ covariance @ differences.T
            ).logpdf(differences @ self.image)
            + log_prior
        )

    def fisher(self, parameters, step=1e-5):
        """Fisher information of the data by central differences of the moments (Kay 1993, eq.

        3.31), plus the prior's precision.
        """
        size = len(parameters)
        ends = [
            [self.moments(parameters + sign * step * unit) for sign in (1, -1)]
            for unit in np.eye(size)
        ]
        inverse = self._precision(self.moments(parameters)[1])
        mean_slopes = [(up[0] - down[0]) / (2 * step) for up, down in ends]
        slopes = [inverse @ (up[1] - down[1]) / (2 * step) for up, down in ends]
        information = np.array(
            [
                [a @ inverse @ b + 0.5 * np.sum(s * t.T) for b, t in zip(mean_slopes, slopes)]
                for a, s in zip(mean_slopes, slopes)
            ]
        )
        latent = size - 4
        return information + np.diag(
            np.r_[
                np.ones(latent),
                LOG_FLUX_STD**-2,
                SHIFT_STD**-2,
                SHIFT_STD**-2,
                self.numbers["log_amplitude"][1] ** -2,
            ]
        )

    def conditional(self, parameters):
        """Mean [k + 1] and covariance of (flux * coefficients, background) given parameters and
        data: conjugate normals.
        """
        flux, mean, scale = self.coefficients(parameters)
        design = np.concatenate([self.matrix, np.ones((len(self.image), 1))], 1)
        sigma2 = np.diag(self.noise) - (0 if self.flat else self.background_std**2)
        before = np.diag(np.r_[(flux * scale) ** -2, self.background_std**-2.0])
        covariance = np.linalg.inv(before + (design.T / sigma2) @ design)
        return (
            covariance @ (before @ np.r_[flux * mean, 0] + (design.T / sigma2) @ self.image),
            covariance,
        )
