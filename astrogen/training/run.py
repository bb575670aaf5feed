"""What every training has: how long it goes, where it is kept, and what it tells on the way."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf


@dataclass(frozen=True)
class Run:
    """A training.

    Parameters
    ----------
    out : path, for checkpoints/, logs/ (TensorBoard) and what else the training leaves
    num_steps : int
    seed : int
    resume_from : path or None, an `out` whose last checkpoint is gone on from
    strategy : tf.distribute.Strategy or None, in whose scope the steps are taken
    """

    out: Path
    num_steps: int
    seed: int
    resume_from: Path | None = None
    strategy: Any = None


def open_logs(run):
    """The writer of a training's curves."""
    return tf.summary.create_file_writer(str(run.out / "logs"))


def write_scalars(logs, step, values):
    """A point of each curve, {name: value}."""
    with logs.as_default(step=step):
        for name, value in values.items():
            tf.summary.scalar(name, value)
