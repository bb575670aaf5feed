"""From simulated convergence maps to the three fields of the prior: shift and spectra, the WGAN-GP,
the final spectrum, weights and card.
"""

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from astrogen.arrays import npz_bytes
from astrogen.errors import InputError, InputFileError
from astrogen.files import write_whole
from astrogen.priors.convergence import TERMS, ConvergencePrior, Table, stored_arrays
from astrogen.priors.correction import Correction
from astrogen.priors.storage import write_weights
from astrogen.reading import read_json, read_npz
from astrogen.training.records import load_maps, read_manifest
from astrogen.training.replicas import scope_of, worker_folder
from astrogen.training.spectra import (
    LOG_L,
    NUM_BANDS,
    fit_shift,
    fit_target,
    lognormal_start,
    match_spectrum,
    read_target,
    start_table,
)
from astrogen.training.wgan import (
    BATCH,
    NUM_CRITIC,
    PENALTY,
    STEERING,
    WARM_UP,
    fit_features,
    train_wgan,
)

NETWORK = {"channels": 16, "dilations": [1, 1, 2, 4], "smoothing": [2.0, 5.0]}
COSMOLOGY_RANGE = {"omega_m": (0.2, 0.4), "sigma_8": (0.6, 1.0)}
L_RANGE = (
    250,
    3000,
)  # multipoles for which the drawn maps' spectrum was compared with the simulations'
MAX_STORED = 2**24  # bytes of the file of tables, which has some thousands
HELD_OUT_EVERY = 10  # without a folder of its own, every tenth simulation is kept for validation
NUM_MAPS, NUM_ITERATIONS = 256, 3
FINAL_MAPS, FINAL_ITERATIONS = (
    1024,
    8,
    # for the last change of the spectrum: 256 maps and three rounds left errors of up to 7 % in a
    # band
)
FEWEST_SIMULATIONS = (
    4  # to train on: how the spectrum scatters from one to the other weighs its bands
)


def train_kappa(
    records,
    out,
    *,
    validation=None,
    spectrum=None,
    num_steps,
    seed,
    loss="wgan-gp",
    resume=False,
    strategy=None,
):
    """Train the convergence prior and write it to `out`/weights.

    Parameters
    ----------
    records : path, of `python -m data_pipelines convergence`
    out : path; also holds checkpoints, TensorBoard logs and the tables of an interrupted run
    validation : path or None, records of other simulations
    spectrum : path or None, of `python -m data_pipelines expected-spectrum`: the mean spectrum that
        all three fields are brought to at the end, instead of the simulations' own
    num_steps : int, of the generator, 16 maps each
    loss : str, "wgan-gp", or "gan" for the loss of the first GAN, to see it fail
    strategy : tf.distribute.Strategy or None; several hosts need a common folder `out` to resume

    Returns
    -------
    path : of the weights

    Raises
    ------
    ValueError : records of too few simulations; a spectrum of other maps.
    """
    resume_from, out = Path(out) if resume else None, worker_folder(out, strategy)
    out.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(seed)
    maps, held_out = split_maps(load_maps(records), validation and load_maps(validation))
    expected = spectrum and read_target(
        spectrum, shape=maps["kappa"].shape[1:], pixel_scale=maps["pixel_scale"]
    )
    target, tables, log_shift = tables_of_run(maps, out, seed, resume)
    with scope_of(strategy):
        network, average = Correction(**NETWORK), Correction(**NETWORK, name="average")
        average.set_weights(network.get_weights())
        prior = make_prior(
            "network", tables["lognormal"], tables["gaussian"], log_shift, network, maps
        )
        chosen = train_wgan(
            prior,
            average,
            maps,
            validation=held_out,
            target=fit_features(prior, maps),
            out=out,
            num_steps=num_steps,
            seed=seed,
            loss=loss,
            resume_from=resume_from,
            strategy=strategy,
        )
    network.set_weights(average.get_weights())
    if spectrum:
        target, tables = expected, rematched(tables, expected, log_shift, maps, seed)
        prior.kappa_table = Table(*(tf.constant(x, tf.float32) for x in tables["gaussian"]))
    left = match_spectrum(
        prior, target, num_maps=FINAL_MAPS, num_iterations=FINAL_ITERATIONS, seed=seed
    )
    manifest = read_manifest(records)
    training = {
        "records": {
            key: manifest[key]
            for key in ("kind", "num", "seed", "recipe_version", "sha256")
            if key in manifest
        },
        "num_simulations": len(np.unique(maps["simulation"])),
        "num_maps": len(maps["kappa"]),
        "num_held_out": len(held_out["kappa"]),
        "num_steps": num_steps,
        "batch": BATCH,
        "num_critic": NUM_CRITIC,
        "spectrum": spectrum and read_json(spectrum)["what"],
        "penalty": PENALTY,
        "steering": STEERING,
        "warm_up": WARM_UP,
        "loss": loss,
        "seed": seed,
    }
    return write_prior(
        out / "weights",
        prior,
        tables,
        training,
        {**chosen, "largest_band_error_before_last_change": left},
    )


def split_maps(maps, held_out):
    """Maps to train on and maps of other simulations, float32."""
    if held_out is None:
        simulations = np.unique(maps["simulation"])
        kept = np.isin(maps["simulation"], simulations[HELD_OUT_EVERY // 2 :: HELD_OUT_EVERY])
        held_out = {
            name: value[kept] if name != "pixel_scale" else value for name, value in maps.items()
        }
        maps = {
            name: value[~kept] if name != "pixel_scale" else value for name, value in maps.items()
        }
    num = len(np.unique(maps["simulation"]))
    if num < FEWEST_SIMULATIONS:
        raise InputError(
            f"split_maps: records must hold maps of at least {FEWEST_SIMULATIONS} simulations to"
            f" train on, got {num}; simulate more"
        )
    return maps, held_out


def tables_of_run(maps, out, seed, resume):
    """Target bands, tables {"gaussian", "lognormal"} and log lambda, kept in `out` so that a
    resumed run goes on with the same.
    """
    kept = out / "tables.npz"
    if resume and kept.is_file():
        stored = read_npz(kept, max_bytes=MAX_STORED)
        wanted = {"target": (TERMS, NUM_BANDS), "log_shift": (TERMS,)}
        for kind in ("gaussian", "lognormal"):
            shapes = ((TERMS, len(LOG_L)), (TERMS,), (TERMS,))
            wanted |= {
                f"{kind}_{field}": shape for field, shape in zip(Table._fields, shapes, strict=True)
            }
        if {name: array.shape for name, array in stored.items()} != wanted:
            raise InputFileError(
                kept,
                f"tables_of_run: file must hold arrays of the shapes {wanted}, got {list(stored)};"
                " delete it to fit again",
            )
        tables = {
            kind: Table(*(stored[f"{kind}_{field}"] for field in Table._fields))
            for kind in ("gaussian", "lognormal")
        }
        return stored["target"], tables, stored["log_shift"]
    target, log_shift = fit_target(maps), fit_shift(maps)
    start = start_table(target, maps["pixel_scale"], maps["kappa"].shape[1:])
    gaussian = make_prior("gaussian", start, start, log_shift, None, maps)
    match_spectrum(gaussian, target, num_maps=NUM_MAPS, num_iterations=NUM_ITERATIONS, seed=seed)
    found = numpy_table(gaussian.table)
    lognormal = make_prior(
        "lognormal",
        lognormal_start(found, log_shift, maps["cosmology"]),
        found,
        log_shift,
        None,
        maps,
    )
    match_spectrum(
        lognormal, target, num_maps=NUM_MAPS, num_iterations=2 * NUM_ITERATIONS, seed=seed
    )
    tables = {"gaussian": found, "lognormal": numpy_table(lognormal.table)}
    written = {"target": target, "log_shift": log_shift} | {
        f"{kind}_{field}": value
        for kind, table in tables.items()
        for field, value in table._asdict().items()
    }
    write_whole(kept, npz_bytes(written))
    return target, tables, log_shift


def rematched(tables, target, log_shift, maps, seed):
    """The tables of the Gaussian and the lognormal field, brought to the bands of another
    target.
    """
    moved = {}
    for kind, table in tables.items():
        prior = make_prior(kind, table, moved.get("gaussian", table), log_shift, None, maps)
        match_spectrum(
            prior, target, num_maps=FINAL_MAPS, num_iterations=FINAL_ITERATIONS, seed=seed
        )
        moved[kind] = numpy_table(prior.table)
    return moved


def make_prior(kind, table, kappa_table, log_shift, network, maps):
    """A prior in training."""
    return ConvergencePrior(
        kind=kind,
        name="kappa",
        log_l=LOG_L,
        table=table,
        kappa_table=kappa_table,
        log_shift=log_shift,
        network=network,
        pixel_scale=maps["pixel_scale"],
        image_shape=maps["kappa"].shape[1:],
        cosmology_range=COSMOLOGY_RANGE,
        card={},
    )


def numpy_table(table):
    """A table of tensors as one of arrays."""
    return Table(*(np.asarray(x) for x in table))


def write_prior(directory, prior, tables, training, metrics):
    """Write the card and the arrays of all three fields."""
    card = {
        "kind": "convergence",
        "name": "kappa",
        "pixel_scale": prior.pixel_scale,
        "pixel_scale_unit": "arcmin",
        "image_shape": list(prior.image_shape),
        "source_redshift": 1.0,
        "transform": "kappa",
        "cosmology_range": {name: list(limits) for name, limits in prior.cosmology_range.items()},
        "l_range": list(L_RANGE),
        "network": NETWORK,
        "training": training,
        "metrics": metrics,
    }
    tables = {**tables, "network": numpy_table(prior.table)}
    write_weights(
        directory,
        card=card,
        arrays=stored_arrays(LOG_L, np.asarray(prior.log_shift), tables, prior.network),
    )
    return directory
