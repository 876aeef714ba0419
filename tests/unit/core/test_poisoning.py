"""Two of ten devices send lies, and a softmax regression in numpy still learns with every rule but the mean."""

from typing import Any

import numpy as np
import pytest

from fedlearn.core.aggregation import WeightedSum
from fedlearn.core.robust import CoordinateRule, GeometricMedian, Median, MultiKrum, NormBound, Rule, TrimmedMean, weighted_sum
from fedlearn.core.updates import Update

DEVICES, POISONED, FEATURES, CLASSES = 10, (2, 6), 20, 4
ROUNDS, STEPS = 15, 5
CENTRES = np.random.default_rng(0).normal(0, 1.0, (CLASSES, FEATURES))


def examples(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES, size=count)
    return CENTRES[labels] + rng.normal(size=(count, FEATURES)), labels


SHARDS = [examples(100, seed) for seed in range(1, DEVICES + 1)]
TEST = examples(2000, 99)


def logits(weights: np.ndarray, features: np.ndarray) -> np.ndarray:
    return features @ weights.reshape(FEATURES, CLASSES)


def trained(weights: np.ndarray, shard: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Some steps of gradient descent on the cross-entropy."""
    features, labels = shard
    for _ in range(STEPS):
        scores = np.exp(logits(weights, features) - logits(weights, features).max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
        scores[np.arange(len(labels)), labels] -= 1
        weights = weights - 0.3 * (features.T @ scores / len(labels)).ravel()
    return weights


def mean(rows: np.ndarray) -> np.ndarray:
    total = WeightedSum(rows.shape[1])
    for row in rows:
        total.fold(Update(row, examples=100))
    return total.mean()


def robust(rule: Rule, rows: np.ndarray) -> np.ndarray:
    out = np.empty(rows.shape[1])
    if isinstance(rule, CoordinateRule):
        rule.combine(rows, out)
        return out
    measures = rule.begin(len(rows))
    for job in measures.jobs(rows):
        job()
    weighted_sum(rows, rule.coefficients(measures.result(), np.full(len(rows), 100.0)), out)
    return out


def accuracy_after(rule: Rule | None, *, poisoned: bool) -> float:
    weights = np.zeros(FEATURES * CLASSES)
    for _ in range(ROUNDS):
        rows = np.stack([trained(weights, shard) - weights for shard in SHARDS]).astype(np.float32)
        if poisoned:
            rows[list(POISONED)] *= -10  # the sign is flipped, and what they send is made to count
        weights = weights + (mean(rows) if rule is None else robust(rule, rows))
    return float((logits(weights, TEST[0]).argmax(axis=1) == TEST[1]).mean())


def test_the_mean_learns_from_honest_devices_and_breaks_with_two_that_lie() -> None:
    assert accuracy_after(None, poisoned=False) > 0.9
    assert accuracy_after(None, poisoned=True) < 0.3


RULES: list[Any] = [
    pytest.param(Median(), id="median"),
    pytest.param(TrimmedMean(0.2), id="trimmed mean"),
    pytest.param(MultiKrum(2, keep=1), id="Krum"),
    pytest.param(MultiKrum(2), id="Multi-Krum"),
    pytest.param(GeometricMedian(), id="geometric median"),
    pytest.param(NormBound(), id="norm bound"),
]


@pytest.mark.parametrize("rule", RULES)
def test_a_robust_rule_learns_with_two_that_lie_as_without(rule: Rule) -> None:
    assert accuracy_after(rule, poisoned=True) > accuracy_after(None, poisoned=False) - 0.03
