"""Convergence detection against the formula in plain NumPy, and known cases."""

import dataclasses

import numpy as np
import pytest

from lowrank_jax.rank_selection import CIFAR, IMAGENET, VIT, ConvergenceDetector

PLAIN = ConvergenceDetector(window=5, tail=3, threshold=0.4)


def moving_average(values, window):
    """The closed form: weights a (1 - a)^k, the rest on the first value."""
    weight = 2 / (window + 1)
    averages = []
    for i in range(len(values)):
        weights = weight * (1 - weight) ** (i - np.arange(i + 1.0))
        weights[0] = (1 - weight) ** i
        averages.append(np.dot(weights, values[: i + 1]))
    return np.array(averages)


def drift(values, detector):
    gradient = np.gradient(moving_average(np.asarray(values, float), detector.window))
    return np.abs(gradient)[-detector.tail :].mean()


def settled(detector, *histories):
    return list(detector.settled_at({str(i): list(h) for i, h in enumerate(histories)}).values())


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("detector", [PLAIN, CIFAR, IMAGENET, VIT])
def test_the_drift_is_the_formula_in_numpy(detector, lag):
    detector = dataclasses.replace(detector, lag=lag)
    values = list(100 * np.exp(-np.arange(60) / 9) + np.random.default_rng(0).normal(size=60))
    for length in range(2 + lag, 61):
        read = values[: length - lag]
        assert detector.drift(values[:length]) == pytest.approx(drift(read, detector), rel=1e-12)
    assert detector.drift(values[:1]) == 0


@pytest.mark.parametrize("lag", [0, 1])
def test_a_layer_settles_when_the_formula_says_so(lag):
    detector = dataclasses.replace(PLAIN, lag=lag)
    rng = np.random.default_rng(1)
    for _ in range(20):
        values = rng.uniform(1, 80) * np.exp(-np.arange(50) / rng.uniform(2, 20))
        expected = next(
            (e for e in range(6, 50) if drift(values[: e + 1 - lag], PLAIN) <= PLAIN.threshold),
            None,
        )
        assert settled(detector, values) == [expected]


@pytest.mark.parametrize("detector", [CIFAR, IMAGENET, VIT, dataclasses.replace(CIFAR, lag=1)])
def test_a_constant_history_settles_as_soon_as_may_be(detector):
    assert settled(detector, [30.0] * (detector.window + 1)) == [None]
    assert settled(detector, [30.0] * (detector.window + 2)) == [detector.window + 1]


@pytest.mark.parametrize("detector", [CIFAR, IMAGENET, VIT])
def test_a_steady_drift_is_measured_in_ranks_per_epoch(detector):
    detector = dataclasses.replace(detector, relaxations=())
    epochs = np.arange(200)
    for per_epoch in (detector.threshold / 2, -detector.threshold / 2):
        assert settled(detector, 500 + per_epoch * epochs) == [detector.window + 1]
    # The average starts at rest, so that a fast drift looks slow only before the earliest epoch.
    assert settled(detector, 500 - 2 * detector.threshold * epochs) == [None]


def test_a_settled_layer_is_not_asked_again():
    plateau = [50.0] * 8 + [50.0 - 3 * i for i in range(1, 12)]
    assert settled(PLAIN, plateau[:8]) == [6]
    assert PLAIN.drift(plateau) > 2 * PLAIN.threshold
    assert settled(PLAIN, plateau) == [6]


def test_a_layer_is_asked_by_itself():
    still, moving = [7.0] * 30, list(np.linspace(100, 10, 30))
    assert settled(PLAIN, still, moving, still) == [6, None, 6]
    assert settled(PLAIN) == []


@pytest.mark.parametrize(
    ("detector", "factors"),
    [
        (CIFAR, {1: 5.0, 2: 2.5, 3: 1.0, 10: 1.0}),
        (IMAGENET, {1: 5.0, 3: 5.0, 4: 2.5, 6: 2.5, 7: 1.0, 10: 1.0}),
        (VIT, {1: 5.0, 4: 5.0, 5: 2.5, 9: 2.5, 10: 1.0, 48: 1.0}),
    ],
)
def test_published_relaxations(detector, factors):
    for left, factor in factors.items():
        assert detector.threshold_for(left) == pytest.approx(factor * detector.threshold)


def test_layers_left_are_counted_before_an_epochs_own_verdicts():
    detector = dataclasses.replace(PLAIN, relaxations=((1, 100.0),))
    still, moving = [7.0] * 12, list(500 - 10.0 * np.arange(12))
    assert PLAIN.drift(moving) > PLAIN.threshold
    # At epoch 6 two are left, and only at epoch 7 the moving one is the last.
    assert settled(detector, still, moving) == [6, 7]
    assert settled(detector, moving) == [6]


@pytest.mark.parametrize(
    "changes",
    [
        {"window": 0},
        {"tail": 0},
        {"threshold": 0.0},
        {"threshold": float("nan")},
        {"lag": 2},
        {"relaxations": ((2, 2.5), (1, 5.0))},
        {"relaxations": ((1, 5.0), (1, 2.5))},
        {"relaxations": ((1, 0.0),)},
    ],
)
def test_misuse_is_named(changes):
    with pytest.raises(ValueError, match=r"ConvergenceDetector\(.*must be"):
        dataclasses.replace(PLAIN, **changes)
