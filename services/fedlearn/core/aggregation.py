"""Weighted sums that merge: `fold` adds an update, `+` merges two partial sums, `mean` ends them.

FedAvg, McMahan et al. 2017, algorithm 1: w_{t+1} = w_t + sum_k (n_k / n) delta_k.
"""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fedlearn.core.errors import Code, Refusal
from fedlearn.core.updates import Update

_WINDOW = 1 << 16  # elements; a window of the sum, of the delta and of the product stay in the L2 cache


class Total(Protocol):
    """What a closed round gives: one delta, and what its devices said of themselves."""

    @property
    def examples(self) -> int: ...

    def mean(self) -> npt.NDArray[np.float64]:
        """The round's delta, shape (parameters,)."""
        ...

    def metrics(self) -> dict[str, float]: ...


@dataclass(slots=True)
class Tally:
    """How many updates, and what they say of themselves; it keeps no delta."""

    examples: int = field(init=False, default=0)
    updates: int = field(init=False, default=0)
    holdout_examples: int = field(init=False, default=0)
    _metrics: dict[str, float] = field(init=False, default_factory=dict)

    def fold(self, update: Update) -> None:
        """Count one validated update."""
        self.examples += update.examples
        self.updates += 1
        self.holdout_examples += update.holdout_examples
        for name, value in update.metrics.items():
            self._metrics[name] = self._metrics.get(name, 0.0) + update.holdout_examples * value

    def metrics(self) -> dict[str, float]:
        """The hold-out metrics as means weighted by the number of held-out examples; empty if none was held out."""
        if self.holdout_examples == 0:
            return {}
        return {name: value / self.holdout_examples for name, value in self._metrics.items()}

    def _merge(self, other: "Tally") -> None:
        self.examples += other.examples
        self.updates += other.updates
        self.holdout_examples += other.holdout_examples
        for name, value in other._metrics.items():
            self._metrics[name] = self._metrics.get(name, 0.0) + value


@dataclass(slots=True)
class WeightedSum(Tally):
    """The sum of n_k * delta_k and of n_k, in float64, so that the order of arrival changes nothing that float32 can show.

    Args:
        parameters: the length of the vectors.
    """

    parameters: int
    _sum: npt.NDArray[np.float64] = field(init=False, repr=False)
    _product: npt.NDArray[np.float64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._sum = np.zeros(self.parameters, dtype=np.float64)
        self._product = np.empty(min(_WINDOW, self.parameters), dtype=np.float64)

    def fold(self, update: Update) -> None:
        """Add one validated update (see `validate_update`), in place."""
        weight = float(update.examples)
        for start in range(0, self.parameters, _WINDOW):
            delta = update.delta[start : start + _WINDOW]
            product = self._product[: len(delta)]
            np.multiply(delta, weight, out=product, dtype=np.float64)  # in float32 the product would lose what the sum keeps
            self._sum[start : start + len(delta)] += product
        Tally.fold(self, update)

    def __add__(self, other: "WeightedSum") -> "WeightedSum":
        if self.parameters != other.parameters:
            raise Refusal(Code.UPDATE_SHAPE, f"Sums of {self.parameters} and {other.parameters} parameters don't merge.")
        merged = WeightedSum(self.parameters)
        np.add(self._sum, other._sum, out=merged._sum)
        for part in (self, other):
            merged._merge(part)
        return merged

    def mean(self) -> npt.NDArray[np.float64]:
        """The weighted mean delta, shape (parameters,).

        Raises:
            Refusal: `too_few_reports` when nothing was folded.
        """
        if self.examples == 0:
            raise Refusal(Code.TOO_FEW_REPORTS, "There is no update to take the mean of.")
        return self._sum / self.examples


@dataclass(frozen=True, slots=True)
class Combined:
    """What another rule than the weighted mean makes of a round's updates."""

    tally: Tally
    delta: npt.NDArray[np.float64]

    @property
    def examples(self) -> int:
        return self.tally.examples

    def mean(self) -> npt.NDArray[np.float64]:
        return self.delta

    def metrics(self) -> dict[str, float]:
        return self.tally.metrics()
