"""Training: plain loops that write weights and cards."""

from astrogen.data.files import hold_folder
from astrogen.errors import InputError, WeightsError


def train_prior(
    name,
    *,
    records,
    out,
    num_steps=None,
    seed=1,
    resume=False,
    real=None,
    validation=None,
    spectrum=None,
    loss=None,
    strategy=None,
):
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
    given = {
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
    allowed = {
        "galaxy": {"real", "strategy"},
        "galaxy-conv": set(),
        "kappa": {"validation", "spectrum", "loss", "strategy"},
    }
    if name not in allowed:
        raise InputError(
            f"train_prior: name must be {', '.join(map(repr, allowed))}, got {name!r}; see"
            " `astrogen train --help`"
        )
    for word in sorted(given.keys() - allowed[name]):
        raise InputError(
            f"train_prior: {word} must be None for {name!r}, got {str(given[word])!r}; it is for"
            " another prior"
        )
    # Before anything else of TensorFlow runs: a cluster has to be joined first.
    from astrogen.training.replicas import choose_strategy, worker_folder

    strategy = choose_strategy(strategy)
    with hold_folder(worker_folder(out, strategy), error=WeightsError):
        return _train(
            name, records, out, num_steps, seed, resume, real, validation, spectrum, loss, strategy
        )


def _train(name, records, out, num_steps, seed, resume, real, validation, spectrum, loss, strategy):
    if name == "galaxy":
        from astrogen.training.galaxy import train_galaxy

        return train_galaxy(
            records,
            out,
            num_steps=num_steps or 20000,
            seed=seed,
            resume=resume,
            real=real,
            strategy=strategy,
        )
    if name == "galaxy-conv":
        from astrogen.training.convolutional import train_convolutional

        return train_convolutional(
            records, out, num_steps=num_steps or 4000, seed=seed, resume=resume
        )
    from astrogen.training.kappa import train_kappa

    return train_kappa(
        records,
        out,
        validation=validation,
        spectrum=spectrum,
        num_steps=num_steps or 3000,
        seed=seed,
        loss=loss or "wgan-gp",
        resume=resume,
        strategy=strategy,
    )
