"""From observations to results: the batch law, seeds, masks, units, options, and calibration on
galaxies that the prior itself draws.
"""

import dataclasses
from dataclasses import replace

import galsim
import numpy as np
import pytest
import tensorflow as tf
from oracles import tiny_prior
from scipy import stats

from astrogen.data.observation import make_observation
from astrogen.galaxies import conditional, posterior
from astrogen.galaxies import deconvolve as deconvolution
from astrogen.galaxies.deconvolve import deconvolve
from astrogen.galsim_objects import psf_from_galsim
from astrogen.inference.climb import find_map
from astrogen.inference.laplace import member_normals
from astrogen.instruments import telescope
from astrogen.priors import load_prior

NUM_DRAWS, FLUX = 40, 100.0
# Of the posterior's standard deviation. Batches of other sizes sum float32 numbers in another
# order, and the climb ends within rounding of the same mode.
ROUNDING = 2e-3


@pytest.fixture(scope="module")
def prior():
    return load_prior("galaxy")


def draw_galaxies(prior, num, seed):
    """Images [num, height, width] as inference expects them: the residual is as rough as real ones,
    and its amplitude varies from galaxy to galaxy.
    """
    rng = np.random.default_rng([seed, 1])
    mean, scale = prior.components(
        tf.constant(rng.normal(size=(num, prior.latent_size)), tf.float32)
    )
    amplitude = np.exp(
        0.5 * rng.normal(prior.log_amplitude_mean, prior.log_amplitude_std, (num, 1))
    )
    images = prior.images(
        tf.constant(
            mean + amplitude * prior.roughness * scale * rng.normal(size=scale.shape), tf.float32
        )
    ).numpy()
    return FLUX * images / images.sum((1, 2), keepdims=True)


def observed(
    prior, num, seed, *, pixel_scale=0.2, fwhm=0.7, shape=(32, 32), signal_to_noise=50.0, shift=0.03
):
    """Galaxies drawn from the prior, as a telescope sees them: (observations, images at the target
    PSF).
    """
    rng = np.random.default_rng(seed)
    psf = psf_from_galsim(galsim.Gaussian(fwhm=fwhm), pixel_scale=pixel_scale)
    images = draw_galaxies(prior, num, seed)
    kernel = telescope.kernel_transform(
        psf.image,
        psf_scale=psf.pixel_scale,
        pixel_response=0.0,
        pixel_scale=pixel_scale,
        prior_scale=pixel_scale / 2,
        target_fwhm=pixel_scale,
    )
    scenes = telescope.render(
        tf.constant(images),
        kernel[None],
        shape=shape,
        pixel_scale=pixel_scale,
        prior_scale=pixel_scale / 2,
        shift=tf.constant(shift * rng.normal(size=(num, 2)), tf.float32),
    ).numpy()
    sigmas = np.sqrt((scenes**2).sum((1, 2))) / signal_to_noise
    return [
        make_observation(
            scene + sigma * rng.normal(size=shape),
            psf=psf,
            sigma=sigma,
            pixel_scale=pixel_scale,
            name=f"{seed}-{row}",
        )
        for row, (scene, sigma) in enumerate(zip(scenes, sigmas))
    ], images


def run(observations, prior, **options):
    """By the Laplace approximation, whose draws are the same to rounding whatever the batch."""
    chosen = {"prior": prior, "method": "laplace", "num_draws": NUM_DRAWS, "seed": 1, **options}
    return deconvolve(observations, **chosen)


@pytest.fixture(scope="module")
def stamps(prior):
    """Two telescopes, three shapes and four signal-to-noise ratios: what can go through
    together.
    """
    return (
        observed(prior, 2, 1)[0]
        + observed(prior, 1, 2, pixel_scale=0.168, fwhm=0.6, shape=(40, 41))[0]
        + observed(prior, 1, 3, shape=(33, 32), signal_to_noise=120.0)[0]
    )


@pytest.fixture(scope="module")
def results(stamps, prior):
    return run(stamps, prior)


def assert_same(result, other, *, tolerance=ROUNDING, scale=1.0):
    spread = other.image_std.max()
    assert np.abs(result.image / scale - other.image).max() < tolerance * spread
    assert np.abs(result.draws / scale - other.draws).max() < 10 * tolerance * spread
    assert np.abs(result.model / scale - other.model).max() < tolerance * np.abs(other.model).max()
    assert result.status == other.status


# ---- laws ----


def test_a_batch_equals_each_alone(stamps, results, prior):
    """Other shapes, PSFs and brighter neighbours beside it do not matter; the draws are the same
    ones.
    """
    for row in (0, 2):
        assert_same(run(stamps[row], prior), results[row])  # measured: 1e-5


def test_equal_seeds_give_equal_bytes_in_any_order(stamps, results, prior):
    for result, again in zip(results, run(stamps[::-1], prior)[::-1]):
        assert again.name == result.name
        for name in (
            "draws",
            "image",
            "latent_draws",
            "flux_draws",
            "shift_draws",
            "background_draws",
            "model",
        ):
            np.testing.assert_array_equal(getattr(again, name), getattr(result, name))


def test_other_seeds_and_names_give_other_draws(stamps, results, prior):
    assert not np.allclose(run(stamps, prior, seed=2)[0].draws, results[0].draws)
    same_image = [stamps[0], dataclasses.replace(stamps[0], name="another"), stamps[2], stamps[3]]
    first, second = run(same_image, prior)[:2]
    assert not np.allclose(first.draws, second.draws)
    assert np.abs(first.image - second.image).max() < 2 * first.image_std.max()


def test_small_batches_give_the_same_and_equal_bytes_in_any_order(stamps, results, prior):
    """Who shares a batch with whom, and with it the last bits, does not depend on the order of the
    input.
    """
    batched = run(stamps, prior, batch_size=3)
    for result, again in zip(results, batched, strict=True):
        assert_same(again, result)
    backwards = run(stamps[::-1], prior, batch_size=3)[::-1]
    for result, again in zip(batched, backwards, strict=True):
        assert again.name == result.name
        for name in ("draws", "latent_draws", "flux_draws", "background_draws", "model"):
            np.testing.assert_array_equal(getattr(again, name), getattr(result, name))


def test_who_shares_a_batch_does_not_depend_on_the_order(prior, monkeypatch, rng):
    """Nine objects of one telescope, four at a time."""
    some, batches = observed(prior, 9, 4)[0], []

    def infer(plans, *_, **__):
        batches.append(tuple(plan.observation.name for plan in plans))

    monkeypatch.setattr(deconvolution, "_infer", infer)
    monkeypatch.setattr(deconvolution, "_results", lambda plans, *_: [None] * len(plans))
    for order in (range(9), range(9)[::-1], rng.permutation(9)):
        run([some[index] for index in order], prior, batch_size=4)
    assert [len(names) for names in batches[:3]] == [4, 4, 1]
    assert batches[:3] == batches[3:6] == batches[6:]


@pytest.mark.parametrize("garbage", [1e6, np.nan])
def test_masked_pixels_never_change_the_result(stamps, prior, garbage):
    mask = np.zeros((32, 32), bool)
    mask[10:13, 18:25] = mask[0] = True
    results = []
    for value in (0.0, garbage):
        image, variance = stamps[0].image.copy(), stamps[0].variance.copy()
        image[mask] = variance[mask] = value
        observation = make_observation(
            image, psf=stamps[0].psf, variance=variance, mask=mask, pixel_scale=0.2, name="masked"
        )
        results.append(run([observation, *stamps[1:]], prior)[0])
    for name in ("draws", "model", "residual"):
        np.testing.assert_array_equal(getattr(results[0], name), getattr(results[1], name))
    assert not results[0].residual[mask].any()


@pytest.mark.parametrize("scale", [2.0**-58, 2.0**58], ids=["tiny_units", "huge_units"])
def test_everything_scales_with_the_units(stamps, results, prior, scale):
    """By powers of two, which float32 multiplies exactly: the last bits decide now and then which
    proposal a weighted draw is taken from.
    """
    inputs = [
        make_observation(
            stamp.image * np.float32(scale),
            psf=stamp.psf,
            variance=stamp.variance * scale**2,
            pixel_scale=stamp.pixel_scale,
            name=stamp.name,
        )
        for stamp in stamps
    ]
    for result, other in zip(run(inputs, prior), results):
        assert_same(result, other, scale=scale)
        np.testing.assert_allclose(result.flux_draws / scale, other.flux_draws, rtol=1e-3)
        np.testing.assert_allclose(result.latent_draws, other.latent_draws, atol=0.05)
        assert result.chi2 == pytest.approx(other.chi2, rel=1e-3)


# ---- what comes out ----


def test_chains_too_have_equal_bytes_in_any_order(stamps, prior):
    """Some galaxies by the Laplace approximation and some by chains, more of them than a batch."""
    options = {"method": "auto", "batch_size": 3, "num_draws": 16}
    forth, back = run(stamps, prior, **options), run(stamps[::-1], prior, **options)[::-1]
    assert "hmc" in {result.method for result in forth}
    for one, other in zip(forth, back, strict=True):
        assert one.method == other.method and one.diagnostics == other.diagnostics
        assert one.draws.tobytes() == other.draws.tobytes()


def test_results_state_what_they_are(results, stamps):
    for result, stamp in zip(results, stamps):
        assert result.observation is stamp
        assert result.prior_scale >= stamp.pixel_scale / 2
        assert result.target_fwhm == pytest.approx(2 * result.prior_scale)
        assert result.draws.shape == (NUM_DRAWS, 64, 64)
        assert all(
            np.isfinite(field).all()
            for field in (result.draws, result.model, result.residual, result.image_std)
        )
        assert {"map_converged", "k_hat", "ess"} <= set(result.diagnostics)
        assert result.residual_amplitude > 0
        assert result.provenance["seed"] == 1 and len(result.provenance["weights"]) == 64
        np.testing.assert_allclose(
            result.draws.mean(0), result.image, atol=1e-5 * result.image.max()
        )
        # the stamp's edge cuts what is moved over it
        np.testing.assert_allclose(result.flux_draws, result.draws.sum((1, 2)), rtol=0.05)


def test_the_model_is_the_image_as_the_telescope_sees_it(results, stamps):
    """Drawn by GalSim from the deconvolved image: the target PSF is taken out and the observed one
    put in.
    """
    result = results[0]
    image = galsim.Image(result.image.astype(float), scale=result.prior_scale)
    galaxy = galsim.InterpolatedImage(
        image,
        x_interpolant="lanczos15",
        normalization="flux",
        gsparams=galsim.GSParams(maximum_fft_size=8192),
    )
    # of two Gaussians: a Gaussian
    kernel = galsim.Gaussian(sigma=np.sqrt(0.7**2 - result.target_fwhm**2) / 2.3548)
    drawn = galsim.Convolve(galaxy, kernel).drawImage(nx=32, ny=32, scale=0.2).array
    assert np.abs(result.model - result.background_draws.mean() - drawn).max() < 0.01 * drawn.max()


def test_a_single_observation_gives_a_single_result(stamps, prior):
    result = run(stamps[0], prior, method="map")
    assert result.name == stamps[0].name
    assert result.status[-1].startswith("errors_too_small")
    assert np.ptp(result.latent_draws, axis=0).max() == 0


def test_a_background_that_was_left_in_is_found(prior, stamps):
    sigma = float(np.sqrt(stamps[0].variance[0, 0]))
    level = 0.5 * sigma
    lifted = [
        make_observation(
            stamp.image + level,
            psf=stamp.psf,
            variance=stamp.variance,
            pixel_scale=0.2,
            name=stamp.name,
        )
        for stamp in stamps[:2]
    ]
    fitted = run(lifted + stamps[2:], prior)[0]
    assert (
        abs(fitted.background_draws.mean() - level)
        < 3 * fitted.background_draws.std() + 0.1 * sigma
    )
    assert fitted.background_draws.std() < 0.3 * sigma
    fixed = run(stamps, prior, background="fixed")[0]
    assert not fixed.background_draws.any()


def test_no_data_gives_a_blank_result_and_the_run_goes_on(stamps, results, prior):
    empty = make_observation(
        np.full((32, 32), np.nan), psf=stamps[0].psf, sigma=1.0, pixel_scale=0.2, name="empty"
    )
    first, blank, *rest = run([stamps[0], empty, *stamps[1:]], prior)
    assert blank.status == ("no_data: every pixel is masked",)
    assert not blank.converged and not blank.image.any() and blank.image.shape == (64, 64)
    assert len(blank.draws) == 0
    for result, other in zip([first, *rest], results):
        np.testing.assert_array_equal(result.draws, other.draws)
    assert run([empty], prior)[0].status == blank.status


def test_hmc_runs_and_agrees_with_laplace(prior):
    """On a small prior, where both are good: with fewer components the basis could not follow the
    shifts, and chains mix badly.
    """
    small = tiny_prior(np.random.default_rng(3), rough=0.0, num=24)[0]
    observations = observed(small, 4, 5, signal_to_noise=100.0, shape=(24, 24))[0]
    sampled, drawn = (
        run(observations, small, method=method, num_draws=400, prior_scale=0.1)
        for method in ("hmc", "laplace")
    )
    for hmc, other in zip(sampled, drawn):
        assert hmc.method == "hmc" and other.method == "laplace"
        assert {"r_hat", "ess", "num_divergent", "accept_rate"} <= set(hmc.diagnostics)
        assert hmc.diagnostics["num_divergent"] == 0 and hmc.diagnostics["r_hat"] < 1.1
        assert abs(hmc.flux_draws.mean() - other.flux_draws.mean()) < 0.5 * other.flux_draws.std()
        assert hmc.flux_draws.std() == pytest.approx(other.flux_draws.std(), rel=0.3)


# ---- refusals ----


@pytest.mark.parametrize(
    "options, message",
    [
        ({"method": "best"}, r"deconvolve: method must be one of \('map', .*, got 'best'"),
        (
            {"background": "none"},
            r"deconvolve: background must be one of \('fit', 'fixed'\), got 'none'",
        ),
        ({"num_draws": 2}, "deconvolve: num_draws must be at least 8, got 2"),
        ({"batch_size": 0}, "deconvolve: batch_size must be at least 1, got 0"),
    ],
    ids=["method", "background", "num_draws", "batch_size"],
)
def test_wrong_options_are_refused(stamps, prior, options, message):
    with pytest.raises(ValueError, match=message):
        run(stamps[0], prior, **options)


def test_deconvolution_beyond_the_target_is_refused(stamps, prior):
    with pytest.raises(
        ValueError,
        match=(
            r"target PSF \(FWHM 0\.900 arcsec\) sharper than the observed PSF.*'1-0', whose PSF has"
            r" FWHM 0\.7\d\d arcsec.*give a prior_scale below 0\.3"
        ),
    ):
        run(stamps[0], prior, prior_scale=0.45)


def test_each_object_gets_the_pixels_that_it_needs(prior):
    """Half the observed ones; larger where the galaxy would not fit its stamp; smaller where the
    target would be as wide as an undersampled PSF.
    """
    noise = 0.1 * np.random.default_rng(1).normal(size=(64, 64))
    observations = []
    for name, radius, fwhm in (
        ("small", 0.3, 1.4),
        ("large", 2.0, 1.4),
        ("undersampled", 0.4, 0.3),
    ):
        star = galsim.Gaussian(fwhm=fwhm)
        galaxy = (
            galsim.Convolve(galsim.Exponential(half_light_radius=radius, flux=5000), star)
            .drawImage(nx=64, ny=64, scale=0.2)
            .array
        )
        observations.append(
            make_observation(
                galaxy + noise,
                psf=psf_from_galsim(star, pixel_scale=0.2),
                sigma=0.1,
                pixel_scale=0.2,
                name=name,
            )
        )
    small, large, undersampled = run(observations, prior, method="map", num_draws=8)
    assert small.prior_scale == pytest.approx(0.1)
    assert 0.19 < large.prior_scale < 0.7
    assert undersampled.target_fwhm < np.hypot(0.3, 0.2)


# ---- calibration ----


@pytest.mark.slow
def test_fluxes_of_galaxies_from_the_prior_are_calibrated(prior):
    """The truth's rank among the draws of its flux is uniform: coverage of central intervals within
    the binomial's 99.9 %.
    """
    num = 60
    observations, truth = observed(prior, num, 77, signal_to_noise=60.0)
    results = run(observations, prior, num_draws=100, method="auto", prior_scale=0.1)
    ranks = np.array(
        [(result.flux_draws < image.sum()).mean() for result, image in zip(results, truth)]
    )
    for level in (0.5, 0.68, 0.9):
        inside = int((np.abs(ranks - 0.5) < level / 2).sum())
        low, high = stats.binom.interval(0.999, num, level)
        assert low <= inside <= high, f"{inside} of {num} inside the central {level:.0%}"
    assert stats.kstest(ranks, "uniform").pvalue > 1e-3
    error = [(result.image - image) for result, image in zip(results, truth)]
    middle = np.s_[20:44, 20:44]
    pull = np.array(
        [
            np.median(np.abs(e[middle]) / result.image_std[middle])
            for e, result in zip(error, results)
        ]
    )
    assert 0.4 < np.median(pull) < 1.1  # of a normal: 0.67


def traces():
    """How often each graph of a posterior has been traced."""
    return [
        find_map.experimental_get_tracing_count(),
        *(
            graph.num_traces()
            for graph in (
                posterior._normal_equations,
                posterior._factorise,
                conditional.turned,
                *conditional._evaluators(load_prior("galaxy")),
                deconvolution._develop,
                member_normals,
            )
        ),
    ]


def test_stamps_of_other_sizes_are_not_traced_anew(stamps, results):
    """Sides, signal-to-noise ratios and numbers of stamps that were not met before: what a loop
    over galaxies meets.
    """
    before = traces()
    for row, (side, signal_to_noise) in enumerate([(35, 15.0), (64, 200.0), (47, 90.0)]):
        some, _ = observed(
            load_prior("galaxy"),
            row + 1,
            20 + row,
            shape=(side, side + row),
            signal_to_noise=signal_to_noise,
        )
        run(some, "galaxy")
    assert traces() == before


def test_a_loop_over_the_stamps_of_an_exposure_sees_the_basis_through_its_psf_once(stamps, prior):
    """The PSF is known by its pixels: whoever makes it anew for each stamp gains as well."""
    deconvolution._see_through.cache_clear()
    first = run([stamps[0]], prior)[0]
    again = dataclasses.replace(stamps[0], psf=dataclasses.replace(stamps[0].psf))
    assert again.psf is not stamps[0].psf
    np.testing.assert_array_equal(run([again], prior)[0].draws, first.draws)
    told = deconvolution._see_through.cache_info()
    assert (told.misses, told.hits) == (1, 1)
    run([stamps[2]], prior)
    assert deconvolution._see_through.cache_info().misses == 2


@pytest.mark.parametrize("method", ["laplace", "hmc"])
def test_a_variance_that_is_too_small_makes_the_residual_rougher_and_no_other_fit(prior, method):
    """The residual then rises far above the noise in every direction; what is drawn still fits the
    image: chi-square grows by the factor, about, by which the variance was made too small.
    """
    (sound,), _ = observed(prior, 1, 1, signal_to_noise=60.0)
    wrong = replace(sound, variance=sound.variance / 10)
    right, rough = (run([one], prior, method=method)[0] for one in (sound, wrong))
    assert rough.chi2 == pytest.approx(10 * right.chi2, rel=0.25)
    assert rough.residual_amplitude > 3 * right.residual_amplitude
