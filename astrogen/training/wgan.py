"""The WGAN-GP of convergence maps: a loop that reads from top to bottom, and resumes where it was
stopped.

The critic compares standardised logarithms of the density, v = (log(kappa + lambda) - mean) / std,
of simulated and of drawn maps of the same cosmologies. Beside the critic's score, the generator
minimises 2 stop_gradient(D) . f: f are summaries of the drawn maps (`map_features`), D the running
difference of their mean from the simulations' at the same cosmology. The gradient is that of |D|^2,
but only means are steered: the scatter from map to map is left to the critic.
"""

import hashlib
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from astrogen.darkmatter.statistics import diversity
from astrogen.data.arrays import npz_bytes
from astrogen.data.files import write_whole
from astrogen.data.reading import read_npz
from astrogen.errors import InputFileError
from astrogen.priors.convergence import MARGIN, draw_latent, polynomial_terms, scaled_cosmology
from astrogen.training.checkpoints import keep_checkpoints
from astrogen.training.critic import Critic, critic_loss, generator_loss, gradient_penalty
from astrogen.training.map_features import map_features
from astrogen.training.replicas import averaged, mean_here, parts
from astrogen.training.run import open_logs, write_scalars
from astrogen.training.spectra import fit_polynomial

BATCH, NUM_CRITIC = 16, 2
PENALTY, STEERING = 10.0, 1.0
# steps with steering alone: the means are right before the critic looks
WARM_UP, WARM_RATE = 400, 3e-3
RATES = {"generator": 4e-4, "critic": 6e-4}
DECAY_FROM = 0.5  # share of the steps after which the learning rates fall linearly to a twentieth
AVERAGE, RUNNING = 0.995, 0.95
LEAST_SCATTER = 0.02  # of a feature from map to map, as a share of its mean
CHECKPOINT_EVERY = 100
# share of the steps after which checkpoints compete: before, few held-out boxes would choose by
# chance
CHOOSE_FROM = 0.75
NUM_VALIDATION = 512
MAX_BEST = 2**26  # bytes of the file of the best network, which has 4e4
TOLD = ("step", "statistic", "spread", "nearest")
DIGEST = "sha256"  # the name in the file of the best network of that of all else


class Target(NamedTuple):
    """What simulations have on average: coefficients [TERMS, F] of the mean summaries, and their
    scatter [F] from map to map.
    """

    coefficients: np.ndarray
    scatter: np.ndarray


def standardise(prior, log_map, cosmology):
    """Map log(kappa + lambda) [batch, n, m] in units of the coloured field's mean and standard
    deviation.
    """
    mean, std = prior.moments(cosmology)
    return (log_map - mean) / std


def summaries(prior, kappa, log_map, cosmology):
    """Features [batch, F] of maps in physical units and of their standardised logarithm."""
    std = prior.kappa_std(cosmology)
    return map_features(kappa / std, log_map, pixel_scale=prior.pixel_scale)


def log_density(prior, kappa, cosmology):
    """Standardised log(kappa + lambda) of simulated maps; a void deeper than lambda allows is cut
    at a hundredth of lambda.
    """
    shift = prior.shift(cosmology)[:, None, None]
    return standardise(prior, tf.math.log(tf.maximum(kappa + shift, 0.01 * shift)), cosmology)


def features_of(prior, kappa, cosmology, batch=64):
    """Features [num, F] of simulated maps [num, n, m], batch by batch."""
    one = tf.function(
        lambda kappa, cosmology: summaries(
            prior, kappa, log_density(prior, kappa, cosmology), cosmology
        ),
        reduce_retracing=True,
    )
    return np.concatenate(
        [
            one(
                tf.constant(kappa[row : row + batch]), tf.constant(cosmology[row : row + batch])
            ).numpy()
            for row in range(0, len(kappa), batch)
        ]
    )


def fit_features(prior, maps):
    """Target of the steering: mean features as polynomials of the cosmology."""
    features = features_of(prior, maps["kappa"], maps["cosmology"])
    coefficients = fit_polynomial(maps["cosmology"], features)
    expected = polynomial_terms(maps["cosmology"]).numpy() @ coefficients
    scatter = np.maximum(
        np.std(features - expected, axis=0), LEAST_SCATTER * np.abs(expected).mean(0) + 1e-6
    )
    return Target(coefficients.astype(np.float32), scatter.astype(np.float32))


class Step:
    """One step of training: NUM_CRITIC updates of the critic, one of the generator and of its
    running average.

    Parameters
    ----------
    prior : ConvergencePrior whose network is trained; average : Correction, the running average of
        its weights
    target : Target
    loss : str, "wgan-gp" or "gan"
    strategy : tf.distribute.Strategy or None, in whose scope all is made and run
    """

    def __init__(self, prior, average, target, *, loss, seed, strategy=None):
        self.prior, self.average, self.target, self.loss, self.seed, self.strategy = (
            prior,
            average,
            target,
            loss,
            seed,
            strategy,
        )
        self.critic = Critic(prior.image_shape[0])
        self.optimizers = {
            name: keras.optimizers.Adam(rate, beta_1=0.0, beta_2=0.9)
            for name, rate in RATES.items()
        }
        self.optimizers["generator"].build(prior.network.trainable_variables)
        self.optimizers["critic"].build(self.critic.trainable_variables)
        self.difference = tf.Variable(tf.zeros([3, len(target.scatter)]))
        self.count = tf.Variable(0, dtype=tf.int64)
        self.best = tf.Variable(np.inf, dtype=tf.float32)
        # Variables one by one: a checkpoint does not look into lists that a Keras layer holds, and
        # says nothing.
        kept = {
            "network": prior.network,
            "average": average,
            "critic": self.critic,
            **{f"{name}_optimizer": one for name, one in self.optimizers.items()},
        }
        self.checkpoint = tf.train.Checkpoint(
            difference=self.difference,
            count=self.count,
            best=self.best,
            **{
                name: [
                    variable.value
                    for variable in (one.variables if "optimizer" in name else one.weights)
                ]
                for name, one in kept.items()
            },
        )
        self.run = tf.function(self._run)

    def _run(self, kappa, cosmology, count, adversarial):
        """kappa [NUM_CRITIC, batch, n, n], cosmology [batch, 2], count [], adversarial: does the
        critic take part? -> dict of scalars.
        """
        grid = [side + MARGIN for side in self.prior.image_shape]
        latent = tf.random.stateless_normal([kappa.shape[1], *grid], tf.stack([self.seed, count]))
        mixes = [
            tf.random.stateless_uniform(
                [kappa.shape[1], 1, 1], tf.stack([self.seed + 1 + index, count])
            )
            for index in range(NUM_CRITIC)
        ]
        told, difference = averaged(
            self.strategy,
            lambda share: self._update(
                [share(maps) for maps in tf.unstack(kappa)],
                share(cosmology),
                share(latent),
                [share(mix) for mix in mixes],
                count,
                adversarial,
            ),
        )
        self.difference.assign(difference)
        decay = running(AVERAGE, count)
        for slow, fast in zip(self.average.weights, self.prior.network.weights):
            slow.assign(decay * slow + (1 - decay) * fast)
        return told

    def _update(self, kappa, cosmology, latent, mixes, count, adversarial):
        """What one replica does with its share: dict of scalars, and the new running
        differences.
        """
        prior, scaled, moved = self.prior, scaled_cosmology(cosmology), self.difference
        told = {}
        with tf.GradientTape() as tape:
            log_map = prior.log_map(prior.colour(latent, cosmology), cosmology)[
                :, :-MARGIN, :-MARGIN
            ]
            fake = standardise(prior, log_map, cosmology)
            total = 0.0
            if adversarial:
                with tape.stop_recording():
                    for index in range(NUM_CRITIC):
                        told |= self._update_critic(
                            log_density(prior, kappa[index], cosmology), fake, scaled, mixes[index]
                        )
                total += generator_loss(self.loss, self.critic(fake, scaled))
            if self.loss == "wgan-gp":
                drawn = tf.exp(log_map) - prior.shift(cosmology)[:, None, None]
                steering, moved = self._steer(
                    summaries(prior, drawn, fake, cosmology), cosmology, scaled, count
                )
                total += STEERING * steering
        gradients = tape.gradient(total, prior.network.trainable_variables)
        self.optimizers["generator"].apply_gradients(
            zip(parts(gradients), prior.network.trainable_variables)
        )
        return told | {
            "generator_loss": total,
            "difference": tf.reduce_mean(moved[0] ** 2),
            "generator_slope": tf.linalg.global_norm(gradients),
        }, tf.convert_to_tensor(moved)

    def _update_critic(self, real, fake, scaled, mix):
        with tf.GradientTape() as tape:
            scores = self.critic(tf.concat([real, fake], 0), tf.concat([scaled, scaled], 0))
            value = critic_loss(self.loss, *tf.split(scores, 2))
            penalty = 0.0
            if self.loss == "wgan-gp":
                penalty = tf.reduce_mean(
                    gradient_penalty(lambda between: self.critic(between, scaled), real, fake, mix)
                )
            total = value + PENALTY * penalty
        self.optimizers["critic"].apply_gradients(
            zip(
                parts(tape.gradient(total, self.critic.trainable_variables)),
                self.critic.trainable_variables,
            )
        )
        return {"critic_loss": value, "penalty": penalty}

    def _steer(self, features, cosmology, scaled, count):
        """The steering term, and the running differences [3, F] after this step, of the mean and of
        its slopes with either parameter.
        """
        expected = tf.matmul(polynomial_terms(cosmology), self.target.coefficients)
        basis = tf.concat([tf.ones_like(scaled[:, :1]), scaled], 1)
        difference = (
            tf.matmul(basis, (features - expected) / self.target.scatter, transpose_a=True)
            / features.shape[0]
        )
        decay = running(RUNNING, count)
        moved = decay * self.difference + (1 - decay) * mean_here(tf.stop_gradient(difference))
        return tf.reduce_sum(2.0 * tf.stop_gradient(moved) * difference), moved


def running(decay, count):
    """Decay of a running average that has seen `count` values: it forgets its start."""
    return tf.minimum(decay, tf.cast(count + 1, tf.float32) / tf.cast(count + 10, tf.float32))


def train_wgan(prior, average, maps, run, *, validation, target, loss="wgan-gp"):
    """Train the prior's network, in place, and leave in `average` the averaged weights of the last
    quarter of the steps that did best on held-out simulations.

    The statistic of the choice: root mean square, over all features, of the difference between the
    mean over drawn maps and over the held-out maps, at the same cosmologies, in units of the
    scatter from map to map.

    Parameters
    ----------
    maps, validation : dict(kappa [N, n, n], cosmology [N, 2], simulation [N]), of `load_maps`
    run : Run; this is called in the scope of its strategy, and the best weights are kept in its
        folder

    Returns
    -------
    dict : step and statistic of the choice, and the diversity of drawn maps (see
        `astrogen.darkmatter.statistics.diversity`)
    """
    out, num_steps, seed = run.out, run.num_steps, run.seed
    step = Step(prior, average, target, loss=loss, seed=seed, strategy=run.strategy)
    manager = keep_checkpoints(step.checkpoint, out, resume_from=run.resume_from)
    logs = open_logs(run)
    warm_up = min(WARM_UP, num_steps // 2) if loss == "wgan-gp" else 0
    validate = validator(prior, average, validation, target.scatter, seed)
    with tqdm(total=num_steps, initial=int(step.count.numpy()), unit=" steps") as progress:
        for index in range(int(step.count.numpy()), num_steps):
            for name, rate in learning_rates(index, num_steps, warm_up).items():
                step.optimizers[name].learning_rate.assign(rate)
            told = step.run(*draw_batch(maps, [seed, index]), tf.constant(index), index >= warm_up)
            progress.update()
            if (index + 1) % CHECKPOINT_EVERY == 0 or index + 1 == num_steps:
                told |= validate()
                step.count.assign(index + 1)
                if (
                    told["statistic"] < float(step.best.numpy())
                    and index + 1 > CHOOSE_FROM * num_steps
                ):
                    step.best.assign(told["statistic"])
                    write_best(out / "best.npz", average, told | {"step": index + 1})
                manager.save()
                write_scalars(logs, index + 1, told)
                progress.set_postfix_str(
                    ", ".join(f"{name} {float(value):.3g}" for name, value in told.items())
                )
    return read_best(out / "best.npz", average)


def write_best(path, network, told):
    """Write the weights of a network, what is told of it, and the sha256 of both."""
    best = {f"arr_{number}": value for number, value in enumerate(network.get_weights())}
    best |= {name: np.float64(told[name]) for name in TOLD}
    write_whole(path, npz_bytes(best | {DIGEST: _digest(best)}))


def _digest(arrays):
    """sha256 [32] of names and arrays as they are, not as some release of zlib packs them."""
    found = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        found.update(f"{name} {array.dtype.str} {array.shape} ".encode() + array.tobytes())
    return np.frombuffer(found.digest(), np.uint8)


def read_best(path, network):
    """Give a network the weights of the file of the best one; returns what is told of it.

    Raises
    ------
    InputFileError : the file is not as it was written, or of another network.
    """
    best = read_npz(path, max_bytes=MAX_BEST)
    digest = best.pop(DIGEST, None)
    if not np.array_equal(digest, _digest(best)):
        raise InputFileError(
            path,
            "train_wgan: sha256 must be that of the arrays, got another: the file was changed or"
            " damaged; train in another folder",
        )
    try:
        network.set_weights([best[f"arr_{index}"] for index in range(len(network.weights))])
        return {name: float(best[name]) for name in TOLD}
    except (KeyError, TypeError, ValueError) as error:
        raise InputFileError(
            path,
            f"train_wgan: file must hold the network of this run, got {type(error).__name__}:"
            f" {error}; train in another folder",
        ) from error


def learning_rates(index, num_steps, warm_up):
    """Learning rates {"generator", "critic"} of step `index`: constant, falling towards the end of
    the warm-up and towards the end of the training.
    """
    if index < warm_up:
        return {
            "generator": WARM_RATE * min(1.0, 2 * (1 - index / warm_up) + 0.05),
            "critic": RATES["critic"],
        }
    left = min(1.0, max(0.05, (1 - index / num_steps) / (1 - DECAY_FROM)))
    return {name: rate * left for name, rate in RATES.items()}


def draw_batch(maps, seed):
    """Simulated maps [NUM_CRITIC, BATCH, n, n] in random orientations, and their cosmologies
    [BATCH, 2]: pairs are of one simulation.
    """
    rng = np.random.default_rng(seed)
    first = rng.integers(0, len(maps["kappa"]), BATCH)
    rows = [first] + [
        [rng.choice(np.flatnonzero(maps["simulation"] == maps["simulation"][row])) for row in first]
        for _ in range(NUM_CRITIC - 1)
    ]
    orientations = rng.integers(0, 8, (NUM_CRITIC, BATCH))
    kappa = np.stack(
        [
            [oriented(maps["kappa"][row], one) for row, one in zip(*pair)]
            for pair in zip(rows, orientations)
        ]
    )
    return tf.constant(kappa), tf.constant(maps["cosmology"][first])


def oriented(image, orientation):
    """A map in one of the eight orientations of the square."""
    return np.rot90(image if orientation < 4 else image[:, ::-1], orientation % 4)


def validator(prior, average, validation, scatter, seed):
    """A function () -> dict(statistic, spread, nearest) of the averaged network, against held-out
    maps and with the same noise every time.
    """
    rows = np.linspace(
        0, len(validation["kappa"]) - 1, min(NUM_VALIDATION, len(validation["kappa"]))
    ).astype(int)
    cosmology = tf.constant(validation["cosmology"][rows])
    real = features_of(prior, validation["kappa"][rows], validation["cosmology"][rows]).mean(0)

    @tf.function(reduce_retracing=True)
    def draw(latent, cosmology):
        field = prior.colour(latent, cosmology)
        log_map = prior.log_map(field, cosmology, network=average)[:, :-MARGIN, :-MARGIN]
        kappa, fake = (
            tf.exp(log_map) - prior.shift(cosmology)[:, None, None],
            standardise(prior, log_map, cosmology),
        )
        return summaries(prior, kappa, fake, cosmology), fake

    def validate():
        features, fake = zip(
            *(
                draw(
                    draw_latent(rows[start : start + BATCH], prior.image_shape, seed=seed + 7),
                    cosmology[start : start + BATCH],
                )
                for start in range(0, len(rows), BATCH)
            )
        )
        statistic = np.sqrt(np.mean(((np.concatenate(features).mean(0) - real) / scatter) ** 2))
        variety = diversity(np.concatenate(fake))
        return {
            "statistic": float(statistic),
            "spread": variety.spread,
            "nearest": float(variety.nearest.mean()),
        }

    return validate
