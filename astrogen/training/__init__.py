"""Training: plain loops that write weights and cards."""

from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from astrogen.data.files import hold_folder
from astrogen.errors import InputError, WeightsError
from astrogen.types import FilePath


class Recipe(NamedTuple):
    """How a prior is trained.

    function : "module.function" of this folder, called with records, a Run, and those of `options`
        that were given
    num_steps : int, of the shipped weights
    options : names of the parameters of `train_prior` that it knows
    """

    function: str
    num_steps: int
    options: frozenset[str] = frozenset()


RECIPES = {
    "galaxy": Recipe("galaxy.train_galaxy", 20000, frozenset({"real", "strategy"})),
    "galaxy-conv": Recipe("convolutional.train_convolutional", 4000),
    "kappa": Recipe(
        "kappa.train_kappa", 3000, frozenset({"validation", "spectrum", "loss", "strategy"})
    ),
}


def train_prior(
    name: str,
    *,
    records: FilePath,
    out: FilePath,
    num_steps: int | None = None,
    seed: int = 1,
    resume: bool = False,
    real: FilePath | None = None,
    validation: FilePath | None = None,
    spectrum: FilePath | None = None,
    loss: str | None = None,
    strategy: Any = None,
) -> Path:
    """Train the prior `name` from records and write its weights; see the module of each.

    Parameters
    ----------
    name : str, "galaxy", "galaxy-conv" or "kappa"
    records : path, of `python -m data_pipelines galaxies`, or convergence for "kappa"
    out : path, for checkpoints, logs, the weights and a contact sheet
    num_steps : int or None for the length that the shipped weights were trained for
    real : path or None, of `python -m data_pipelines real`; for "galaxy" only
    validation : path or None, records of other simulations; for "kappa" only
    spectrum : path or None, of `python -m data_pipelines expected-spectrum`; for "kappa" only
    loss : str or None, "wgan-gp" or "gan"; for "kappa" only
    strategy : tf.distribute.Strategy, "one" (or None), "mirrored" (all GPUs of a host) or
        "multi-worker" (the hosts of TF_CONFIG, with the same command on each); for
        "galaxy" and "kappa". The batch is shared among the replicas: the steps are those of one
        device

    Returns
    -------
    path : of the weights, for `load_prior`
    """
    given: dict[str, Any] = {
        word: value
        for word, value in (
            ("real", real),
            ("validation", validation),
            ("spectrum", spectrum),
            ("loss", loss),
            ("strategy", strategy),
        )
        if value is not None
    }
    _check_options(name, given)
    # Before anything else of TensorFlow runs: a cluster has to be joined first.
    from astrogen.training.replicas import choose_strategy, worker_folder

    strategy = choose_strategy(given.pop("strategy", None))
    folder = worker_folder(out, strategy)
    with hold_folder(folder, error=WeightsError):
        from astrogen.training.run import Run

        recipe, resume_from = RECIPES[name], Path(out) if resume else None
        run = Run(folder, num_steps or recipe.num_steps, seed, resume_from, strategy)
        module, function = recipe.function.split(".")
        train = getattr(import_module(f"astrogen.training.{module}"), function)
        return train(records, run, **given)


def _check_options(name, given):
    if name not in RECIPES:
        raise InputError(
            f"train_prior: name must be {', '.join(map(repr, RECIPES))}, got {name!r}; see"
            " `astrogen train --help`"
        )
    for word in sorted(given.keys() - RECIPES[name].options):
        raise InputError(
            f"train_prior: {word} must be None for {name!r}, got {str(given[word])!r}; it is for"
            " another prior"
        )
