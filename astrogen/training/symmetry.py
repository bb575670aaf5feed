"""A symmetric network learned from one that is not: what it is taught is the mean of the other's
correction over the eight flips and transposes of a field.

A mean of eight costs eight networks at every step of a sampler; a network that is symmetric by its
kernels costs one.
"""

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from astrogen.priors.convergence import polynomial_terms, scaled_cosmology
from astrogen.priors.correction import smoothed, squareplus, wrapped
from astrogen.priors.storage import read_weights

NUM_FIELDS, NUM_APART = 832, 64  # that are learned from, and that the loss is told of
BATCH, RATE = 8, 4e-3
TEACHER_MAPS, TEACHER_ROUNDS = 4, 3


class Teacher:
    """The mean correction of a network with free kernels over the eight orientations of a field, as
    a function of the field in units of the lognormal field's standard deviation.

    Parameters
    ----------
    directory : path, weights of a convergence prior whose kernels are [3, 3, in, out], with the
        unit that its network learned in as `network_log_std`
    prior : ConvergencePrior that the field is one of
    """

    def __init__(self, directory, prior):
        card, arrays = read_weights(directory)
        weights = list(arrays["network"].values())
        self.prior, self.settings = prior, card["network"]
        self.kernels = [value for value in weights if value.ndim == 4]
        small = [value for value in weights if value.ndim < 4]
        self.last, self.shifts = small[:2], list(zip(small[2::2], small[3::2], strict=True))
        self.log_std = arrays["spectra"]["network_log_std"]
        self.card = card

    def __call__(self, field, scaled):
        cosmology = tf.exp(scaled / scaled_cosmology([[np.e * 0.3, np.e * 0.8]])) * [0.3, 0.8]
        _, std = self.prior.moments(cosmology, field.shape[1:])
        own = tf.exp(tf.linalg.matvec(polynomial_terms(cosmology), self.log_std))[:, None, None]
        return self.average(field * std / own, scaled) * own / std

    def average(self, field, scaled):
        """Mean over the eight orientations, each turned back."""
        total = 0.0
        for flip in (False, True):
            for turns in range(4):
                turned = _turned(tf.reverse(field, [2]) if flip else field, turns)
                seen = _turned(self.correct(turned, scaled), -turns % 4)
                total += tf.reverse(seen, [2]) if flip else seen
        return total / 8

    def correct(self, field, scaled):
        """The correction of one orientation."""
        x, y = tf.unstack(scaled, axis=-1)
        terms = tf.stack([x, y, x * x, x * y, y * y], -1)
        value = tf.stack([field, *smoothed(field, self.settings["smoothing"])], -1)
        layers = zip(self.kernels, self.shifts, self.settings["dilations"], strict=True)
        for kernel, (slopes, bias), dilation in layers:
            linear = tf.nn.conv2d(wrapped(value, dilation), kernel, 1, "VALID", dilations=dilation)
            active = squareplus(linear + (terms @ slopes + bias)[:, None, None])
            value = value + active if value.shape[-1] == active.shape[-1] else active
        return (value @ self.last[0] + self.last[1])[..., 0]


def _turned(field, turns):
    return tf.image.rot90(field[..., None], turns)[..., 0]


def draw_lessons(prior, *, seed):
    """Fields [num, n, m] in the network's unit, scaled cosmologies [num, 2], and what the prior's
    network (a Teacher) makes of them.
    """
    rng = np.random.default_rng(seed)
    low, high = zip(*(prior.cosmology_range[name] for name in ("omega_m", "sigma_8")), strict=True)

    @tf.function(reduce_retracing=True)
    def one(latent, cosmology):
        n, m = latent.shape[1:]
        field = prior.colour(latent, cosmology)
        unit = (field - prior.mean_of_log(n, m, cosmology)) / prior.moments(cosmology, (n, m))[1]
        return unit, prior.network(unit, scaled_cosmology(cosmology))

    lessons = []
    for start in range(0, NUM_FIELDS + NUM_APART, BATCH):
        cosmology = tf.constant(rng.uniform(low, high, (BATCH, 2)), tf.float32)
        latent = tf.random.stateless_normal([BATCH, *prior.grid_shape], [seed, start])
        lessons.append([*one(latent, cosmology), scaled_cosmology(cosmology)])
    return [np.concatenate(part) for part in zip(*lessons, strict=True)]


def learn_symmetric(network, lessons, *, num_steps, seed):
    """Train a Correction on the lessons, in place, by the mean square of what it misses.

    Returns
    -------
    float : what it misses of the corrections that it did not learn from, rms over their rms
    """
    unit, wanted, scaled = lessons
    optimizer = keras.optimizers.Adam(RATE)
    optimizer.build(network.trainable_variables)

    @tf.function
    def step(unit, scaled, wanted):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((network(unit, scaled) - wanted) ** 2)
        gradients = tape.gradient(loss, network.trainable_variables)
        optimizer.apply_gradients(zip(gradients, network.trainable_variables, strict=True))
        return loss

    rng, order = np.random.default_rng(seed), np.zeros(0, int)
    with tqdm(total=num_steps, unit=" steps", disable=None) as progress:
        for index in range(num_steps):
            if len(order) < BATCH:
                order = rng.permutation(NUM_FIELDS)
            rows, order = order[:BATCH], order[BATCH:]
            optimizer.learning_rate.assign(RATE * 0.5 * (1 + np.cos(np.pi * index / num_steps)))
            loss = step(*(tf.constant(part[rows]) for part in (unit, scaled, wanted)))
            progress.update()
            progress.set_postfix_str(f"loss {float(loss):.3g}", refresh=False)
    apart = slice(NUM_FIELDS, NUM_FIELDS + NUM_APART)
    missed = network(tf.constant(unit[apart]), tf.constant(scaled[apart])).numpy() - wanted[apart]
    return float(np.sqrt(np.mean(missed**2) / np.mean(wanted[apart] ** 2)))
