"""The benchmark of maps: distances of sets that are known to be equal or to differ by a known
amount, seams that are there, and the command from records to JSON.
"""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from benchmarks import map_sizes, map_speed, maps
from benchmarks import map_statistics as ms

SCALE = 2.3


def skewed(num, side, *, seed, amplitude=1.0):
    """Maps of a shifted lognormal field with a spectrum that falls, cut from periodic grids."""
    grid = side + 16
    white = np.random.default_rng(seed).normal(size=(num, grid, grid))
    frequency = np.hypot(np.fft.fftfreq(grid)[:, None], np.fft.rfftfreq(grid))
    field = np.fft.irfft2(np.fft.rfft2(white) * (1 + frequency / 0.02) ** -0.7, (grid, grid))[
        :, :side, :side
    ]
    return (0.05 * amplitude * (np.exp(0.3 * field / field.std()) - 1)).astype(np.float32)


@pytest.fixture(scope="module")
def simulated():
    return skewed(512, 64, seed=1)


@pytest.fixture(scope="module")
def bins(simulated):
    return ms.choose_bins(simulated)


@pytest.fixture(scope="module")
def measured(simulated, bins):
    return ms.measure(simulated, bins, pixel_scale=SCALE)


def test_a_set_is_at_no_distance_from_itself(measured):
    distances = ms.compare(measured, measured)
    assert {*distances, "classifier"} == set(ms.DEFINITIONS)
    assert all(value == 0 for value in distances.values())


def test_an_amplitude_shows_where_it_must(simulated, bins, measured):
    distances = ms.compare(ms.measure(1.1 * simulated, bins, pixel_scale=SCALE), measured)
    assert distances["P(l), mean"] == pytest.approx(0.21, rel=1e-4)
    assert distances["P(l), worst band"] == pytest.approx(0.21, rel=1e-4)
    assert distances["P(l) scatter"] == pytest.approx(0.21, rel=1e-4)
    assert distances["equilateral B"] == pytest.approx(1.1**3 - 1, rel=1e-4)
    assert distances["squeezed B"] == pytest.approx(1.1**3 - 1, rel=1e-4)
    assert distances["skewness"] == pytest.approx(0, abs=1e-4)
    assert all(
        distances[name] > target
        for name, target in ms.TARGETS.items()
        if name in ("PDF", "peaks", "minima", "V0", "V1", "V2")
    )


def test_equal_sets_differ_by_less_than_the_floor(bins, measured):
    floor = ms.sampling_floor(measured, np.repeat(np.arange(64), 8), seed=1)
    distances = ms.compare(ms.measure(skewed(512, 64, seed=2), bins, pixel_scale=SCALE), measured)
    assert all(distances[name] < 1.5 * floor[name] for name in floor)
    assert sum(distances[name] < floor[name] for name in floor) > len(floor) / 2


def test_the_floor_keeps_simulations_whole(measured):
    """Maps of a simulation that repeat each other make halves differ more than independent
    maps do.
    """
    repeated = {name: np.repeat(values[:16], 8, 0) for name, values in measured.items()}
    apart = ms.sampling_floor(repeated, np.arange(128), seed=1)
    together = ms.sampling_floor(repeated, np.repeat(np.arange(16), 8), seed=1)
    assert together["P(l), mean"] > 1.5 * apart["P(l), mean"]


def test_skewness_is_that_of_scipy(simulated, measured):
    assert ms.skewness(measured["powers"]) == pytest.approx(
        stats.skew(simulated.ravel().astype(float)), rel=1e-6
    )


def test_bins_of_peaks_hold_what_their_definition_says(simulated, bins):
    counts = ms.statistics.peak_counts(simulated, edges=bins.peaks).sum(0)
    np.testing.assert_allclose(counts[[0, -1]] / counts.sum(), 0.01, atol=1e-3)
    np.testing.assert_allclose(np.mean(simulated < bins.pixels[0]), 1e-3, atol=1e-4)


# --- beyond the training size


def test_a_seam_shows(rng):
    field = skewed(24, 256, seed=3)
    honest = map_sizes.seam_excess(field, block=64)
    tiled = (
        field.reshape(24, 4, 64, 4, 64)
        .transpose(1, 3, 0, 2, 4)[rng.permutation(4)]
        .transpose(2, 0, 3, 1, 4)
        .reshape(24, 256, 256)
    )
    broken = map_sizes.seam_excess(tiled, block=64)
    assert abs(honest["excess"]) < 4 * honest["error"]
    assert broken["excess"] < -10 * broken["error"]


def test_a_period_shows():
    white = np.random.default_rng(4).normal(size=(24, 64, 64))
    # neighbours share half their variance
    periodic = (
        white + np.roll(white, 1, 1) + np.roll(white, 1, 2) + np.roll(white, (1, 1), (1, 2))
    ) / 2
    found = map_sizes.edge_correlation(periodic)
    assert found["correlation"] == pytest.approx(0.5, abs=5 * found["error"])
    cut = map_sizes.edge_correlation(periodic[:, :48, :48])
    assert abs(cut["correlation"]) < 4 * cut["error"]


def white_prior(kind="network", strength=1.0):
    """A prior of the contract whose maps are the latent, sharpened into a skewed field."""
    return SimpleNamespace(
        kind=kind,
        image_shape=(64, 64),
        pixel_scale=SCALE,
        card={"source_redshift": 1.0},
        check_cosmology=lambda omega_m, sigma_8: True,
        draw=lambda latent, cosmology: 0.02 * (tf.exp(0.3 * strength * latent[:, 16:, 16:]) - 1),
    )


def test_sizes_of_white_maps_agree():
    size = map_sizes.compare_sizes(white_prior(), (0.3, 0.8), num=16, seed=1)
    ratio, error = (np.array(size["blocks"][name]) for name in ("ratio", "error"))
    assert np.max(np.abs(ratio - 1) / error) < 3.5
    assert size["blocks"]["worst"] < 0.15
    assert size["whole"]["mean"] < 0.05
    assert abs(size["seam"]["excess"]) < 4 * size["seam"]["error"]


def test_maps_are_those_of_one_seed_however_many_are_drawn():
    few, many = (map_sizes.draw_maps(white_prior(), num, (0.3, 0.8), seed=5) for num in (3, 70))
    np.testing.assert_array_equal(few, many[:3])
    assert map_sizes.draw_maps(white_prior(), 2, (0.3, 0.8), seed=5, side=128).shape == (
        2,
        128,
        128,
    )


def test_times_are_stated_with_their_ratios():
    speed = map_speed.time_emulator(white_prior(), (0.3, 0.8), num=64, seed=1)
    assert speed["maps per second"] > 10
    assert "not timed: pip install" in maps.speed_lines(speed | {"simulations": None})[-1]
    lines = maps.speed_lines(
        {
            "maps per second": 500.0,
            "memory growth, MB": 0.0,
            "simulations": {"seconds per new simulation": 4.0, "seconds per further map": 0.02},
        }
    )
    assert "2000 times as fast   target at least 1000: met" in lines[1]
    assert "10 times as fast   target at least 50: NOT met" in lines[2]


# --- the command


def records(kappa, *, num_simulations=8, cosmologies=((0.3, 0.8),)):
    rows = np.arange(len(kappa))
    return {
        "kappa": kappa,
        "cosmology": np.float32(cosmologies)[rows % len(cosmologies)],
        "simulation": rows * num_simulations // len(kappa),
        "pixel_scale": SCALE,
    }


def test_the_command_compares_and_writes(tmp_path, monkeypatch, capsys, simulated):
    kinds = {
        "": ("network", 1.0),
        "-lognormal": ("lognormal", 0.5),
        "-gaussian": ("gaussian", 0.05),
    }
    monkeypatch.setattr(
        maps, "load_prior", lambda name: white_prior(*kinds[name.removeprefix("mine")])
    )
    monkeypatch.setattr(
        maps, "load_maps", lambda directory, pixel_scale, source_redshift: records(simulated[:128])
    )
    out, figure = tmp_path / "deep" / "maps.json", tmp_path / "maps.png"
    assert (
        maps.main(
            [
                "--records",
                "here",
                "there",
                "--prior",
                "mine",
                "--num",
                "64",
                "--out",
                str(out),
                "--figure",
                str(figure),
                "--without",
                "classifier",
                "size",
                "speed",
            ]
        )
        == 0
    )
    report = json.loads(out.read_text())
    assert [entry["records"] for entry in report["cosmologies"]] == ["here", "there"]
    first = report["cosmologies"][0]
    assert (first["num_maps"], first["num_simulations"], first["omega_m"], first["sigma_8"]) == (
        64,
        8,
        0.3,
        0.8,
    )
    assert set(first["priors"]) == {"network", "lognormal", "Gaussian"}
    assert set(first["priors"]["network"]["distances"]) == set(ms.DEFINITIONS) - {"classifier"}
    assert len(first["simulations"]["spectrum"]["mean"]) == len(first["l"]) == 11
    assert figure.stat().st_size > 50_000
    text = capsys.readouterr().out
    assert "Omega_m 0.3, sigma_8 0.8: 64 maps of 8 simulations" in text
    assert text.count("NOT met") > 4


def test_maps_are_taken_evenly_from_all_simulations(monkeypatch, simulated):
    monkeypatch.setattr(
        maps, "load_maps", lambda directory, pixel_scale, source_redshift: records(simulated[:200])
    )
    _, simulation, cosmology = maps.read_simulations("here", num=50, pixel_scale=SCALE)
    assert sorted(np.bincount(simulation)) == [6] * 6 + [7] * 2
    assert cosmology == (0.3, 0.8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_simulations": 3}, "here must hold at least 4 simulations, got 3"),
        ({"cosmologies": ((0.3, 0.8), (0.25, 0.7))}, "here must hold maps of one cosmology, got 2"),
    ],
    ids=["few simulations", "several cosmologies"],
)
def test_records_of_no_use_are_refused(monkeypatch, simulated, given, message):
    monkeypatch.setattr(
        maps,
        "load_maps",
        lambda directory, pixel_scale, source_redshift: records(simulated[:64], **given),
    )
    with pytest.raises(ValueError, match=message):
        maps.read_simulations("here", num=64, pixel_scale=SCALE)
