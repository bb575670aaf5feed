"""The benchmark of mass maps: its scores and simulated fields against closed forms, and the whole
on a toy.
"""

import json

import numpy as np
import pytest
from toy_maps import SCALE, toy_prior

from benchmarks import massmap as benchmark


def test_scores_of_estimates_that_are_known(rng):
    truth, mask = 0.02 * rng.normal(size=(40, 40)), rng.random((40, 40)) < 0.1
    half = benchmark.score(0.5 * truth + 3, truth, mask)
    assert half["r"] == pytest.approx(1) and half["r in holes"] == pytest.approx(1)
    assert half["rmse"] == pytest.approx(0.5)
    assert benchmark.score(0.5 * truth, truth, mask)["amplitude"] == pytest.approx(0.5)
    assert np.isnan(
        benchmark.score(truth, 0 * truth + rng.normal(size=truth.shape) * 1e-3, mask)["amplitude"]
    )
    assert benchmark.score(np.roll(truth, 7), truth, mask)["rmse"] == pytest.approx(
        np.sqrt(2), rel=0.1
    )


def test_one_map_of_each_simulation_comes_first():
    records = {
        "simulation": np.array([7, 7, 7, 2, 2, 5]),
        "kappa": np.arange(6),
        "cosmology": np.arange(12).reshape(6, 2),
    }
    kappa, cosmology = benchmark.choose_maps(records, 5)
    assert sorted(kappa[:3]) == [0, 3, 5] and sorted(kappa[3:]) == [1, 4]
    assert np.array_equal(cosmology[:, 0], 2 * kappa)


def test_a_simulated_field_is_what_a_survey_would_see():
    """Its noise is sigma_e over the root of the galaxies of a pixel; a wave that the mirror
    continues has the shear of a wave.
    """
    height = 32
    wave = np.cos(2 * np.pi * (np.arange(height) + 0.5) / 16)
    kappa = np.tile(wave, (height, 1)).astype(np.float32)  # even about both edges
    field = benchmark.simulate(kappa, pixel_scale=SCALE, seed=1)
    sigma = 0.26 / np.sqrt(30 * SCALE**2)
    np.testing.assert_allclose(field.variance[:, ~field.mask], sigma**2, rtol=1e-5)
    assert 0.1 <= field.mask.mean() < 0.14
    residual = field.maps - np.stack([kappa, 0 * kappa])  # along x, gamma1 = kappa and gamma2 = 0
    assert residual[:, ~field.mask].std() == pytest.approx(sigma, rel=0.06)
    assert abs(residual[:, ~field.mask].mean()) < 4 * sigma / height


def test_averaging_a_map_keeps_its_mean_and_an_even_side():
    kappa = 1e-3 * np.tile(np.arange(360.0), (360, 1))
    coarse = benchmark.average_map(kappa, 0.29, 2.3)
    assert coarse.shape == (44, 44)
    assert coarse.mean() == pytest.approx(0.1795, abs=0.004)
    np.testing.assert_allclose(np.diff(coarse[0]), 1e-3 * 2.3 / 0.29, atol=1e-3)


def test_the_whole_on_a_toy(tmp_path, monkeypatch, rng, capsys):
    """Two tiny maps under the Gaussian toy: the posterior agrees with Wiener and beats
    Kaiser-Squires; the JSON and the table hold every method.
    """
    prior = toy_prior("gaussian")
    kappa = prior.sample(2, omega_m=0.3, sigma_8=0.8, shape=(16, 16), seed=3).numpy()
    monkeypatch.setattr(benchmark, "load_prior", lambda name: prior)
    monkeypatch.setattr(
        benchmark,
        "load_maps",
        lambda folder, source_redshift: {
            "kappa": kappa,
            "cosmology": np.array([[0.3, 0.8]] * 2),
            "simulation": np.arange(2),
        },
    )
    monkeypatch.setattr(benchmark, "EDGES", (500, 1500, 3000))
    monkeypatch.setattr("astrogen.darkmatter.map_mass.BURNIN", 8)
    assert (
        benchmark.main(
            ["--records", "held-out", "--draws", "32", "--out", str(tmp_path / "out.json")]
        )
        == 0
    )
    report = json.loads((tmp_path / "out.json").read_text())["held-out"]
    methods = report["methods"]
    assert set(methods) >= {"Wiener", "lognormal", "network"} and len(methods) == 4
    assert methods["lognormal"]["rmse"][0] == pytest.approx(methods["Wiener"]["rmse"][0], abs=0.05)
    best = next(found for name, found in methods.items() if name.startswith("Kaiser-Squires"))
    assert methods["Wiener"]["rmse"][0] < best["rmse"][0]
    assert all(0.4 < ratio < 2.5 for ratios in report["spectra"].values() for ratio in ratios)
    printed = capsys.readouterr().out
    assert "30 galaxies per square arcmin" in printed and "target at least .60" in printed
