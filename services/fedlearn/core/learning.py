"""What stands between a device and a framework: examples, metrics and the `Learner` port.

Chaos, load and most tests run a numpy learner, devices a Keras one; the rest of a device does not know which.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

Weights = Sequence[npt.NDArray[Any]]
"""A model's weights in the order of the plan's manifest."""

Metrics = Mapping[str, float]
"""Means over examples, by name; `loss` is always there."""


@dataclass(frozen=True, slots=True)
class Examples:
    """Features and labels of equal length.

    Args:
        features: float32 or integer, shape (n, ...).
        labels: integer or float32, shape (n, ...).
    """

    features: npt.NDArray[Any]
    labels: npt.NDArray[Any]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True)
class Shard:
    """One device's data: what it trains on, and what it holds out to evaluate on."""

    train: Examples
    holdout: Examples


class Learner(Protocol):
    """A model, built and compiled once for a plan, then used for round after round and slot after slot."""

    def evaluate(self, weights: Weights, examples: Examples) -> Metrics:
        """The means of the plan's loss and metrics over `examples`; an empty mapping for no examples."""
        ...

    def train(self, weights: Weights, examples: Examples, seed: int, *, steps: int | None = None) -> Weights:
        """Train from `weights` as the plan says and return the new weights; the same seed gives the same weights.

        Args:
            steps: only the first so many steps; None for all of them.

        Raises:
            Refusal: `training_failed` when the loss or a weight is not finite.
        """
        ...
