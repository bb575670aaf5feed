"""The command line: options, exit codes, one clear line for users' errors.

Inference itself is replaced by a fast fake.
"""

import re
import subprocess
import sys
import types

import astropy.io.fits as fits
import galsim
import numpy as np
import pytest
from astropy.table import Table
from astropy.wcs import WCS
from conftest import lone_result

import astrogen
from astrogen.cli import main
from astrogen.galaxies.result import read_result

SHAPE = (30, 32)


def noise(observation):
    """Noise of the observation's variance, the same each time."""
    normals = np.random.default_rng(17).normal(size=observation.image.shape)
    return np.sqrt(observation.variance) * normals


def fake_deconvolve(
    observations, *, prior, method, num_draws, seed, prior_scale, background, num_chains, progress
):
    """A round galaxy for every stamp; refuses stamps called `refused`, does not converge on those
    called `hard`.
    """
    if any(observation.name == "refused" for observation in observations):
        raise astrogen.InputError(
            "deconvolve: psf must be broader than the target, got 0.1 arcsec; give a finer prior"
            " scale"
        )
    draws = np.repeat(
        galsim.Gaussian(fwhm=0.7).drawImage(nx=64, ny=64, scale=0.1, method="no_pixel").array[None],
        num_draws,
        axis=0,
    )
    options = {
        "prior": prior,
        "method": method,
        "num_draws": num_draws,
        "prior_scale": prior_scale,
        "background": background,
        "num_chains": num_chains,
    }
    return [
        lone_result(
            observation,
            prior_scale=prior_scale or 0.1,
            target_fwhm=0.2,
            draws=draws,
            model=observation.image - noise(observation),
            latent_draws=np.zeros((num_draws, 2)),
            flux_draws=np.ones(num_draws),
            shift_draws=np.zeros((num_draws, 2)),
            background_draws=np.zeros(num_draws),
            method=method,
            diagnostics={"k_hat": 0.9 if observation.name == "hard" else 0.1},
            provenance={"seed": seed, "options": options},
        )
        for observation in observations
    ]


@pytest.fixture(autouse=True)
def _fake_inference(monkeypatch):
    monkeypatch.setitem(astrogen.__dict__, "deconvolve", fake_deconvolve)
    monkeypatch.setitem(astrogen.__dict__, "load_prior", lambda name: name)


@pytest.fixture
def folder(tmp_path):
    """Images one.fits, two.npy, hard.fits, refused.fits and broken.fits, with psf.fits, psf.npy,
    sigma.fits and mask.fits.
    """
    rng = np.random.default_rng(4)
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.cdelt = (
        ("RA---TAN", "DEC--TAN"),
        (150, 2),
        (-0.2 / 3600, 0.2 / 3600),
    )
    image = galsim.Gaussian(fwhm=1.0, flux=10).drawImage(
        nx=SHAPE[1], ny=SHAPE[0], scale=0.2
    ).array + 0.01 * rng.normal(size=SHAPE)
    for name in ("one", "hard", "refused"):
        fits.HDUList(
            [fits.PrimaryHDU(), fits.ImageHDU(image.astype("f4"), wcs.to_header(), name="SCI")]
        ).writeto(tmp_path / f"{name}.fits")
    np.save(tmp_path / "two.npy", image)
    psf = (
        galsim.Gaussian(fwhm=0.7)
        .drawImage(nx=21, ny=21, scale=0.2, method="no_pixel")
        .array.astype(float)
    )
    fits.writeto(tmp_path / "psf.fits", psf / psf.sum())
    np.save(tmp_path / "psf.npy", psf / psf.sum())
    fits.writeto(tmp_path / "sigma.fits", np.full(SHAPE, 0.01))
    mask = np.zeros(SHAPE, np.int16)
    mask[2, 3], mask[4, 5] = 1, 4
    fits.writeto(tmp_path / "mask.fits", mask)
    (tmp_path / "broken.fits").write_bytes((tmp_path / "one.fits").read_bytes()[:7000])
    return tmp_path


def deconvolve(folder, *words, out="out"):
    """Exit code of `astrogen deconvolve`; words that name a file of the folder become its path."""
    words = [str(folder / word) if (folder / word).is_file() else word for word in map(str, words)]
    figures = () if "--figures" in words else ("--figures", "0")  # each takes half a second
    return main(["deconvolve", *words, *figures, "--out", str(folder / out)])


# --- what is written


def test_one_image_becomes_fits_figure_table_and_page(folder, capsys):
    assert (
        deconvolve(
            folder,
            "one.fits",
            "--psf",
            "psf.fits",
            "--sigma",
            "sigma.fits",
            "--mask",
            "mask.fits",
            "--seed",
            7,
            "--draws",
            9,
            "--figures",
            1,
        )
        == 0
    )
    assert sorted(path.name for path in (folder / "out").iterdir()) == [
        "index.html",
        "one.fits",
        "one.png",
        "results.ecsv",
    ]
    result = read_result(folder / "out/one.fits")
    assert (
        result.provenance["seed"] == 7
        and len(result.draws) == 9
        and result.observation.pixel_scale == pytest.approx(0.2)
    )
    assert result.observation.mask.sum() == 2 and np.sqrt(
        result.observation.variance[0, 0]
    ) == pytest.approx(0.01)
    table = Table.read(folder / "out/results.ecsv")
    assert (
        table["flux"][0] == result.flux[0]
        and table["file"][0] == "one.fits"
        and bool(table["converged"][0])
    )
    printed = capsys.readouterr()
    assert (
        "one: 32 x 30 pixels" in printed.out and "index.html" in printed.out and printed.err == ""
    )


def test_options_reach_the_reader_and_the_inference(folder):
    code = deconvolve(
        folder,
        "two.npy",
        "--psf",
        "psf.npy",
        "--psf-oversampling",
        2,
        "--psf-without-pixel",
        "--variance",
        "1e-4",
        "--mask",
        "mask.fits",
        "--bad-bits",
        4,
        "--pixel-scale",
        0.21,
        "--position",
        15,
        14,
        "--size",
        24,
        "--prior-scale",
        0.09,
        "--prior",
        "galaxy-conv",
        "--method",
        "hmc",
        "--chains",
        3,
        "--background",
        "fixed",
        "--draws",
        8,
        "--keep-draws",
        2,
    )
    assert code == 0
    result = read_result(folder / "out/two.fits")
    assert (
        result.observation.psf.pixel_scale == pytest.approx(0.105)
        and result.observation.psf.pixel_response == 0
    )
    assert (
        result.observation.image.shape == (24, 24)
        and result.observation.mask.sum() == 1
        and len(result.draws) == 2
    )
    assert result.provenance["options"] == {
        "prior": "galaxy-conv",
        "method": "hmc",
        "num_draws": 8,
        "prior_scale": 0.09,
        "background": "fixed",
        "num_chains": 3,
    }


def test_neighbours_are_masked_where_asked(folder, capsys):
    image = np.load(folder / "two.npy")
    np.save(folder / "crowd.npy", image + np.roll(image, (9, 11), (0, 1)))
    how = ("crowd.npy", "--psf", "psf.npy", "--sigma", "0.01", "--pixel-scale", 0.2, "--draws", 9)
    assert (
        deconvolve(folder, *how) == 0
        and not read_result(folder / "out/crowd.fits").observation.mask.any()
    )
    assert deconvolve(folder, *how, "--mask-neighbours") == 0
    mask = read_result(folder / "out/crowd.fits").observation.mask
    assert mask[24, 27] and not mask[13:17, 14:18].any()
    with pytest.raises(SystemExit, match="2"):
        deconvolve(folder, *how, "--mask-neighbours", "--deblend")
    assert "--mask-neighbours contradicts --deblend" in capsys.readouterr().err


def test_companions_are_one_for_all_or_one_for_each(folder):
    scale = ("--pixel-scale", 0.2)
    assert (
        deconvolve(
            folder,
            "one.fits",
            "two.npy",
            *scale,
            "--psf",
            "psf.fits",
            "psf.npy",
            "--sigma",
            "0.01",
            "--draws",
            9,
        )
        == 0
    )
    assert (
        deconvolve(
            folder,
            "one.fits",
            "two.npy",
            *scale,
            "--psf",
            "psf.fits",
            "--sigma",
            "0.01",
            "sigma.fits",
            "--draws",
            9,
            out="b",
        )
        == 0
    )
    assert (folder / "b/one.fits").exists() and (folder / "b/two.fits").exists()


def test_equal_names_do_not_overwrite_each_other(folder):
    assert deconvolve(folder, "one.fits", "one.fits", "--psf", "psf.fits", "--draws", 9) == 0
    assert {path.name for path in (folder / "out").glob("*.fits")} == {"one.fits", "one.2.fits"}


# --- exit codes


def test_one_bad_image_among_several_is_reported_and_the_others_go_on(folder, capsys):
    assert (
        deconvolve(
            folder, "broken.fits", "one.fits", "nowhere.fits", "--psf", "psf.fits", "--draws", 9
        )
        == 3
    )
    error = capsys.readouterr().err
    assert (
        "broken.fits: is truncated" in error
        and "nowhere.fits: no such file" in error
        and "Traceback" not in error
    )
    table = Table.read(folder / "out/results.ecsv")
    assert [str(status).startswith("failed: ") for status in table["status"]] == [False, True, True]
    assert np.isnan(table["flux"][1]) and not table["converged"][1]


def test_an_object_that_inference_refuses_does_not_stop_the_others(folder, capsys):
    assert deconvolve(folder, "refused.fits", "one.fits", "--psf", "psf.fits", "--draws", 9) == 3
    assert (
        "refused.fits: deconvolve: --psf must be broader than the target" in capsys.readouterr().err
    )
    assert (folder / "out/one.fits").exists() and not (folder / "out/refused.fits").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(["broken.fits", "--psf", "psf.fits"], "broken.fits: is truncated", id="image"),
        pytest.param(["refused.fits", "--psf", "psf.fits"], "psf must be broader", id="inference"),
        pytest.param(["one.fits", "--psf", "broken.fits"], "broken.fits: is truncated", id="psf"),
        pytest.param(
            ["two.npy", "--psf", "psf.fits"], "give --pixel-scale in arcsec", id="no scale"
        ),
        pytest.param(["one.fits", "--psf", "mask.fits"], "must have odd sides", id="even psf"),
        pytest.param(
            ["one.fits", "--psf", "psf.fits", "--mask", "psf.fits"], r"(21, 21)", id="shapes"
        ),
    ],
)
def test_all_bad_is_4_with_one_line(folder, capsys, words, message):
    assert deconvolve(folder, *words) == 4
    error = capsys.readouterr().err
    assert message in error and error.startswith("astrogen: ") and error.count("\n") == 1
    assert not list((folder / "out").iterdir())


def test_a_prior_that_cannot_be_loaded_is_one_line(folder, capsys, monkeypatch):
    def refuse(name):
        raise astrogen.InputError(
            f"load_prior: name must be galaxy or a folder, got {name!r}; train one with `astrogen"
            " train`"
        )

    monkeypatch.setitem(astrogen.__dict__, "load_prior", refuse)
    assert deconvolve(folder, "one.fits", "--psf", "psf.fits", "--prior", "galxy") == 4
    assert capsys.readouterr().err.count("\n") == 1


def test_strict_counts_what_did_not_converge(folder, capsys):
    words = ("hard.fits", "one.fits", "--psf", "psf.fits", "--draws", 9)
    assert deconvolve(folder, *words) == 0
    assert "not_converged: k-hat is 0.90" in capsys.readouterr().out
    assert deconvolve(folder, *words, "--strict", out="strict") == 3
    assert "1 of 2 posteriors did not converge" in capsys.readouterr().err


def test_images_without_a_good_pixel_are_written_and_count_as_failed(folder, capsys):
    fits.writeto(folder / "all.fits", np.ones(SHAPE, np.int16))
    assert (
        deconvolve(
            folder,
            "one.fits",
            "two.npy",
            "--pixel-scale",
            0.2,
            "--psf",
            "psf.fits",
            "--mask",
            "mask.fits",
            "all.fits",
            "--draws",
            9,
        )
        == 3
    )
    assert "no_data: every pixel is masked" in capsys.readouterr().out
    assert read_result(folder / "out/two.fits").observation.status == "no_data"
    assert (
        deconvolve(
            folder, "one.fits", "--psf", "psf.fits", "--mask", "all.fits", "--draws", 9, out="none"
        )
        == 4
    )


def test_an_output_that_cannot_be_written_is_4(folder, capsys):
    (folder / "file").write_text("")
    assert deconvolve(folder, "one.fits", "--psf", "psf.fits", out="file") == 4
    assert "file: File exists" in capsys.readouterr().err


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("odd")])
def test_a_result_that_cannot_be_written_leaves_the_others_alone(
    folder, capsys, monkeypatch, error
):
    write = astrogen.Result.write_fits

    def refuse(result, path, **options):
        if result.name == "hard":
            raise error
        write(result, path, **options)

    monkeypatch.setattr(astrogen.Result, "write_fits", refuse)
    images = ("one.fits", "hard.fits", "two.npy")
    assert deconvolve(folder, *images, "--psf", "psf.fits", "--pixel-scale", "0.2") == 3
    out, err = capsys.readouterr()
    assert "hard.fits: could not be written" in err and "2 of 3 objects" in out
    table = Table.read(folder / "out/results.ecsv")
    assert list(table["file"][:2]) == ["one.fits", "two.fits"]
    assert table["status"][2].startswith("failed: could not be written: ")
    for name in ("one", "two"):
        assert read_result(folder / f"out/{name}.fits").name == name
    assert "hard.fits" in (folder / "out/index.html").read_text()


def test_an_interrupt_is_130(folder, capsys, monkeypatch):
    def interrupt(name):
        raise KeyboardInterrupt

    monkeypatch.setitem(astrogen.__dict__, "load_prior", interrupt)
    assert deconvolve(folder, "one.fits", "--psf", "psf.fits") == 130
    assert capsys.readouterr().err == "astrogen: interrupted\n"


def test_warnings_of_the_input_are_one_line_each(folder, capsys):
    fits.writeto(folder / "loud.fits", 2 * fits.getdata(folder / "psf.fits"))
    assert deconvolve(folder, "one.fits", "--psf", "loud.fits", "--draws", 9) == 0
    error = capsys.readouterr().err
    assert "warning" in error and "sums to 2 instead of 1" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param([], "required: VERB", id="no verb"),
        pytest.param(["deconvole"], "invalid choice: 'deconvole'", id="unknown verb"),
        pytest.param(
            ["deconvolve", "--out", "x", "--psf", "p", "i"],
            "no IMAGE given",
            id="image swallowed by an option",
        ),
        pytest.param(["deconvolve", "i", "--out", "x"], "no PSF given", id="no psf"),
        pytest.param(["deconvolve", "i", "--psf", "p"], "required: --out", id="no out"),
        pytest.param(
            ["deconvolve", "i", "--psf", "p", "q", "--out", "x"],
            "--psf must be one for all images or one for each of the 1, got 2",
            id="psfs",
        ),
        pytest.param(
            ["deconvolve", "i", "--psf", "p", "--out", "x", "--sigma", "a", "--variance", "b"],
            "not allowed with",
            id="two noises",
        ),
        pytest.param(
            ["deconvolve", "i", "--psf", "p", "--out", "x", "--size", "9"],
            "--position and --size belong together",
            id="size alone",
        ),
        pytest.param(
            ["deconvolve", "i", "--psf", "p", "--out", "x", "--draws", "0"],
            "must be at least 1, got 0",
            id="draws",
        ),
        pytest.param(
            ["deconvolve", "i", "--psf", "p", "--out", "x", "--keep-draws", "-5"],
            "must be 0 or more, got -5",
            id="kept draws",
        ),
        pytest.param(
            ["deconvolve", "i", "--psf", "p", "--out", "x", "--max-bad-fraction", "2"],
            "must be between 0 and 1, got 2",
            id="fraction",
        ),
        pytest.param(
            ["deconvolve", "i", "--psf", "p", "--out", "x", "--pixel-scale", "nan"],
            "must be positive, got nan",
            id="scale",
        ),
        pytest.param(
            ["deconvolve", "i", "--psf", "p", "--out", "x", "--method", "best"],
            "invalid choice: 'best'",
            id="method",
        ),
        pytest.param(
            ["train", "galaxies", "--records", "r", "--out", "x"],
            "invalid choice: 'galaxies'",
            id="prior",
        ),
    ],
)
def test_usage_errors_are_2(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_faults_of_the_package_keep_their_traceback(folder, monkeypatch):
    def fail(name):
        raise TypeError("a bug")

    monkeypatch.setitem(astrogen.__dict__, "load_prior", fail)
    with pytest.raises(TypeError, match="a bug"):
        deconvolve(folder, "one.fits", "--psf", "psf.fits")


@pytest.mark.parametrize("images", [["one.fits"], ["one.fits", "hard.fits"]], ids=["one", "two"])
@pytest.mark.parametrize("together", [[], ["--joint"], ["--deblend"]], ids=["", "joint", "deblend"])
def test_an_error_of_numpy_is_no_users_error(folder, monkeypatch, images, together):
    def fail(*arguments, **options):
        return np.ones(3) + np.ones(4)

    for name in ("deconvolve", "deconvolve_jointly", "deblend"):
        monkeypatch.setitem(astrogen.__dict__, name, fail)
    with pytest.raises(ValueError, match="could not be broadcast together"):
        deconvolve(folder, *images, "--psf", "psf.fits", "--sigma", "0.01", *together)


def test_an_error_of_numpy_in_a_batch_is_not_hidden_by_fits_one_by_one(folder, monkeypatch):
    def fail(observations, **options):
        if len(observations) > 1:
            np.ones(3) + np.ones(4)
        return fake_deconvolve(observations, **options)

    monkeypatch.setitem(astrogen.__dict__, "deconvolve", fail)
    with pytest.raises(ValueError, match="could not be broadcast together"):
        deconvolve(folder, "one.fits", "hard.fits", "--psf", "psf.fits", "--sigma", "0.01")


def test_names_of_files_do_nothing_to_a_terminal(folder, capsys):
    evil = "x\x1b]0;evil\x07\nastrogen: ok\u202e"
    for source, name in (("one", evil), ("broken", f"{evil}2"), ("refused", "refused")):
        (folder / f"{source}.fits").rename(folder / f"{name}.fits")
    images = [f"{name}.fits" for name in (evil, f"{evil}2", "refused")]
    assert deconvolve(folder, *images, "--psf", "psf.fits", "--figures", "3") == 3
    told = capsys.readouterr()
    lines = (told.out + told.err).splitlines()
    assert all(line.isprintable() for line in lines) and "astrogen: ok" not in lines
    for path in (folder / "out").iterdir():
        assert re.fullmatch(r"[\w.-]+", path.name, re.ASCII)
    page = (folder / "out/index.html").read_text()
    assert all(line.isprintable() for line in page.split("\n"))


def test_an_image_for_which_memory_does_not_suffice_leaves_the_others(folder, monkeypatch, capsys):
    from astrogen.data import observation

    read = observation.read_observation

    def fail(path, **options):
        if "two" in path:
            raise MemoryError
        return read(path, **options)

    monkeypatch.setattr(observation, "read_observation", fail)
    assert deconvolve(folder, "one.fits", "two.npy", "--psf", "psf.fits", "--sigma", "0.01") == 3
    assert "two.npy: out of memory" in capsys.readouterr().err


def test_traceback_option_lets_users_errors_through(folder):
    with pytest.raises(Exception, match="is truncated"):
        main(
            [
                "--traceback",
                "deconvolve",
                str(folder / "broken.fits"),
                "--psf",
                str(folder / "psf.fits"),
                "--out",
                str(folder / "out"),
            ]
        )


# --- the other verbs


def test_demo_and_train_pass_their_options_on(tmp_path, monkeypatch):
    calls = []
    demo, training = (
        types.ModuleType("astrogen.demo.galaxies"),
        types.ModuleType("astrogen.training"),
    )
    demo.run_demo = lambda out, seed: calls.append((out, seed))
    training.train_prior = lambda name, **options: calls.append((name, options))
    monkeypatch.setitem(sys.modules, "astrogen.demo.galaxies", demo)
    maps = types.ModuleType("astrogen.demo.maps")
    maps.run_demo_maps = lambda out, seed: calls.append((out, seed))
    monkeypatch.setitem(sys.modules, "astrogen.demo.maps", maps)
    monkeypatch.setitem(sys.modules, "astrogen.training", training)
    assert main(["demo", "--out", str(tmp_path), "--seed", "3"]) == 0
    assert (
        main(
            [
                "train",
                "galaxy",
                "--records",
                str(tmp_path / "r"),
                "--out",
                str(tmp_path),
                "--steps",
                "5",
                "--resume",
                "--real",
                str(tmp_path / "hst"),
            ]
        )
        == 0
    )
    assert calls == [
        (tmp_path, 3),
        (tmp_path / "dark_matter", 3),
        (
            "galaxy",
            {
                "records": tmp_path / "r",
                "out": tmp_path,
                "num_steps": 5,
                "seed": 1,
                "resume": True,
                "real": tmp_path / "hst",
                "validation": None,
                "spectrum": None,
                "loss": None,
                "strategy": None,
            },
        ),
    ]


def test_version_answers_without_the_libraries_that_take_seconds_to_load():
    run = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "astrogen", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == f"astrogen {astrogen.__version__}\n"
    loaded = {line.split("|")[-1].strip().split(".")[0] for line in run.stderr.splitlines()}
    assert "astrogen" in loaded
    assert not loaded & {"tensorflow", "keras", "astropy", "scipy", "numpy", "galsim", "h5py"}
