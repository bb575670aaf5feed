"""Run by tests/test_replicas.py in processes of its own: the same few training steps without a
strategy and with one.

Adam divides a gradient by its own size: where that is next to nothing, rounding decides the sign of
a whole step. Here its epsilon is 1, so that steps are as large as gradients are.

    python replica_steps.py FOLDER mirrored          two logical CPU devices
    TF_CONFIG=... python replica_steps.py FOLDER multi-worker
"""

import os
import sys
from functools import partial
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from map_oracles import simulated_maps, small_prior

from astrogen.training import vae, wgan
from astrogen.training.basis import Basis
from astrogen.training.replicas import choose_strategy, scope_of, worker_folder
from astrogen.training.run import Run

SEED, COMPONENTS = 3, 12


def galaxy_steps(folder, strategy, num_steps=3):
    """Weights of the VAE before and after some steps of 32 galaxies."""
    keras.utils.set_random_seed(SEED)
    vae.BATCH, vae.CHECKPOINT_EVERY = 32, 2
    white = np.random.default_rng(SEED).normal(size=(8, 60, COMPONENTS)).astype(np.float16)
    basis = Basis(
        np.eye(COMPONENTS * 16, dtype=np.float32)[:COMPONENTS].reshape(COMPONENTS, 12, 16),
        np.zeros(COMPONENTS, np.float32),
        np.ones(COMPONENTS, np.float32),
        0.0,
    )
    out = worker_folder(folder, strategy)
    with scope_of(strategy):
        networks = vae.make_networks(COMPONENTS, latent=3, widths=(16,))
        start = networks.encoder.get_weights() + networks.decoder.get_weights()
        run = Run(out, num_steps, SEED, strategy=strategy)
        vae.train_vae(networks, basis, white, run, validation=white[0, :8].astype(np.float32))
    return start, networks.encoder.get_weights() + networks.decoder.get_weights()


def map_steps(strategy, num_steps=2):
    """Weights of correction, average and critic, and the running differences, before and after some
    steps of 16 maps.
    """
    keras.utils.set_random_seed(SEED)
    maps = simulated_maps(4, 8, seed=3)
    with scope_of(strategy):
        prior, average = small_prior(seed=1), small_prior(seed=2).network
        step = wgan.Step(
            prior,
            average,
            wgan.fit_features(prior, maps),
            loss="wgan-gp",
            seed=SEED,
            strategy=strategy,
        )
        parts = (prior.network, average, step.critic)
        start = [weight for part in parts for weight in part.get_weights()] + [
            step.difference.numpy()
        ]
        for index in range(num_steps):
            step.run(*wgan.draw_batch(maps, [SEED, index]), tf.constant(index), True)
    return start, [weight for part in parts for weight in part.get_weights()] + [
        step.difference.numpy()
    ]


def main(folder, name):
    folder = Path(folder)
    if name == "mirrored":
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * 2
        )
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    else:
        strategy = choose_strategy(name)
    assert strategy.num_replicas_in_sync == 2
    keras.optimizers.Adam = partial(keras.optimizers.Adam, epsilon=1.0)
    out = worker_folder(folder, strategy)
    out.mkdir(parents=True, exist_ok=True)
    runs = {
        "found": (galaxy_steps(folder / "several", strategy), map_steps(strategy)),
        "alone": (galaxy_steps(out / "one", None), map_steps(None)),
    }
    weights = {
        (when, who): [*galaxy[index], *maps[index]]
        for who, (galaxy, maps) in runs.items()
        for index, when in enumerate(("start", "end"))
    }
    for one, other in zip(weights["start", "found"], weights["start", "alone"], strict=True):
        np.testing.assert_array_equal(one, other)
    named = {
        "start": weights["start", "alone"],
        "found": weights["end", "found"],
        "alone": weights["end", "alone"],
    }
    np.savez(
        out / "weights.npz",
        **{
            f"{name}_{row:03d}": value
            for name, values in named.items()
            for row, value in enumerate(values)
        },
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
