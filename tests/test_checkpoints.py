"""Training goes on from its last checkpoint, or says why it cannot."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from astrogen.data.files import hold_folder
from astrogen.errors import InputFileError, RecordsError, WeightsError
from astrogen.training import train_prior
from astrogen.training.basis import Basis
from astrogen.training.checkpoints import (
    FOLDER,
    POINTER,
    keep_checkpoints,
    restore_last,
)
from astrogen.training.galaxy import basis_of_run, write_basis
from astrogen.training.run import Run


def _checkpoint(value, size=3):
    return tf.train.Checkpoint(weights=tf.Variable([value] * size))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Of two checkpoints."""
    out = tmp_path_factory.mktemp("trained")
    checkpoint = _checkpoint(1.0)
    manager = tf.train.CheckpointManager(checkpoint, str(out / FOLDER), max_to_keep=2)
    for value in (1.0, 2.0):
        checkpoint.weights.assign([value] * 3)
        manager.save()
    return out


@pytest.fixture
def out(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def test_the_last_checkpoint_is_restored(out):
    checkpoint = _checkpoint(0.0)
    assert restore_last(checkpoint, out)
    np.testing.assert_array_equal(checkpoint.weights, [2.0] * 3)


def test_a_run_that_begins_anew_minds_no_pointer(out):
    (out / FOLDER / POINTER).write_text("junk")
    checkpoint = _checkpoint(0.0)
    keep_checkpoints(checkpoint, out).save()
    assert restore_last(checkpoint, out) and float(checkpoint.weights[0]) == 0
    (out / FOLDER / POINTER).write_text("junk")
    with pytest.raises(WeightsError, match="got 'junk' beside"):
        keep_checkpoints(checkpoint, out, resume_from=out)


def test_where_nothing_was_kept_training_begins(tmp_path):
    assert not restore_last(_checkpoint(0.0), tmp_path)


@pytest.mark.parametrize(
    "size, words",
    [(0, "got '' beside ckpt-1"), (20, "got 'model_checkpoint_pat' beside ckpt-1")],
    ids=["to nothing", "in the middle"],
)
def test_a_cut_pointer_is_refused(out, size, words):
    pointer = out / FOLDER / POINTER
    pointer.write_bytes(pointer.read_bytes()[:size])
    with pytest.raises(
        WeightsError, match=f"pointer must name a checkpoint of its folder, {words}"
    ):
        restore_last(_checkpoint(0.0), out)


@pytest.mark.parametrize("gone", [[POINTER], ["ckpt-2.index"]], ids=["pointer", "index"])
def test_a_missing_pointer_or_checkpoint_is_refused(out, gone):
    for name in gone:
        (out / FOLDER / name).unlink()
    with pytest.raises(WeightsError, match="pointer must name a checkpoint of its folder"):
        restore_last(_checkpoint(0.0), out)


@pytest.mark.parametrize("name", ["ckpt-2.index", "ckpt-2.data-00000-of-00001"])
def test_a_damaged_checkpoint_is_refused(out, name):
    path = out / FOLDER / name
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="checkpoint must be whole"):
        restore_last(_checkpoint(0.0), out)


def test_a_checkpoint_of_other_networks_is_refused(out):
    with pytest.raises(WeightsError, match="of the networks that are trained"):
        restore_last(_checkpoint(0.0, size=4), out)


def test_coefficients_that_were_changed_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("astrogen.training.galaxy.read_manifest", lambda path: {"sha256": "0"})
    basis = Basis(np.ones((2, 4, 4)), np.zeros(2), np.ones(2), 0.1)
    write_basis(tmp_path, basis, np.ones((8, 5, 2), np.float16), "0 seed 1")
    run = Run(tmp_path, 1, 1, resume_from=tmp_path)
    _, white = basis_of_run(tmp_path, run)
    np.testing.assert_array_equal(white, np.ones((8, 5, 2)))
    with pytest.raises(RecordsError, match="must be those of the run"):
        basis_of_run(tmp_path, replace(run, seed=2))
    path = tmp_path / "coefficients.npy"
    path.write_bytes(path.read_bytes()[:-2] + b"\0\0")
    with pytest.raises(InputFileError, match="coefficients must be as they were written"):
        basis_of_run(tmp_path, run)


def test_two_trainings_do_not_share_a_folder(tmp_path):
    with hold_folder(tmp_path, error=WeightsError):
        with pytest.raises(WeightsError, match="folder must be written by one process at a time"):
            train_prior("galaxy", records=tmp_path, out=tmp_path)
