"""Simulated maps as records: one recipe gives the same bytes whatever the workers and however often
it was interrupted; faults are named.
"""

import json
from functools import partial

import numpy as np
import pytest

pytest.importorskip(
    "jaxpm", reason="the simulations need jaxpm: pip install 'astrogen[simulations]'"
)
pytest.importorskip("camb", reason="the simulations need camb: pip install 'astrogen[simulations]'")

from astrogen.errors import RecordsError
from astrogen.training.records import load_maps, read_records
from data_pipelines import convergence
from data_pipelines.__main__ import main
from data_pipelines.records import write_records

POINTS = [(0.3, 0.8), (0.25, 0.9)]


@pytest.fixture(scope="module")
def header():
    """A recipe of 16^3 particles: too coarse to be right, enough to be written."""
    whole = convergence.recipe(POINTS, maps_per_simulation=3, seed=5)
    return {
        **whole,
        "shard_size": 3,
        "simulation": {**whole["simulation"], "particles": 16, "plane_grid": 64},
    }


def _write(directory, header, **options):
    return write_records(
        directory,
        header=header,
        draw_fn=partial(convergence.draw_records, header),
        num_workers=1,
        show_progress=False,
        chunk=3,
        **options,
    )


@pytest.fixture(scope="module")
def written(header, tmp_path_factory):
    directory = tmp_path_factory.mktemp("records") / "maps"
    _write(directory, header)
    return directory


def test_records_read_back(written):
    maps = load_maps(written)
    assert (
        maps["kappa"].shape == (6, 64, 64)
        and maps["kappa"].dtype == np.float32
        and maps["pixel_scale"] == 2.3
    )
    np.testing.assert_array_equal(maps["cosmology"], np.float32(np.repeat(POINTS, 3, axis=0)))
    assert maps["simulation"].tolist() == [0, 0, 0, 1, 1, 1]
    assert 0.003 < maps["kappa"].std() < 0.03 and abs(maps["kappa"].mean()) < 0.01
    # Maps through one simulation see other parts of it.
    assert np.abs(np.corrcoef(maps["kappa"].reshape(6, -1)) - np.eye(6)).max() < 0.5


def test_manifest_states_the_recipe(written):
    manifest = json.loads((written / "manifest.json").read_text())
    assert (
        manifest["kind"] == "convergence"
        and manifest["pixel_scale_unit"] == "arcmin"
        and manifest["transform"] == "kappa"
    )
    assert (
        manifest["source_redshift"] == 1
        and manifest["points"] == [list(point) for point in POINTS]
        and manifest["corrected"]
    )
    assert manifest["fixed"] == {
        "hubble": 0.7,
        "omega_b": 0.046,
        "spectral_index": 0.97,
        "neutrino_mass": 0,
        "curvature": 0,
        "w": -1,
    }


def test_resume_gives_the_bytes_of_an_uninterrupted_run(written, header, tmp_path):
    _write(tmp_path, header)
    (tmp_path / "convergence-00001.tfrecord").unlink()
    _write(tmp_path, header, resume=True)
    for name in ("convergence-00000.tfrecord", "convergence-00001.tfrecord", "manifest.json"):
        assert (tmp_path / name).read_bytes() == (written / name).read_bytes()


def test_finished_simulations_are_read_while_the_rest_runs(written, header, tmp_path):
    from data_pipelines.records import _write_manifest

    shard = json.loads((written / "manifest.json").read_text())["shards"][0]
    (tmp_path / shard["file"]).write_bytes((written / shard["file"]).read_bytes())
    _write_manifest(tmp_path, header, [shard])
    with pytest.raises(RecordsError, match="all 2 shards must be written, got 1; finish the run"):
        load_maps(tmp_path)
    assert load_maps(tmp_path, unfinished=True)["simulation"].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "options, words",
    [
        (
            {"pixel_scale": 1.0},
            "pixel_scale must be 1.0 arcmin, got 2.3; give the pixel scale of the prior",
        ),
        (
            {"transform": "log"},
            "load_maps: transform must be 'log', got 'kappa'; write the records again",
        ),
    ],
    ids=["pixel scale", "transform"],
)
def test_records_of_another_kind_are_refused(written, options, words):
    with pytest.raises(RecordsError, match=words):
        load_maps(written, **options)


def test_maps_are_no_galaxies(written):
    with pytest.raises(
        RecordsError,
        match="kind must be 'galaxies', got 'convergence'; .*'convergence' by load_maps",
    ):
        read_records(written, batch_size=1)


def test_the_design_fills_the_range_evenly():
    points = np.array(convergence.design(64, 1))
    assert points.min(axis=0) == pytest.approx([0.2, 0.6], abs=0.02) and points.max(
        axis=0
    ) == pytest.approx([0.4, 1.0], abs=0.02)
    counts = np.histogram2d(*points.T, bins=4, range=[(0.2, 0.4), (0.6, 1.0)])[0]
    assert counts.min() >= 2 and counts.max() <= 7
    assert convergence.design(64, 1) == [
        tuple(point) for point in points.tolist()
    ] and convergence.design(64, 2) != convergence.design(64, 1)


@pytest.mark.parametrize(
    "point, words",
    [
        (
            (0.5, 0.8),
            (
                "recipe: omega_m must be within 0.2 to 0.4, got 0.5; the simulations are corrected"
                " to theory only there"
            ),
        ),
        ((0.3, float("nan")), "recipe: sigma_8 must be within 0.6 to 1.0, got nan"),
    ],
    ids=["omega_m", "sigma_8"],
)
def test_cosmologies_outside_of_the_range_are_refused(point, words, tmp_path, capfd):
    with pytest.raises(ValueError, match=words):
        convergence.recipe([point], maps_per_simulation=1, seed=1)
    arguments = [
        "convergence",
        "--num-cosmologies",
        "1",
        "--maps-per-simulation",
        "1",
        "--seed",
        "1",
        "--out",
        str(tmp_path / "out"),
        "--cosmology",
    ]
    assert main([*arguments, str(point[0]), str(point[1])]) == 4
    assert words in capfd.readouterr().err and not (tmp_path / "out").exists()


def test_command_compares_records_with_theory(written, tmp_path, capfd):
    assert main(["check-convergence", str(written), "--json", str(tmp_path / "check.json")]) == 0
    told = capfd.readouterr().out
    assert "P / HMCode-2020" in told and "6 maps of 2 simulations" in told
    assert len(json.loads((tmp_path / "check.json").read_text())["ratio"]) == 11


def test_a_missing_extra_is_named(monkeypatch, tmp_path, capfd):
    import data_pipelines

    monkeypatch.delattr(data_pipelines, "convergence", raising=False)
    monkeypatch.setitem(__import__("sys").modules, "data_pipelines.convergence", None)
    assert (
        main(
            [
                "convergence",
                "--num-cosmologies",
                "1",
                "--maps-per-simulation",
                "1",
                "--seed",
                "1",
                "--out",
                str(tmp_path / "out"),
            ]
        )
        == 4
    )
    assert "the extra `simulations` must be installed" in capfd.readouterr().err
