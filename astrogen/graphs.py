"""Graphs that are traced once for any size of what they are given, or once for each."""

from functools import lru_cache, wraps

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


def each_size(function, *, most=24):
    """A function as a graph of its own for each set of shapes, for loops that need them static.

    Each is traced once; beyond `most` of them the one that was not used for longest is forgotten,
    so that a run over stamps of many sizes does not grow for ever.
    """

    @lru_cache(maxsize=most)
    def graph_of(sizes):
        return tf.function(function, autograph=False)

    @wraps(function)
    def call(*arguments, **options):
        leaves = tf.nest.flatten((arguments, tuple(options.values())))
        graph = graph_of(tuple(map(_size, leaves)))
        return graph(*arguments, **options)

    call.graph_of = graph_of
    return call


def _size(value):
    """What tells one graph from another: shape and type of an array, or the value itself."""
    if isinstance(value, (tf.Tensor, np.ndarray)):
        return tuple(value.shape), value.dtype
    return value
