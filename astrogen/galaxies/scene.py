"""What the exposures show of each galaxy: whitened pixels, the prior's basis through every
telescope, normal equations and light.
"""

from copy import copy
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from astrogen.data.sky import level_off, noise_unit
from astrogen.galaxies import bands as tying
from astrogen.instruments import telescope

INVISIBLE = 1e-6  # of the largest: pixels that see less of a galaxy are left out


class Scene:
    """The exposures, ready for inference: whitened good pixels, background and frames. stamps :
    `sky.Levelled` of each exposure, all in one unit; observations : what inference takes of them;
    bands : band of each exposure; order : the different ones.
    """

    def __init__(self, observations, bands, frames, prior, background):
        unit = noise_unit(observations)
        self.stamps = [
            level_off(observation, background=background, unit=unit) for observation in observations
        ]
        self.observations = [stamp.observation for stamp in self.stamps]
        self.bands, self.frames, self.prior, self.background = bands, frames, prior, background
        self.order, self.size = list(dict.fromkeys(bands)), {"directions": 0}
        self.good = [~observation.mask for observation in observations]
        self.inverse = [
            1 / np.sqrt(observation.variance[good]).astype(np.float64)
            for observation, good in zip(self.observations, self.good, strict=True)
        ]
        self.white = [
            observation.image[good] * inverse
            for observation, good, inverse in zip(
                self.observations, self.good, self.inverse, strict=True
            )
        ]
        # A flat prior on the background, as in `deconvolve`; infinite precision holds it at
        # zero.
        self.precision = [
            np.inf if background == "fixed" else inverse @ inverse for inverse in self.inverse
        ]

    def levelled(self, exposure, residual):
        """Whitened residuals [..., n] under the noise with the background integrated out."""
        inverse = self.inverse[exposure]
        return residual - (residual @ inverse / self.precision[exposure])[..., None] * inverse

    def weighted(self, weights):
        """The same with whitened pixels times weights [exposure][n]: as if the noise were so much
        larger.
        """
        other = copy(self)
        other.inverse = [
            inverse * weight for inverse, weight in zip(self.inverse, weights, strict=True)
        ]
        other.white = [white * weight for white, weight in zip(self.white, weights, strict=True)]
        other.precision = [
            more - inverse @ inverse + less @ less
            for more, inverse, less in zip(self.precision, self.inverse, other.inverse, strict=True)
        ]
        return other

    def deviations(self):
        return self.prior.coefficient_std.numpy().astype(np.float64)


class View(NamedTuple):
    """What one exposure shows of a galaxy's basis: rows [n] of the good pixels that see it, matrix
    [n, k] whitened, cross [k]: with the background.
    """

    rows: np.ndarray
    matrix: np.ndarray
    cross: np.ndarray


class Galaxy:
    """One galaxy on its way: what stays (plan, views, grams [band, k, k]) and what is known by now
    (scales, shape, tie, parameters, light).
    """

    def __init__(self, plan, views, grams):
        self.plan, self.views, self.grams = plan, views, grams
        self.reference, self.scales, self.shape, self.colour, self.tie = (
            0,
            np.ones(len(grams)),
            None,
            tying.COLOUR_MEDIAN,
            None,
        )
        self.compressed = self.climb = self.project = None
        self.coefficients = None  # [band, 1, k]

    def continue_from(self, other):
        """Take over what is known from a fit of fewer pixels."""
        for name in (
            "reference",
            "scales",
            "shape",
            "colour",
            "tie",
            "compressed",
            "climb",
            "project",
            "coefficients",
        ):
            setattr(self, name, getattr(other, name))


def make_galaxy(scene, plan):
    spectrum = scene.prior.basis_transform.astype(np.complex128) / scene.deviations()[:, None, None]
    ratio = scene.prior.target_fwhm / scene.prior.pixel_scale
    views = []
    for observation, frame, good, inverse in zip(
        scene.observations, scene.frames, scene.good, scene.inverse, strict=True
    ):
        seen = telescope.see_affine(
            spectrum,
            observation.psf,
            pixel_scale=observation.pixel_scale,
            prior_scale=plan.prior_scale,
            target_fwhm=ratio * plan.prior_scale,
            matrix=frame.matrix,
            centre=frame.see(plan.place),
            shape=observation.image.shape,
        )
        seen = seen[good.ravel()] * inverse[:, None].astype(np.float32)
        power = np.square(seen * scene.deviations().astype(np.float32)).sum(1)
        rows = np.flatnonzero(power > INVISIBLE * power.max()) if power.any() else np.arange(0)
        views.append(View(rows, seen[rows], (inverse[rows] @ seen[rows]).astype(np.float64)))
    return Galaxy(plan, views, normal_matrices(scene, views))


def normal_matrices(scene, views):
    """Normal matrices [band, k, k] of the exposures, backgrounds integrated out.

    Summed in float64: with fewer good pixels than coefficients they are singular, and the moments
    must lie in their range to more digits than float32 has.
    """
    size = scene.prior.coefficient_std.shape[0]
    grams = np.zeros((len(scene.order), size, size))
    for exposure, (view, band) in enumerate(zip(views, scene.bands, strict=True)):
        matrix = view.matrix.astype(np.float64)
        level = np.outer(view.cross, view.cross) / scene.precision[exposure]
        grams[scene.order.index(band)] += matrix.T @ matrix - level
    return grams


def moments_of(scene, galaxy, rests):
    """What whitened residuals [exposure][..., n] without this galaxy say about its coefficients:
    [band, ..., k].
    """
    total = 0
    for exposure, (view, band, rest) in enumerate(
        zip(galaxy.views, scene.bands, rests, strict=True)
    ):
        moment = scene.levelled(exposure, rest)[..., view.rows] @ view.matrix.astype(np.float64)
        weight = (np.arange(len(scene.order)) == scene.order.index(band)).reshape(
            -1, *[1] * moment.ndim
        )
        total = total + weight * moment
    return total


def light_of(scene, galaxy, coefficients):
    """Whitened light [exposure][..., n] of coefficients [band, ..., k]."""
    seen = []
    for exposure, (view, band) in enumerate(zip(galaxy.views, scene.bands, strict=True)):
        seen.append(
            seen_by(view, coefficients[scene.order.index(band)], len(scene.inverse[exposure]))
        )
    return seen


def seen_by(view, coefficients, size):
    """Whitened light [..., n] of coefficients [..., k] in one exposure."""
    light = np.zeros((*coefficients.shape[:-1], size))
    light[..., view.rows] = coefficients.astype(np.float32) @ view.matrix.T
    return light


def rests_of(scene, lights, without):
    """Whitened data [exposure][..., n] less the light [galaxy][exposure][..., n] of all galaxies
    but some, `without` their numbers.
    """
    rests = []
    for exposure, white in enumerate(scene.white):
        others = [light[exposure] for number, light in enumerate(lights) if number not in without]
        rests.append(white - sum(others) if others else white[None])
    return rests


def normal_matrix(scene, galaxies, band, matrices):
    """Normal matrix [sum of r, sum of r] of what a band's exposures show of galaxies made of the
    columns of matrices [galaxy][k, r], backgrounds integrated out.
    """
    total = 0
    for exposure in np.flatnonzero(np.array(scene.bands) == band):
        inverse = scene.inverse[exposure]
        seen = np.concatenate(
            [
                seen_by(galaxy.views[exposure], matrix.T, len(inverse))
                for galaxy, matrix in zip(galaxies, matrices, strict=True)
            ]
        )
        level = seen @ inverse
        total = total + seen @ seen.T - np.outer(level, level) / scene.precision[exposure]
    return total


def tensor(values):
    return tf.constant(np.asarray(values), tf.float32)


def whole_light(scene, galaxy, coefficients, exposure):
    """The light [h, w] of coefficients [band, k] in one exposure, masked pixels included."""
    observation, frame, scale = (
        scene.observations[exposure],
        scene.frames[exposure],
        galaxy.plan.prior_scale,
    )
    image = scene.prior.images(
        tensor(coefficients[scene.order.index(scene.bands[exposure])][None])
    ).numpy()
    before = (telescope.GRID - image.shape[1]) // 2
    after = telescope.GRID - image.shape[1] - before
    spectrum = np.fft.rfft2(np.pad(image, [(0, 0), (before, after), (before, after)]))
    seen = telescope.see_affine(
        spectrum,
        observation.psf,
        pixel_scale=observation.pixel_scale,
        prior_scale=scale,
        target_fwhm=scene.prior.target_fwhm / scene.prior.pixel_scale * scale,
        matrix=frame.matrix,
        centre=frame.see(galaxy.plan.place),
        shape=observation.image.shape,
    )
    return seen.reshape(observation.image.shape)
