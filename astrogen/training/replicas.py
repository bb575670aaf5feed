"""One step of training on several devices or hosts: every replica takes its share of the batch, and
the gradients are averaged, so that N replicas with B / N samples
each make the step of one with B. Random numbers are drawn for the whole batch, and shared out like
it.
"""

import contextlib
from pathlib import Path

import tensorflow as tf

from astrogen.errors import InputError

STRATEGIES = {
    "one": lambda: None,
    "mirrored": tf.distribute.MirroredStrategy,
    "multi-worker": tf.distribute.MultiWorkerMirroredStrategy,
}


def choose_strategy(strategy):
    """The strategy of a name: "one" (None: no strategy), "mirrored" (all GPUs of this host),
    "multi-worker" (the hosts that TF_CONFIG names); or what is given.
    """
    if strategy is None or isinstance(strategy, tf.distribute.Strategy):
        return strategy
    if strategy not in STRATEGIES:
        raise InputError(
            f"choose_strategy: strategy must be one of {', '.join(STRATEGIES)}, or a"
            f" tf.distribute.Strategy, got {strategy!r}"
        )
    return STRATEGIES[strategy]()


def scope_of(strategy):
    """Where variables are made, and steps are taken."""
    return strategy.scope() if strategy else contextlib.nullcontext()


def worker_folder(out, strategy):
    """Folder that this process writes to: `out` for the first, one inside it for each other worker,
    who writes the same and nobody reads it.
    """
    resolver = strategy.cluster_resolver if strategy else None
    if resolver is None or not resolver.task_type or resolver.task_type == "chief":
        return Path(out)
    first = resolver.task_id == 0 and "chief" not in resolver.cluster_spec().jobs
    return Path(out) if first else Path(out) / f"{resolver.task_type}-{resolver.task_id}"


def averaged(strategy, function):
    """The mean over the replicas of what each makes of its share.

    Parameters
    ----------
    strategy : tf.distribute.Strategy or None
    function : (share) -> nest of tensors; share(tensor [batch, ...]) gives the replica's rows, an
        equal number for each

    Returns
    -------
    nest of tensors

    Raises
    ------
    ValueError : a batch that the replicas cannot share equally.
    """
    if strategy is None:
        return function(lambda batch: batch)
    num = strategy.num_replicas_in_sync

    def run():
        rank = tf.distribute.get_replica_context().replica_id_in_sync_group

        def share(batch):
            if batch.shape[0] % num:
                raise InputError(
                    f"averaged: batch must be a multiple of the {num} replicas, got"
                    f" {batch.shape[0]}; use another number of devices"
                )
            size = batch.shape[0] // num
            return tf.ensure_shape(batch[rank * size : (rank + 1) * size], [size, *batch.shape[1:]])

        return tf.nest.map_structure(tf.convert_to_tensor, function(share))

    return tf.nest.map_structure(
        lambda value: strategy.reduce(tf.distribute.ReduceOp.MEAN, value, axis=None),
        strategy.run(run),
    )


def mean_here(value):
    """Inside `averaged`: the mean over the replicas of a tensor, or of each of a list."""
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.MEAN, value)


def parts(gradients):
    """Inside `averaged`: gradients for a Keras optimiser that is applied there.

    It sums them over the replicas, and the mean is wanted.
    """
    num = tf.distribute.get_replica_context().num_replicas_in_sync
    # Of weights that are gathered the gradient comes in slices.
    return [tf.convert_to_tensor(gradient) / num for gradient in gradients]
