"""The benchmark's adapter: what it reads, what it never reads, where its images stand, and what it
writes.
"""

import json
import subprocess
import sys

import galsim
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from conftest import ROOT

from astrogen.instruments import telescope
from benchmarks import cost, deconvolution, survey, throughput
from benchmarks.bench_file import CASES, _without_pixel, read_stamps

PSFS = {
    "lsst": galsim.Kolmogorov(fwhm=0.7),
    "hsc": galsim.Moffat(beta=3.0, fwhm=0.7),
    "same": galsim.Kolmogorov(fwhm=0.7),
    "euclid": galsim.Convolve(
        galsim.Airy(lam=725.0, diam=1.2, obscuration=0.36), galsim.Gaussian(fwhm=0.11)
    ),
}


class Guarded(dict):
    """A file that complains when anything but what a user has is opened."""

    def __getitem__(self, name):
        assert name == "split" or name.startswith(("obs_", "sigma_", "psf_", "kernel_euclid")), (
            f"{name} was read"
        )
        return super().__getitem__(name)

    @property
    def files(self):
        return list(self)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


def galaxy(case, x=0.0, y=0.0):
    """An elliptical galaxy of unit flux, in proportion to the case's pixels."""
    scale = CASES[case][1]
    return (
        galsim.Exponential(half_light_radius=4 * scale)
        .shear(g1=0.3, g2=0.1)
        .shift(x * scale, y * scale)
    )


def draw(case, x=0.0, y=0.0):
    """(observed, truth) without noise, by GalSim."""
    observed_scale, truth_scale, _ = CASES[case]
    side = 64 if case == "same" else 32
    observed = (
        galsim.Convolve(galaxy(case, x, y), PSFS[case])
        .drawImage(nx=side, ny=side, scale=observed_scale, dtype=float)
        .array
    )
    target = galsim.Convolve(galaxy(case, x, y), galsim.Gaussian(fwhm=2 * truth_scale))
    return (
        observed,
        target.drawImage(nx=64, ny=64, scale=truth_scale, method="no_pixel", dtype=float).array,
    )


def bench_file(path, case, *, num=2, snr=50, seed=0):
    """A benchmark file of one case, of any size."""
    rng = np.random.default_rng(seed)
    observed_scale, truth_scale, _ = CASES[case]
    drawn = [draw(case, *rng.uniform(-1, 1, 2)) for _ in range(num)]
    sigma = np.array([np.sqrt((observed**2).sum()) / snr for observed, _ in drawn])
    obs = np.array(
        [
            observed + noise * rng.normal(size=observed.shape)
            for (observed, _), noise in zip(drawn, sigma, strict=True)
        ]
    )
    precise = galsim.GSParams(maximum_fft_size=8192)
    kernel = galsim.Convolve(
        PSFS[case],
        galsim.Pixel(truth_scale),
        galsim.Deconvolve(galsim.Gaussian(fwhm=2 * truth_scale)),
    ).withGSParams(precise)
    arrays = {
        "truth": np.array([truth for _, truth in drawn]),
        "split": np.arange(num) % 2,
        f"obs_{case}_snr{snr}": obs.astype(np.float32),
        f"sigma_{case}_snr{snr}": sigma,
        f"kernel_{case}": (
            kernel.drawImage(nx=127, ny=127, scale=truth_scale, method="no_pixel").array
        ),
        f"psf_{case}": PSFS[case].drawImage(nx=33, ny=33, scale=observed_scale).array,
    }
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("case", CASES)
def test_forward_model_of_the_adapter_is_galsims(case, tmp_path):
    """Truth seen through the PSF that the adapter makes is what GalSim sees, but for the light in
    wings beyond the PSF image.
    """
    stamps = read_stamps(bench_file(tmp_path / "bench.npz", case), case=case, snr=50)
    observed, truth = draw(case, 0.4, -0.7)
    psf = stamps.observations()[0].psf
    kernel = telescope.kernel_transform(
        psf.image,
        psf_scale=psf.pixel_scale,
        pixel_response=psf.pixel_response,
        pixel_scale=stamps.pixel_scale,
        prior_scale=stamps.truth_scale,
        target_fwhm=2 * stamps.truth_scale,
    )
    seen = (
        telescope.render(
            truth[None].astype(np.float32),
            kernel[None],
            shape=observed.shape,
            pixel_scale=stamps.pixel_scale,
            prior_scale=stamps.truth_scale,
            shift=np.zeros((1, 2), np.float32),
        ).numpy()[0]
        * stamps.psf_light
    )
    assert np.abs(seen - observed).max() < 2e-3 * observed.max()


def test_dividing_the_pixel_out(rng):
    """A PSF with its own pixel becomes that of the optics alone."""
    optics = galsim.Gaussian(fwhm=0.3)
    with_pixel, without = (
        optics.drawImage(nx=61, ny=61, scale=0.05, method=method, dtype=float).array
        for method in ("auto", "no_pixel")
    )
    np.testing.assert_allclose(_without_pixel(with_pixel, 1.0), without, atol=1e-5 * without.max())


@pytest.mark.parametrize("case", ["lsst", "euclid"])
def test_nothing_but_stamps_noise_and_psf_is_read(case, tmp_path, monkeypatch):
    path = bench_file(tmp_path / "bench.npz", case)
    guarded = Guarded(np.load(path))
    monkeypatch.setattr(np, "load", lambda _: guarded)
    stamps = read_stamps(path, case=case, snr=50, split="test")
    assert stamps.index.tolist() == [1] and stamps.image.shape == (1, 32, 32)


def test_a_case_that_is_not_there_is_named(tmp_path):
    with pytest.raises(
        ValueError,
        match="case and snr must be in .*, got hsc 50 without obs_hsc_snr50.*; it holds lsst_snr50",
    ):
        read_stamps(bench_file(tmp_path / "bench.npz", "lsst"), case="hsc", snr=50)


def test_the_command_writes_what_the_scorer_reads(tmp_path, capsys):
    """The road from file to file: shapes, order, units, place, clock; the galaxies are easy
    ones.
    """
    path, out = bench_file(tmp_path / "bench.npz", "lsst", num=3), tmp_path / "new" / "recon.npz"
    assert (
        deconvolution.main(
            [
                "--bench",
                str(path),
                "--case",
                "lsst",
                "--snr",
                "50",
                "--draws",
                "16",
                "--split",
                "tune",
                "--out",
                str(out),
            ]
        )
        == 0
    )
    written, truth = np.load(out), np.load(path)["truth"]
    assert (
        written["recon"].shape == (2, 64, 64)
        and written["samples"].shape == (16, 2, 64, 64)
        and written["samples"].dtype == np.float32
    )
    assert written["index"].tolist() == [0, 2] and written["cpu_s"] > 0 and written["wall_s"] > 0
    error = ((written["recon"] - truth[[0, 2]]) ** 2).sum((1, 2)) / (truth[[0, 2]] ** 2).sum((1, 2))
    assert (error < 0.05).all()
    np.testing.assert_allclose(
        written["samples"].mean(0), written["recon"], atol=1e-4 * truth.max()
    )
    assert list(out.parent.iterdir()) == [out]
    assert "2 galaxies, 16 draws" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--case", "lsst", "--snr", "50"], "give --bench FILE, --case and --snr; or --table"),
        (["--table"], "--table needs --bench-dir DIR"),
    ],
    ids=["no file", "no folder"],
)
def test_missing_options_are_usage_errors(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        deconvolution.main([*arguments, "--out", "x"])
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_sersic_fit_finds_the_galaxy():
    """The rival whose time is the measure does its job."""
    truth = (
        galsim.Sersic(n=1.5, half_light_radius=0.35, flux=2.0)
        .shear(g1=0.2, g2=-0.1)
        .shift(0.05, -0.1)
    )
    image = (
        galsim.Convolve(truth, PSFS["lsst"]).drawImage(nx=32, ny=32, scale=0.2, dtype=float).array
    )
    image += 1e-4 * np.random.default_rng(1).normal(size=image.shape)
    flux, log_radius, index, g1, g2, x, y = cost.fit_sersic(image, 1e-4)
    assert (
        flux * image.sum() == pytest.approx(2.0, rel=0.03)
        and np.exp(log_radius) == pytest.approx(0.35, rel=0.05)
        and index == pytest.approx(1.5, abs=0.3)
    )
    assert (g1, g2, x, y) == pytest.approx((0.2, -0.1, 0.05, -0.1), abs=0.02)


def test_throughput_times_the_same_convolution(tmp_path, capsys, rng):
    """The rival is the renderer's convolution: on the prior's own pixels, in the middle, they give
    the same image.
    """
    kernel = np.exp(
        -0.5 * (3 * np.fft.rfftfreq(128)) ** 2 - 0.5 * (3 * np.fft.fftfreq(128)[:, None]) ** 2
    ).astype(np.complex64)[None]
    images = np.exp(
        -0.5 * (np.hypot(*np.mgrid[-31.5:32, -31.5:32]) / rng.uniform(2, 4, (2, 1, 1))) ** 2
    ).astype(np.float32)
    seen = telescope.render(
        images,
        kernel,
        shape=(64, 64),
        pixel_scale=0.1,
        prior_scale=0.1,
        shift=np.zeros((2, 2), np.float32),
    )
    np.testing.assert_allclose(
        throughput.convolve_bare(images, kernel)[:, 32:-32, 32:-32], seen, atol=1e-5
    )
    assert (
        throughput.main(["--out", str(tmp_path / "t.json"), "--batch", "2", "--repeats", "3"]) == 0
    )
    report = json.loads((tmp_path / "t.json").read_text())
    assert (
        len(report["ms"]) == 8
        and min(report["ms"].values()) > 0
        and set(report["ratio"]) == {name for name in report["ms"] if name.startswith("render")}
    )
    assert "render, forward + backward" in capsys.readouterr().out


@pytest.mark.slow
def test_table_and_cost_on_the_development_half(shared, tmp_path):
    commands = {
        "benchmarks.deconvolution": ["--table", "--sets", "cosmos", "--draws", "40"],
        "benchmarks.cost": ["--num", "8", "--draws", "40", "--without", "hmc", "memory"],
    }
    for module, arguments in commands.items():
        out = tmp_path / f"{module}.json"
        subprocess.run(
            [
                sys.executable,
                "-m",
                module,
                "--bench-dir",
                shared / "bench",
                "--out",
                out,
                *arguments,
            ],
            cwd=ROOT,
            check=True,
            timeout=500,
        )
        assert json.loads(out.read_text())


def test_survey_inputs_are_what_they_claim(tmp_path):
    """Galaxies of the wanted signal-to-noise in the middle of their tiles, noise of one, and poison
    where it is said to be.
    """
    bad = survey.make_inputs(tmp_path, 110, varying=True, poison=True)
    assert bad == {"0-7", "0-107"}
    with fits.open(tmp_path / "exposure000.fits") as file:
        image, wcs = file["IMAGE"].data.astype(float), WCS(file["IMAGE"].header)
    table = Table.read(tmp_path / "all.fits")
    x, y = wcs.all_world2pix(table["ra"], table["dec"], 0)
    np.testing.assert_allclose(np.stack([x, y], 1), survey._positions(110), atol=1e-6)
    tiles = image.reshape(2, 48, 64, 48).swapaxes(1, 2).reshape(128, 48, 48)
    assert (
        np.isnan(tiles[7]).all()
        and np.isnan(tiles).sum() == 48**2
        and np.std(tiles[120:]) == pytest.approx(1, abs=0.02)
    )
    seen = np.delete(tiles[:110], 7, 0)
    power = np.square(seen).sum((1, 2)) - 48**2
    assert np.quantile(power, 0.02) > 15**2 - 4 * np.sqrt(2) * 48 and power.max() < 150**2 * 1.2
    core = seen[power > 50**2]
    offset = np.arange(48) - 23.5
    weight = core * np.exp(-0.5 * (offset**2 + offset[:, None] ** 2) / 3**2)
    assert np.abs((weight.sum(1) @ offset) / weight.sum((1, 2))).max() < 1.5
    assert (
        np.isnan(survey.poisoned_varying_psf("", x[107], y[107], 0.2)).all()
        and np.isfinite(survey.poisoned_one_psf("", x[106], y[106], 0.2)).all()
    )
    assert survey._fwhm(0, 0) < survey._fwhm(0, 100) < survey._fwhm(48, 0)


@pytest.mark.slow
def test_survey_runs_and_finds_the_poison(tmp_path, capsys):
    options = [
        "--num",
        "120",
        "--workers",
        "1",
        "--chunk",
        "60",
        "--poison",
        "--runs",
        "one",
        "--folder",
        str(tmp_path / "work"),
        "--out",
        str(tmp_path / "s.json"),
    ]
    assert survey.main(options) == 0
    run = json.loads((tmp_path / "s.json").read_text())["runs"]["one"]
    assert (
        run["failed"] == 2
        and run["failed as expected"]
        and run["stamps/s"] > 0
        and 300 < run["peak MB per worker"][0] < 8000
    )
    assert (
        "bytes of the runs: equal" in capsys.readouterr().out
        and not (tmp_path / "work" / "run").exists()
    )
