"""The two-sample test by a classifier: equal sets, sets that differ, and maps that share a
simulation.
"""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from astrogen.darkmatter import statistics
from astrogen.darkmatter.statistics.classifier import classify


def lognormal(num, side, sigma, *, seed):
    """Maps of a smoothed lognormal field, divided by its standard deviation: sigma changes the
    skewness, and little else.
    """
    white = np.random.default_rng(seed).normal(size=(num, side, side))
    smooth = np.exp(
        -((2 * np.pi) ** 2) * np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)) ** 2
    )
    field = np.fft.irfft2(np.fft.rfft2(white) * smooth, (side, side))
    return (np.exp(sigma * field / field.std() - sigma**2 / 2) - 1) / sigma


def test_equal_sets_cannot_be_told_apart():
    answer = classify(
        lognormal(180, 24, 0.3, seed=1), lognormal(150, 24, 0.3, seed=2), seed=1, num_steps=60
    )
    assert abs(answer.accuracy - 0.5) < 3.5 * answer.error
    assert answer.num_held_out == (60, 50)
    assert answer.error == pytest.approx(0.5 * np.sqrt(0.25 / 60 + 0.25 / 50))


def test_sets_of_another_skewness_can():
    answer = classify(
        lognormal(180, 24, 0.1, seed=1), lognormal(180, 24, 0.5, seed=2), seed=1, num_steps=100
    )
    assert answer.accuracy > 0.9


def test_maps_of_one_simulation_stay_together():
    """Two of the six groups are kept apart, whole; a third of the maps would be 21."""
    sizes = 2 ** np.arange(6)
    maps, groups = lognormal(63, 18, 0.3, seed=1), np.repeat(np.arange(6), sizes)
    answer = classify(maps, maps, seed=1, first_groups=groups, second_groups=groups, num_steps=1)
    pairs = {int(one + other) for one in sizes for other in sizes if one != other}
    assert set(answer.num_held_out) <= pairs
    assert 21 not in pairs


def test_the_seed_decides():
    first, second = lognormal(60, 18, 0.3, seed=1), lognormal(60, 18, 0.5, seed=2)
    one, again = (classify(first, second, seed=4, num_steps=3) for _ in range(2))
    assert one == again


@pytest.mark.slow
def test_the_network_is_as_sharp_as_the_moments():
    """Skewness .61 against .70: the two moments that matter, in a logistic regression, are the
    rival.
    """
    first, second = lognormal(1024, 64, 0.2, seed=1), lognormal(1024, 64, 0.23, seed=2)
    learnt = np.arange(1024) % 3 > 0
    features = [
        np.concatenate(
            [
                statistics.moments(maps),
                statistics.moments(maps.reshape(-1, 32, 2, 32, 2).mean((2, 4))),
            ],
            1,
        )
        for maps in (first, second)
    ]
    rival = make_pipeline(StandardScaler(), LogisticRegression()).fit(
        np.concatenate([f[learnt] for f in features]), np.repeat([0, 1], learnt.sum())
    )
    expected = np.mean(
        [np.mean(rival.predict(f[~learnt]) == label) for label, f in enumerate(features)]
    )
    answer = classify(first, second, seed=1)
    assert expected > 0.65
    assert answer.accuracy > expected - 3 * answer.error


def test_what_cannot_be_compared_is_refused():
    maps = lognormal(6, 18, 0.3, seed=1)
    with pytest.raises(
        ValueError,
        match=r"first and second must have maps of one shape, got \(18, 18\) and \(20, 20\)",
    ):
        classify(maps, lognormal(6, 20, 0.3, seed=1), seed=1)
    with pytest.raises(
        ValueError, match="groups must label 6 maps of at least two groups, got 1 groups"
    ):
        classify(maps, maps, seed=1, first_groups=np.ones(6))
    with pytest.raises(ValueError, match="classify: maps must be .* sides of at least 18 pixels"):
        classify(maps[:, :9], maps, seed=1)
