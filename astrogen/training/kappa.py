"""From simulated convergence maps to the three fields of the prior: shift and spectrum, the
WGAN-GP, what the network does to the spectrum taken out, weights and card.
"""

import json
from pathlib import Path

import keras
import numpy as np

from astrogen.data.arrays import npz_bytes
from astrogen.data.files import write_whole
from astrogen.data.reading import parse_json, read_json, read_npz
from astrogen.errors import InputError, InputFileError
from astrogen.priors import load_prior
from astrogen.priors.convergence import TERMS, ConvergencePrior, MapFrame, Theory, stored_arrays
from astrogen.priors.correction import Correction
from astrogen.priors.storage import read_weights, weights_hash, write_weights
from astrogen.training.records import load_maps, read_manifest
from astrogen.training.replicas import scope_of
from astrogen.training.spectra import (
    fit_shift,
    fit_theory,
    match_theory,
    no_change,
    read_theory,
)
from astrogen.training.symmetry import (
    TEACHER_MAPS,
    TEACHER_ROUNDS,
    Teacher,
    draw_lessons,
    learn_symmetric,
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

NETWORK = {"channels": 16, "dilations": [1, 1, 2, 4], "smoothing": [1.0, 2.0, 5.0]}
L_RANGE = (30, 3000)  # multipoles for which the drawn maps' spectrum was brought to theory
MAX_STORED = 2**24  # bytes of the file of theory, which has some thousands
HELD_OUT_EVERY = 10  # without a folder of its own, every tenth simulation is kept for validation
FINAL_MAPS, FINAL_ROUNDS = 96, 4  # by which a network's field is brought to theory
FEWEST_SIMULATIONS = 4  # to train on
RANGE_STEP = 0.01  # to which the range of the cosmology is widened
# what sets of maps must share to be learned from together
ALIKE = ("source_redshift", "pixel_scale", "transform", "corrected", "fixed")


def train_kappa(records, run, *, validation=None, spectrum=None, loss="wgan-gp"):
    """Train the convergence prior and write it to weights/ in the folder of the run.

    Parameters
    ----------
    records : path, of `python -m data_pipelines convergence`
    run : Run, of steps of the generator, 16 maps each; its folder also holds the tables of an
        interrupted run; several hosts need a common folder to resume
    validation : path or None, records of other simulations
    spectrum : path or None, of `python -m data_pipelines expected-spectrum`: the spectrum of all
        three fields; without it that of the shipped prior, times what the simulations' bands ask
        for
    loss : str, "wgan-gp", or "gan" for the loss of the first GAN, to see it fail

    Returns
    -------
    path : of the weights

    Raises
    ------
    ValueError : records of too few simulations; validation, spectrum or an interrupted run of other
        sources or pixels.
    """
    out, seed = run.out, run.seed
    out.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(seed)
    about = read_manifest(records)
    if validation:
        check_alike(about, records, read_manifest(validation), validation)
    maps, held_out = split_maps(load_maps(records), validation and load_maps(validation))
    theory, log_shift = start_of_run(
        maps, about, records, spectrum, out, resume=run.resume_from is not None
    )
    with scope_of(run.strategy):
        network, average = Correction(**NETWORK), Correction(**NETWORK, name="average")
        average.set_weights(network.get_weights())
        prior = make_prior("network", theory, log_shift, network, maps)
        chosen = train_wgan(
            prior,
            average,
            maps,
            run,
            validation=held_out,
            target=fit_features(prior, maps),
            loss=loss,
        )
    network.set_weights(average.get_weights())
    training = {
        "records": {
            key: about[key]
            for key in ("kind", "num", "seed", "recipe_version", "sha256")
            if key in about
        },
        "num_simulations": len(np.unique(maps["simulation"])),
        "num_maps": len(maps["kappa"]),
        "num_held_out": len(held_out["kappa"]),
        "num_steps": run.num_steps,
        "batch": BATCH,
        "num_critic": NUM_CRITIC,
        "spectrum": spectrum and read_json(spectrum)["what"],
        "penalty": PENALTY,
        "steering": STEERING,
        "warm_up": WARM_UP,
        "loss": loss,
        "seed": seed,
    }
    return write_prior(out / "weights", prior, about, training, chosen, seed=seed)


def symmetrise_kappa(teacher, out, *, spectrum, num_steps, seed):
    """Learn a symmetric network from weights whose network is not (`astrogen.training.symmetry`),
    bring its maps to theory, and write the prior to `out`/weights.

    Parameters
    ----------
    teacher : path, weights of a convergence prior whose network has free kernels
    spectrum : path, of `python -m data_pipelines expected-spectrum`
    num_steps : int, of 8 fields each

    Returns
    -------
    path : of the weights
    """
    keras.utils.set_random_seed(seed)
    out, (theory, redshift) = Path(out), read_theory(spectrum)
    card, arrays = read_weights(teacher)
    about = {**card, "source_redshift": redshift}
    check_alike(card, teacher, about, spectrum)
    prior = ConvergencePrior(
        kind="network",
        name="kappa",
        theory=theory,
        log_shift=arrays["spectra"]["log_shift"],
        change=no_change(),
        network=None,
        frame=MapFrame(
            pixel_scale=card["pixel_scale"],
            image_shape=card["image_shape"],
            cosmology_range=card["cosmology_range"],
        ),
        card={},
    )
    prior.network = Teacher(teacher, prior)
    match_theory(prior, num_maps=TEACHER_MAPS, num_rounds=TEACHER_ROUNDS, seed=seed)
    lessons = draw_lessons(prior, seed=seed)
    prior.network = Correction(**NETWORK)
    missed = learn_symmetric(prior.network, lessons, num_steps=num_steps, seed=seed)
    training = card["training"] | {
        "spectrum": read_json(spectrum)["what"],
        "symmetrised": {
            "teacher": weights_hash(card),
            "num_steps": num_steps,
            "seed": seed,
            "missed_of_the_mean_of_eight": missed,
        },
    }
    return write_prior(out / "weights", prior, about, training, card["metrics"], seed=seed)


def check_alike(one, first, other, second):
    """Refuse two sets of maps, by their manifests, that are not of one kind.

    Raises
    ------
    InputError : another redshift of the sources, pixel scale, or anything else of ALIKE that both
        state.
    """
    for name in ALIKE:
        if name in one and name in other and one[name] != other[name]:
            raise InputError(
                f"train_kappa: {name} must be one for all maps, got {one[name]} in {first} and"
                f" {other[name]} in {second}; make them alike, or train apart"
            )


def split_maps(maps, held_out):
    """Maps to train on and maps of other simulations, float32."""
    if held_out is None:
        simulations = np.unique(maps["simulation"])
        kept = np.isin(maps["simulation"], simulations[HELD_OUT_EVERY // 2 :: HELD_OUT_EVERY])
        held_out, maps = (
            {name: value[rows] if np.ndim(value) else value for name, value in maps.items()}
            for rows in (kept, ~kept)
        )
    num = len(np.unique(maps["simulation"]))
    if num < FEWEST_SIMULATIONS:
        raise InputError(
            f"split_maps: records must hold maps of at least {FEWEST_SIMULATIONS} simulations to"
            f" train on, got {num}; simulate more"
        )
    return maps, held_out


def start_of_run(maps, about, records, spectrum, out, *, resume):
    """Theory and log lambda, kept in `out` so that a resumed run goes on with the same; a run that
    another set of maps was learned from is refused.
    """
    kept, of = out / "start.npz", json.dumps({name: about.get(name) for name in ALIKE})
    if resume and kept.is_file():
        return _read_start(kept, about, records, out)
    if spectrum:
        theory, redshift = read_theory(spectrum)
        check_alike(about, records, {"source_redshift": redshift}, spectrum)
    else:
        theory = fit_theory(maps, load_prior("kappa-lognormal").theory)
    log_shift = fit_shift(maps)
    text = np.frombuffer(of.encode(), np.uint8)
    write_whole(kept, npz_bytes({"log_shift": log_shift, "of": text, **theory._asdict()}))
    return theory, log_shift


def _read_start(kept, about, records, out):
    """What `start_of_run` kept, checked."""
    stored = read_npz(kept, max_bytes=MAX_STORED)
    num = len(stored.get("log_l", ()))
    wanted = {"log_l": (num,), "log_spectrum": (TERMS, num), "log_shift": (TERMS,)}
    found = {name: array.shape for name, array in stored.items() if name != "of"}
    if found != wanted or "of" not in stored:
        raise InputFileError(
            kept,
            f"start_of_run: file must hold arrays of the shapes {wanted} and of, got"
            f" {sorted(stored)}; delete it to fit again",
        )
    check_alike(about, records, parse_json(bytes(stored["of"]).decode()), out)
    return Theory(stored["log_l"], stored["log_spectrum"]), stored["log_shift"]


def range_of(maps):
    """The range of the cosmology of maps, widened to whole RANGE_STEP: {parameter: (low, high)}."""
    steps = np.round(maps["cosmology"].astype(float), 5) / RANGE_STEP
    low, high = np.floor(steps.min(0) + 1e-6), np.ceil(steps.max(0) - 1e-6)
    return {
        name: (round(float(first) * RANGE_STEP, 6), round(float(last) * RANGE_STEP, 6))
        for name, first, last in zip(("omega_m", "sigma_8"), low, high, strict=True)
    }


def make_prior(kind, theory, log_shift, network, maps):
    """A prior in training."""
    return ConvergencePrior(
        kind=kind,
        name="kappa",
        theory=theory,
        log_shift=log_shift,
        change=no_change() if network else None,
        network=network,
        frame=MapFrame(
            pixel_scale=maps["pixel_scale"],
            image_shape=maps["kappa"].shape[1:],
            cosmology_range=range_of(maps),
        ),
        card={},
    )


def write_prior(directory, prior, about, training, metrics, *, seed):
    """Bring a trained prior to theory, and write its card and arrays.

    Parameters
    ----------
    about : dict, the manifest of the maps that it learned from, for what they are maps of
    """
    left = match_theory(prior, num_maps=FINAL_MAPS, num_rounds=FINAL_ROUNDS, seed=seed)
    card = {
        "kind": "convergence",
        "name": "kappa",
        "pixel_scale": prior.pixel_scale,
        "pixel_scale_unit": "arcmin",
        "image_shape": list(prior.image_shape),
        "source_redshift": about["source_redshift"],
        "transform": about["transform"],
        "cosmology_range": {name: list(limits) for name, limits in prior.cosmology_range.items()},
        "l_range": list(L_RANGE),
        "network": NETWORK,
        "training": training,
        "metrics": {**metrics, "largest_change_of_power_in_the_last_round": left},
    }
    write_weights(directory, card=card, arrays=stored_arrays(prior))
    return directory
