"""The benchmark of maps against theory: fields of a known spectrum pass it, wrong ones do not."""

import json

import numpy as np
import pytest
import tensorflow as tf
from map_oracles import small_prior, true_spectrum

pytest.importorskip("camb", reason="theory needs camb: pip install 'astrogen[simulations]'")

from benchmarks import map_theory
from data_pipelines.theory import expected_power


@pytest.fixture(autouse=True)
def power_law(monkeypatch):
    """The spectrum of the small prior in the place of HMCode-2020's."""

    def expected(cosmology, *, side, pixel_scale, source_redshift, window):
        return expected_power(
            lambda l: true_spectrum(l, cosmology.omega_m, cosmology.sigma_8),
            side=side,
            pixel_scale=pixel_scale,
            window=window,
        )

    monkeypatch.setattr(map_theory, "expected_map_power", expected)


def compared(prior, side, num):
    return map_theory.compare_with_theory(prior, (0.25, 0.9), side, num=num, seed=3)


@pytest.mark.parametrize("kind", ["gaussian", "lognormal"])
@pytest.mark.parametrize("side, num", [(64, 600), (112, 200)], ids=["64", "112"])
def test_fields_without_a_network_have_the_spectrum_of_theory(kind, side, num):
    found = compared(small_prior(kind), side, num)
    off = (np.array(found["emulated"]) - found["theory"]) / found["error"]
    assert np.abs(off).max() < 4 and np.sqrt(np.mean(off**2)) < 2
    square = (np.array(found["axes over diagonals"]) - 1) / found["error of axes over diagonals"]
    assert np.nanmax(np.abs(square)) < 4
    assert abs(found["mean"]) < 4 * found["error of mean"]
    assert found["x over y met"]
    assert f"{num} maps" in map_theory.table(found)


def test_what_is_wrong_is_not_met():
    """Waves along x twice as strong as those along y, a mean, a tenth too much power."""
    prior = small_prior("gaussian")
    stretch = np.ones((80, 41), np.float32)
    stretch[np.abs(np.fft.fftfreq(80)[:, None]) < np.fft.rfftfreq(80)] = 2**0.5
    decode = prior.decode

    def stretched(latent, cosmology):
        wave = tf.signal.rfft2d(decode(latent, cosmology)) * tf.constant(stretch, tf.complex64)
        return tf.signal.irfft2d(wave, [80, 80]) + 1e-3

    prior.decode = stretched
    found = compared(prior, 64, 400)
    assert not (found["power met"] or found["x over y met"] or found["mean met"] or found["met"])
    assert np.nanmedian(found["x over y"]) == pytest.approx(2, rel=0.1)
    assert found["mean"] == pytest.approx(1e-3, rel=0.5)


def test_the_command_writes_json_and_tells_by_its_exit_code(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(map_theory, "load_prior", lambda name: small_prior("gaussian"))
    options = ["--shape", "64", "--num", "64", "--json", str(tmp_path / "f.json")]
    code = map_theory.main(options)
    stored = json.loads((tmp_path / "f.json").read_text())["64"]
    assert code == (0 if stored["met"] else 1) and stored["num_maps"] == 64
    worst = stored["band of worst x over y"]
    assert abs(stored["x over y"][worst] - 1) == pytest.approx(
        np.nanmax(np.abs(np.array(stored["x over y"]) - 1))
    )
    within = stored["x over y within tolerance"]
    assert within == (abs(stored["x over y"][worst] - 1) <= 0.02)
    printed = capsys.readouterr().out
    assert f"{stored['x over y'][worst]:.3f} +- {stored['error of x over y'][worst]:.3f}" in printed
    assert f"all within 2%: {'met' if within else 'NOT met'}; all within 3 errors or 2%" in printed
