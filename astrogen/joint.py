"""Several exposures, bands and galaxies at once: one morphology for each galaxy, each exposure with its own telescope and orientation, neighbours that share the light.

    observations -> frames -> what each galaxy looks like in each exposure -> bands tied -> posterior of one galaxy given the others -> mode, draws -> JointResult

Given the images of its neighbours, a galaxy in any number of exposures and bands is the problem of `posterior`: exposures add up in its sufficient statistics, and what differs
between bands is integrated out (`bands`). A galaxy alone is therefore inferred as in `deconvolution`. Several are brought to their mode in turn; from there chains draw each galaxy
given the others' current images (Gibbs sampling, with a Hamiltonian step for the latent), so that the errors of one contain the uncertainty of its neighbours.
"""
from copy import copy
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from scipy.optimize import nnls

from astrogen import bands as tying
from astrogen import conditional, forward, posterior
from astrogen.deconvolution import MODE_ONLY, SHARPER, check_options, draw_parameters, plan_of, provenance_of, seeds_of, seen_fwhm_of, standard_normals
from astrogen.detection import detect, read_positions
from astrogen.frames import find_frames, from_pixels, inside, no_overlap, to_pixels
from astrogen.inference import diagnostics, find_map
from astrogen.inference.hmc import hop
from astrogen.inference.laplace import whitening
from astrogen.joint_result import make_joint_result, make_source
from astrogen.priors import load_prior

WEAKEST = 0.03             # signal-to-noise squared below which directions of the data are dropped
INVISIBLE = 1e-6           # of the largest: pixels that see less of a galaxy are left out
PASSES = 2                 # over one galaxy in several bands: flux ratios and colours are estimated between them
LARGEST_SWEEPS = 8         # over several galaxies on the way to the mode
SIMPLE_ERROR, MODEL_ERROR = 0.3, 0.03     # shares of a neighbour's light that its first models may be wrong by
SETTLED = 0.1              # sigma by which no pixel's model moves any more
NUM_CHAINS, NUM_BURNIN = 8, 25
THINNING = 2               # sweeps for each draw that is kept
FIRST_STEP, TARGET_ACCEPT, PATH = 0.6, 0.75, 2.2
R_HAT_FLUX = 1.05          # of the fluxes of galaxies that are drawn in turn
LEASH = 2.0                # observed pixels that a galaxy's first position may lie from where it was said to be
LARGEST_CELL = 32          # observed pixels: half the side of the cutout that decides on a galaxy's grid


def deconvolve_jointly(observations, *, bands=None, aligned=False, prior="galaxy", method="laplace", num_draws=200, seed, pixel_scale=None, background="fit"):
    """Infer one galaxy from several exposures, in one band or several.

    All exposures show one morphology; each has its own PSF, pixel scale, orientation, depth, mask and background. Exposures of one band must be calibrated to one flux scale; between bands
    fluxes are free and colour gradients allowed. The first exposure gives the axes of the deconvolved images.

    Parameters
    ----------
    observations : sequence of Observation, of one unit; each with a WCS unless there is one, or `aligned`
    bands : sequence of str, one for each observation, or None: all of one band
    aligned : bool, the exposures share their pixel grid, and no WCS is asked for
    prior, method, num_draws, seed, background : as in `astrogen.deconvolve`
    pixel_scale : float or None, arcsec/pixel of the deconvolved image

    Returns
    -------
    JointResult of one source

    Raises
    ------
    ValueError : an option is wrong, exposures do not overlap, lack a WCS, or differ in unit.
    """
    return _fit("deconvolve_jointly", observations, bands, aligned, None, prior, method, num_draws, seed, pixel_scale, background)


def deblend(observations, *, sources=None, bands=None, aligned=False, prior="galaxy", method="laplace", num_draws=200, seed, pixel_scale=None, background="fit"):
    """Infer all galaxies of a field together, from one exposure or several.

    Parameters
    ----------
    observations : Observation, or a sequence as in `deconvolve_jointly`
    sources : positions (x, y) [num, 2], pixels from 0 of the first exposure; SkyCoord; or None: detected by `astrogen.detection.detect`
    method : "map", or any other of `astrogen.deconvolve`: of several galaxies draws are made in turn (Gibbs sampling), of one as there
    the others : as in `deconvolve_jointly`

    Returns
    -------
    JointResult

    Raises
    ------
    ValueError : an option is wrong, nothing is detected, a position lies outside, or what `deconvolve_jointly` refuses.
    """
    observations = [observations] if hasattr(observations, "psf") else observations
    return _fit("deblend", observations, bands, aligned, "detect" if sources is None else sources, prior, method, num_draws, seed, pixel_scale, background)


def _fit(caller, observations, bands, aligned, sources, prior, method, num_draws, seed, pixel_scale, background):
    check_options(caller, method, background, num_draws)
    observations = list(observations)
    bands = _check_exposures(caller, observations, bands)
    prior = load_prior(prior) if not hasattr(prior, "components") else prior
    scene = _Scene(observations, bands, find_frames(observations, aligned=aligned), prior, background)
    seeds = seeds_of(observations[:1], seed)[0]
    if sources is None:
        plans = [_plan_alone(scene, seeds, pixel_scale)]
    else:
        positions = detect(observations, aligned=aligned) if isinstance(sources, str) else read_positions(observations[0], sources)
        plans = _plan_several(scene, positions, seeds, pixel_scale)
    _check_overlap(scene, plans)
    galaxies = [_galaxy(scene, plan) for plan in plans]
    _begin(scene, galaxies)
    settled = _climb(scene, galaxies)
    if len(galaxies) == 1:
        draws = _draw_alone(scene, galaxies[0], seeds, method=method, num_draws=num_draws)
    elif method == "map":
        draws = _draw_mode(scene, galaxies, num_draws, seeds)
    else:
        draws = _draw_in_turn(scene, galaxies, seeds, num_draws=num_draws)
    draws.told["map_converged"] = min(draws.told["map_converged"], float(settled))
    provenance = provenance_of(prior, draws.method, num_draws, seed, background)
    return _result(scene, galaxies, draws, provenance | {"bands": list(dict.fromkeys(bands))})


def _check_exposures(caller, observations, bands):
    """The bands, one for each exposure."""
    if not observations:
        raise ValueError(f"{caller}: observations must be at least one, got none; give the exposures of one field")
    bands = [""] * len(observations) if bands is None else [str(band) for band in bands]
    if len(bands) != len(observations):
        raise ValueError(f"{caller}: bands must be one for each of the {len(observations)} observations, got {len(bands)}; repeat a band for each of its exposures")
    if len(units := list(dict.fromkeys(str(observation.unit) for observation in observations))) > 1:
        raise ValueError(f"{caller}: observations must have one unit, got {' and '.join(unit or 'none' for unit in units)}; convert them to one flux scale")
    for observation in observations:
        if observation.status != "ok":
            raise ValueError(f"{caller}: observations must have good pixels, got none in {observation.name!r}; leave it out")
    return bands


# What is there

class _Plan(NamedTuple):
    """One galaxy: place (x, y) in arcsec from the middle of the first stamp, arcsec per prior pixel, signal-to-noise, and cells [exposure]: pixels nearer to it than to others, bool [h, w]."""

    place: np.ndarray
    prior_scale: float
    signal_to_noise: float
    cells: list


class _Scene:
    """The exposures, ready for inference: whitened good pixels, background and frames. bands : band of each exposure; order : the different ones."""

    def __init__(self, observations, bands, frames, prior, background):
        self.observations, self.bands, self.frames, self.prior = observations, bands, frames, prior
        self.order, self.size = list(dict.fromkeys(bands)), {"directions": 0}
        self.good = [~observation.mask for observation in observations]
        self.inverse = [1 / np.sqrt(observation.variance[good]).astype(np.float64) for observation, good in zip(observations, self.good, strict=True)]
        self.white = [observation.image[good] * inverse for observation, good, inverse in zip(observations, self.good, self.inverse, strict=True)]
        # A broad prior on the background, as in `deconvolution`; infinite precision holds it at zero.
        self.precision = [np.inf if background == "fixed" else inverse @ inverse + np.median(inverse) ** 2 for inverse in self.inverse]

    def levelled(self, exposure, residual):
        """Whitened residuals [..., n] under the noise with the background integrated out."""
        inverse = self.inverse[exposure]
        return residual - (residual @ inverse / self.precision[exposure])[..., None] * inverse

    def weighted(self, weights):
        """The same with whitened pixels times weights [exposure][n]: as if the noise were so much larger."""
        other = copy(self)
        other.inverse = [inverse * weight for inverse, weight in zip(self.inverse, weights, strict=True)]
        other.white = [white * weight for white, weight in zip(self.white, weights, strict=True)]
        other.precision = [more - inverse @ inverse + less @ less for more, inverse, less in zip(self.precision, self.inverse, other.inverse, strict=True)]
        return other

    def deviations(self):
        return self.prior.coefficient_std.numpy().astype(np.float64)


def _coarsest(scene):
    """Arcsec per prior pixel beyond which the target would be no sharper than some exposure's PSF."""
    ratio = scene.prior.target_fwhm / scene.prior.pixel_scale
    return min(seen_fwhm_of(observation.psf, observation.pixel_scale) for observation in scene.observations) / ratio / SHARPER


def _plan_alone(scene, seeds, pixel_scale):
    """The galaxy in the middle, from the exposure that shows it best."""
    plans = [plan_of(observation, seeds, scene.prior, pixel_scale) for observation in scene.observations]
    best = int(np.argmax([plan.signal_to_noise for plan in plans]))
    frame = scene.frames[best]
    place = np.linalg.solve(frame.matrix, plans[best].centre - frame.offset)
    cells = [np.ones(observation.image.shape, bool) for observation in scene.observations]
    return _Plan(place, pixel_scale or min(plans[best].prior_scale, _coarsest(scene)), plans[best].signal_to_noise, cells)


def _plan_several(scene, positions, seeds, pixel_scale):
    """Galaxies at pixels (x, y) of the first exposure; each one's grid and start from the exposure where its cell is brightest."""
    places = [from_pixels(scene.observations[0], position) for position in positions]
    cells = [_cells(observation, [frame.see(place) for place in places]) for observation, frame in zip(scene.observations, scene.frames, strict=True)]
    plans = []
    for number, place in enumerate(places):
        ours = [cell[number] for cell in cells]
        signal = [np.sum((observation.image**2 / observation.variance - 1)[cell & ~observation.mask], dtype=float) for observation, cell in zip(scene.observations, ours, strict=True)]
        best = int(np.argmax(signal))
        observation, frame = scene.observations[best], scene.frames[best]
        stamp, middle = _cut(observation, to_pixels(observation, frame.see(place)), ours[best])
        plan = plan_of(stamp, seeds, scene.prior, pixel_scale) if (~stamp.mask).any() else None
        if plan is None:
            raise ValueError(f"deblend: sources must lie on good pixels, got one at {np.round(positions[number], 1)} that is masked; leave it out")
        leash = LEASH * observation.pixel_scale
        seen = from_pixels(observation, middle) + plan.centre
        seen = np.clip(seen, frame.see(place) - leash, frame.see(place) + leash)
        scale = pixel_scale or min(plan.prior_scale, _coarsest(scene))
        plans.append(_Plan(np.linalg.solve(frame.matrix, seen - frame.offset), scale, plan.signal_to_noise, ours))
    return plans


def _cells(observation, places):
    """Which pixels are nearest to which place: bool [place, h, w]."""
    height, width = observation.image.shape
    x, y = (np.arange(side) - (side - 1) / 2 for side in (width, height))
    away = [np.hypot(x * observation.pixel_scale - place[0], (y * observation.pixel_scale)[:, None] - place[1]) for place in places]
    return np.argmin(away, 0) == np.arange(len(places))[:, None, None]


def _cut(observation, position, cell):
    """The surroundings of a position as an Observation in which other galaxies' cells are masked, and the pixel (x, y) of its middle."""
    column, row = (int(round(number)) for number in position)
    span = 2 * LARGEST_CELL + 1
    window = tuple(slice(centre, centre + span) for centre in (row, column))

    def cut(plane, filler):
        return np.pad(plane, LARGEST_CELL, constant_values=filler)[window]

    bad = cut(observation.mask | ~cell, True)
    image, variance = np.where(bad, 0, cut(observation.image, 0)), np.where(bad, 1, cut(observation.variance, 1))
    return type(observation)(image, variance, bad, observation.psf, observation.pixel_scale, observation.name, None, observation.unit, (), "ok"), np.array([column, row])


def _check_overlap(scene, plans):
    for observation, frame in zip(scene.observations, scene.frames, strict=True):
        if not any(inside(observation, frame.see(plan.place)) for plan in plans):
            raise no_overlap(scene.observations[0], observation)


# One galaxy in all exposures

class _View(NamedTuple):
    """What one exposure shows of a galaxy's basis: rows [n] of the good pixels that see it, matrix [n, k] whitened, cross [k]: with the background."""

    rows: np.ndarray
    matrix: np.ndarray
    cross: np.ndarray


class _Galaxy:
    """One galaxy on its way: what stays (plan, views, grams [band, k, k]) and what is known by now (scales, shape, tie, parameters, light)."""

    def __init__(self, plan, views, grams):
        self.plan, self.views, self.grams = plan, views, grams
        self.reference, self.scales, self.shape, self.colour, self.tie = 0, np.ones(len(grams)), None, tying.COLOUR_MEDIAN, None
        self.compressed = self.climb = self.project = None
        self.coefficients = None          # [band, 1, k]

    def continue_from(self, other):
        """Take over what is known from a fit of fewer pixels."""
        for name in ("reference", "scales", "shape", "colour", "tie", "compressed", "climb", "project", "coefficients"):
            setattr(self, name, getattr(other, name))


def _galaxy(scene, plan):
    spectrum = scene.prior.basis_transform.astype(np.complex128) / scene.deviations()[:, None, None]
    ratio = scene.prior.target_fwhm / scene.prior.pixel_scale
    views = []
    for observation, frame, good, inverse in zip(scene.observations, scene.frames, scene.good, scene.inverse, strict=True):
        psf = observation.psf
        seen = forward.see_affine(spectrum, psf.image, psf_scale=psf.pixel_scale, pixel_response=psf.pixel_response, pixel_scale=observation.pixel_scale, prior_scale=plan.prior_scale,
                                  target_fwhm=ratio * plan.prior_scale, matrix=frame.matrix, centre=frame.see(plan.place), shape=observation.image.shape)
        seen = seen[good.ravel()] * inverse[:, None].astype(np.float32)
        power = np.square(seen * scene.deviations().astype(np.float32)).sum(1)
        rows = np.flatnonzero(power > INVISIBLE * power.max()) if power.any() else np.arange(0)
        views.append(_View(rows, seen[rows], (inverse[rows] @ seen[rows]).astype(np.float64)))
    return _Galaxy(plan, views, _grams(scene, views))


def _grams(scene, views):
    """Normal matrices [band, k, k] of the exposures, backgrounds integrated out."""
    size = scene.prior.coefficient_std.shape[0]
    grams = np.zeros((len(scene.order), size, size))
    for exposure, (view, band) in enumerate(zip(views, scene.bands, strict=True)):
        grams[scene.order.index(band)] += (view.matrix.T @ view.matrix).astype(np.float64) - np.outer(view.cross, view.cross) / scene.precision[exposure]
    return grams


def _moments(scene, galaxy, rests):
    """What whitened residuals [exposure][..., n] without this galaxy say about its coefficients: [band, ..., k]."""
    total = 0
    for exposure, (view, band, rest) in enumerate(zip(galaxy.views, scene.bands, rests, strict=True)):
        moment = (scene.levelled(exposure, rest)[..., view.rows].astype(np.float32) @ view.matrix).astype(np.float64)
        weight = (np.arange(len(scene.order)) == scene.order.index(band)).reshape(-1, *[1] * moment.ndim)
        total = total + weight * moment
    return total


def _light(scene, galaxy, coefficients):
    """Whitened light [exposure][..., n] of coefficients [band, ..., k]."""
    seen = []
    for exposure, (view, band) in enumerate(zip(galaxy.views, scene.bands, strict=True)):
        seen.append(_seen(view, coefficients[scene.order.index(band)], len(scene.inverse[exposure])))
    return seen


def _seen(view, coefficients, size):
    """Whitened light [..., n] of coefficients [..., k] in one exposure."""
    light = np.zeros((*coefficients.shape[:-1], size))
    light[..., view.rows] = coefficients.astype(np.float32) @ view.matrix.T
    return light


# To the mode

def _begin(scene, galaxies):
    """First images: all galaxies as sums of two simple shapes, then each by the prior, brightest first, trusting less the pixels where others are bright."""
    templates = _templates(scene)
    guesses = _simple_fit(scene, galaxies, templates)
    lights = [_light(scene, galaxy, guess[:, None]) for galaxy, guess in zip(galaxies, guesses, strict=True)]
    trust = np.full(len(galaxies), SIMPLE_ERROR)
    for number in np.argsort([-sum(np.square(light).sum() for light in ours) for ours in lights]):
        galaxy, others = galaxies[number], np.arange(len(galaxies)) != number
        weights = [1 / np.sqrt(1 + sum((trust[other] * lights[other][exposure][0]) ** 2 for other in np.flatnonzero(others))) for exposure in range(len(scene.white))]
        some, first = scene.weighted(weights), galaxy
        if len(galaxies) > 1:
            views = [_weighted(some, view, exposure, weight) for exposure, (view, weight) in enumerate(zip(galaxy.views, weights, strict=True))]
            first = _Galaxy(galaxy.plan, views, _grams(some, views))
        rests = [rest * weight for rest, weight in zip(_rests(scene, lights, number), weights, strict=True)]
        moments, mean = _moments(some, first, rests), templates[0]
        significance = [(moment @ mean) / np.sqrt(max(mean @ gram @ mean, 1e-30)) for moment, gram in zip(moments[:, 0], first.grams, strict=True)]
        first.reference = int(np.argmax(significance))
        first.shape = _linear(scene, first.grams[first.reference], moments[first.reference, 0])
        first.scales = tying.flux_ratios(first.grams, moments[:, 0], first.shape, first.reference)
        _improve(some, first, moments, first=True, colour=False)
        galaxy.continue_from(first)
        lights[number], trust[number] = _light(scene, galaxy, galaxy.coefficients), MODEL_ERROR


def _templates(scene):
    """Coefficients [2, k] of two shapes of unit flux: the mean galaxy, and a point at the target resolution."""
    basis = scene.prior.basis.numpy().astype(np.float64)
    side = np.arange(basis.shape[1]) - (basis.shape[1] - 1) / 2
    sigma = scene.prior.target_fwhm / scene.prior.pixel_scale / np.sqrt(8 * np.log(2))
    point = np.exp(-0.5 * (side[:, None] ** 2 + side**2) / sigma**2)
    shapes = np.stack([scene.prior.coefficient_mean.numpy(), np.tensordot(basis, point, 2)])
    return shapes / (shapes @ basis.sum((1, 2)))[:, None]


def _simple_fit(scene, galaxies, templates):
    """Coefficients [galaxy][band, k] of the sums of templates that fit each band best, all galaxies together, no flux negative."""
    guesses = np.zeros((len(galaxies), len(scene.order), templates.shape[1]))
    for index, band in enumerate(scene.order):
        columns, white = [], []
        for exposure in np.flatnonzero(np.array(scene.bands) == band):
            seen = [_seen(view, templates, len(scene.inverse[exposure])) for view in (galaxy.views[exposure] for galaxy in galaxies)]
            columns.append(scene.levelled(exposure, np.concatenate(seen)).T)
            white.append(scene.levelled(exposure, scene.white[exposure]))
        fluxes, _ = nnls(np.concatenate(columns), np.concatenate(white))
        guesses[:, index] = fluxes.reshape(len(galaxies), 2) @ templates
    return guesses


def _weighted(scene, view, exposure, weight):
    """A view in a scene whose pixels count `weight` [n] times as much."""
    matrix = view.matrix * weight[view.rows, None].astype(np.float32)
    return _View(view.rows, matrix, (scene.inverse[exposure][view.rows] @ matrix).astype(np.float64))


def _linear(scene, gram, moment):
    """Linear minimum-mean-square coefficients [k]: c ~ N(flux mean, flux^2 diag(std)^2), with the flux as the norm that c then has."""
    mean, std = scene.prior.coefficient_mean.numpy().astype(np.float64), scene.deviations()
    seen = gram @ mean
    flux = max(moment @ mean / max(mean @ seen, 1e-30), 1e-30)
    least = 1 / np.sqrt(max(std @ (np.diag(gram) * std), 1e-30))
    white_gram = std[:, None] * gram * std
    for _ in range(4):
        flux = max(flux, least)
        white = np.linalg.solve(white_gram + np.eye(len(std)) / flux**2, std * (moment - flux * seen))
        coefficients = flux * mean + std * white
        flux = np.linalg.norm(coefficients)
    return coefficients


def _climb(scene, galaxies):
    """Bring all galaxies to their joint mode, one after the other; whether they settled there."""
    lights = [_light(scene, galaxy, galaxy.coefficients) for galaxy in galaxies]
    alone, moved = len(galaxies) == 1, 0.0
    for sweep in range((PASSES if len(scene.order) > 1 else 0) if alone else LARGEST_SWEEPS):
        moved = 0.0
        for number, galaxy in enumerate(galaxies):
            rests = _rests(scene, lights, number)
            _improve(scene, galaxy, _moments(scene, galaxy, rests), first=False, colour=sweep == 0)
            light = _light(scene, galaxy, galaxy.coefficients)
            moved = max(moved, *(np.abs(new - old).max() for new, old in zip(light, lights[number], strict=True)))
            lights[number] = light
        if moved < SETTLED and sweep > 0:
            break
    return (alone or moved < 10 * SETTLED) and all(bool(galaxy.climb.converged[0]) for galaxy in galaxies)


def _rests(scene, lights, without):
    """Whitened data [exposure][..., n] less the light of all galaxies but one."""
    rests = []
    for exposure, white in enumerate(scene.white):
        others = [light[exposure] for number, light in enumerate(lights) if number != without]
        rests.append(white - sum(others) if others else white[None])
    return rests


def _improve(scene, galaxy, moments, *, first, colour):
    """One climb of one galaxy given the others, with flux ratios (and, where asked, colour) by its image so far."""
    prior, std, alone = scene.prior, scene.deviations(), moments[:, 0]
    if not first:
        galaxy.scales = tying.flux_ratios(galaxy.grams, alone, galaxy.shape, galaxy.reference)
    deviations = np.linalg.norm(galaxy.shape) * std
    if colour and len(scene.order) > 1:
        galaxy.colour = tying.likeliest_colour(galaxy.grams, alone, galaxy.scales, galaxy.reference, shape=galaxy.shape, deviations=deviations)
    galaxy.tie = tying.tie_bands(galaxy.grams, galaxy.scales, galaxy.reference, shape=galaxy.shape, colour=galaxy.colour, deviations=deviations)
    moment = tying.tied_moment(galaxy.tie, moments)
    known = _linear(scene, galaxy.tie.gram, moment[0]) if first else posterior.predict(prior, galaxy.compressed, galaxy.climb.parameters)[0][0].numpy()
    galaxy.compressed, galaxy.project = _compress(scene, galaxy, known, moment)
    start = posterior.start(prior, galaxy.compressed)
    if not first:
        # The amplitude is relative to what is known of the image by now.
        start = tf.concat([galaxy.climb.parameters[:, :prior.latent_size], tf.zeros([1, 1]), galaxy.climb.parameters[:, prior.latent_size + 1:]], 1)
    galaxy.climb = find_map(*posterior.target(prior), galaxy.compressed, start)
    normals = tf.zeros([1, len(std) + galaxy.compressed.data.shape[1] + 1])
    coefficients = _drawn_exactly(prior, galaxy.compressed, galaxy.climb.parameters, normals)
    galaxy.coefficients = tying.draw_bands(galaxy.tie, coefficients, moments, None)
    galaxy.shape = coefficients[0]


def _compress(scene, galaxy, known, moment):
    """The galaxy as `posterior.Compressed` (a batch of one), and the matrix [r, k] that takes moments to its data."""
    std = scene.deviations()
    flux = np.linalg.norm(known)
    values, vectors = np.linalg.eigh(std[:, None] * galaxy.tie.gram * std)
    values, vectors = values[::-1], vectors[:, ::-1]
    # As many for all, in large steps: few static shapes, few traces.
    scene.size["directions"] = num = min(max(-(-int((values * flux**2 > WEAKEST).sum()) // 64) * 64, scene.size["directions"]), len(std))
    root = np.sqrt(np.maximum(values[:num], 1e-12 * values[0]))
    project = (vectors[:, :num] / root).T * std
    matrix = (vectors[:, :num] * root).T / std
    blank = tf.zeros([1])
    compressed = posterior.Compressed(
        data=_tensor(moment @ project.T), forward=_tensor(matrix[None]), visible=tf.range(len(std))[None], flux0=_tensor([flux]), coefficients=_tensor(known[None]),
        background_data=blank, background_forward=tf.zeros([1, len(std)]), background_precision=blank + 1, centre=tf.zeros([1, 2]), prior_scale=_tensor([galaxy.plan.prior_scale]))
    return compressed, project


def _tensor(values):
    return tf.constant(np.asarray(values), tf.float32)


# Draws

class _Draws(NamedTuple):
    """coefficients [galaxy][band, draw, k], parameters [galaxy][draw, p], rng for what is drawn given them, told {name: float}, method, status: sentences."""

    coefficients: list
    parameters: list
    rng: np.random.Generator
    told: dict
    method: str
    status: tuple = ()


def _generator(seeds):
    return np.random.default_rng([word & 0xFFFFFFFF for word in seeds])


def _draw_alone(scene, galaxy, seeds, *, method, num_draws):
    """As `deconvolution` draws a galaxy."""
    prior, rng = scene.prior, _generator(seeds)
    words = np.array([seeds], np.int64).astype(np.int32)
    here = conditional.focus(prior, galaxy.compressed, galaxy.climb.parameters)
    parameters, told, decoded = draw_parameters(prior, galaxy.climb, here, words, method=method, num_draws=num_draws, num_chains=4)
    normals = standard_normals(words, num_draws, len(scene.deviations()), galaxy.compressed.data.shape[1])
    coefficients = conditional.draw_coefficients(prior, galaxy.compressed, here, tf.constant(parameters), normals, decoded)[0].numpy()[:, 0].astype(np.float64)
    moments = _moments(scene, galaxy, [white[None] for white in scene.white])
    told = {name: float(value[0]) for name, value in told.items() if not np.isnan(value[0])}
    used = "hmc" if "r_hat" in told else "map" if method == "map" else "laplace"
    return _Draws([tying.draw_bands(galaxy.tie, coefficients, moments, rng)], [parameters[:, 0]], rng, {"map_converged": 1.0, **told}, used, MODE_ONLY if method == "map" else ())


def _draw_mode(scene, galaxies, num_draws, seeds):
    return _Draws([np.repeat(galaxy.coefficients, num_draws, 1) for galaxy in galaxies], [np.repeat(galaxy.climb.parameters.numpy(), num_draws, 0) for galaxy in galaxies],
                  _generator(seeds), {"map_converged": 1.0}, "map", MODE_ONLY)


class _Chains:
    """The chains of one galaxy: their parameters [chain, p] and coefficients [band, chain, k], and what does not change from sweep to sweep."""

    def __init__(self, galaxy, rng):
        self.galaxy, self.step = galaxy, FIRST_STEP
        self.compressed = tf.nest.map_structure(lambda x: tf.repeat(x, NUM_CHAINS, 0), galaxy.compressed)
        self.whitening = whitening(galaxy.climb.precision)[0]
        noise = _tensor(rng.standard_normal([NUM_CHAINS, galaxy.climb.parameters.shape[1]]))
        self.parameters = galaxy.climb.parameters + tf.linalg.matvec(self.whitening, noise)
        self.coefficients = np.repeat(galaxy.coefficients, NUM_CHAINS, 1)

    def move(self, prior, moments, rng, *, index, learn):
        """A new latent and a new image given the others' light; the mean probability of acceptance."""
        compressed = self.compressed._replace(data=_tensor(tying.tied_moment(self.galaxy.tie, moments) @ self.galaxy.project.T))
        num_steps = int(np.clip(round(PATH * (0.5 + 0.618034 * index % 1.0) / self.step), 1, 8))
        momentum, chance = rng.standard_normal(self.parameters.shape), np.log(rng.random(NUM_CHAINS))
        self.parameters, accept = hop(posterior.target(prior)[0], self.parameters, self.whitening, compressed, _tensor(momentum), _tensor(chance), tf.constant(self.step, tf.float32),
                                      tf.constant(num_steps))
        accept = float(tf.reduce_mean(accept))
        if learn:
            self.step = float(np.clip(self.step * np.exp(0.5 * (accept - TARGET_ACCEPT)), 0.02, 1.2))
        normals = _tensor(rng.standard_normal([NUM_CHAINS, prior.coefficient_std.shape[0] + compressed.data.shape[1] + 1]))
        drawn = _drawn_exactly(prior, compressed, self.parameters, normals)
        self.coefficients = tying.draw_bands(self.galaxy.tie, drawn, moments, rng)
        return accept


@lru_cache
def _exact_draws(prior):
    """`posterior.draw_coefficients` of a prior, traced once."""
    return tf.function(lambda compressed, parameters, normals: posterior.draw_coefficients(prior, compressed, parameters, normals)[0])


def _drawn_exactly(prior, compressed, parameters, normals):
    """Coefficients [batch, k], float64; posterior means where the normals are zero."""
    return _exact_draws(prior)(compressed, parameters, normals).numpy().astype(np.float64)


def _draw_in_turn(scene, galaxies, seeds, *, num_draws):
    """Gibbs sampling over galaxies: each one's latent by a Hamiltonian step and its image exactly, given the images of the others."""
    rng = _generator(seeds)
    chains = [_Chains(galaxy, rng) for galaxy in galaxies]
    lights = [_light(scene, chain.galaxy, chain.coefficients) for chain in chains]
    kept, parameters, accepted, fluxes = [], [], [], []
    sums = scene.prior.basis.numpy().sum((1, 2))
    for index in range(NUM_BURNIN + THINNING * -(-num_draws // NUM_CHAINS)):
        learn = index < NUM_BURNIN
        for number, chain in enumerate(chains):
            moments = _moments(scene, chain.galaxy, _rests(scene, lights, number))
            accepted += [chain.move(scene.prior, moments, rng, index=index, learn=learn)] * (not learn)
            lights[number] = _light(scene, chain.galaxy, chain.coefficients)
        if learn:
            continue
        fluxes.append(np.stack([chain.coefficients @ sums for chain in chains]))                     # [galaxy, band, chain]
        if (index - NUM_BURNIN) % THINNING == THINNING - 1:
            kept.append([chain.coefficients for chain in chains])
            parameters.append([chain.parameters.numpy() for chain in chains])
    series = np.moveaxis(np.array(fluxes), -1, 0)                                                    # [chain, sweep, galaxy, band]
    told = {"map_converged": 1.0, "r_hat_flux": float(diagnostics.r_hat(series).max()), "ess": float(diagnostics.effective_draws(series).min()), "accept_rate": float(np.mean(accepted))}
    status = ()
    if not told["r_hat_flux"] < R_HAT_FLUX:
        status = (f"not_converged: R-hat of a flux is {told['r_hat_flux']:.3f}, more than {R_HAT_FLUX}: the chains disagree; take more draws",)
    coefficients = [np.concatenate([draw[number] for draw in kept], 1)[:, :num_draws] for number in range(len(galaxies))]
    latents = [np.concatenate([draw[number] for draw in parameters])[:num_draws] for number in range(len(galaxies))]
    return _Draws(coefficients, latents, rng, told, "gibbs", status)


# Results

def _result(scene, galaxies, draws, provenance):
    lights = [_light(scene, galaxy, coefficients) for galaxy, coefficients in zip(galaxies, draws.coefficients, strict=True)]
    levels, models, followed = [], [], []
    for exposure, (observation, good, inverse) in enumerate(zip(scene.observations, scene.good, scene.inverse, strict=True)):
        seen = sum(light[exposure] for light in lights)                                              # [draw, n]
        precision = scene.precision[exposure]
        level = (scene.white[exposure] - seen) @ inverse / precision + draws.rng.standard_normal(len(seen)) / np.sqrt(precision)
        followed.append(float(seen.var(0).sum()))
        levels.append(level)
    unmasked = [[_whole_light(scene, galaxy, coefficients.mean(1), exposure) for exposure in range(len(scene.observations))]
                for galaxy, coefficients in zip(galaxies, draws.coefficients, strict=True)]
    models = [sum(light[exposure] for light in unmasked) + levels[exposure].mean() for exposure in range(len(scene.observations))]
    names = [scene.observations[0].name] if len(galaxies) == 1 else [f"{scene.observations[0].name} {number}" for number in range(1, len(galaxies) + 1)]
    sources = []
    for name, galaxy, coefficients, parameters, models_alone in zip(names, galaxies, draws.coefficients, draws.parameters, unmasked, strict=True):
        latent, _, shift, log_amplitude = posterior.split(parameters, scene.prior.latent_size)
        images = scene.prior.images(_tensor(coefficients)).numpy()
        sources.append(make_source(
            scene.observations[0], name=name, bands=scene.order, reference=scene.order[galaxy.reference], place=galaxy.plan.place, pixel_scale=galaxy.plan.prior_scale,
            target_fwhm=scene.prior.target_fwhm / scene.prior.pixel_scale * galaxy.plan.prior_scale, draws=np.moveaxis(images, 0, 1), latent_draws=latent,
            shift_draws=galaxy.plan.place + shift * galaxy.plan.prior_scale, models=models_alone, colour=galaxy.colour if len(scene.order) > 1 else 0.0,
            residual_amplitude=float(np.exp(log_amplitude).mean())))
    return make_joint_result(scene.observations, bands=scene.bands, sources=sources, models=models, background_draws=np.stack(levels, 1), num_fitted=followed, method=draws.method,
                             diagnostics=draws.told, status=draws.status, provenance=provenance)


def _whole_light(scene, galaxy, coefficients, exposure):
    """The light [h, w] of coefficients [band, k] in one exposure, masked pixels included."""
    observation, frame, scale = scene.observations[exposure], scene.frames[exposure], galaxy.plan.prior_scale
    image = scene.prior.images(_tensor(coefficients[scene.order.index(scene.bands[exposure])][None])).numpy()
    before = (forward.GRID - image.shape[1]) // 2
    after = forward.GRID - image.shape[1] - before
    spectrum = np.fft.rfft2(np.pad(image, [(0, 0), (before, after), (before, after)]))
    psf = observation.psf
    seen = forward.see_affine(spectrum, psf.image, psf_scale=psf.pixel_scale, pixel_response=psf.pixel_response, pixel_scale=observation.pixel_scale, prior_scale=scale,
                              target_fwhm=scene.prior.target_fwhm / scene.prior.pixel_scale * scale, matrix=frame.matrix, centre=frame.see(galaxy.plan.place), shape=observation.image.shape)
    return seen.reshape(observation.image.shape)
