"""Training by several replicas: the steps are those of one device with the whole batch, on two
devices of a process and in two processes.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT

from astrogen.training import train_prior
from astrogen.training.replicas import averaged, choose_strategy, worker_folder

PROGRAM = Path(__file__).parent / "replica_steps.py"


def start(folder, strategy, **environment):
    path = os.pathsep.join([str(ROOT), str(PROGRAM.parent)])
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), str(folder), strategy],
        env={**os.environ, "PYTHONPATH": path, "TF_NUM_INTRAOP_THREADS": "1", **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def assert_steps_are_those_of_one_device(path):
    """Each weight's way from the start, to a thousandth of the longest in its tensor."""
    with np.load(path) as weights:
        names = [name.removeprefix("found_") for name in weights.files if name.startswith("found_")]
        assert len(names) > 30
        ways = {name: weights[f"alone_{name}"] - weights[f"start_{name}"] for name in names}
        assert np.median([np.abs(way).max() for way in ways.values()]) > 1e-4
        for name, way in ways.items():
            rounding = 1e-7 * np.abs(weights[f"start_{name}"]).max()
            np.testing.assert_allclose(
                weights[f"found_{name}"] - weights[f"start_{name}"],
                way,
                atol=1e-3 * np.abs(way).max() + 4 * rounding,
                err_msg=name,
            )


@pytest.mark.slow
def test_two_devices_take_the_steps_of_one(tmp_path):
    process = start(tmp_path, "mirrored")
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert_steps_are_those_of_one_device(tmp_path / "weights.npz")


def free_ports(num):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(num)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(tmp_path):
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(2)]}
    processes = [
        start(
            tmp_path,
            "multi-worker",
            TF_CONFIG=json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}}),
        )
        for index in range(2)
    ]
    try:
        errors = [process.communicate(timeout=400)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], errors
    for folder in (tmp_path, tmp_path / "worker-1"):
        assert_steps_are_those_of_one_device(folder / "weights.npz")
        assert list(
            (folder / "several" if folder == tmp_path else tmp_path / "several" / "worker-1").glob(
                "checkpoints/*.index"
            )
        )


def test_two_devices_share_a_batch(tmp_path):
    """The bare mechanics: shares, means, and a batch that cannot be shared, in a process of its
    own.
    """
    program = """
import tensorflow as tf
from astrogen.training.replicas import averaged, mean_here, parts
cpu, logical = tf.config.list_physical_devices("CPU")[0], tf.config.LogicalDeviceConfiguration()
tf.config.set_logical_device_configuration(cpu, [logical] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
batch = tf.constant([[1.0], [2.0], [3.0], [10.0]])

@tf.function(autograph=False)
def run(batch):
    def one(share):
        total = tf.reduce_sum(share(batch))
        return total, mean_here(total**2), parts([share(batch)])[0]

    return averaged(strategy, one)

total, mean, part = run(batch)
assert (float(total), float(mean)) == (8.0, 89.0), (total, mean)
assert part.numpy().ravel().tolist() == [1.0, 3.0], part
try:
    run(batch[:3])
except ValueError as error:
    assert "averaged: batch must be a multiple of the 2 replicas, got 3" in str(error)
else:
    raise AssertionError
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    assert done.returncode == 0, done.stderr


def test_one_device_needs_no_strategy(tmp_path):
    assert (
        choose_strategy("one") is choose_strategy(None) is None
        and worker_folder(tmp_path, None) == tmp_path
    )
    assert averaged(None, lambda share: share(3)) == 3
    strategy = tf.distribute.OneDeviceStrategy("CPU:0")
    assert choose_strategy(strategy) is strategy and worker_folder(tmp_path, strategy) == tmp_path


def test_strategies_that_cannot_be(tmp_path):
    with pytest.raises(
        ValueError,
        match=(
            "choose_strategy: strategy must be one of one, mirrored, multi-worker, or a"
            " tf.distribute.Strategy, got 'many'"
        ),
    ):
        train_prior("galaxy", records=tmp_path, out=tmp_path, strategy="many")
    with pytest.raises(
        ValueError, match="train_prior: strategy must be None for 'galaxy-conv', got 'mirrored'"
    ):
        train_prior("galaxy-conv", records=tmp_path, out=tmp_path, strategy="mirrored")
