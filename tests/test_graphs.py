"""Graphs of any size: one trace, and the numbers of the graph of that size."""

import numpy as np
import tensorflow as tf

from astrogen.graphs import any_size, each_size

runs = []


@any_size
@tf.function(autograph=False)
def outer(pair, name):
    runs.append(name)
    one, other = pair
    return tf.tensordot(one, other, 0) + tf.cast(tf.shape(one)[0], tf.float32)


def test_a_graph_is_traced_once_for_all_sizes_and_again_for_what_is_no_tensor():
    for name in ("one", "other"):
        for num, more in ((2, 3), (5, 3), (1, 7), (2, 3)):
            one, other = np.arange(num, dtype=np.float32), np.ones(more, np.float32)
            found = outer((tf.constant(one), tf.constant(other)), name)
            np.testing.assert_array_equal(found, np.outer(one, other) + num)
    assert runs == ["one", "other"]
    assert outer.num_traces() == 2


def test_step_by_step_nothing_is_traced():
    once, before = tf.constant([1.0, 2.0]), outer.num_traces()
    tf.config.run_functions_eagerly(True)
    try:
        np.testing.assert_array_equal(outer((once, once), "eager"), [[3, 4], [4, 6]])
    finally:
        tf.config.run_functions_eagerly(False)
    assert outer.num_traces() == before


def test_each_size_is_traced_once_and_the_oldest_is_forgotten():
    traced = []

    def doubled(array, *, times):
        traced.append((array.shape[0], times))  # static inside
        return array * times

    graph = each_size(doubled, most=2)
    for num in (3, 4, 3, 4, 3):
        found = graph(tf.ones([num]), times=2.0)
        np.testing.assert_array_equal(found, np.full(num, 2.0))
    assert traced == [(3, 2.0), (4, 2.0)]
    graph(tf.ones([3]), times=5.0)
    graph(tf.ones([4]), times=2.0)
    assert traced == [(3, 2.0), (4, 2.0), (3, 5.0), (4, 2.0)]
