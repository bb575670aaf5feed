"""The priors as GalSim objects: against the prior's own images, the package's forward model,
GalSim's lensing, and a configuration against Python.
"""

import json
import os
import subprocess
import sys

import galsim
import numpy as np
import pytest
import yaml
from conftest import ROOT
from galsim import config as galsim_config

import astrogen
from astrogen.galsim_objects import AstrogenCatalog, AstrogenGalaxy, KappaMap, psf_from_galsim
from astrogen.galsim_objects.galaxies import CHUNK
from astrogen.instruments import telescope
from benchmarks import galsim_demo

SEED = 77
PSF = galsim.Kolmogorov(fwhm=0.7)


@pytest.fixture(scope="module")
def prior():
    return astrogen.load_prior("galaxy")


@pytest.fixture(scope="module")
def catalog(prior):
    return AstrogenCatalog(300, rng=galsim.BaseDeviate(SEED), prior=prior)


# Galaxies


def test_seen_through_the_target_psf_it_is_the_priors_image(catalog):
    image, galaxy = catalog.image(2), catalog.galaxy(2, flux=50)
    seen = (
        galsim.Convolve(galaxy, galsim.Gaussian(fwhm=galaxy.target_fwhm))
        .drawImage(nx=64, ny=64, scale=galaxy.prior_scale, method="no_pixel")
        .array
    )
    np.testing.assert_allclose(seen, 50 * image, atol=2e-4 * 50 * image.max())


@pytest.mark.parametrize("prior_scale", [0.1, 0.06], ids=["the prior's scale", "smaller"])
def test_through_a_telescope_it_is_what_the_forward_model_says(catalog, prior, prior_scale):
    galaxy = catalog.galaxy(5, flux=20, prior_scale=prior_scale)
    drawn = galsim.Convolve(galaxy, PSF).drawImage(nx=40, ny=40, scale=0.2).array
    psf = psf_from_galsim(PSF, pixel_scale=0.2)
    kernel = telescope.kernel_transform(
        psf.image,
        psf_scale=psf.pixel_scale,
        pixel_response=0.0,
        pixel_scale=0.2,
        prior_scale=prior_scale,
        target_fwhm=2 * prior_scale,
    )
    images, scales = (
        20 * catalog.image(5)[None].astype(np.float32),
        {"pixel_scale": [np.float32(0.2)], "prior_scale": [np.float32(prior_scale)]},
    )
    expected = telescope.render(
        images, kernel[None], shape=(40, 40), shift=np.zeros((1, 2), np.float32), **scales
    )
    np.testing.assert_allclose(drawn, expected[0], atol=1e-3 * drawn.max())


def test_flux_size_and_bands(catalog):
    fluxes = {"g": 3.0, "r": 7.0}
    for band, flux in fluxes.items():
        galaxy = catalog.galaxy(0, flux=fluxes, band=band, half_light_radius=0.5)
        assert galaxy.flux == pytest.approx(flux)
        seen = galsim.Convolve(galaxy, galsim.Gaussian(fwhm=galaxy.target_fwhm)).drawImage(
            nx=64, ny=64, scale=galaxy.prior_scale, method="no_pixel"
        )
        assert seen.calculateHLR() == pytest.approx(0.5, rel=0.02)
    one, other = (catalog.galaxy(0, flux=fluxes, band=band) for band in fluxes)
    np.testing.assert_allclose(
        *(
            galsim.Convolve(galaxy, PSF).drawImage(nx=32, ny=32, scale=0.2).array / galaxy.flux
            for galaxy in (one, other)
        ),
        rtol=1e-4,
        atol=1e-8,
    )


def test_a_latent_is_the_galaxy_that_the_prior_decodes(prior, rng):
    latent = rng.normal(size=prior.latent_size)
    galaxy = AstrogenGalaxy(latent, prior=prior, flux=2)
    expected = prior.decode(latent[None].astype(np.float32))[0].numpy()
    seen = (
        galsim.Convolve(galaxy, galsim.Gaussian(fwhm=0.2))
        .drawImage(nx=64, ny=64, scale=0.1, method="no_pixel")
        .array
    )
    np.testing.assert_allclose(seen, 2 * expected / expected.sum(), atol=2e-4 * seen.max())


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"latent": np.zeros(3)},
            "AstrogenGalaxy: latent must be 64 finite numbers, or 464 .*got shape \\(3,\\)",
        ),
        ({"latent": np.full(64, np.nan)}, "latent must be 64 finite numbers"),
        ({"flux": {"g": 1.0}, "band": "r"}, "band must be one of \\['g'\\], got 'r'"),
        ({"band": "r"}, "flux must be a dict of bands where band is given \\('r'\\), got 1.0"),
        ({"flux": np.inf}, "flux must be finite, got inf"),
        ({"half_light_radius": -1.0}, "half_light_radius must be positive, got -1.0"),
        (
            {"half_light_radius": 1.0, "prior_scale": 0.1},
            "one of half_light_radius and prior_scale must be given, got 1.0 and 0.1",
        ),
    ],
)
def test_galaxies_that_cannot_be(prior, options, message):
    with pytest.raises(ValueError, match=message):
        AstrogenGalaxy(**{"latent": np.zeros(prior.latent_size), "prior": prior, **options})


# Catalogues


def test_a_catalogue_is_its_seed_in_any_order(catalog, prior):
    again = AstrogenCatalog(300, rng=galsim.BaseDeviate(SEED), prior=prior)
    for index in (299, 0, 257, 3):
        np.testing.assert_array_equal(again.image(index), catalog.image(index))
    assert not np.array_equal(
        AstrogenCatalog(1, rng=galsim.BaseDeviate(SEED + 1), prior=prior).image(0), catalog.image(0)
    )
    latents = np.concatenate([catalog.latents(0), catalog.latents(1)])
    assert latents.shape == (2 * CHUNK, sum(prior.draw_sizes))
    assert latents.mean() == pytest.approx(0, abs=0.01) and latents.std() == pytest.approx(
        1, abs=0.01
    )


def test_catalogue_faults(catalog, prior):
    with pytest.raises(IndexError, match="AstrogenCatalog: index must be from 0 to 299, got 300"):
        catalog.galaxy(300)
    with pytest.raises(ValueError, match="AstrogenCatalog: num must be at least 1, got 0"):
        AstrogenCatalog(0, rng=galsim.BaseDeviate(1), prior=prior)


CONFIGURATION = """
modules: [astrogen.galsim_objects]
input:
    astrogen_catalog: {num: 40}
gal:
    type: AstrogenGalaxy
    index: {type: Sequence}
    flux: 100
    half_light_radius: 0.4
psf: {type: Kolmogorov, fwhm: 0.7}
image: {type: Tiled, nx_tiles: 3, ny_tiles: 2, stamp_size: 32, pixel_scale: 0.2, random_seed: 77}
output: {dir: OUT, file_name: sky.fits}
"""


def test_yaml_and_python_give_the_same_bytes(tmp_path, prior):
    galsim_config.Process(yaml.safe_load(CONFIGURATION.replace("OUT", str(tmp_path))))
    written = galsim.fits.read(str(tmp_path / "sky.fits")).array
    catalog = AstrogenCatalog(40, rng=galsim.BaseDeviate(galsim.BaseDeviate(77).raw()), prior=prior)
    for index in range(6):
        galaxy = catalog.galaxy(index, flux=100, half_light_radius=0.4)
        stamp = galsim.Convolve(PSF, galaxy).drawImage(nx=32, ny=32, scale=0.2).array
        row, column = 32 * (index // 3), 32 * (index % 3)
        np.testing.assert_array_equal(written[row : row + 32, column : column + 32], stamp)


def test_several_inputs_of_one_type_are_different(prior):
    config = {"input": {"astrogen_catalog": [{"num": 2}, {"num": 2}]}, "rng": galsim.BaseDeviate(5)}
    galsim_config.ProcessInput(config)
    one, other = config["_input_objs"]["astrogen_catalog"]
    assert not np.array_equal(one.image(0), other.image(0))
    np.testing.assert_array_equal(
        one.image(1), AstrogenCatalog(2, rng=galsim.BaseDeviate(5), prior=prior).image(1)
    )


# Lensing


@pytest.fixture(scope="module")
def grid():
    """Shear and convergence of one realisation, by GalSim: arrays [64, 64], 60 arcsec apart."""
    spectrum = galsim.PowerSpectrum(lambda k: 1e-3 * k**-1.5, units=galsim.arcsec)
    return spectrum.buildGrid(
        grid_spacing=60.0, ngrid=64, rng=galsim.BaseDeviate(3), get_convergence=True
    )


def test_shear_of_a_convergence_is_that_of_galsim(grid):
    g1, g2, kappa = grid
    field = KappaMap(kappa, pixel_scale=1.0)
    y, x = (60.0 * (index - 31.5) for index in np.mgrid[:64, :64])
    inside = (x.ravel(), y.ravel())
    # Between the two, GalSim leaves out the Nyquist modes' share.
    for ours, theirs in zip(field.getShear(inside, reduced=False), (g1, g2), strict=True):
        assert np.abs(ours - theirs.ravel()).max() < 0.03 * np.std(theirs)
    np.testing.assert_allclose(field.getConvergence(inside), kappa.ravel(), atol=1e-6)


def test_a_single_mode_is_followed_between_pixels_and_reduced():
    x = np.arange(64)
    kappa = np.tile(0.1 * np.cos(2 * np.pi * 2 * x / 64), (64, 1))
    field = KappaMap(kappa, pixel_scale=2.0)
    position = galsim.PositionD(120 * 3.3, 0.0)
    expected = 0.1 * np.cos(2 * np.pi * 2 * (3.3 + 31.5) / 64)
    gamma1, gamma2 = field.getShear(position, reduced=False)
    assert (gamma1, gamma2) == (pytest.approx(expected, abs=1e-4), pytest.approx(0, abs=1e-6))
    g1, g2, mu = field.getLensing(position)
    assert g1 == pytest.approx(expected / (1 - expected), abs=2e-4) and g2 == pytest.approx(
        0, abs=1e-6
    )
    assert (
        mu
        == pytest.approx(1 / ((1 - expected) ** 2 - expected**2), rel=1e-3)
        == field.getMagnification(position)
    )


def test_beyond_the_map_is_an_error():
    field = KappaMap(np.zeros((64, 64)), pixel_scale=1.0, shape=(32, 32))
    with pytest.raises(galsim.GalSimError):
        field.getShear(galsim.PositionD(60 * 17.0, 0.0))


@pytest.mark.parametrize(
    "kappa, options, message",
    [
        (
            np.zeros((5, 6)),
            {},
            "kappa must be a finite map with even sides of at least 4, got shape \\(5, 6\\)",
        ),
        (np.full((6, 6), np.nan), {}, "kappa must be a finite map"),
        (
            np.zeros((6, 6)),
            {"shape": (8, 6)},
            "shape must fit into the map of \\(6, 6\\), got \\(8, 6\\)",
        ),
        (np.zeros((6, 6)), {"pixel_scale": 0.0}, "pixel_scale must be positive, got 0.0"),
    ],
)
def test_maps_that_cannot_be(kappa, options, message):
    with pytest.raises(ValueError, match=message):
        KappaMap(kappa, **{"pixel_scale": 1.0, **options})


# The demo


def test_the_shipped_demo_and_its_twin_in_python_are_equal_to_the_byte(tmp_path):
    """Galaxies of two chunks would take seconds; the indices, the lensing, the PSF and the order of
    the random numbers are those of 10,000.
    """
    configured, drawn = galsim_demo.draw_configured(tmp_path, 3), galsim_demo.draw_python(3)
    assert configured.tobytes() == drawn.tobytes() and drawn.shape == (120, 120)
    assert galsim_demo.read_configuration(3)["input"]["astrogen_catalog"] == {
        "num": galsim_demo.TILES**2
    }
    field = KappaMap.draw(galsim.BaseDeviate(2), omega_m=0.3, sigma_8=0.8)
    # its far corner lies on the map
    assert np.isfinite(field.getLensing(galsim.PositionD(800.0, 800.0))).all()


def test_several_processes_share_the_inputs(tmp_path):
    """GalSim then talks to them through proxies, whose methods it takes from the classes."""
    config = galsim_demo.read_configuration(2)
    config["output"]["dir"] = str(tmp_path / "two")
    config["image"]["nproc"] = 2
    program = f"from galsim import config\nconfig.Process({config!r})"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    assert done.returncode == 0, done.stderr
    written = galsim.fits.read(str(tmp_path / "two" / config["output"]["file_name"])).array
    assert written.astype(np.float32).tobytes() == galsim_demo.draw_python(2).tobytes()


def test_rates_are_measured_against_galsims_own(tmp_path, capsys):
    assert (
        galsim_demo.main(["--tiles", "1", "--rounds", "1", "--out", str(tmp_path / "demo.json")])
        == 0
    )
    report = json.loads((tmp_path / "demo.json").read_text())
    assert (
        report["galaxies"] == 1
        and len(report["stamps per second"]) == 4
        and min(report["stamps per second"].values()) > 0
    )
    assert "equal bytes" in capsys.readouterr().out


def test_magnification_has_a_limit_and_a_position_is_needed():
    mass = KappaMap(np.where(np.hypot(*np.mgrid[-8:8, -8:8]) < 3, 0.99, 0.0), pixel_scale=1.0)
    for options, expected in (({}, 25.0), ({"max_mu": 7.0}, 7.0)):
        config = {
            "uv_pos": galsim.PositionD(0, 0),
            "input": {"astrogen_kappa": {}},
            "_input_objs": {"astrogen_kappa": [mass]},
            "_input_objs_safe": {"astrogen_kappa": [True]},
            "magnification": {"type": "AstrogenMagnification", **options},
        }
        assert galsim_config.ParseValue(config, "magnification", config, float)[0] <= expected
        del config["uv_pos"]
        with pytest.raises(
            galsim.GalSimConfigError, match="AstrogenMagnification: needs a position"
        ):
            galsim_config.ParseValue(
                {**config, "magnification": {"type": "AstrogenMagnification", **options}},
                "magnification",
                config,
                float,
            )
