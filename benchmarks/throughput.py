"""How fast the telescope is: the renderer against a bare FFT convolution of `tf.signal` on the same
padded grid, and decoding with rendering.

    python -m benchmarks.throughput --out throughput.json

On one thread, after a warm-up, repetitions in turn; medians, of the rates' ratios too (each of one
turn). `forward`: images in, stamps of 48 pixels of 0.2 arcsec out (the bare convolution: the padded
images); `forward + backward`: also the gradient of their sum of squares by the images (and by the
shift, which the bare convolution does not have). Target: at least 0.8 of the bare convolution's
rate.
"""

import os

THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
)
if __name__ == "__main__":
    # before the libraries are imported, which read it once
    os.environ.update(dict.fromkeys(THREADS, "1"))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path

import galsim
import numpy as np
import tensorflow as tf

from astrogen import load_prior
from astrogen.data.files import write_whole
from astrogen.galsim_objects import psf_from_galsim
from astrogen.instruments import telescope

BATCH, REPEATS = 64, 41
SHAPE, PIXEL_SCALE = (48, 48), 0.2
PSF = galsim.Kolmogorov(fwhm=0.7)
TARGET = 0.8
SEED = 1


def main(arguments=None):
    """Run the command; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.throughput",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON file")
    parser.add_argument(
        "--batch", type=int, default=BATCH, metavar="N", help="stamps at once (default %(default)s)"
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=REPEATS,
        metavar="N",
        help="of each, in turn (default %(default)s)",
    )
    options = parser.parse_args(arguments)
    report = measure(batch=options.batch, num_repeats=options.repeats)
    _print(report, options.batch)
    if options.out:
        write_whole(options.out, json.dumps(report, indent=1))
    return 0


def measure(*, batch, num_repeats):
    """Milliseconds per stamp of each task, {"ms": {name: float}}, and rates over those of the bare
    convolution, {"ratio": {name: float}}.
    """
    prior = load_prior("galaxy")
    psf = psf_from_galsim(PSF, pixel_scale=PIXEL_SCALE)
    kernel = telescope.kernel_transform(
        psf.image,
        psf_scale=psf.pixel_scale,
        pixel_response=psf.pixel_response,
        pixel_scale=PIXEL_SCALE,
        prior_scale=prior.pixel_scale,
        target_fwhm=prior.target_fwhm,
    )[None]
    seeds = tf.random.experimental.stateless_split([SEED, 0], 2)
    latent, shift = (
        tf.random.stateless_normal([batch, prior.latent_size], seeds[0]),
        0.1 * tf.random.stateless_normal([batch, 2], seeds[1]),
    )
    images = prior.decode(latent)
    render = partial(
        telescope.render,
        kernels=kernel,
        shape=SHAPE,
        pixel_scale=PIXEL_SCALE,
        prior_scale=prior.pixel_scale,
    )

    def seen(images, shift):
        return render(images, shift=shift)

    def bare(images):
        return convolve_bare(images, kernel)

    def decoded(latent, shift):
        return render(prior.decode(latent), shift=shift)

    tasks = {
        "bare convolution, forward": (tf.function(bare), (images,)),
        "render, forward": (tf.function(seen), (images, shift)),
        "bare convolution, forward + backward": (_with_gradient(bare, 1), (images,)),
        "render, forward + backward": (_with_gradient(seen, 1), (images, shift)),
        "render, forward + backward, shift too": (_with_gradient(seen, 2), (images, shift)),
        "decode": (tf.function(prior.decode), (latent,)),
        "decode + render, forward": (tf.function(decoded), (latent, shift)),
        "decode + render, forward + backward": (_with_gradient(decoded, 2), (latent, shift)),
    }
    seconds = time_in_turn(
        {name: partial(function, *values) for name, (function, values) in tasks.items()},
        num_repeats,
    )
    rivals = {
        name: f"bare convolution, {'forward + backward' if 'backward' in name else 'forward'}"
        for name in tasks
        if name.startswith("render")
    }
    return {
        "ms": {name: 1e3 * float(np.median(values)) / batch for name, values in seconds.items()},
        "ratio": {
            name: float(np.median(seconds[rival] / seconds[name])) for name, rival in rivals.items()
        },
    }


def convolve_bare(images, kernel):
    """What any FFT convolution has to do: pad, transform, multiply, transform back.

    Tensor [batch, GRID, GRID].
    """
    left, top = ((telescope.GRID - side) // 2 for side in images.shape[:0:-1])
    padded = tf.pad(
        images,
        [
            [0, 0],
            [top, telescope.GRID - images.shape[1] - top],
            [left, telescope.GRID - images.shape[2] - left],
        ],
    )
    return tf.signal.irfft2d(tf.signal.rfft2d(padded) * kernel, fft_length=[telescope.GRID] * 2)


def _with_gradient(function, num):
    """The gradient of the sum of squares by the first `num` arguments."""

    @tf.function
    def run(*values):
        with tf.GradientTape() as tape:
            tape.watch(values[:num])
            total = tf.reduce_sum(function(*values) ** 2)
        return tape.gradient(total, values[:num])

    return run


def time_in_turn(tasks, num_repeats):
    """Seconds [num_repeats] of each task {name: function ()}, run in turn, so that what else the
    machine does falls on all alike; twice before that, to trace and warm up.
    """
    for _ in range(2):
        for run in tasks.values():
            run()
    seconds = {name: [] for name in tasks}
    for _ in range(num_repeats):
        for name, run in tasks.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return {name: np.array(values) for name, values in seconds.items()}


def _print(report, batch):
    print(f"ms per stamp, {batch} at once, one thread; rate over that of the bare convolution")
    for name, value in report["ms"].items():
        ratio = report["ratio"].get(name)
        verdict = (
            ""
            if ratio is None
            else (
                f"   {ratio:5.2f}, target at least {TARGET:g}:"
                f" {'met' if ratio >= TARGET else 'NOT met'}"
            )
        )
        print(f"  {name:<40} {value:7.3f}{verdict}")


if __name__ == "__main__":
    sys.exit(main())
