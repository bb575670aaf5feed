"""One table of methods, each a function of (target, climb, seeds, settings) -> Drawn.

To add one: write such a function, and its line in METHODS. A kernel of TensorFlow Probability needs
neither: `draw` takes a function that makes one in place of a name (`chains.draw_by_kernel`).
"""

from contextlib import contextmanager
from functools import partial
from importlib import import_module

import numpy as np
import tensorflow as tf

from astrogen.errors import InputError
from astrogen.inference import diagnostics
from astrogen.inference.contracts import Drawn
from astrogen.inference.laplace import draw_gaussian, fold, gaussian_log_density, resample
from astrogen.inference.verdict import K_HAT_MAX

PROPOSALS = 1.5  # draws from an approximation for each that is kept after weighting
# proposals from which k-hat is told to .16 where it matters; to .24 from 300, and it is chance on
# which side of a limit it falls
STABLE = 1500
FIRST_PROPOSALS = 300  # of `auto`, for few draws
SURE = 2.0  # standard errors from its limit beyond which a k-hat of few proposals is believed
DECISION = 2  # folds seeds


def draw(method, target, climb, seeds, settings):
    """Draw from a batch of posteriors.

    Parameters
    ----------
    method : str, a name in METHODS; or a function that makes a kernel
    target : Target
    climb : Climb, the modes and precisions
    seeds : int array [batch, 2], one pair for each object
    settings : Settings

    Returns
    -------
    Drawn
    """
    if callable(method):
        with _traced():
            draw_by_kernel = import_module("astrogen.inference.chains").draw_by_kernel
            return draw_by_kernel(method, target, climb, seeds, settings)
    return METHODS[method](target, climb, seeds, settings)


def check_method(caller, method):
    """An InputError in the name of `caller` where there is no such method."""
    if not callable(method) and method not in METHODS:
        raise InputError(f"{caller}: method must be one of {tuple(METHODS)}, got {method!r}")


def name_of(method):
    """The name of a method, also of one that makes a kernel."""
    return getattr(method, "__name__", "kernel") if callable(method) else method


def draw_map(target, climb, seeds, settings):
    """All draws at the mode."""
    mode = climb.parameters.numpy()
    return Drawn(np.repeat(mode[None], settings.num_draws, 0), {}, _named("map", len(mode)))


def draw_laplace(target, climb, seeds, settings, *, num_proposals=None):
    """Draws from the Laplace approximation, in proportion to their weights."""
    num_proposals = num_proposals or int(PROPOSALS * settings.num_draws)
    proposals = draw_gaussian(climb, num_draws=num_proposals, seed=seeds)
    return weighted(
        "laplace", target, proposals, gaussian_log_density(climb, proposals), seeds, settings
    )


def weighted(name, target, proposals, log_proposal, seeds, settings):
    """Draws in proportion to smoothed importance weights.

    Parameters
    ----------
    name : str, of the method
    proposals : Tensor [proposal, batch, p]
    log_proposal : Tensor [proposal, batch], their log-density where they come from

    Returns
    -------
    Drawn; diagnostics k_hat, k_hat_error, ess
    """
    values, made = target.weigh_fn(proposals, target.evidence)
    smooth, k_hat = diagnostics.smooth_weights((values - log_proposal).numpy())
    chosen = tf.constant(resample(smooth, num_draws=settings.num_draws, seed=seeds))
    members = tf.range(len(seeds), dtype=chosen.dtype)
    places = tf.stack([chosen, tf.tile(members[None], [settings.num_draws, 1])], -1)
    draws, *made = (tf.gather_nd(array, places) for array in (proposals, *made))
    told = {
        "k_hat": k_hat,
        "k_hat_error": diagnostics.k_hat_error(k_hat, len(smooth)),
        "ess": diagnostics.effective_sample_size(smooth),
    }
    return Drawn(draws.numpy(), told, _named(name, len(seeds)), tuple(made))


def draw_hmc(target, climb, seeds, settings):
    """Draws by Hamiltonian Monte Carlo (`chains.draw_hmc`)."""
    with _traced():
        return import_module("astrogen.inference.chains").draw_hmc(target, climb, seeds, settings)


def draw_vi(target, climb, seeds, settings):
    """Draws from a normal fitted to the posterior (`vi.draw_vi`)."""
    with _traced():
        return import_module("astrogen.inference.vi").draw_vi(target, climb, seeds, settings)


@contextmanager
def _traced():
    """Loops of thousands of steps are traced, also where what is done once is not
    (`quiet.untraced`).
    """
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(False)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)


def draw_auto(target, climb, seeds, settings):
    """The Laplace approximation where its weights can be trusted, else Hamiltonian Monte Carlo.

    Where k-hat is too near its limit for its standard error it is taken again from STABLE
    proposals.
    """
    num = max(int(PROPOSALS * settings.num_draws), FIRST_PROPOSALS)
    drawn = draw_laplace(target, climb, seeds, settings, num_proposals=num)
    k_hat, error = (drawn.diagnostics[name] for name in ("k_hat", "k_hat_error"))
    unsure = np.flatnonzero(np.abs(k_hat - K_HAT_MAX) < SURE * error)
    if len(unsure) and num < STABLE:
        others = fold(tf.constant(seeds), DECISION).numpy()
        again = partial(draw_laplace, num_proposals=STABLE)
        drawn = redrawn(drawn, again, unsure, target, climb, others, settings)
    rough = np.flatnonzero(~(drawn.diagnostics["k_hat"] <= K_HAT_MAX))
    if not len(rough):
        return drawn
    drawn = redrawn(drawn, draw_hmc, rough, target, climb, seeds, settings)
    for name in ("k_hat", "k_hat_error"):  # their draws are no longer weighted ones
        drawn.diagnostics[name][rough] = np.nan
    return drawn


def redrawn(drawn, method, rows, target, climb, seeds, settings):
    """Drawn in which some members' draws are of another method.

    Parameters
    ----------
    method : function of METHODS' kind
    rows : int array, the members

    Returns
    -------
    Drawn
    """
    taken = padded(rows)
    other = method(target_of(target, taken), take(climb, taken), seeds[taken], settings)
    draws, methods, told = drawn.draws.copy(), drawn.methods.copy(), dict(drawn.diagnostics)
    draws[:, rows], methods[rows] = other.draws[:, : len(rows)], other.methods[: len(rows)]
    for name, values in other.diagnostics.items():
        told[name] = told.get(name, np.full(len(seeds), np.nan)).copy()
        told[name][rows] = values[: len(rows)]
    return Drawn(draws, told, methods, None)


def padded(rows):
    """Members filled up with the first to a power of two: few shapes, few traces."""
    return np.r_[rows, np.repeat(rows[0], (1 << (len(rows) - 1).bit_length()) - len(rows))]


def take(nested, rows):
    """Some members of nested tensors [batch, ...]; scalars stay."""
    return tf.nest.map_structure(lambda x: tf.gather(x, rows) if x.shape.rank else x, nested)


def target_of(target, rows):
    """The Target of some members."""
    return target._replace(evidence=take(target.evidence, rows))


def _named(name, num):
    return np.full(num, name, dtype=object)


METHODS = {
    "map": draw_map,
    "laplace": draw_laplace,
    "hmc": draw_hmc,
    "vi": draw_vi,
    "auto": draw_auto,
}
