"""Two of ten devices lie, in the ways of benchmarks/poisoning.py: a small net in numpy learns with every rule but the mean."""

from typing import Any

import numpy as np
import pytest

from fedlearn.core.aggregation import WeightedSum
from fedlearn.core.robust import CoordinateRule, GeometricMedian, Median, MultiKrum, NormBound, Rule, TrimmedMean, weighted_sum
from fedlearn.core.updates import Update

DEVICES, POISONED, EXAMPLES, FEATURES, HIDDEN, CLASSES = 10, (2, 6), 100, 20, 16, 4
ROUNDS, STEPS = 15, 5
CENTRES = np.random.default_rng(0).normal(0, 1.0, (CLASSES, FEATURES))
ATTACKS = ("sign flip", "scaling", "noise", "label flip")


def examples(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES, size=count)
    return CENTRES[labels] + rng.normal(size=(count, FEATURES)), labels


SHARDS = [examples(EXAMPLES, seed) for seed in range(1, DEVICES + 1)]
TEST = examples(2000, 99)


def layers(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    cut = FEATURES * HIDDEN
    return weights[:cut].reshape(FEATURES, HIDDEN), weights[cut:].reshape(HIDDEN, CLASSES)


def trained(weights: np.ndarray, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Some steps of gradient descent on the cross-entropy of a net with one hidden layer."""
    for _ in range(STEPS):
        first, second = layers(weights)
        hidden = np.maximum(features @ first, 0)
        logits = hidden @ second
        scores = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
        scores[np.arange(len(labels)), labels] -= 1
        gradients = features.T @ ((scores @ second.T) * (hidden > 0)), hidden.T @ scores
        weights = weights - 0.3 * np.concatenate([gradient.ravel() for gradient in gradients]) / len(labels)
    return weights


def accuracy(weights: np.ndarray) -> float:
    first, second = layers(weights)
    return float(((np.maximum(TEST[0] @ first, 0) @ second).argmax(axis=1) == TEST[1]).mean())


def update_of(weights: np.ndarray, device: int, attack: str | None, rng: np.random.Generator) -> Update:
    features, labels = SHARDS[device]
    if device not in POISONED:
        attack = None
    if attack == "label flip":
        labels = CLASSES - 1 - labels
    delta = trained(weights, features, labels) - weights
    if attack == "sign flip":
        delta *= -5
    elif attack == "scaling":
        delta *= 100
    elif attack == "noise":
        drawn = rng.normal(size=len(delta))
        delta = 100 * np.linalg.norm(delta) / np.linalg.norm(drawn) * drawn
    claimed = EXAMPLES * (10 if attack == "label flip" else 1)
    return Update(delta.astype(np.float32), examples=claimed)


def mean(updates: list[Update]) -> np.ndarray:
    total = WeightedSum(len(updates[0].delta))
    for update in updates:
        total.fold(update)
    return total.mean()


def robust(rule: Rule, updates: list[Update]) -> np.ndarray:
    rows, claimed = np.stack([update.delta for update in updates]), np.array([update.examples for update in updates], float)
    out = np.empty(rows.shape[1])
    if isinstance(rule, CoordinateRule):
        rule.combine(rows, out)
        return out
    measures = rule.begin(len(rows))
    for job in measures.jobs(rows):
        job()
    weighted_sum(rows, rule.coefficients(measures.result(), claimed), out)
    return out


def accuracies(rule: Rule | None, attack: str | None) -> list[float]:
    """After each round."""
    rng, found = np.random.default_rng(5), []
    weights = np.random.default_rng(1).normal(0, 0.3, FEATURES * HIDDEN + HIDDEN * CLASSES)
    for _ in range(ROUNDS):
        updates = [update_of(weights, device, attack, rng) for device in range(DEVICES)]
        weights = weights + (mean(updates) if rule is None else robust(rule, updates))
        found.append(accuracy(weights))
    return found


def test_the_mean_learns_from_honest_devices() -> None:
    assert accuracies(None, None)[-1] > 0.97


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_mean_breaks_with_two_that_lie(attack: str) -> None:
    assert max(accuracies(None, attack)[-5:]) < 0.7


RULES: list[Any] = [
    pytest.param(Median(), id="median"),
    pytest.param(TrimmedMean(0.2), id="trimmed mean"),
    pytest.param(MultiKrum(2, keep=1), id="Krum"),
    pytest.param(MultiKrum(2), id="Multi-Krum"),
    pytest.param(GeometricMedian(), id="geometric median"),
    pytest.param(NormBound(), id="norm bound"),
]


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("rule", RULES)
def test_a_robust_rule_learns_with_two_that_lie_as_without(rule: Rule, attack: str) -> None:
    assert accuracies(rule, attack)[-1] > accuracies(None, None)[-1] - 0.03
