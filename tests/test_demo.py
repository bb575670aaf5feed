"""The demonstration: what is shipped, that the rival is a fair one, and that the whole road ends in
a page.
"""

import os

import galsim
import numpy as np
import pytest
from conftest import ROOT

from astrogen.data.observation import make_observation, make_psf, read_planes
from astrogen.demo import galaxies as demo
from astrogen.report import write_comparison
from data_pipelines import exposure

SHIPPED = ROOT / "astrogen" / "demo" / "data"


@pytest.fixture(scope="module")
def truth_planes():
    return read_planes(SHIPPED / "truth.fits")


@pytest.fixture(scope="module")
def stamps(truth_planes):
    return demo._cut_out(SHIPPED / "exposure.fits", truth_planes[2]["CATALOGUE"])


def test_the_shipped_exposure_is_small_and_made_by_the_committed_command(truth_planes):
    planes, truth, _ = exposure.draw_exposure(truth_planes[1]["SEED"])
    shipped = read_planes(SHIPPED / "exposure.fits")[0]
    assert sum(os.path.getsize(path) for path in SHIPPED.iterdir()) < 1e6
    np.testing.assert_allclose(truth_planes[0]["TRUTH"], truth, atol=1e-4 * truth.max())
    np.testing.assert_allclose(shipped["IMAGE"], planes["IMAGE"], atol=1e-3 * planes["IMAGE"].max())
    np.testing.assert_array_equal(shipped["MASK"], planes["MASK"])


def test_the_population_was_not_learned_from(truth_planes):
    assert truth_planes[1]["SEED"] != 1  # the seed of the training's records


def test_stamps_know_their_mask_and_unit(stamps):
    assert len(stamps) == 12 and all(
        str(stamp.unit) == "nJy" and stamp.wcs is not None for stamp in stamps
    )
    assert sum(stamp.mask.any() for stamp in stamps) >= 3


def test_truth_seen_through_the_telescope_is_the_exposure(stamps, truth_planes):
    """GalSim drew the exposure; the forward model explains it to within the noise, at the
    catalogue's place and flux.
    """
    for stamp, truth in zip(stamps, truth_planes[0]["TRUTH"], strict=True):
        see, _ = demo._telescope(stamp, truth_planes[1]["PIXSCALE"], truth_planes[1]["FWHM"])
        chi = ((stamp.image - see(truth)) / np.sqrt(stamp.variance))[~stamp.mask]
        assert abs(np.mean(chi**2) - 1) < 5 * np.sqrt(2 / chi.size)


def test_adjoint_of_the_telescope(stamps, rng):
    see, see_back = demo._telescope(stamps[0], 0.1, 0.2)
    image, stamp = rng.normal(size=(64, 64)), rng.normal(size=stamps[0].image.shape)
    assert np.vdot(see(image), stamp) == pytest.approx(np.vdot(image, see_back(stamp)), rel=1e-5)


def test_richardson_lucy_agrees_with_scikit_image():
    """On one grid, without noise and mask, with a small pedestal: the textbook's iteration."""
    restoration = pytest.importorskip("skimage.restoration")
    psf = galsim.Gaussian(fwhm=0.5)
    scene = (
        galsim.Convolve(galsim.Exponential(half_light_radius=0.4, flux=100).shear(g1=0.3), psf)
        .drawImage(nx=65, ny=65, scale=0.1, method="no_pixel")
        .array
    )
    psf_image = psf.drawImage(nx=45, ny=45, scale=0.1, method="no_pixel", dtype=float).array
    observation = make_observation(
        scene[:64, :64],
        psf=make_psf(psf_image / psf_image.sum(), pixel_scale=0.1),
        sigma=1e-4,
        pixel_scale=0.1,
    )
    # a target so sharp that the kernel is the PSF
    ours = demo._richardson_lucy(observation, 0.1, 0.01)[demo.ITERATIONS.index(10)]
    rival = restoration.richardson_lucy(
        np.maximum(observation.image, 1e-9).astype(float), psf_image, num_iter=10, clip=False
    )
    assert np.abs(ours - rival)[8:-8, 8:-8].max() < 0.02 * rival.max()


def test_masked_pixels_do_not_move_richardson_lucy(stamps):
    stamp = next(stamp for stamp in stamps if stamp.mask.any())
    spoiled = make_observation(
        np.where(stamp.mask, 1e6, stamp.image),
        psf=stamp.psf,
        variance=stamp.variance,
        mask=stamp.mask,
        pixel_scale=stamp.pixel_scale,
    )
    np.testing.assert_array_equal(
        demo._richardson_lucy(spoiled, 0.1, 0.2), demo._richardson_lucy(stamp, 0.1, 0.2)
    )


def test_the_best_number_of_iterations_is_taken(stamps, truth_planes):
    truth = truth_planes[0]["TRUTH"][:3]
    images, number = demo._best_richardson_lucy(stamps[:3], truth, 0.1, 0.2)
    errors = {
        count: np.mean(
            [demo._squared_error(image, true) for image, true in zip(run, truth, strict=True)]
        )
        for count, run in zip(
            demo.ITERATIONS,
            np.stack([demo._richardson_lucy(stamp, 0.1, 0.2) for stamp in stamps[:3]], 1),
            strict=True,
        )
    }
    assert number == min(errors, key=errors.get)
    assert np.mean(
        [demo._squared_error(image, true) for image, true in zip(images, truth, strict=True)]
    ) == pytest.approx(errors[number])


@pytest.mark.slow
def test_the_whole_demonstration(tmp_path, capsys):
    summary = demo.run_demo(tmp_path, seed=1)
    assert summary["nmse"] < summary["nmse_richardson_lucy"]
    assert 0.5 < summary["coverage68"] < 0.9 and summary["coverage95"] > 0.8
    page = (tmp_path / "index.html").read_text()
    assert "Richardson-Lucy" in page and page.count("<section") == 13
    assert "12 disk" in capsys.readouterr().out


def test_comparison_figure(tmp_path, stamps, truth_planes):
    """Drawn for any number of galaxies, the last block unfilled."""
    from types import SimpleNamespace

    from matplotlib.image import imread

    truth = truth_planes[0]["TRUTH"][:5]
    results = [
        SimpleNamespace(
            observation=stamp,
            name=stamp.name,
            image=image,
            prior_scale=0.1,
            background_draws=np.zeros(3),
            background=(0.0, 0.0),
        )
        for stamp, image in zip(stamps, truth, strict=False)
    ]
    path = write_comparison(results, truth, truth, tmp_path / "comparison.png", rival_name="rival")
    assert imread(path).shape[1] > 1000
