"""What an interrupted training run left: whole, or refused. Training never begins anew without a
word.
"""

from pathlib import Path

import tensorflow as tf

from astrogen.errors import WeightsError

FOLDER, POINTER = "checkpoints", "checkpoint"  # the pointer names the last of the folder
ADVICE = "copy the folder again, or train in another one"


def keep_checkpoints(checkpoint, out, *, resume_from=None):
    """The manager that keeps the last two checkpoints of a run in the folder `out`.

    Parameters
    ----------
    checkpoint : tf.train.Checkpoint of all that training changes
    resume_from : path or None, the folder of the run whose last checkpoint is gone on from
    """
    if resume_from:
        restore_last(checkpoint, resume_from)
    else:
        (Path(out) / FOLDER / POINTER).unlink(missing_ok=True)  # this run begins anew
    return tf.train.CheckpointManager(checkpoint, str(Path(out) / FOLDER), max_to_keep=2)


def restore_last(checkpoint, out):
    """Restore the last checkpoint of the run in the folder `out`; whether there was one.

    Parameters
    ----------
    checkpoint : tf.train.Checkpoint of all that training changes

    Raises
    ------
    WeightsError : the pointer to it, or the checkpoint, is missing, cut or damaged, or is of other
        networks.
    """
    folder = Path(out) / FOLDER
    pointer, kept = folder / POINTER, sorted(path.name for path in folder.glob("ckpt-*"))
    if not pointer.exists() and not kept:
        return False
    try:
        last = tf.train.latest_checkpoint(str(folder))  # None too where it cannot be parsed
    except (ValueError, tf.errors.OpError):  # where it parses, and names nothing
        last = None
    if last is None or Path(last).parent.resolve() != folder.resolve():
        raise WeightsError(
            pointer,
            f"train: pointer must name a checkpoint of its folder, got {_words(pointer)} beside"
            f" {', '.join(kept) or 'no checkpoints'}; {ADVICE}",
        )
    try:
        checkpoint.restore(last).assert_existing_objects_matched()
    except (tf.errors.OpError, AssertionError, ValueError) as error:
        raise WeightsError(
            last,
            "train: checkpoint must be whole, and of the networks that are trained, got"
            f" {' '.join(str(error).split())[:300]}; {ADVICE}",
        ) from error
    return True


def _words(pointer):
    if not pointer.exists():
        return "no pointer"
    return repr(pointer.read_bytes()[:80].decode(errors="replace"))
