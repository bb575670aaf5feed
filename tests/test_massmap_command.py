"""The verb massmap: from files to files, its figure and page, and its exit codes; the real COSMOS
shear where it is there.
"""

import argparse
import re

import numpy as np
import pytest
from astropy.io import fits
from conftest import ROOT
from scipy.ndimage import gaussian_filter
from toy_maps import HOLE, SCALE, draw_kappa, seen, toy_prior

from astrogen.cli import emulate as emulate_verb
from astrogen.cli import massmap as verb
from astrogen.darkmatter.map_mass import map_mass, read_massmap
from astrogen.data.field import make_field, read_field, rebin_field
from astrogen.instruments.lensing import kaiser_squires, make_grid
from astrogen.report.maps import draw_mass_map, write_mass_report


def run(*arguments):
    """The verb with its own parser; the exit code."""
    parser = argparse.ArgumentParser()
    verb.add_options(parser)
    parser.set_defaults(parser=parser)
    return verb.run(parser.parse_args([str(argument) for argument in arguments]))


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    """The toy in the place of the shipped prior, and a short burn-in."""
    monkeypatch.setattr("astrogen.darkmatter.map_mass.BURNIN", 8)
    monkeypatch.setattr(
        "astrogen.priors.load_prior",
        lambda name: toy_prior({"kappa-gaussian": "gaussian", "kappa": "lognormal"}[name]),
    )


@pytest.fixture
def files(tmp_path):
    """Shear of 24 x 24 pixels of half the prior's size, its noise and mask."""
    rng = np.random.default_rng(3)
    field = seen(draw_kappa(toy_prior("lognormal"), rng), rng, sigma=0.01)
    planes = {
        "e1": field.maps[0],
        "e2": field.maps[1],
        "std": np.full((12, 12), 0.01),
        "mask": HOLE.astype(np.uint8),
        "footprint": (~HOLE).astype(np.uint8),
    }
    for name, pixels in planes.items():
        fits.PrimaryHDU(np.kron(pixels, np.ones((2, 2)))).writeto(tmp_path / f"{name}.fits")
    return {name: tmp_path / f"{name}.fits" for name in planes} | {"out": tmp_path / "out"}


def test_from_shear_to_map_figure_and_page(files, capsys):
    code = run(
        "--shear",
        files["e1"],
        files["e2"],
        "--noise",
        files["std"],
        "--mask",
        files["mask"],
        "--pixel-scale",
        SCALE / 2,
        "--draws",
        32,
        "--out",
        files["out"],
    )
    assert code == 0
    printed = capsys.readouterr()
    assert (
        "12 x 12 pixels of 2.3 arcmin, 32 draws, R-hat" in printed.out
        and "index.html" in printed.out
    )
    assert (
        "astrogen: averaged with inverse variances from 1.15 to 2.3 arcmin per pixel, 12 x 12"
        " pixels" in printed.err
    )
    result = read_massmap(files["out"] / "massmap.fits")
    assert result.draws.shape == (32, 12, 12) and np.array_equal(result.field.mask, HOLE)
    assert (files["out"] / "massmap.png").read_bytes()[:4] == b"\x89PNG"
    page = (files["out"] / "index.html").read_text()
    assert "e1.fits" in page and "data:image/png;base64," in page and "toy-lognormal" in page


def test_a_footprint_a_convergence_map_and_a_flip(files):
    """The same field three times: a footprint is the opposite of a mask, a flipped e2 changes the
    map, a convergence map has no Kaiser-Squires.
    """
    common = ("--pixel-scale", SCALE / 2, "--prior", "kappa-gaussian", "--draws", 16, "--chains", 2)
    shear = ("--shear", files["e1"], files["e2"], "--noise", 0.02, 0.02)
    results = {}
    for name, options in {
        "mask": (*shear, "--mask", files["mask"]),
        "footprint": (*shear, "--footprint", files["footprint"]),
        "flip": (*shear, "--mask", files["mask"], "--flip-e2"),
        "kappa": ("--kappa", files["e1"], "--noise", 0.02, "--beam", 3.0),
    }.items():
        assert run(*options, *common, "--out", files["out"] / name) == 0
        results[name] = read_massmap(files["out"] / name / "massmap.fits")
    assert np.array_equal(results["mask"].mean, results["footprint"].mean)
    assert (
        np.abs(results["mask"].wiener - results["flip"].wiener).max()
        > 0.1 * results["mask"].std.mean()
    )
    assert results["kappa"].ks is None and results["kappa"].field.beam == 3.0


def test_strict_tells_by_its_exit_code(files, monkeypatch):
    monkeypatch.setattr("astrogen.darkmatter.map_mass.R_HAT_MAX", 0.5)
    options = (
        "--shear",
        files["e1"],
        files["e2"],
        "--noise",
        0.02,
        "--pixel-scale",
        SCALE / 2,
        "--draws",
        16,
        "--chains",
        2,
        "--prior",
        "kappa-gaussian",
        "--out",
        files["out"],
    )
    assert run(*options) == 0
    assert run(*options, "--strict") == 3


@pytest.mark.parametrize(
    "options, words",
    [
        (["--noise", "0.1"], "one of the arguments --shear --kappa is required"),
        (["--shear", "a", "b", "--noise", "0.1", "--beam", "2"], "--beam belongs to --kappa"),
        (["--shear", "a", "b"], "required: --noise"),
        (
            ["--shear", "a", "b", "--noise", "1", "--mask", "m", "--footprint", "f"],
            "not allowed with argument",
        ),
    ],
    ids=["no maps", "beam", "no noise", "mask and footprint"],
)
def test_wrong_options_are_usage_errors(options, words, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(*options, "--out", tmp_path)
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


def test_the_figure_shows_a_map_that_did_not_converge_and_escapes_names(tmp_path):
    """Words of the status stand in the figure in the colour of warnings; names cannot put code into
    the page.
    """
    field = make_field(
        np.random.default_rng(1).normal(size=(2, 12, 12)), noise=0.1, mask=HOLE, pixel_scale=SCALE
    )
    result = map_mass(field, prior=toy_prior("gaussian"), num_draws=32, num_burnin=4, seed=1)
    assert not result.converged or result.status
    figure = draw_mass_map(result, title="<b>$x$</b>")
    assert len([axis for axis in figure.axes if axis.get_title()]) == 8
    assert any("poor fit" in text.get_text() for text in figure.texts)
    page = write_mass_report(result, tmp_path, title="<b>$x$</b>").read_text()
    assert "&lt;b&gt;" in page and "<b>$x$" not in page


def test_wrong_axes_stand_in_summary_figure_and_page(files, capsys, tmp_path):
    """A field of strong lumps whose second component has the other sign."""
    rng, prior = np.random.default_rng(5), toy_prior("lognormal")
    kappa = np.mean([draw_kappa(prior, rng) for _ in range(1)], 0)
    kappa[20:23, 21:24] += 0.3
    field = seen(kappa, rng, sigma=0.01)
    for name, plane in (("e1", field.maps[0]), ("e2", -field.maps[1])):
        fits.PrimaryHDU(plane).writeto(tmp_path / f"{name}_turned.fits")
    options = ("--shear", tmp_path / "e1_turned.fits", tmp_path / "e2_turned.fits", "--noise", 0.01)
    common = ("--pixel-scale", SCALE, "--prior", "kappa-gaussian", "--draws", 16, "--chains", 2)
    assert run(*options, *common, "--out", files["out"]) == 0
    printed = capsys.readouterr().out
    assert "B modes as strong as E modes" in printed and "--flip-e2" in printed
    assert "B modes as strong as E modes" in (files["out"] / "index.html").read_text()
    assert run(*options, *common, "--flip-e2", "--burn-in", 9, "--out", files["out"]) == 0
    assert "B modes" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "modules, options_of",
    [
        (
            (
                "data/field",
                *(f"darkmatter/{name}" for name in ("map_mass", "b_modes", "posterior")),
            ),
            verb.add_options,
        ),
        (("galsim_objects/emulate", "priors/convergence"), emulate_verb.add_options),
    ],
    ids=["massmap", "emulate"],
)
def test_advice_names_options_that_the_command_has(modules, options_of):
    """Every option that a message of these modules names."""
    parser = argparse.ArgumentParser()
    options_of(parser)
    text = "".join((ROOT / "astrogen" / f"{name}.py").read_text() for name in modules)
    named = set(re.findall(r"--[a-z][a-z0-9-]*", text))
    kinds = [action for action in parser._actions if isinstance(action.choices, dict)]
    known = set(parser._option_string_actions).union(
        *(one._option_string_actions for action in kinds for one in action.choices.values())
    )
    assert named and named <= known


# --- real shear


@pytest.fixture(scope="module")
def cosmos(shared):
    folder = shared / "data/cosmos_shear"
    names = [folder / f"cosmos_full_e{index}_0.29arcmin360.fits" for index in (1, 2)]
    field = read_field(
        names,
        noise=[folder / "std1.fits", folder / "std2.fits"],
        footprint=folder / "cosmos_full_mask_0.29arcmin360.fits",
        pixel_scale=0.29,
    )
    return field, fits.getdata(folder / "ks_e_0.29arcmin360.fits").astype(float)


def test_signs_and_axes_are_those_of_the_published_cosmos_map(cosmos):
    """Our E mode is the published Kaiser-Squires map, which is drawn with its first axis reversed;
    our B mode is not.
    """
    field, published = cosmos
    smoothing = 3.0 / 0.29
    published = gaussian_filter(published[:, ::-1], smoothing / np.sqrt(8 * np.log(2)))
    e_mode, b_mode = kaiser_squires(field.maps, make_grid(field.mask.shape), smoothing=smoothing)
    assert np.corrcoef(e_mode.ravel(), published.ravel())[0, 1] > 0.99
    assert abs(np.corrcoef(b_mode.ravel(), published.ravel())[0, 1]) < 0.1


def test_the_highest_peaks_of_cosmos_are_those_of_the_published_map(cosmos):
    """The three highest peaks of the posterior mean inside the field lie within two pixels of peaks
    of the published map on the same pixels.
    """
    field, published = cosmos
    coarse = rebin_field(field, SCALE)
    whole = rebin_field(
        make_field(np.ascontiguousarray(published[:, ::-1]), noise=1.0, pixel_scale=0.29), SCALE
    )
    reference = gaussian_filter(whole.maps[0], 1.0)
    result = map_mass(coarse, prior=toy_prior("lognormal"), num_draws=32, num_burnin=15, seed=1)
    for place in highest(np.where(coarse.mask, -1, result.mean), 3):
        rows, columns = (slice(max(0, middle - 2), middle + 3) for middle in place)
        assert reference[rows, columns].max() > np.quantile(reference[~coarse.mask], 0.97)


def highest(image, num):
    """Places of the highest pixels, no two within four pixels."""
    places = []
    for index in np.argsort(-image.ravel()):
        place = np.array(np.unravel_index(index, image.shape))
        if all(np.abs(place - other).max() > 4 for other in places):
            places.append(place)
        if len(places) == num:
            return places
