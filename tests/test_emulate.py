"""Drawing into a file: the same images whatever the chunks, whole files or none, headers that say
what they hold, and refusals.
"""

import itertools

import numpy as np
import pytest
from astropy.io import fits
from map_oracles import PIXEL_SCALE, small_prior
from oracles import tiny_prior

from astrogen import cli
from astrogen.data.images import stream_cube
from astrogen.galsim_objects import emulate

COSMOLOGY = {"omega_m": 0.3, "sigma_8": 0.8}


@pytest.fixture(scope="module")
def prior():
    return small_prior()


@pytest.fixture
def galaxies(rng):
    return tiny_prior(rng)[0]


# ---- what is drawn ----


def test_maps_do_not_depend_on_the_chunks(prior, monkeypatch):
    whole = np.concatenate(
        list(emulate.draw_maps(7, **COSMOLOGY, shape=(16, 24), seed=3, prior=prior))
    )
    monkeypatch.setattr(emulate, "CHUNK_PIXELS", 3 * 32 * 40)
    chunks = list(emulate.draw_maps(7, **COSMOLOGY, shape=(16, 24), seed=3, prior=prior))
    assert [len(chunk) for chunk in chunks] == [3, 3, 1]
    np.testing.assert_allclose(np.concatenate(chunks), whole, atol=1e-6)
    np.testing.assert_allclose(
        whole, prior.sample(7, **COSMOLOGY, shape=(16, 24), seed=3), atol=1e-6
    )


def test_galaxies_do_not_depend_on_the_chunks(galaxies, monkeypatch):
    whole = np.concatenate(list(emulate.draw_galaxies(5, seed=3, prior=galaxies)))
    monkeypatch.setattr(emulate, "CHUNK_GALAXIES", 2)
    np.testing.assert_allclose(
        np.concatenate(list(emulate.draw_galaxies(5, seed=3, prior=galaxies))), whole, atol=1e-6
    )
    np.testing.assert_allclose(whole.sum((1, 2)), 1, rtol=1e-4)
    assert not np.allclose(whole[0], whole[1])


def test_no_more_is_drawn_than_is_asked_for(prior):
    """A billion maps cost as much as the first few that are taken."""
    few = list(itertools.islice(emulate.draw_maps(10**9, **COSMOLOGY, seed=1, prior=prior), 2))
    assert max(len(chunk) for chunk in few) * 80 * 80 <= emulate.CHUNK_PIXELS


# ---- files ----


def test_a_fits_cube_holds_the_maps_and_says_what_they_are(prior, tmp_path):
    path = emulate.write_maps(
        tmp_path / "maps.fits", 5, **COSMOLOGY, shape=(16, 24), seed=3, prior=prior
    )
    with fits.open(path) as hdus:
        hdus.verify("exception")
        header, cube = hdus[0].header, hdus[0].data
        np.testing.assert_allclose(
            cube, prior.sample(5, **COSMOLOGY, shape=(16, 24), seed=3), atol=1e-6
        )
    expected = {
        "OMEGA_M": 0.3,
        "SIGMA_8": 0.8,
        "ZSOURCE": 1.0,
        "PIXSCALE": PIXEL_SCALE,
        "SEED": 3,
        "EXTRAPOL": False,
        "PRIOR": "kappa",
        "QUANTITY": "convergence",
    }
    assert {name: header[name] for name in expected} == expected
    assert len(header["WEIGHTS"]) == 64 and header.comments["PIXSCALE"] == "arcmin per pixel"
    assert path.stat().st_size % 2880 == 0


def test_a_npy_cube_holds_the_same(prior, tmp_path):
    path = emulate.write_maps(
        tmp_path / "maps.npy", 3, **COSMOLOGY, shape=(16, 24), seed=3, prior=prior
    )
    np.testing.assert_allclose(
        np.load(path, allow_pickle=False),
        prior.sample(3, **COSMOLOGY, shape=(16, 24), seed=3),
        atol=1e-6,
    )


def test_extrapolation_is_written_down(prior, tmp_path):
    path = emulate.write_maps(
        tmp_path / "maps.fits",
        1,
        omega_m=0.45,
        sigma_8=0.8,
        shape=(16, 16),
        seed=3,
        prior=prior,
        extrapolate=True,
    )
    assert fits.getheader(path)["EXTRAPOL"] is True


def test_a_failure_leaves_the_older_file(tmp_path):
    path = tmp_path / "maps.fits"
    path.write_text("older")
    with pytest.raises(ZeroDivisionError), stream_cube(path, (4, 16, 16), header={}) as append:
        append(np.zeros((2, 16, 16)))
        raise ZeroDivisionError
    assert path.read_text() == "older" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "images, demand",
    [
        ((3, 16, 16), r"images must be at most 2 of \(16, 16\), got \(3, 16, 16\)"),
        ((1, 16, 8), r"got \(1, 16, 8\)"),
        ((1, 16, 16), "images must be 2, got 1"),
    ],
    ids=["too many", "shape", "too few"],
)
def test_other_images_than_declared_are_refused(tmp_path, images, demand):
    with (
        pytest.raises(ValueError, match=demand),
        stream_cube(tmp_path / "maps.npy", (2, 16, 16), header={}) as append,
    ):
        append(np.zeros(images))
    assert not list(tmp_path.iterdir())


def test_another_ending_is_refused(prior, tmp_path):
    with pytest.raises(ValueError, match=r"path must end in .fits or .npy, got '.*maps.hdf5'"):
        emulate.write_maps(tmp_path / "maps.hdf5", 1, **COSMOLOGY, seed=1, prior=prior)


# ---- refusals ----


@pytest.mark.parametrize(
    "options, demand",
    [
        ({"omega_m": 0.1}, "omega_m must be within 0.2 to 0.4, got 0.1"),
        ({"shape": (33, 32)}, r"shape must be even .*got \(33, 32\)"),
        ({"shape": (8, 64)}, "at least 16"),
    ],
    ids=["cosmology", "odd", "small"],
)
def test_what_cannot_be_drawn_is_refused_at_once(prior, options, demand):
    with pytest.raises(ValueError, match=demand):
        emulate.draw_maps(1, **{**COSMOLOGY, "seed": 1, "prior": prior, **options})


def test_a_prior_of_the_other_kind_is_refused(prior):
    with pytest.raises(ValueError, match="prior must be one of convergence maps, got 'galaxy'"):
        emulate.draw_maps(1, **COSMOLOGY, seed=1, prior="galaxy")
    with pytest.raises(ValueError, match="prior must be one of galaxies, got 'kappa'"):
        emulate.draw_galaxies(1, seed=1, prior=prior)


def test_the_command_line_writes_galaxies_and_refuses_other_cosmologies(
    tmp_path, capsys, prior, galaxies, monkeypatch
):
    monkeypatch.setattr(emulate, "load_prior", lambda name: galaxies if name == "galaxy" else prior)
    assert (
        cli.main(
            [
                "emulate",
                "galaxy",
                "--num",
                "3",
                "--seed",
                "1",
                "--out",
                str(tmp_path / "stamps.fits"),
            ]
        )
        == 0
    )
    assert fits.getdata(tmp_path / "stamps.fits").shape[0] == 3
    words = [
        "emulate",
        "kappa",
        "--num",
        "2",
        "--seed",
        "1",
        "--sigma-8",
        "0.8",
        "--shape",
        "16",
        "32",
        "--out",
        str(tmp_path / "maps.fits"),
        "--omega-m",
    ]
    assert cli.main([*words, "0.6"]) == 4
    assert (
        "--omega-m must be within 0.2 to 0.4, got 0.6" in capsys.readouterr().err
        and not (tmp_path / "maps.fits").exists()
    )
    assert cli.main([*words, "0.6", "--extrapolate"]) == 0
    assert fits.getheader(tmp_path / "maps.fits")["EXTRAPOL"] and fits.getdata(
        tmp_path / "maps.fits"
    ).shape == (2, 16, 32)
