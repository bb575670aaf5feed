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


def train_vae(
    networks,
    basis,
    white,
    *,
    validation,
    out,
    num_steps,
    seed,
    resume_from=None,
    real=None,
    strategy=None,
):
    """Maximise the evidence lower bound of a population.

    Parameters
    ----------
    white : array [8, num, k], whitened coefficients in eight orientations; validation : array [num,
        k]
    out : path, for checkpoints/ and logs/ (TensorBoard)
    resume_from : path or None, an `out` whose last checkpoint is gone on from
    real : Compressed or None, noisy real stamps: a share of every step
    strategy : tf.distribute.Strategy or None, whose scope this is called in

    Returns
    -------
    dict : the last values of the terms on the validation galaxies, nats per galaxy
    """
    schedule = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, num_steps)
    optimizer = keras.optimizers.Adam(schedule)
    weights = networks.encoder.trainable_variables + networks.decoder.trainable_variables
    optimizer.build(weights)
    floor = tf.constant(FLOOR / basis.std)
    latent = networks.decoder.num_in

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

        return averaged(strategy, step)

    # XLA draws other numbers than TensorFlow: with and without replicas, the same are wanted
    @tf.function(jit_compile=True)
    def draw_noise(count):
        return tf.random.stateless_normal([BATCH, latent], tf.stack([seed, count]))

    @tf.function(jit_compile=strategy is None)  # XLA has no collectives across replicas
    def train_step(batch, noise, weight):
        return take_step(
            lambda share: evidence_terms(networks, share(batch), floor, share(noise)), weight
        )

    @tf.function
    def real_step(stamps, weight, count):
        noise = tf.random.stateless_normal(
            [stamps.data.shape[0], latent], tf.stack([seed + 1, count])
        )
        return take_step(
            lambda share: real_evidence_terms(
                networks, basis, tf.nest.map_structure(share, stamps), floor, share(noise)
            ),
            weight,
        )

    @tf.function
    def validate():
        noise = tf.random.stateless_normal([validation.shape[0], latent], [seed, 0])
        likelihood, divergence = evidence_terms(networks, tf.constant(validation), floor, noise)
        return {
            "log_likelihood": tf.reduce_mean(likelihood),
            "kl_divergence": tf.reduce_mean(divergence),
            "elbo": tf.reduce_mean(likelihood - divergence),
        }

    count = tf.Variable(0, dtype=tf.int64)
    checkpoint = tf.train.Checkpoint(
        encoder=networks.encoder, decoder=networks.decoder, optimizer=optimizer, count=count
    )
    manager = keep_checkpoints(checkpoint, out, resume_from=resume_from)
    logs = tf.summary.create_file_writer(str(out / "logs"))
    flat = white.reshape(-1, white.shape[-1])
    with tqdm(total=num_steps, initial=int(count.numpy()), unit=" steps") as progress:
        for step in range(int(count.numpy()), num_steps):
            # a resumed run sees the batches of an uninterrupted one
            rng = np.random.default_rng([seed, step])
            weight = tf.constant(min(1.0, 0.02 + step / (WARM_UP * num_steps)), tf.float32)
            batch = tf.constant(flat[np.sort(rng.integers(0, len(flat), BATCH))].astype(np.float32))
            likelihood, divergence = train_step(batch, draw_noise(tf.constant(step)), weight)
            if real is not None and step % 4 == 3:
                rows = rng.integers(0, real.data.shape[0], REAL_BATCH)
                real_step(
                    tf.nest.map_structure(lambda x: tf.gather(x, rows), real),
                    weight,
                    tf.constant(step),
                )
            progress.update()
            if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == num_steps:
                terms = {name: float(value) for name, value in validate().items()}
                with logs.as_default(step=step + 1):
                    for name, value in terms.items():
                        tf.summary.scalar(f"validation/{name}", value)
                    tf.summary.scalar("training/elbo", likelihood - divergence)
                progress.set_postfix_str(
                    f"ELBO {float(likelihood - divergence):.1f}, validation {terms['elbo']:.1f}"
                    " nats"
                )
                count.assign(step + 1)
                manager.save()
    return {name: float(value) for name, value in validate().items()}


def aggregate_posterior(networks, white, *, seed, num=20000):
    """Mean [d] and lower Cholesky factor [d, d] of the covariance of the latent over the
    population: the whitening of the prior.
    """
    flat = white.reshape(-1, white.shape[-1])
    rows = np.random.default_rng([seed, 1]).integers(0, len(flat), num)
    mean, sigma = encode(networks.encoder, tf.constant(flat[rows].astype(np.float32)))
    covariance = np.cov(mean.numpy().T) + np.diag((sigma.numpy() ** 2).mean(0))
    return mean.numpy().mean(0), np.linalg.cholesky(covariance)
