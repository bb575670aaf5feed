"""Graphs that are traced once, whatever the sizes of what they are given."""

from functools import wraps

import numpy as np
import tensorflow as tf


def any_size(graph):
    """A `tf.function` as one that is traced for tensors of these ranks and types, not for their
    shapes: the next sizes of a stamp, or of what it is reduced to, cost no new trace.

    Inside, every dimension is unknown: what needs one asks `tf.shape`. Arguments that are no
    tensors (a prior, a number of draws) are told apart as ever. Called in another graph, or where
    functions run step by step, it is the Python function alone.
    """

    @wraps(graph.python_function)
    def call(*arguments, **options):
        if not tf.executing_eagerly() or tf.config.functions_run_eagerly():
            return graph.python_function(*arguments, **options)
        # A call takes a trace that fits: the one for any size is made before any other.
        graph.get_concrete_function(*tf.nest.map_structure(_unsized, arguments), **options)
        return graph(*arguments, **options)

    call.num_traces = graph.experimental_get_tracing_count
    return call


def _unsized(value):
    if not isinstance(value, (tf.Tensor, np.ndarray)):
        return value
    return tf.TensorSpec([None] * len(value.shape), value.dtype)
