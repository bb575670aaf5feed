"""Variational inference: a normal with full covariance, fitted to the posterior and corrected by
importance weights.

It starts at the Laplace approximation and climbs the evidence lower bound; what it gains is that
its width and place are those of the whole posterior, not of its top. It stays a normal: a ridge
that is curved remains one that no normal fits, and k-hat, told from 1500 proposals, says so. Of
50 bright galaxies at a signal-to-noise of 100 the Laplace approximation leaves 27 above the limit,
the fit 13, at two thirds of the cost of chains, for which there is no limit to miss.
"""

import tensorflow as tf
from tensorflow_probability import distributions as tfd

from astrogen.graphs import each_size
from astrogen.inference.climb import value_and_gradient
from astrogen.inference.laplace import fold, member_normals, member_seeds, whitening
from astrogen.inference.methods import PROPOSALS, STABLE, weighted

NUM_STEPS, NUM_SAMPLES = 400, 8  # of the climb, and per step
LEARNING_RATE = 0.02  # falls to zero as a cosine, in the whitened space
DECAYS, TINY = (0.9, 0.99), 1e-8  # of Adam (Kingma & Ba 2015)
PROPOSAL = 4  # folds seeds


def fit_normal(log_density_fn, climb, evidence, *, seed, num_steps=NUM_STEPS):
    """Fit a normal to each of a batch of log-densities by maximising the evidence lower bound.

    Its gradient is that along the path of the samples alone (Roeder, Wu & Duvenaud 2017), which has
    no noise where the normal is the target (tests/test_vi.py).

    Parameters
    ----------
    log_density_fn : callable of (parameters [sample, batch, p], evidence) -> [sample, batch]
    climb : Climb, the start: modes and precisions
    evidence : nested tensors handed to the log-density
    seed : int pair, or int array [batch, 2]: one pair for each object

    Returns
    -------
    mean [batch, p], and lower factor of the covariance [batch, p, p]
    """
    seeds = member_seeds(seed, climb.parameters.shape[0])
    return _fit(
        log_density_fn,
        climb.parameters,
        whitening(climb.precision),
        evidence,
        seeds,
        tf.constant(num_steps),
    )


@each_size
def _fit(log_density_fn, mode, to_parameters, evidence, seeds, num_steps):
    batch, size = mode.shape

    def density(white):
        return log_density_fn(mode + tf.linalg.matvec(to_parameters, white), evidence)

    def slopes(count, mean, factor):
        """Of the bound, by mean and factor: the force on each sample, and what it is held by."""
        noise = member_normals(fold(seeds, count), NUM_SAMPLES, size)
        white = mean + tf.linalg.matvec(factor, noise)
        _, pull = value_and_gradient(lambda white, _: density(white), white, None)
        # the gradient of minus the normal's own log-density, of which the parameters are held
        force = (
            pull + tf.linalg.triangular_solve(factor[None], noise[..., None], adjoint=True)[..., 0]
        )
        force = tf.where(tf.math.is_finite(force), force, 0.0) / NUM_SAMPLES
        return tf.reduce_sum(force, 0), tf.linalg.band_part(
            tf.einsum("sbi,sbj->bij", force, noise), -1, 0
        )

    def step(count, fitted, first, second):
        slope = slopes(count, *fitted)
        time = tf.cast(count, tf.float32) + 1.0
        rate = 0.5 * LEARNING_RATE * (1 + tf.cos(3.14159 * time / tf.cast(num_steps, tf.float32)))
        first = [DECAYS[0] * old + (1 - DECAYS[0]) * new for old, new in zip(first, slope)]
        second = [DECAYS[1] * old + (1 - DECAYS[1]) * new**2 for old, new in zip(second, slope)]
        mean, factor = (
            value
            + rate
            * (one / (1 - DECAYS[0] ** time))
            / (tf.sqrt(two / (1 - DECAYS[1] ** time)) + TINY)
            for value, one, two in zip(fitted, first, second)
        )
        diagonal = tf.maximum(tf.linalg.diag_part(factor), 0.05)  # never inside out
        return count + 1, [mean, tf.linalg.set_diag(factor, diagonal)], first, second

    start = [tf.zeros([batch, size]), tf.eye(size, batch_shape=[batch])]
    nothing = [tf.zeros_like(value) for value in start]
    _, (mean, factor), *_ = tf.while_loop(
        lambda count, *_: count < num_steps,
        step,
        (0, start, nothing, nothing),
        parallel_iterations=1,
    )
    return mode + tf.linalg.matvec(to_parameters, mean), tf.matmul(to_parameters, factor)


def draw_vi(target, climb, seeds, settings):
    """Draws from the fitted normal, in proportion to their weights.

    Returns
    -------
    Drawn; diagnostics k_hat, k_hat_error, ess
    """
    mean, factor = fit_normal(target.log_density_fn, climb, target.lean, seed=seeds)
    num = max(int(PROPOSALS * settings.num_draws), STABLE)
    noise = member_normals(fold(tf.constant(seeds), PROPOSAL), num, mean.shape[1])
    normal = tfd.MultivariateNormalDiag(tf.zeros([mean.shape[1]]))
    log_volume = tf.linalg.slogdet(factor).log_abs_determinant
    return weighted(
        "vi",
        target,
        mean + tf.linalg.matvec(factor, noise),
        normal.log_prob(noise) - log_volume,
        seeds,
        settings,
    )
