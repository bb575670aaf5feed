"""The convolutional VAE of pixels: training loop, residual, weights, card, and a sheet to look at.

The loss is the evidence lower bound per galaxy, in nats: the log-likelihood summed over the pixels,
under a normal whose sigma is a learned map times a learned function of the latent, minus the KL
divergence of the encoder's normal from N(0, I) (Kingma & Welling 2014, eq. 10). That map is the
noise of the training only: for inference, what the decoder cannot make is learned afterwards, in
coefficients of the basis.
"""

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from astrogen.priors import load_prior
from astrogen.priors.convolutional import make_networks
from astrogen.priors.distributions import normals
from astrogen.priors.galaxy import residual_scale
from astrogen.priors.networks import ResidualMLP
from astrogen.priors.storage import write_weights
from astrogen.report import write_contact_sheet
from astrogen.training.basis import oriented, whiten
from astrogen.training.checkpoints import keep_checkpoints
from astrogen.training.galaxy import (
    LOG_AMPLITUDE,
    PIXEL_SCALE,
    TARGET_FWHM,
    TILT,
    basis_of_run,
    named_weights,
)
from astrogen.training.records import load_images, read_manifest
from astrogen.training.run import open_logs, write_scalars
from astrogen.training.vae import divergence_of

SHAPE = {
    "latent": 32,
    "width": 256,
    "encoder_channels": [16, 32, 64],
    "decoder_channels": [48, 32, 24],
    "spread_widths": [128],
    "side": 64,
}
BATCH = 64
LEARNING_RATE = 2e-3
WARM_UP = 0.14  # share of the steps over which the KL divergence gains its full weight
FIRST_WEIGHT = 0.05
CHECKPOINT_EVERY = 500
# least sigma of a pixel, in units of the galaxy's norm; with less, the faint wings (most of the
# pixels) decide what is learned
PIXEL_FLOOR = 3e-3
LEAST_SPREAD = 1e-3  # of the pixels over the population, where the networks whiten them
FLOOR = 1.5e-3  # least residual scale of a coefficient, in the same units
SPREAD_STEPS, SPREAD_BATCH = 2000, 256
NUM_VALIDATION = 1024
NUM_RESIDUALS = 24000  # galaxies on which the residual is learned


class PixelNoise(keras.layers.Layer):
    """Sigma of the pixels [batch, side, side] given the latent: one map for all galaxies, one
    factor for each.
    """

    def __init__(self, num_in, start):
        super().__init__(name="noise")
        self.level = ResidualMLP(num_in, (64,), 1)
        self.map = self.add_weight(shape=start.shape, initializer="zeros", name="log_sigma_map")
        self.map.assign(np.log(start))
        self.built = True

    def call(self, latent):
        return tf.exp(self.map + self.level(latent)[..., None]) + PIXEL_FLOOR


def train_convolutional(records, run):
    """Train the convolutional prior and write it to weights/ in the folder of the run, with
    sheet.png to look at.

    Parameters
    ----------
    records : path, of `python -m data_pipelines galaxies`
    run : Run, of steps of 64 galaxies on one device; its folder also holds the basis of an
        interrupted run

    Returns
    -------
    path : of the weights
    """
    out, seed = run.out, run.seed
    out.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(seed)
    manifest = read_manifest(records)
    basis, white = basis_of_run(records, run)
    held_out = load_images(records, split="validation")["image"]
    white_held_out = np.concatenate(
        [whiten(oriented(held_out, orientation), basis) for orientation in range(8)]
    )
    flat = white.reshape(-1, white.shape[-1])
    networks = make_networks(SHAPE, white.shape[-1])
    spread_map = _start_from(networks, basis, _some(flat, 4096, [seed, 2]))
    noise = PixelNoise(SHAPE["latent"], 0.3 * spread_map)
    metrics = train_pixels(
        networks,
        noise,
        basis,
        flat,
        run,
        validation=_some(white_held_out, NUM_VALIDATION, [seed, 5]),
    )
    latent, residual = _residuals(networks, basis, _some(flat, NUM_RESIDUALS, [seed, 3]), seed)
    latent_held_out, residual_held_out = _residuals(
        networks, basis, _some(white_held_out, NUM_RESIDUALS, [seed, 4]), seed + 1
    )
    residual_std, told = fit_spread(
        networks["spread"],
        latent,
        residual,
        held_out=(latent_held_out, residual_held_out),
        seed=seed,
    )
    training = {
        "records": {
            key: manifest[key]
            for key in ("kind", "num", "seed", "recipe_version", "sha256")
            if key in manifest
        },
        "num_steps": run.num_steps,
        "batch": BATCH,
        "seed": seed,
    }
    whitening = latent.mean(0), np.linalg.cholesky(np.cov(latent.T))
    weights = _write(
        out / "weights", basis, networks, residual_std, whitening, training, {**metrics, **told}
    )
    _draw_sheet(out / "sheet.png", load_prior(weights), held_out, seed)
    return weights


def paint(basis, white):
    """Images [batch, height, width] of whitened coefficients [batch, k]: the galaxy as the basis
    holds it, in its orientation and with its jitter.
    """
    num, height, width = basis.images.shape
    return tf.reshape(
        tf.matmul(basis.mean + basis.std * white, basis.images.reshape(num, -1)),
        [-1, height, width],
    )


def encode(encoder, images):
    """Mean and standard deviation, each [batch, d], of the latent given images of unit norm."""
    mean, log_sigma = tf.split(encoder(images), 2, -1)
    return mean, tf.exp(tf.clip_by_value(log_sigma, -8.0, 3.0))


def evidence_terms(networks, noise, images, wild):
    """Log-likelihood and KL divergence, each [batch] in nats, of images; wild [batch, d] are the
    standard normals of the reparametrised latent.
    """
    mean, sigma = encode(networks["encoder"], images)
    latent = mean + sigma * wild
    painted, scale = networks["decoder"](latent), noise(latent)
    pixels = images.shape[1] * images.shape[2]
    images, painted, scale = (tf.reshape(x, [-1, pixels]) for x in (images, painted, scale))
    return normals(painted, scale).log_prob(images), divergence_of(mean, sigma)


def train_pixels(networks, noise, basis, flat, run, *, validation):
    """Maximise the evidence lower bound of a population of images.

    Parameters
    ----------
    networks : {"encoder", "decoder"}; noise : PixelNoise
    flat : array [num, k], whitened coefficients in all orientations; validation : array [num, k]
    run : Run

    Returns
    -------
    dict : the last values of the terms on the validation galaxies, nats per galaxy, and the share
        of their power that the decoder leaves over
    """
    encoder, decoder = networks["encoder"], networks["decoder"]
    optimizer = keras.optimizers.Adam(
        keras.optimizers.schedules.CosineDecay(LEARNING_RATE, run.num_steps), clipnorm=10.0
    )
    train_step = _make_step(networks, noise, basis, optimizer, run.seed)
    validate = _make_validation(networks, noise, basis, validation, run.seed)
    count = tf.Variable(0, dtype=tf.int64)
    checkpoint = tf.train.Checkpoint(
        encoder=encoder, decoder=decoder, noise=noise, optimizer=optimizer, count=count
    )
    manager = keep_checkpoints(checkpoint, run.out, resume_from=run.resume_from)
    logs = open_logs(run)
    with tqdm(total=run.num_steps, initial=int(count), unit=" steps") as progress:
        for step in range(int(count), run.num_steps):
            weight = tf.constant(
                min(1.0, FIRST_WEIGHT + (1 - FIRST_WEIGHT) * step / (WARM_UP * run.num_steps)),
                tf.float32,
            )
            # a resumed run sees the batches of an uninterrupted one
            batch = tf.constant(_some(flat, BATCH, [run.seed, step]))
            likelihood, divergence = train_step(batch, weight, tf.constant(step))
            progress.update()
            if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == run.num_steps:
                terms, elbo = validate(), likelihood - divergence
                told = {f"validation/{name}": value for name, value in terms.items()}
                write_scalars(logs, step + 1, told | {"training/elbo": elbo})
                progress.set_postfix_str(
                    f"ELBO {float(elbo):.1f}, validation {float(terms['elbo']):.1f}"
                    f" nats, NMSE {float(terms['reconstruction_nmse']):.4f}"
                )
                count.assign(step + 1)
                manager.save()
    return {name: float(value) for name, value in validate().items()}


def _make_step(networks, noise, basis, optimizer, seed):
    """A traced step of training; gives the mean log-likelihood and KL divergence."""
    weights = [
        weight
        for part in (networks["encoder"], networks["decoder"], noise)
        for weight in part.trainable_variables
    ]
    optimizer.build(weights)
    latent = networks["decoder"].num_in

    @tf.function
    def train_step(white, weight, count):
        images = paint(basis, white)
        normals = tf.random.stateless_normal([white.shape[0], latent], tf.stack([seed, count]))
        with tf.GradientTape() as tape:
            likelihood, divergence = evidence_terms(networks, noise, images, normals)
            loss = tf.reduce_mean(weight * divergence - likelihood)
        gradients = tape.gradient(loss, weights)
        optimizer.apply_gradients(zip(gradients, weights))
        return tf.reduce_mean(likelihood), tf.reduce_mean(divergence)

    return train_step


def _make_validation(networks, noise, basis, validation, seed):
    """The means of the terms on the validation galaxies, as a traced function."""
    encoder, decoder = networks["encoder"], networks["decoder"]

    @tf.function
    def validate():
        images = paint(basis, tf.constant(validation))
        normals = tf.random.stateless_normal([validation.shape[0], decoder.num_in], [seed, 0])
        likelihood, divergence = evidence_terms(networks, noise, images, normals)
        left = tf.reduce_sum(
            (decoder(encode(encoder, images)[0]) - images) ** 2, [1, 2]
        ) / tf.reduce_sum(images**2, [1, 2])
        return {
            "log_likelihood": tf.reduce_mean(likelihood),
            "kl_divergence": tf.reduce_mean(divergence),
            "elbo": tf.reduce_mean(likelihood - divergence),
            "reconstruction_nmse": tf.reduce_mean(left),
        }

    return validate


def fit_spread(spread, latent, residual, *, held_out, seed):
    """Learn the scale of the residual's coefficients given the latent, by maximum likelihood; its
    level is set on galaxies that nothing was trained on
    (and that are not jittered, as the training's are).

    Parameters
    ----------
    spread : ResidualMLP, trained in place
    latent, residual : arrays [num, d], [num, k]; held_out : such a pair

    Returns
    -------
    array [k], the residual's standard deviation: the unit of the network's scales; dict of metrics
    """
    residual_std = residual.std(0)
    floor = tf.constant(FLOOR / residual_std)
    optimizer = keras.optimizers.Adam(
        keras.optimizers.schedules.CosineDecay(LEARNING_RATE, SPREAD_STEPS)
    )
    optimizer.build(spread.trainable_variables)

    def log_density(latent, white):
        return normals(tf.zeros_like(white), residual_scale(spread(latent), floor)).log_prob(white)

    @tf.function(jit_compile=True)
    def train_step(latent, white):
        with tf.GradientTape() as tape:
            loss = -tf.reduce_mean(log_density(latent, white))
        optimizer.apply_gradients(
            zip(tape.gradient(loss, spread.trainable_variables), spread.trainable_variables)
        )

    white = residual / residual_std
    for step in range(SPREAD_STEPS):
        rows = np.random.default_rng([seed, 6, step]).integers(0, len(latent), SPREAD_BATCH)
        train_step(tf.constant(latent[rows]), tf.constant(white[rows]))
    unseen = held_out[1] / residual_std
    ratio = unseen / residual_scale(spread(tf.constant(held_out[0])), floor).numpy()
    level = float(np.sqrt(np.mean(ratio**2)))
    told = {
        "residual_log_likelihood": float(tf.reduce_mean(log_density(held_out[0], unseen))),
        "residual_level_held_out": level,
        "residual_within_one_sigma": float((np.abs(ratio) < level).mean()),
    }
    return (residual_std * level).astype(np.float32), told


def _start_from(networks, basis, white):
    """Give the networks the population's mean and standard deviation, pixel by pixel; the latter is
    returned.
    """
    images = paint(basis, white).numpy()
    centre, spread = images.mean(0), np.maximum(images.std(0), LEAST_SPREAD)
    networks["encoder"].centre.assign(centre)
    networks["encoder"].spread.assign(spread)
    networks["decoder"].bias.assign(centre)
    networks["decoder"].gain.assign(spread)
    return spread


def _some(flat, num, seed):
    """`num` rows at random, float32."""
    return flat[np.sort(np.random.default_rng(seed).integers(0, len(flat), num))].astype(np.float32)


def _residuals(networks, basis, white, seed, *, chunk=1000):
    """Latents [num, d] drawn for galaxies, and what the decoder leaves of their coefficients [num,
    k].
    """
    latents, residuals = [], []
    flat = basis.images.reshape(len(basis.images), -1)
    for start in range(0, len(white), chunk):
        part = white[start : start + chunk]
        mean, sigma = encode(networks["encoder"], paint(basis, part))
        latent = mean + sigma * tf.random.stateless_normal(mean.shape, [seed, start])
        painted = networks["decoder"](latent).numpy().reshape(len(part), -1)
        latents.append(latent.numpy())
        residuals.append(basis.mean + basis.std * part - painted @ flat.T)
    return np.concatenate(latents), np.concatenate(residuals)


def _write(directory, basis, networks, residual_std, whitening, training, metrics):
    card = {
        "kind": "convolutional",
        "name": "galaxy-conv",
        "pixel_scale": PIXEL_SCALE,
        "target_fwhm": TARGET_FWHM,
        **SHAPE,
        "floor": FLOOR,
        "log_amplitude": list(LOG_AMPLITUDE),
        "tilt": TILT,
        "valid_range": {
            "half_light_radius_pixels": [0.35, 8.0],
            "note": (
                "scale-free: the pixel may be given any size that keeps the galaxy in this range"
            ),
        },
        "training": training,
        "metrics": {**metrics, "basis_residual": basis.residual},
    }
    arrays = {
        "basis": {"images": basis.images, "mean": basis.mean, "std": basis.std},
        "residual": {
            "std": residual_std,
            "whitening_mean": whitening[0],
            "whitening_factor": whitening[1],
        },
        **{name: named_weights(network) for name, network in networks.items()},
    }
    write_weights(directory, card=card, arrays=arrays)
    return directory


def _draw_sheet(path, prior, held_out, seed, num=16):
    """Simulated galaxies, the decoder's view of them, and drawn ones on one stretch: what the prior
    believes, to look at.
    """
    held_out = held_out[:num]
    flux, norm = (
        held_out.sum((1, 2))[:, None, None],
        np.linalg.norm(held_out, axis=(1, 2))[:, None, None],
    )
    seen = (
        prior.decode(prior.guess(prior.project(tf.constant(held_out / norm)))).numpy() * norm / flux
    )
    drawn = prior.sample(2 * num, seed=seed).numpy()
    write_contact_sheet(
        {
            "simulated, held out": (held_out / flux)[None],
            "encoded, decoded": seen[None],
            "drawn from the prior": drawn.reshape(2, num, *drawn.shape[1:]),
        },
        path,
    )
