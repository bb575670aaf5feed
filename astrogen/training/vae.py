"""The VAE on image-basis coefficients: a loop that reads from top to bottom, and resumes where it
was stopped.

The loss is the evidence lower bound per galaxy, in nats: the log-likelihood summed over the
coefficients, minus the KL divergence of the encoder's normal from N(0, I) (Kingma & Welling 2014,
eq. 10). With noisy real stamps the likelihood is that of each stamp under its own PSF and noise.
"""

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from astrogen.priors.distributions import divergence, normals, standard_normals
from astrogen.priors.galaxy import residual_scale, squash
from astrogen.priors.networks import ResidualMLP
from astrogen.training.checkpoints import keep_checkpoints
from astrogen.training.real import real_log_likelihood
from astrogen.training.replicas import averaged, mean_here, parts
from astrogen.training.run import open_logs, write_scalars

LATENT = 64
WIDTHS = (768, 768, 768)
BATCH = 256
LEARNING_RATE = 1e-3
LARGEST_GRADIENT = 50.0  # norm, of each weight
# share of the steps over which the KL divergence gains its full weight: without it most latents
# never wake
WARM_UP = 0.1
CHECKPOINT_EVERY = 500
REAL_BATCH = 16
FLOOR = 1.5e-3  # least residual scale, in units of the galaxy's norm


class Networks(NamedTuple):
    """encoder: whitened coefficients [k] -> mean and log sigma [2 d]; decoder: latent [d] -> mean
    and raw scale [2 k].
    """

    encoder: ResidualMLP
    decoder: ResidualMLP


def make_networks(num_components, *, latent=LATENT, widths=WIDTHS):
    """Untrained networks; the decoder's first layer is narrow, since it sees only the latent."""
    return Networks(
        ResidualMLP(num_components, widths, 2 * latent, name="encoder"),
        ResidualMLP(latent, (256, *widths), 2 * num_components, name="decoder"),
    )


def encode(encoder, white):
    """Mean and standard deviation, each [batch, d], of the latent given whitened coefficients
    [batch, k]; the deviation is kept within exp(-8) and exp(3).
    """
    mean, log_sigma = tf.split(encoder(squash(white)), 2, -1)
    return mean, tf.exp(tf.clip_by_value(log_sigma, -8.0, 3.0))


def evidence_terms(networks, white, floor, noise):
    """Log-likelihood and KL divergence, each [batch] in nats, of whitened coefficients [batch, k].

    Parameters
    ----------
    floor : Tensor [k], least scale of the whitened residual
    noise : Tensor [batch, d], standard normals of the reparametrised latent
    """
    mean, sigma = encode(networks.encoder, white)
    centre, raw = tf.split(networks.decoder(mean + sigma * noise), 2, -1)
    likelihood = normals(centre, residual_scale(raw, floor)).log_prob(white)
    return likelihood, divergence_of(mean, sigma)


def divergence_of(mean, sigma):
    """KL divergence [batch] of N(mean, sigma^2) from the latent's N(0, I), in nats."""
    return divergence(normals(mean, sigma), standard_normals(mean.shape[-1], mean.dtype))


def real_evidence_terms(networks, basis, stamps, floor, noise):
    """As `evidence_terms` for compressed real stamps, each under its own PSF and noise; the encoder
    sees their linear estimates.
    """
    unit = stamps.coefficients / tf.norm(stamps.coefficients, axis=1, keepdims=True)
    mean, sigma = encode(networks.encoder, (unit - basis.mean) / basis.std)
    centre, raw = tf.split(networks.decoder(mean + sigma * noise), 2, -1)
    likelihood = real_log_likelihood(
        basis.mean + basis.std * centre, basis.std * residual_scale(raw, floor), stamps
    )
    return likelihood, divergence_of(mean, sigma)


def train_vae(networks, basis, white, run, *, validation, real=None):
    """Maximise the evidence lower bound of a population.

    Parameters
    ----------
    white : array [8, num, k], whitened coefficients in eight orientations
    run : Run; this is called in the scope of its strategy
    validation : array [num, k]
    real : Compressed or None, noisy real stamps: a share of every step

    Returns
    -------
    dict : the last values of the terms on the validation galaxies, nats per galaxy
    """
    schedule = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, run.num_steps)
    optimizer = keras.optimizers.Adam(schedule)
    optimizer.build(_weights(networks))
    floor = tf.constant(FLOOR / basis.std)
    train_step, real_step = _make_steps(networks, basis, floor, optimizer, run)
    draw_noise = _noise_of(networks.decoder.num_in, run.seed)
    validate = _make_validation(networks, floor, validation, run.seed)
    count = tf.Variable(0, dtype=tf.int64)
    checkpoint = tf.train.Checkpoint(
        encoder=networks.encoder, decoder=networks.decoder, optimizer=optimizer, count=count
    )
    manager = keep_checkpoints(checkpoint, run.out, resume_from=run.resume_from)
    logs, first = open_logs(run), int(count.numpy())
    flat = white.reshape(-1, white.shape[-1])
    with tqdm(total=run.num_steps, initial=first, unit=" steps") as progress:
        for step in range(first, run.num_steps):
            # a resumed run sees the batches of an uninterrupted one
            rng = np.random.default_rng([run.seed, step])
            weight = tf.constant(min(1.0, 0.02 + step / (WARM_UP * run.num_steps)), tf.float32)
            batch = tf.constant(flat[np.sort(rng.integers(0, len(flat), BATCH))].astype(np.float32))
            likelihood, divergence = train_step(batch, draw_noise(tf.constant(step)), weight)
            if real is not None and step % 4 == 3:
                rows = rng.integers(0, real.data.shape[0], REAL_BATCH)
                stamps = tf.nest.map_structure(lambda x: tf.gather(x, rows), real)
                real_step(stamps, weight, tf.constant(step))
            progress.update()
            if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == run.num_steps:
                terms, elbo = validate(), likelihood - divergence
                told = {f"validation/{name}": value for name, value in terms.items()}
                write_scalars(logs, step + 1, told | {"training/elbo": elbo})
                progress.set_postfix_str(
                    f"ELBO {float(elbo):.1f}, validation {float(terms['elbo']):.1f} nats"
                )
                count.assign(step + 1)
                manager.save()
    return {name: float(value) for name, value in validate().items()}


def _weights(networks):
    return networks.encoder.trainable_variables + networks.decoder.trainable_variables


def _make_steps(networks, basis, floor, optimizer, run):
    """The traced steps on simulated coefficients and on real stamps; each gives the mean
    log-likelihood and KL divergence.
    """
    weights, latent = _weights(networks), networks.decoder.num_in

    def take_step(terms_fn, weight):
        def step(share):
            with tf.GradientTape() as tape:
                likelihood, divergence = terms_fn(share)
                loss = tf.reduce_mean(weight * divergence - likelihood)
            # Clipped after the mean over the replicas; Keras would clip before.
            gradients = [
                tf.clip_by_norm(gradient, LARGEST_GRADIENT)
                for gradient in mean_here(tape.gradient(loss, weights))
            ]
            optimizer.apply_gradients(zip(parts(gradients), weights))
            return tf.reduce_mean(likelihood), tf.reduce_mean(divergence)

        return averaged(run.strategy, step)

    @tf.function(jit_compile=run.strategy is None)  # XLA has no collectives across replicas
    def train_step(batch, noise, weight):
        return take_step(
            lambda share: evidence_terms(networks, share(batch), floor, share(noise)), weight
        )

    @tf.function
    def real_step(stamps, weight, count):
        noise = tf.random.stateless_normal(
            [stamps.data.shape[0], latent], tf.stack([run.seed + 1, count])
        )
        return take_step(
            lambda share: real_evidence_terms(
                networks, basis, tf.nest.map_structure(share, stamps), floor, share(noise)
            ),
            weight,
        )

    return train_step, real_step


def _noise_of(latent, seed):
    """The normals [BATCH, latent] of a step."""

    # XLA draws other numbers than TensorFlow: with and without replicas, the same are wanted
    @tf.function(jit_compile=True)
    def draw_noise(count):
        return tf.random.stateless_normal([BATCH, latent], tf.stack([seed, count]))

    return draw_noise


def _make_validation(networks, floor, validation, seed):
    """The means of the terms on the validation galaxies, as a traced function."""

    @tf.function
    def validate():
        noise = tf.random.stateless_normal(
            [validation.shape[0], networks.decoder.num_in], [seed, 0]
        )
        likelihood, divergence = evidence_terms(networks, tf.constant(validation), floor, noise)
        return {
            "log_likelihood": tf.reduce_mean(likelihood),
            "kl_divergence": tf.reduce_mean(divergence),
            "elbo": tf.reduce_mean(likelihood - divergence),
        }

    return validate


def aggregate_posterior(networks, white, *, seed, num=20000):
    """Mean [d] and lower Cholesky factor [d, d] of the covariance of the latent over the
    population: the whitening of the prior.
    """
    flat = white.reshape(-1, white.shape[-1])
    rows = np.random.default_rng([seed, 1]).integers(0, len(flat), num)
    mean, sigma = encode(networks.encoder, tf.constant(flat[rows].astype(np.float32)))
    covariance = np.cov(mean.numpy().T) + np.diag((sigma.numpy() ** 2).mean(0))
    return mean.numpy().mean(0), np.linalg.cholesky(covariance)
