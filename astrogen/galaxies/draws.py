"""Draws: of a lone galaxy as `deconvolve` makes them; of several by chains in which galaxies
that share light move together.

Where one blend holds all galaxies, its chains are Hamiltonian Monte Carlo of a fixed posterior.
Fields of more than a blend may hold, or of galaxies far apart, are several blends, each drawn given
the light of the others (Gibbs sampling), so that the errors of one contain the uncertainty of its
neighbours.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from astrogen.galaxies import bands as tying
from astrogen.galaxies import blend as blending
from astrogen.galaxies import conditional
from astrogen.galaxies.deconvolve import MODE_ONLY
from astrogen.galaxies.moments import moment_weights, shapes_of
from astrogen.galaxies.scene import light_of, moments_of, normal_matrix, rests_of
from astrogen.inference import diagnostics
from astrogen.inference.contracts import Settings
from astrogen.inference.methods import draw
from astrogen.inference.verdict import R_HAT_MAX

LARGEST_BLEND = 8  # galaxies: the cost grows with the square and more
# of a galaxy's light that another one's makes up where it stands, from which the two move together
LEAST_SHARED = 0.03
# over several blends on the way to the mode, until no pixel's model moves by so many sigma
CLIMBS, SETTLED = 6, 0.1
NUM_CHAINS, NUM_BURNIN = 4, 25
THINNING = 2  # moves for each draw that is kept
NUM_HOPS = 2  # trajectories for each move


class Draws(NamedTuple):
    """coefficients [galaxy][band, draw, k], parameters [galaxy][draw, p], rng for what is drawn
    given them, told {name: float}, method, status: sentences.
    """

    coefficients: list
    parameters: list
    rng: np.random.Generator
    told: dict
    method: str
    status: tuple = ()


def _generator(seeds):
    return np.random.default_rng([word & 0xFFFFFFFF for word in seeds])


def draw_alone(scene, galaxy, seeds, *, method, num_draws):
    """As `deconvolve` draws a galaxy."""
    prior, rng = scene.prior, _generator(seeds)
    words = np.array([seeds], np.int64).astype(np.int32)
    target = conditional.make_target(prior, galaxy.compressed, galaxy.climb.parameters)
    drawn = draw(method, target, galaxy.climb, words, Settings(num_draws))
    coefficients = conditional.draw_galaxies(
        prior, target.evidence, tf.constant(drawn.draws), words, drawn.made
    )[0]
    coefficients = coefficients.numpy()[:, 0].astype(np.float64)
    moments = moments_of(scene, galaxy, [white[None] for white in scene.white])
    told = {
        name: float(value[0]) for name, value in drawn.diagnostics.items() if not np.isnan(value[0])
    }
    return Draws(
        [tying.draw_bands(galaxy.tie, coefficients, moments, rng)],
        [drawn.draws[:, 0]],
        rng,
        {"map_converged": 1.0, **told},
        drawn.methods[0],
        MODE_ONLY if method == "map" else (),
    )


# Blends


class _Group:
    """Galaxies of a scene that move together. members : their numbers; blend; climb : to their
    mode, None before it.
    """

    def __init__(self, scene, galaxies, members):
        self.members, self.climb = members, None
        some = [galaxies[number] for number in members]
        self.blend = blending.make_blend(
            [galaxy.tie for galaxy in some],
            np.stack([galaxy.shape for galaxy in some]),
            [galaxy.colour for galaxy in some],
            [
                lambda matrices, band=band: normal_matrix(scene, some, band, matrices)
                for band in scene.order
            ],
            deviations=scene.deviations(),
            prior_scales=[galaxy.plan.prior_scale for galaxy in some],
        )
        self.start = tf.concat(
            [_centred_flux(galaxy.climb.parameters, scene.prior.latent_size) for galaxy in some], 0
        )

    def data(self, scene, galaxies, lights):
        """(bands' data, data) given the light [galaxy][exposure][batch, n] of all galaxies, of
        which the group's own does not count.
        """
        rests = rests_of(scene, lights, self.members)
        return blending.gather(
            self.blend, [moments_of(scene, galaxies[number], rests) for number in self.members]
        )


def _centred_flux(parameters, latent_size):
    """Parameters [batch, p] with the amplitude of what they are the mode of."""
    return tf.concat(
        [
            parameters[:, :latent_size],
            tf.zeros([len(parameters), 1]),
            parameters[:, latent_size + 1 :],
        ],
        1,
    )


def group_by_light(lights):
    """Which galaxies move together: lists of numbers, from the whitened light [galaxy][exposure][1,
    n] of each.

    Where a galaxy stands in the outskirts of a brighter one, the two exchange light although their
    images hardly overlap: what counts is the product of the two images over the square of the
    fainter. Pairs are joined in the order of this share, from the largest to LEAST_SHARED, as long
    as no group grows beyond LARGEST_BLEND.
    """
    flat = np.stack([np.concatenate([seen[0] for seen in light]) for light in lights])
    power = np.maximum(np.square(flat).sum(1), 1e-30)
    shared = np.triu(np.abs(flat @ flat.T) / np.minimum(power[:, None], power), 1)
    group_of = {number: [number] for number in range(len(lights))}
    for one, other in zip(
        *np.unravel_index(np.argsort(-shared, axis=None), shared.shape), strict=True
    ):
        ours, theirs = group_of[one], group_of[other]
        if (
            shared[one, other] >= LEAST_SHARED
            and ours is not theirs
            and len(ours) + len(theirs) <= LARGEST_BLEND
        ):
            group_of.update(dict.fromkeys(ours + theirs, sorted(ours + theirs)))
    return [list(group) for group in sorted({tuple(group) for group in group_of.values()})]


def climb_together(scene, galaxies):
    """Bring all galaxies to their mode, blend by blend: (groups, whether they settled)."""
    lights = [light_of(scene, galaxy, galaxy.coefficients) for galaxy in galaxies]
    groups = [_Group(scene, galaxies, members) for members in group_by_light(lights)]
    for _ in range(CLIMBS):
        moved = 0.0
        for group in groups:
            seen, data = group.data(scene, galaxies, lights)
            group.climb = blending.find_mode(
                scene.prior,
                group.blend,
                data,
                group.start if group.climb is None else group.climb.parameters,
            )
            images = blending.draw_all_bands(
                group.blend,
                blending.draw_references(
                    scene.prior, group.blend, group.climb.parameters, data, None
                ),
                seen,
                None,
            )
            for number, image in zip(group.members, images, strict=True):
                galaxies[number].coefficients = image
                light = light_of(scene, galaxies[number], image)
                moved = max(
                    moved,
                    *(
                        np.abs(new - old).max()
                        for new, old in zip(light, lights[number], strict=True)
                    ),
                )
                lights[number] = light
        if len(groups) == 1 or moved < SETTLED:
            break
    return groups, (len(groups) == 1 or moved < 10 * SETTLED) and all(
        bool(group.climb.converged[0]) for group in groups
    )


def draw_mode(scene, galaxies, groups, seeds, *, num_draws):
    """All draws at the mode."""
    parameters = _by_galaxy(groups, [group.climb.parameters.numpy() for group in groups])
    return Draws(
        [np.repeat(galaxy.coefficients, num_draws, 1) for galaxy in galaxies],
        [np.repeat(one, num_draws, 0) for one in parameters],
        _generator(seeds),
        {"map_converged": 1.0},
        "map",
        MODE_ONLY,
    )


def _by_galaxy(groups, parameters):
    """Parameters [galaxy][batch, p] from those of the groups [group][batch, galaxy * p]."""
    apart = {
        number: one
        for group, ours in zip(groups, parameters, strict=True)
        for number, one in zip(group.members, np.split(ours, len(group.members), 1), strict=True)
    }
    return [apart[number] for number in sorted(apart)]


def _chains_of(prior, group, rng):
    return blending.Chains(
        prior,
        group.blend,
        group.climb,
        rng,
        num_chains=NUM_CHAINS,
        num_hops=NUM_BURNIN * NUM_HOPS,
    )


def draw_together(scene, galaxies, groups, seeds, *, num_draws):
    """Draws of several galaxies from chains of each blend given the images of the others."""
    rng, prior, alone = _generator(seeds), scene.prior, len(groups) == 1
    chains = [_chains_of(prior, group, rng) for group in groups]
    images = [np.repeat(galaxy.coefficients, NUM_CHAINS, 1) for galaxy in galaxies]
    lights = [
        light_of(scene, galaxy, image) for galaxy, image in zip(galaxies, images, strict=True)
    ]
    data = [group.data(scene, galaxies, lights) for group in groups]
    kept, parameters, rates, seen_moments = [], [], [], []
    weights = [moment_weights(prior, galaxy.shape) for galaxy in galaxies]
    for index in range(NUM_BURNIN + THINNING * -(-num_draws // NUM_CHAINS)):
        learn = index < NUM_BURNIN
        for place, (group, chain) in enumerate(zip(groups, chains, strict=True)):
            if not alone:
                data[place] = group.data(scene, galaxies, lights)
            *seen, whole = (
                np.broadcast_to(part, (NUM_CHAINS, part.shape[1]))
                for part in (*data[place][0], data[place][1])
            )
            rates += [chain.move(whole, num_hops=NUM_HOPS, learn=learn)] * (not learn)
            if learn and alone:
                continue
            references = blending.draw_references(prior, group.blend, chain.parameters, whole, rng)
            for number, image in zip(
                group.members,
                blending.draw_all_bands(group.blend, references, seen, rng),
                strict=True,
            ):
                images[number], lights[number] = (
                    image,
                    None if alone else light_of(scene, galaxies[number], image),
                )
        if learn:
            continue
        # [galaxy, band, chain, moment]
        seen_moments.append(
            np.stack([image @ weight for image, weight in zip(images, weights, strict=True)])
        )
        if (index - NUM_BURNIN) % THINNING == THINNING - 1:
            kept.append(list(images))
            parameters.append(_by_galaxy(groups, [chain.parameters.numpy() for chain in chains]))
    coefficients, latents = (
        [
            np.concatenate([draw[number] for draw in some], axis)[..., :num_draws, :]
            for number in range(len(galaxies))
        ]
        for some, axis in ((kept, 1), (parameters, 0))
    )
    judged, status = judge_chains(np.array(seen_moments), [galaxy.reference for galaxy in galaxies])
    told = {
        "map_converged": 1.0,
        **judged,
        **dict(zip(("accept_rate", "accept_rate_exact"), np.mean(rates, 0).tolist(), strict=True)),
    }
    return Draws(coefficients, latents, rng, told, "hmc", status)


def judge_chains(seen_moments, references):
    """The worst R-hat, and the fewest effective draws, of what the catalogue tells: fluxes in each
    band; and place, size and ellipticity in the reference band.

    Parameters
    ----------
    seen_moments : array [move, galaxy, band, chain, 7] of `moment_weights`
    references : sequence of int, the reference band of each galaxy

    Returns
    -------
    ({name: float}, tuple of str) : numbers, and sentences `not_converged: ...` on the galaxy where
    the chains disagree most
    """
    fluxes = np.moveaxis(seen_moments[..., 0], -1, 0)  # [chain, move, galaxy, band]
    shapes = shapes_of(seen_moments[:, np.arange(len(references)), references])
    shapes = np.moveaxis(shapes, 2, 0)  # [chain, move, galaxy, shape]
    told, sentences = {}, []
    for what, values in (("flux", fluxes), ("shape", shapes)):
        worst = diagnostics.r_hat(values).max(-1)  # [galaxy]
        told[f"r_hat_{what}"] = float(worst.max())
        if not worst.max() <= R_HAT_MAX:
            sentences.append(
                f"not_converged: R-hat of a {what} of galaxy {int(worst.argmax()) + 1} is"
                f" {worst.max():.3f}, more than {R_HAT_MAX}: the chains disagree; take more draws"
            )
    told["ess"] = float(
        min(diagnostics.effective_draws(values).min() for values in (fluxes, shapes))
    )
    return told, tuple(sentences)
