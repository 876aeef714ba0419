"""What stands between a device and a framework: examples, metrics and the `Learner` port.

Chaos, load and most tests run a numpy learner, devices a Keras one; the rest of a device does not know which.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from fedlearn.core.updates import Vector

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


class Stopped(Exception):
    """Local training has ended early, since nobody wants its result any more."""


class Stop:
    """How anybody, from any thread, ends one local training at its next step."""

    def __init__(self) -> None:
        self._event, self._lock = threading.Event(), threading.Lock()
        self._tell: Callable[[], None] | None = None

    def set(self) -> None:
        """The result is not wanted any more."""
        with self._lock:
            self._event.set()
            if self._tell is not None:
                self._tell()

    def wait(self, seconds: float) -> None:
        """Let time pass.

        Raises:
            Stopped: as soon as it is set.
        """
        if self._event.wait(seconds):
            raise Stopped

    def check(self) -> None:
        """Raises:
        Stopped: when it is set.
        """
        self.wait(0)

    @contextmanager
    def telling(self, tell: Callable[[], None]) -> Iterator[None]:
        """Call `tell` when it is set within this block, at once if it is set already; never after the block."""
        with self._lock:
            self._tell = tell
            if self._event.is_set():
                tell()
        try:
            yield
        finally:
            with self._lock:
                self._tell = None


class Learner(Protocol):
    """A model, built and compiled once for a plan, then used for round after round and slot after slot."""

    def evaluate(self, weights: Weights, examples: Examples) -> Metrics:
        """The means of the plan's loss and metrics over `examples`; an empty mapping for no examples."""
        ...

    def learn(
        self, weights: Weights, examples: Examples, seed: int, stop: Stop | None = None, *, steps: int | None = None
    ) -> Vector:
        """Train from `weights`, which stay as they are, as the plan says; the same seed gives the same delta.

        Args:
            steps: only the first so many steps; None for all of them.

        Returns:
            The delta, new weights - `weights`, in the manifest's order: float32, shape (parameters,), the caller's own.

        Raises:
            Refusal: `training_failed` when the loss or a weight is not finite.
            Stopped: at the next step once `stop` is set.
        """
        ...
