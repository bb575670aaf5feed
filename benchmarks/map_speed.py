"""How fast maps come, in CPU time on one core: emulated ones, ones of a new simulation each, and
further ones of a finished simulation.

    python -m benchmarks.map_speed PRIOR OMEGA_M SIGMA_8 NUM SEED

`python -m benchmarks.maps` runs this with one thread for every library; the answer is one line of
JSON.
"""

import json
import os
import resource
import sys
import time
from importlib.util import find_spec

import tensorflow as tf

from astrogen.priors import load_prior
from astrogen.priors.convergence import MARGIN

BATCH = 64  # maps that are drawn together
NUM_FURTHER = 32  # maps of a finished simulation


def main(arguments):
    """Measure, and print the answer; the exit code."""
    if hasattr(os, "sched_setaffinity"):  # jax has no other way to be told
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    name, cosmology, num, seed = (
        arguments[0],
        (float(arguments[1]), float(arguments[2])),
        int(arguments[3]),
        int(arguments[4]),
    )
    speed = time_emulator(load_prior(name), cosmology, num=num, seed=seed) | {
        "simulations": time_simulations(cosmology, seed=seed)
    }
    print(json.dumps(speed))
    return 0


def time_emulator(prior, cosmology, *, num, seed):
    """Maps per second of the training size after a warm-up, latents included, and by how much (MB)
    four times as many maps raise the peak of memory, none being kept.
    """
    parameters = tf.constant([cosmology], tf.float32)
    draw = tf.function(lambda latent: prior.draw(latent, parameters))
    shape = (BATCH, *(side + MARGIN for side in prior.image_shape))

    def stream(count):
        for start in range(0, count, BATCH):
            draw(tf.random.stateless_normal(shape, [seed, start])).numpy()

    stream(BATCH)
    began = time.process_time()
    stream(num)
    seconds = time.process_time() - began
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    stream(4 * num)
    return {
        "maps per second": -(-num // BATCH) * BATCH / seconds,
        "memory growth, MB": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3,
    }


def time_simulations(cosmology, *, seed):
    """Seconds for a map of a new simulation, and for one more map of a finished one; None without
    the simulation's libraries.
    """
    if not (find_spec("jaxpm") and find_spec("camb")):
        return None
    from data_pipelines.convergence import draw_records, recipe

    per_simulation = NUM_FURTHER + 1
    header = recipe([tuple(cosmology)] * 2, maps_per_simulation=per_simulation, seed=seed)
    draw_records(header, 0, 1)  # compiles
    began = time.process_time()
    draw_records(header, per_simulation, per_simulation + 1)
    new = time.process_time() - began
    began = time.process_time()
    draw_records(header, per_simulation + 1, 2 * per_simulation)
    return {
        "seconds per new simulation": new,
        "seconds per further map": (time.process_time() - began) / NUM_FURTHER,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
