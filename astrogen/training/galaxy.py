"""From records to a galaxy prior: image basis, VAE, whitening, weights, card, and a sheet to look
at.
"""

from pathlib import Path

import keras
import numpy as np

from astrogen.data.arrays import npz_bytes, write_array
from astrogen.data.files import write_whole
from astrogen.data.reading import open_regular, read_npz
from astrogen.errors import InputFileError, RecordsError
from astrogen.priors import load_prior
from astrogen.priors.galaxy import BasisPrior, Population
from astrogen.priors.storage import write_weights
from astrogen.report import write_contact_sheet
from astrogen.training.basis import Basis, fit_basis, whiten
from astrogen.training.real import compress_real
from astrogen.training.records import load_images, read_manifest, sha256_of
from astrogen.training.replicas import scope_of
from astrogen.training.vae import (
    FLOOR,
    LATENT,
    WIDTHS,
    aggregate_posterior,
    make_networks,
    train_vae,
)

NUM_COMPONENTS = 400
MAX_BASIS = 2**30  # bytes of the file of a basis, which has 6.6e6
PIXEL_SCALE, TARGET_FWHM = 0.1, 0.2  # arcsec, of the simulated population
# Mean and std of the log of the residual's variance factor: 1 (log 0) is right for galaxies
# simulated like those it was learned on; real ones are rougher
# than any simulation, most of all in their fine components. Inferred as population quantities from
# half of 83 real HST galaxies, for their pixel coverage and
# mean squared error at S/N 20-100.
LOG_AMPLITUDE = (1.7, 0.7)
TILT = 0.3


def train_galaxy(records, run, *, real=None):
    """Train the galaxy prior and write it to weights/ in the folder of the run, with sheet.png to
    look at.

    Parameters
    ----------
    records : path, of `python -m data_pipelines galaxies`
    run : Run, of steps of 256 galaxies; its folder also holds the basis of an interrupted run;
        several hosts need a common folder to resume
    real : path or None, records of `python -m data_pipelines real`: noisy stamps that the VAE
        learns from under their own PSF and noise

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
    with scope_of(run.strategy):
        networks = make_networks(NUM_COMPONENTS)
        stamps = _real_stamps(real, basis, networks) if real else None
        metrics = train_vae(
            networks,
            basis,
            white,
            run,
            validation=whiten(held_out, basis),
            real=stamps,
        )
    training = {
        "records": {
            key: manifest[key]
            for key in ("kind", "num", "seed", "recipe_version", "sha256")
            if key in manifest
        },
        "num_steps": run.num_steps,
        "seed": seed,
        "real": str(Path(real).name) if real else None,
    }
    weights = _write(
        out / "weights",
        basis,
        networks,
        aggregate_posterior(networks, white, seed=seed),
        training,
        metrics,
    )
    _draw_sheet(out / "sheet.png", load_prior(weights), held_out, stamps, seed)
    return weights


def basis_of_run(records, run):
    """The basis and the population's whitened coefficients, kept in the folder of the run so that a
    resumed one of the same records and seed starts at once.
    """
    out, seed = run.out, run.seed
    kept, coefficients = out / "basis.npz", out / "coefficients.npy"
    origin = f"{read_manifest(records)['sha256']} seed {seed}"
    # Written last: where it is whole, so are the coefficients.
    if run.resume_from and kept.is_file():
        stored = read_npz(kept, max_bytes=MAX_BASIS, kinds="fU")
        ranks = [stored[name].ndim for name in ("origin", *Basis._fields) if name in stored]
        if ranks != [0, 3, 1, 1, 0] or len({len(stored[name]) for name in Basis._fields[:3]}) > 1:
            raise InputFileError(
                kept,
                "train_galaxy: file must hold a basis as `astrogen train` writes it, got"
                f" {list(stored)}; train in another folder",
            )
        if str(stored["origin"]) != origin:
            raise RecordsError(
                Path(records),
                f"train_galaxy: records and seed must be those of the run in {out}"
                f" ({stored['origin']}), got {origin}; resume with those, or train in another"
                " folder",
            )
        if not coefficients.is_file() or sha256_of(coefficients) != str(
            stored.get("coefficients_sha256")
        ):
            raise InputFileError(
                coefficients,
                "train_galaxy: coefficients must be as they were written, got others; delete"
                f" {kept} to make them again",
            )
        basis = Basis(stored["images"], stored["mean"], stored["std"], float(stored["residual"]))
        return basis, _read_coefficients(coefficients, len(basis.std))
    basis, white = fit_basis(
        load_images(records, split="train")["image"], num_components=NUM_COMPONENTS, seed=seed
    )
    write_basis(out, basis, white, origin)
    return basis, white


def write_basis(out, basis, white, origin):
    """Keep the basis and the whitened coefficients of records and seed, `origin`."""
    write_array(out / "coefficients.npy", white)
    told = {"origin": origin, "coefficients_sha256": sha256_of(out / "coefficients.npy")}
    write_whole(out / "basis.npz", npz_bytes(told | basis._asdict()))


def _read_coefficients(path, num):
    """The whitened coefficients [orientation, galaxy, num], left on the disk."""
    try:
        with open_regular(path):
            white = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ArithmeticError, EOFError, OSError, ValueError) as error:
        raise InputFileError(
            path, f"train_galaxy: file must be a whole array, got {error}; train in another folder"
        ) from error
    if white.ndim != 3 or white.shape[-1] != num or white.dtype.kind != "f":
        raise InputFileError(
            path,
            f"train_galaxy: file must hold {num} coefficients of each galaxy, got {white.shape} of"
            f" {white.dtype}; train in another folder",
        )
    return white


def _real_stamps(real, basis, networks):
    """Noisy real stamps, compressed under their own PSF and noise.

    What the networks will learn does not enter.
    """
    plain = BasisPrior(
        name="basis",
        population=Population(
            basis=basis.images,
            coefficient_mean=basis.mean,
            coefficient_std=basis.std,
            log_amplitude=LOG_AMPLITUDE,
            tilt=TILT,
            pixel_scale=PIXEL_SCALE,
            target_fwhm=TARGET_FWHM,
        ),
        encoder=networks.encoder,
        decoder=networks.decoder,
        whitening=(np.zeros(LATENT), np.eye(LATENT)),
        floor=FLOOR,
        card={},
    )
    return compress_real(real, plain)


def _write(directory, basis, networks, whitening, training, metrics):
    card = {
        "kind": "basis",
        "name": "galaxy",
        "pixel_scale": PIXEL_SCALE,
        "target_fwhm": TARGET_FWHM,
        "latent": LATENT,
        "encoder_widths": list(WIDTHS),
        "decoder_widths": [256, *WIDTHS],
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
        "encoder": named_weights(networks.encoder),
        "decoder": {
            **named_weights(networks.decoder),
            "whitening_mean": whitening[0],
            "whitening_factor": whitening[1],
        },
    }
    write_weights(directory, card=card, arrays=arrays)
    return directory


def named_weights(network):
    """A network's arrays under the names that they have on disk."""
    return {f"weight_{index:02d}": value for index, value in enumerate(network.get_weights())}


def _draw_sheet(path, prior, held_out, stamps, seed, num=16):
    """Real (linear estimates), simulated and drawn galaxies on one stretch: what the prior
    believes, to look at.
    """
    shown = held_out[: 2 * num]
    rows = {
        "simulated, held out": shown.reshape(
            2 if len(shown) == 2 * num else 1, -1, *shown.shape[1:]
        ),
        "drawn from the prior": (
            prior.sample(2 * num, seed=seed).numpy().reshape(2, num, *held_out.shape[1:])
        ),
    }
    if stamps is not None:
        rows["real, linear estimate"] = prior.images(stamps.coefficients[:num]).numpy()[None]
    write_contact_sheet(rows, path)
