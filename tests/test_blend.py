"""Galaxies that share light against dense normals in pixel space, float64 and by scipy; their
chains against importance sampling of the pixels' density; which galaxies move together.
"""

from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf
from oracles import PixelPosterior, telescope_matrix, tiny_prior
from scipy import stats
from test_posterior import gaussian_kernel

from astrogen.galaxies import bands as tying
from astrogen.galaxies import blend as blending
from astrogen.galaxies.draws import group_by_light, judge_chains
from astrogen.galaxies.moments import moment_weights
from astrogen.inference import diagnostics
from astrogen.inference.climb import Climb

SHAPE, PIXEL_SCALE, PRIOR_SCALE = (9, 10), 0.2, 0.1
PLACES = ((-0.2, 0.05), (0.22, -0.04))  # arcsec: less than a PSF apart
LEVEL_STD, COLOUR = 0.1, 0.4


class Case(NamedTuple):
    """Two overlapping galaxies. matrices [band][galaxy] : pixels of the basis; scales [band,
    galaxy]; roots [band][galaxy] of what a band has of its own; noise [pixels, pixels] of one
    band, with the background; images [band, pixels]; shapes [galaxy, k]."""

    prior: object
    blend: blending.Blend
    numbers: dict
    matrices: list
    scales: np.ndarray
    roots: list
    noise: np.ndarray
    images: np.ndarray
    shapes: np.ndarray

    def data(self):
        """(bands' data, data) as `blend.gather` makes them of moments."""
        inverse = np.linalg.inv(self.noise)
        moments = [
            np.stack(
                [
                    (inverse @ image @ matrix[galaxy])[None]
                    for image, matrix in zip(self.images, self.matrices, strict=True)
                ]
            )
            for galaxy in range(len(self.shapes))
        ]
        return blending.gather(self.blend, moments)

    def oracles(self):
        """A PixelPosterior for each galaxy, over the pixels of all bands, its noise with what bands
        have of their own.
        """
        num = len(self.noise)
        total = np.zeros((num * len(self.images),) * 2)
        for band, (matrices, roots) in enumerate(zip(self.matrices, self.roots, strict=True)):
            own = sum(
                matrix @ root @ root.T @ matrix.T
                for matrix, root in zip(matrices, roots, strict=True)
            )
            total[band * num : (band + 1) * num, band * num : (band + 1) * num] = self.noise + own
        oracles = []
        for galaxy, shape in enumerate(self.shapes):
            seen = np.concatenate(
                [
                    scale * matrix[galaxy]
                    for matrix, scale in zip(self.matrices, self.scales[:, galaxy], strict=True)
                ]
            )
            oracles.append(
                PixelPosterior(
                    self.numbers, seen, self.images.ravel(), np.ones(len(seen)), 0.0, shape
                )
            )
            oracles[-1].noise = total
        return oracles


def make_case(*, num_bands, seed=1, latent=2, flux=6.0, **options):
    rng = np.random.default_rng(seed)
    prior, numbers = tiny_prior(rng, latent=latent, **options)
    std = prior.coefficient_std.numpy().astype(float)
    alone = [
        telescope_matrix(
            numbers["basis"],
            gaussian_kernel(),
            shape=SHAPE,
            pixel_scale=PIXEL_SCALE,
            prior_scale=PRIOR_SCALE,
            shift=place,
        )
        for place in PLACES
    ]
    sigma = 0.05 * (1 + rng.random(len(alone[0])))
    noise = np.diag(sigma**2) + LEVEL_STD**2
    matrices, references = [alone] * num_bands, [0, num_bands - 1]
    scales = np.array([[1.0, 0.6], [0.7, 1.0]])[:num_bands] if num_bands > 1 else np.ones((1, 2))
    shapes = flux * (numbers["mean"] + 0.3 * std * rng.normal(size=(2, len(std))))
    grams = np.stack([matrix.T @ np.linalg.solve(noise, matrix) for matrix in alone])
    ties, roots = [], [[] for _ in range(num_bands)]
    for galaxy, (shape, reference) in enumerate(zip(shapes, references, strict=True)):
        width = np.linalg.norm(shape) * std
        ties.append(
            tying.tie_bands(
                np.stack([grams[galaxy]] * num_bands),
                scales[:, galaxy],
                reference,
                shape=shape,
                colour=COLOUR,
                deviations=width,
            )
        )
        root = np.linalg.cholesky(
            np.diag((COLOUR * width) ** 2) + tying.LOOSENESS**2 * np.outer(shape, shape)
        )
        for band in range(num_bands):
            roots[band].append(
                np.zeros_like(root) if band == reference else scales[band, galaxy] * root
            )
    white = np.linalg.inv(np.linalg.cholesky(noise))

    def seen_fn(parts):
        seen = np.concatenate(
            [white @ matrix @ part for matrix, part in zip(alone, parts, strict=True)], 1
        )
        return seen.T @ seen

    blend = blending.make_blend(
        ties,
        shapes,
        [COLOUR] * 2,
        [seen_fn] * num_bands,
        deviations=std,
        prior_scales=[PRIOR_SCALE] * 2,
    )
    images = []
    for band in range(num_bands):
        light = sum(
            matrix @ (scale * shape + root @ (0.3 * rng.normal(size=len(std))))
            for matrix, scale, shape, root in zip(
                alone, scales[band], shapes, roots[band], strict=True
            )
        )
        images.append(light + sigma * rng.normal(size=len(sigma)) + 0.05)
    return Case(prior, blend, numbers, matrices, scales, roots, noise, np.array(images), shapes)


def places(case, num, seed=3):
    """Parameters [num, galaxy, p] such as a sampler visits."""
    rng, size = np.random.default_rng(seed), case.prior.latent_size
    return np.concatenate(
        [
            rng.normal(size=(num, 2, size)),
            0.1 * rng.normal(size=(num, 2, 1)),
            0.3 * rng.normal(size=(num, 2, 2)),
            rng.normal(0.3, 0.5, (num, 2, 1)),
        ],
        -1,
    )


def log_densities(oracles, parameters):
    """Of parameters [num, galaxy, p], from the pixels' covariance: [num]."""
    values = []
    for ours in parameters:
        moments = [oracle.moments(some) for oracle, some in zip(oracles, ours, strict=True)]
        normal = stats.multivariate_normal(
            sum(mean for mean, _ in moments),
            sum(spread for _, spread in moments) - (len(oracles) - 1) * oracles[0].noise,
        )
        values.append(
            normal.logpdf(oracles[0].image)
            + sum(oracle.log_prior(some) for oracle, some in zip(oracles, ours, strict=True))
        )
    return np.array(values)


@pytest.mark.parametrize("num_bands", [1, 2], ids=["one band", "two bands, two references"])
def test_the_density_is_that_of_the_pixels(num_bands, monkeypatch):
    monkeypatch.setattr(blending, "WEAKEST", 1e-6)  # nothing is dropped
    monkeypatch.setattr(blending, "FAINTEST", 1e-6)
    case = make_case(num_bands=num_bands)
    parameters = places(case, 8)
    expected = log_densities(case.oracles(), parameters)
    _, data = case.data()
    flat = tf.constant(parameters.reshape(8, -1), tf.float32)
    exact = blending.target(case.prior)[0](
        flat, blending.evidence_of(case.blend, np.repeat(data, 8, 0))
    ).numpy()
    assert np.ptp(expected) > 3
    np.testing.assert_allclose(exact - exact[0], expected - expected[0], rtol=1e-3, atol=0.02)
    focus = blending.focus(
        case.prior, case.blend, flat[0].numpy().reshape(2, -1).astype(np.float32)
    )
    near = blending.near_target(case.prior)(
        flat,
        focus._replace(
            data=tf.constant(
                (np.repeat(data, 8, 0) @ focus.whole.directions[0].numpy().T)[None], tf.float32
            )
        ),
    ).numpy()
    assert np.sqrt(np.mean((near - near[0] - exact + exact[0]) ** 2)) < 0.5


def test_the_curvature_is_the_fisher_information_of_the_pixels():
    case = make_case(num_bands=1)
    oracles, place, step = case.oracles(), places(case, 1)[0], 1e-5
    inverse = np.linalg.inv(
        sum(oracle.moments(some)[1] for oracle, some in zip(oracles, place, strict=True))
        - oracles[0].noise
    )
    means, spreads = [], []
    for oracle, some in zip(oracles, place, strict=True):
        for unit in np.eye(len(some)):
            (up, wide), (down, narrow) = (
                oracle.moments(some + sign * step * unit) for sign in (1, -1)
            )
            means.append((up - down) / (2 * step))
            spreads.append(inverse @ (wide - narrow) / (2 * step))
    expected = np.array(
        [
            [a @ inverse @ b + 0.5 * np.sum(s * t.T) for b, t in zip(means, spreads, strict=True)]
            for a, s in zip(means, spreads, strict=True)
        ]
    )
    expected += np.diag(
        np.tile(
            [1.0] * case.prior.latent_size + [0.25, 1, 1, case.numbers["log_amplitude"][1] ** -2], 2
        )
    )
    ours = blending.target(case.prior)[1](
        tf.constant(place.reshape(1, -1), tf.float32),
        blending.evidence_of(case.blend, case.data()[1]),
    )[0].numpy()
    np.testing.assert_allclose(ours, expected, atol=5e-3 * np.abs(expected).max())


def conditional(case, parameters):
    """Mean and covariance of the coefficients of all bands and galaxies [galaxy * band * k] given
    parameters [galaxy, p]: conjugate normals, the unknowns being the coefficients of the
    reference bands and what other bands have of their own."""
    size, num_bands = case.shapes.shape[1], len(case.images)
    means, variances, out, design = [], [], [], []
    for galaxy, (oracle, ours) in enumerate(zip(case.oracles(), parameters, strict=True)):
        flux, mean, scale = oracle.coefficients(ours)
        means += [flux * mean, np.zeros(size * num_bands)]
        variances += [(flux * scale) ** 2, np.ones(size * num_bands)]
        out.append(
            np.concatenate(
                [
                    np.concatenate(
                        [
                            case.scales[band, galaxy] * np.eye(size),
                            *(
                                case.roots[band][galaxy] * (other == band)
                                for other in range(num_bands)
                            ),
                        ],
                        1,
                    )
                    for band in range(num_bands)
                ]
            )
        )
        design.append(
            np.concatenate(
                [
                    case.matrices[band][galaxy] @ out[-1][band * size : (band + 1) * size]
                    for band in range(num_bands)
                ]
            )
        )
    before, design = np.concatenate(variances), np.concatenate(design, 1)
    noise = np.kron(np.eye(num_bands), case.noise)
    gain = before[:, None] * design.T @ np.linalg.inv(design * before @ design.T + noise)
    mean = np.concatenate(means) + gain @ (case.images.ravel() - design @ np.concatenate(means))
    to_bands = np.zeros((2 * num_bands * size, len(before)))
    for galaxy, block in enumerate(out):
        to_bands[
            galaxy * len(block) : (galaxy + 1) * len(block),
            galaxy * block.shape[1] : (galaxy + 1) * block.shape[1],
        ] = block
    return to_bands @ mean, to_bands @ (np.diag(before) - gain @ design * before) @ to_bands.T


@pytest.mark.parametrize("num_bands", [1, 2], ids=["one band", "two bands, two references"])
def test_images_and_fluxes_given_the_latents_are_conjugate_normals(num_bands, rng):
    """Means, errors, and the correlation of the fluxes of galaxies that overlap, within a band and
    between bands.
    """
    case, num = make_case(num_bands=num_bands), 3000
    place = places(case, 1)[0]
    mean, covariance = conditional(case, place)
    seen, data = case.data()
    parameters = tf.constant(np.tile(place.reshape(1, -1), (num, 1)), tf.float32)

    def draw(parameters, generator):
        many = len(parameters)
        references = blending.draw_references(
            case.prior, case.blend, parameters, np.repeat(data, many, 0), generator
        )
        # [galaxy, band, draw, k]
        return blending.draw_all_bands(
            case.blend, references, [np.repeat(one, many, 0) for one in seen], generator
        )

    np.testing.assert_allclose(
        draw(parameters[:1], None)[:, :, 0].ravel(),
        mean,
        atol=0.02 * np.sqrt(np.diag(covariance)).max(),
    )
    sums = case.numbers["basis"].sum((1, 2))
    to_flux = np.kron(np.eye(2 * num_bands), sums)
    expected, fluxes = (
        to_flux @ covariance @ to_flux.T,
        (draw(parameters, rng) @ sums).reshape(-1, num),
    )
    errors = np.sqrt(np.diag(expected))
    np.testing.assert_allclose((fluxes.mean(1) - to_flux @ mean) / errors, 0, atol=0.08)
    np.testing.assert_allclose(fluxes.std(1), errors, rtol=0.06)
    np.testing.assert_allclose(np.corrcoef(fluxes), expected / np.outer(errors, errors), atol=0.06)
    assert expected[0, num_bands] < 0


def test_chains_have_the_means_errors_and_correlation_of_the_exact_posterior(rng):
    """Against importance sampling of the density in pixel space, fluxes given the latents in closed
    form.
    """
    case = make_case(num_bands=1)
    seen, data = case.data()
    climb = blending.find_mode(
        case.prior, case.blend, data, np.zeros((2, case.prior.latent_size + 4), np.float32)
    )
    assert bool(climb.converged[0])
    chains = blending.Chains(case.prior, case.blend, climb, rng, num_chains=16, num_hops=40)
    whole, sums, drawn, visited = np.repeat(data, 16, 0), case.numbers["basis"].sum((1, 2)), [], []
    for index in range(220):
        chains.move(whole, num_hops=2, learn=index < 20)
        if index >= 20:
            references = blending.draw_references(
                case.prior, case.blend, chains.parameters, whole, rng
            )
            drawn.append(
                blending.draw_all_bands(case.blend, references, [np.repeat(seen[0], 16, 0)], rng)[
                    :, 0
                ]
                @ sums
            )
            visited.append(chains.parameters.numpy())
    drawn, visited = np.array(drawn), np.array(visited)  # [move, galaxy, chain], [move, chain, p]
    assert diagnostics.r_hat(np.moveaxis(drawn, 2, 0)).max() < 1.02
    spread = 1.3 * np.linalg.cholesky(np.cov(visited.reshape(-1, visited.shape[-1]).T))
    proposal = stats.multivariate_t(visited.mean((0, 1)), spread @ spread.T, df=8, seed=7)
    proposals = proposal.rvs(4000)
    oracles = case.oracles()
    log_weights = log_densities(
        oracles, proposals.reshape(len(proposals), 2, -1)
    ) - proposal.logpdf(proposals)
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    assert 1 / np.sum(weights**2) > 500
    heavy = np.flatnonzero(weights > 1e-3 * weights.max())
    to_flux, means, spreads = np.kron(np.eye(2), sums), [], []
    for place in proposals[heavy]:
        mean, covariance = conditional(case, place.reshape(2, -1))
        means.append(to_flux @ mean)
        spreads.append(to_flux @ covariance @ to_flux.T)
    means, weights = np.array(means), weights[heavy] / weights[heavy].sum()
    centre = weights @ means
    expected = np.einsum("n,nij->ij", weights, spreads) + np.einsum(
        "n,ni,nj->ij", weights, means - centre, means - centre
    )
    errors = np.sqrt(np.diag(expected))
    fluxes = np.moveaxis(drawn, 1, 0).reshape(2, -1)
    np.testing.assert_allclose((fluxes.mean(1) - centre) / errors, 0, atol=0.15)
    np.testing.assert_allclose(fluxes.std(1), errors, rtol=0.12)
    correlation = expected[0, 1] / errors.prod()
    assert correlation < -0.5 and np.corrcoef(fluxes)[0, 1] == pytest.approx(correlation, abs=0.1)
    np.testing.assert_allclose(
        np.average(proposals[heavy], 0, weights), visited.mean((0, 1)), atol=0.2
    )


def _still_chains(rng, *, num_chains, precision):
    """Chains of a climb of known precision, and what they start from."""
    case = make_case(num_bands=1)
    size = 2 * (case.prior.latent_size + 4)
    mode = tf.constant(places(case, 1).reshape(1, -1), tf.float32)
    climb = Climb(mode, None, tf.constant(precision(size)[None], tf.float32), None, None)
    chains = blending.Chains(case.prior, case.blend, climb, rng, num_chains=num_chains, num_hops=2)
    return case, mode.numpy()[0], chains


def test_chains_start_wider_than_the_approximation_about_the_mode(rng):
    """1.25 times as wide, in every direction: R-hat can only speak of chains that come from
    different places.
    """

    def precision(size):
        root = 0.4 * rng.normal(size=(size, size)) + np.diag(np.geomspace(1, 30, size))
        return root @ root.T

    matrices = []
    _, mode, chains = _still_chains(
        rng, num_chains=3000, precision=lambda size: matrices.append(precision(size)) or matrices[0]
    )
    white = (chains.parameters.numpy() - mode) @ np.linalg.cholesky(matrices[0]) / 1.25
    assert np.abs(white.mean(0)).max() < 5 / np.sqrt(3000)
    assert np.abs(white.T @ white / 3000 - np.eye(len(mode))).max() < 5 * np.sqrt(2 / 3000)


def test_the_exact_density_decides_where_a_chain_goes(rng, monkeypatch):
    """Of trajectories that follow the near density: one that loses a thousand nats of the exact
    one is undone, as is one that is not finite; those that gain stay. On the way from their start
    all go on.
    """
    case, _, chains = _still_chains(rng, num_chains=4, precision=np.eye)
    _, data = case.data()
    surplus = np.array([0.0, -1e3, 1e3, np.nan])

    before, white = chains.parameters.numpy(), chains.white
    chains.step = lambda white, results, *_: (white + 1.0, results)
    chains.acceptance = lambda results: 1.0
    monkeypatch.setattr(
        blending,
        "_surplus",
        lambda prior, parameters, *_: np.where(
            np.abs(parameters.numpy() - before).max(1) < 0.5, 0.0, surplus
        ),
    )
    whole = np.repeat(data, 4, 0)
    _, passed = chains.move(whole, num_hops=1, learn=False)
    moved = chains.parameters.numpy() - before
    np.testing.assert_allclose(moved, np.array([1.0, 0, 1, 0])[:, None] + 0 * moved, atol=1e-5)
    assert passed == 0.5
    chains.white = white
    assert chains.move(whole, num_hops=1, learn=True) == (1.0, 1.0)
    np.testing.assert_allclose(chains.parameters.numpy() - before, 1.0, atol=1e-5)


def test_galaxies_that_share_light_move_together():
    x = np.arange(200.0)
    light = [[np.exp(-0.5 * ((x - place) / 8) ** 2)[None]] for place in (20, 40, 60, 150, 165)]
    assert group_by_light(light) == [[0, 1, 2], [3, 4]]


def test_a_faint_galaxy_in_the_outskirts_of_a_bright_one_moves_with_it():
    x = np.arange(200.0)
    light = [
        [flux * np.exp(-0.5 * ((x - place) / 8) ** 2)[None]]
        for flux, place in ((1.0, 20), (100.0, 60), (1.0, 150))
    ]
    assert group_by_light(light) == [[0, 1], [2]]


def test_no_group_grows_too_large():
    x = np.arange(400.0)
    light = [[np.exp(-0.5 * ((x - 16 * number) / 8) ** 2)[None]] for number in range(20)]
    groups = group_by_light(light)
    assert sorted(sum(groups, [])) == list(range(20)) and 4 < max(map(len, groups)) <= 8


def test_moments_are_those_of_the_image(rng):
    prior, numbers = tiny_prior(rng, latent=2)
    shape, coefficients = np.abs(numbers["mean"]), rng.normal(size=(5, len(numbers["mean"])))
    moments = coefficients @ moment_weights(prior, shape)
    images = np.tensordot(coefficients, numbers["basis"], 1)
    side = np.arange(images.shape[1]) - (images.shape[1] - 1) / 2
    light = np.maximum(np.tensordot(shape, numbers["basis"], 1), 0)
    window = np.exp(
        -0.5
        * (side**2 + side[:, None] ** 2)
        / max((light * (side**2 + side[:, None] ** 2)).sum() / light.sum() / 2, 1)
    )
    np.testing.assert_allclose(moments[:, 0], images.sum((1, 2)), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        moments[:, 6], (images * window * side * side[:, None]).sum((1, 2)), rtol=1e-5, atol=1e-5
    )


def test_chains_that_agree_on_fluxes_may_disagree_on_shapes(rng):
    """Two galaxies in two bands; the second galaxy's reference band is the second, in which its
    chains differ in width, or in nothing.
    """
    num, parts = 200, np.array([1.0, 0.8, 0.0, 0.0, 2.0, 2.0, 0.1])
    moments = parts + 0.05 * rng.normal(size=(num, 2, 2, 4, 7))
    told, sentences = judge_chains(moments, [0, 1])
    assert (
        told["r_hat_flux"] < 1.03
        and told["r_hat_shape"] < 1.03
        and told["ess"] > 300
        and not sentences
    )
    moments[:, 1, 1, 2, 4:6] *= 1.2
    told, sentences = judge_chains(moments, [0, 1])
    assert told["r_hat_flux"] < 1.03 and told["r_hat_shape"] > 1.1 and told["ess"] < 100
    assert len(sentences) == 1 and sentences[0].startswith(
        "not_converged: R-hat of a shape of galaxy 2 is 1."
    )
    assert judge_chains(moments, [0, 0])[0]["r_hat_shape"] < 1.03


def test_a_shape_is_judged_by_its_central_moments(rng):
    """In half of the chains x and y move together, in the others against each other, so that the
    raw moment x y differs; width and ellipticity about the centre do not.
    """
    moves, chains = 150, 4
    turn = np.where(np.arange(chains) < 2, 1.0, -1.0)
    x, noise = rng.normal(size=(2, moves, chains))
    y = 0.95 * turn * x + np.sqrt(1 - 0.95**2) * noise
    centres = 0.4 * np.stack([x, y])
    xx, yy, xy = np.array([3.0, 2.0, 0.5])[:, None, None] + 0.05 * rng.normal(
        size=(3, moves, chains)
    )
    total = 100 + rng.normal(size=(moves, chains))
    x, y = centres
    seen = [np.ones_like(total), x, y, xx + x**2, yy + y**2, xy + x * y]
    moments = np.stack([total, *(total * part for part in seen)], -1)[:, None, None]
    told, sentences = judge_chains(moments, [0])
    assert told["r_hat_shape"] < 1.04 and not sentences
