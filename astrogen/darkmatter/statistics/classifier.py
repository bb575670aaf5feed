"""The visual Turing test in numbers: can a network that has seen both kinds of maps tell new ones
apart?

A small convolutional network is trained to separate two sets of maps, and its accuracy is measured
on maps that were kept apart: 0.5 where the sets cannot be told apart by it. The accuracy grows with
the number of maps, so that accuracies compare at equal numbers only. The network averages its
features, and their squares, over the map at three resolutions, and brings each average to unit
variance: a difference of a map's moments, small beside the moments themselves, is then learnt
within few steps.
"""

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from astrogen.darkmatter.statistics.maps import checked_maps
from astrogen.errors import InputError

WIDTHS = (8, 16, 32)
SMALLEST = 18  # pixels, that three convolutions with halving between them leave something of
LEARNING_RATE = 1e-2
BATCH = 32  # maps of each set per step
AT_ONCE = 256  # maps that are answered together
HELD_OUT = 1 / 3


class TwoSample(NamedTuple):
    """Accuracy of the classifier on maps kept apart, the two sets weighing the same.

    accuracy : float, 0.5 where it cannot tell the sets apart
    error : float, binomial standard error of an accuracy of 0.5
    num_held_out : (int, int), maps kept apart of each set
    """

    accuracy: float
    error: float
    num_held_out: tuple


def classify(
    first: np.ndarray,
    second: np.ndarray,
    *,
    seed: int,
    first_groups: np.ndarray | None = None,
    second_groups: np.ndarray | None = None,
    num_steps: int = 400,
) -> TwoSample:
    """Two-sample test of two sets of maps by a classifier (Lopez-Paz & Oquab 2017).

    A third of the groups of each set is kept apart: with the simulations as groups, no held-out map
    shares structures with one that was learnt from. Maps are divided by one standard deviation,
    their tails compressed by asinh, and turned and mirrored at random; answers are averages over
    the eight orientations.

    Parameters
    ----------
    first, second : arrays [num, height, width], at least 18 pixels wide
    seed : int
    first_groups, second_groups : arrays [num] of labels or None, each map a group of its own
    num_steps : int, of training

    Returns
    -------
    TwoSample

    Raises
    ------
    ValueError : maps of different shapes, or too few groups to keep some apart.
    """
    sets = [checked_maps(maps, "classify", smallest=SMALLEST) for maps in (first, second)]
    if sets[0].shape[1:] != sets[1].shape[1:]:
        raise InputError(
            f"classify: first and second must have maps of one shape, got {sets[0].shape[1:]} and"
            f" {sets[1].shape[1:]}; cut both to the same field"
        )
    rng = np.random.default_rng(seed)
    held = [
        _held_out(len(maps), groups, rng)
        for maps, groups in zip(sets, (first_groups, second_groups), strict=True)
    ]
    learnt = [maps[~out] for maps, out in zip(sets, held, strict=True)]
    mean, scale = (
        np.mean([maps.mean() for maps in learnt]),
        np.sqrt(np.mean([maps.var() for maps in learnt])),
    )
    sets = [np.arcsinh((maps - mean) / scale).astype(np.float32) for maps in sets]
    network = make_classifier(seed)
    _train(
        network,
        *(maps[~out] for maps, out in zip(sets, held, strict=True)),
        num_steps=num_steps,
        rng=rng,
    )
    right = [
        np.mean(_answers(network, maps[out]) * sign > 0)
        for maps, out, sign in zip(sets, held, (-1, 1), strict=True)
    ]
    num = tuple(int(out.sum()) for out in held)
    return TwoSample(float(np.mean(right)), float(0.25 * np.sqrt(1 / num[0] + 1 / num[1])), num)


def _held_out(num, groups, rng):
    """True for the maps of the groups that are kept apart."""
    labels = np.arange(num) if groups is None else np.asarray(groups)
    names = np.unique(labels)
    num_out = round(HELD_OUT * len(names))
    if labels.shape != (num,) or num_out < 1 or num_out == len(names):
        raise InputError(
            f"classify: groups must label {num} maps of at least two groups, got {len(names)}"
            f" groups of shape {labels.shape}; give maps of more simulations"
        )
    return np.isin(labels, rng.permutation(names)[:num_out])


def make_classifier(seed: int) -> keras.Model:
    """The network, untrained: maps [batch, height, width, 1] -> score [batch, 1], positive for the
    second set.
    """
    layers, normal = keras.layers, keras.initializers.HeNormal
    maps = keras.Input((None, None, 1))
    features, averages = maps, []
    for row, width in enumerate(WIDTHS):
        features = layers.Conv2D(
            width, 3, activation="gelu", kernel_initializer=normal(seed + row)
        )(features)
        averages += [
            layers.GlobalAveragePooling2D()(moment)
            for moment in (features, keras.ops.square(features))
        ]
        features = layers.AveragePooling2D(2)(features)
    averages = layers.BatchNormalization(momentum=0.95)(layers.Concatenate()(averages))
    hidden = layers.Dense(32, activation="gelu", kernel_initializer=normal(seed + len(WIDTHS)))(
        averages
    )
    return keras.Model(
        maps, layers.Dense(1, kernel_initializer=normal(seed + len(WIDTHS) + 1))(hidden)
    )


def _train(network, first, second, *, num_steps, rng):
    optimizer = keras.optimizers.AdamW(
        keras.optimizers.schedules.CosineDecay(LEARNING_RATE, num_steps), weight_decay=1e-3
    )
    optimizer.build(network.trainable_variables)
    target = tf.constant(np.repeat([[0.0], [1.0]], BATCH, 0).astype(np.float32))

    @tf.function
    def train_step(batch):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(
                tf.nn.sigmoid_cross_entropy_with_logits(target, network(batch, training=True))
            )
        optimizer.apply_gradients(
            zip(tape.gradient(loss, network.trainable_variables), network.trainable_variables)
        )

    for _ in range(num_steps):
        batch = np.concatenate(
            [maps[rng.integers(0, len(maps), BATCH)] for maps in (first, second)]
        )
        train_step(tf.constant(_turned(batch, rng)[..., None]))


def _turned(batch, rng):
    """The batch in one of its eight orientations; maps that are not square are mirrored only."""
    batch = batch[:, :: rng.choice((-1, 1)), :: rng.choice((-1, 1))]
    return (
        batch.swapaxes(1, 2) if batch.shape[1] == batch.shape[2] and rng.random() < 0.5 else batch
    )


def _answers(network, maps):
    """Score [num] of each map, averaged over its orientations."""
    views = [maps[:, ::y, ::x] for y in (-1, 1) for x in (-1, 1)]
    if maps.shape[1] == maps.shape[2]:
        views += [view.swapaxes(1, 2) for view in views]
    parts = range(0, len(maps), AT_ONCE)
    return np.mean(
        [
            np.concatenate(
                [
                    network(view[part : part + AT_ONCE, ..., None], training=False)[:, 0]
                    for part in parts
                ]
            )
            for view in views
        ],
        0,
    )
