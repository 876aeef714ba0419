"""Weighted sums that merge: `fold` adds an update, `+` merges two partial sums, `mean` ends them.

FedAvg, McMahan et al. 2017, algorithm 1: w_{t+1} = w_t + sum_k (n_k / n) delta_k.
"""

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fedlearn.core.errors import Code, Refusal
from fedlearn.core.kernels import add_weighted
from fedlearn.core.updates import Update, Vector

_SPAN = 1 << 18  # elements; a shorter vector is not worth a second thread


class Total(Protocol):
    """What a closed round gives: one delta, and what its devices said of themselves."""

    @property
    def examples(self) -> int: ...

    def mean(self) -> npt.NDArray[np.float64]:
        """The round's delta, shape (parameters,)."""
        ...

    def mean_of(self, part: slice) -> npt.NDArray[np.float64]:
        """These coordinates of it, in little memory: the total stays as it is."""
        ...

    def take_mean(self) -> npt.NDArray[np.float64]:
        """All of it in the total's own memory, which is the caller's from now on: the total is of no more use."""
        ...

    def metrics(self) -> dict[str, float]: ...


class TallyState(NamedTuple):
    """What a tally has counted; `metrics` are sums over the held-out examples."""

    examples: int
    updates: int
    holdout_examples: int
    metrics: dict[str, float]


@dataclass(slots=True)
class Tally:
    """How many updates, and what they say of themselves; it keeps no delta.

    `taken` is whether what has been added up was given away, by `take_mean`, or dropped; what is added afterwards is only
    counted.
    """

    examples: int = field(init=False, default=0)
    updates: int = field(init=False, default=0)
    holdout_examples: int = field(init=False, default=0)
    taken: bool = field(init=False, default=False)
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

    def discard(self) -> None:
        """Drop what has been added up, and its memory."""
        self.taken = True

    def state(self) -> TallyState:
        return TallyState(self.examples, self.updates, self.holdout_examples, dict(self._metrics))

    def add_state(self, state: TallyState) -> None:
        """Count what another tally has counted."""
        self.examples += state.examples
        self.updates += state.updates
        self.holdout_examples += state.holdout_examples
        for name, value in state.metrics.items():
            self._metrics[name] = self._metrics.get(name, 0.0) + value


@dataclass(slots=True)
class WeightedSum(Tally):
    """The sum of n_k * delta_k and of n_k, in float64, so that the order of arrival changes nothing that float32 can show.

    Args:
        parameters: the length of the vectors.
    """

    parameters: int
    _sum: npt.NDArray[np.float64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._sum = np.zeros(self.parameters, dtype=np.float64)

    def fold(self, update: Update) -> None:
        """Add one checked update (see `core.updates`), in place."""
        self.fold_all([update])

    def fold_all(self, updates: Sequence[Update], threads: Executor | None = None, cores: int = 1) -> None:
        """Add checked updates, in place; to the last bit what folding one after the other gives, but in fewer passes.

        Args:
            threads: where up to `cores` parts of the vector are added at once; not those that the caller runs in.
        """
        factors = [float(update.examples) for update in updates]
        cores = max(1, min(cores, self.parameters // _SPAN)) if threads is not None else 1
        step = -(-self.parameters // cores)

        def add(start: int) -> None:
            part = slice(start, start + step)
            add_weighted(self._sum[part], [update.delta[part] for update in updates], factors)

        if self.taken:
            pass  # it is counted, as everywhere, and nobody will see the sum
        elif threads is None or cores == 1:
            add(0)
        else:
            list(threads.map(add, range(0, self.parameters, step)))
        for update in updates:
            Tally.fold(self, update)

    def __add__(self, other: "WeightedSum") -> "WeightedSum":
        if self.parameters != other.parameters:
            raise Refusal(Code.UPDATE_SHAPE, f"Sums of {self.parameters} and {other.parameters} parameters don't merge.")
        merged = WeightedSum(self.parameters)
        np.add(self._sum, other._sum, out=merged._sum)
        for part in (self, other):
            merged.add_state(part.state())
        return merged

    def part(self, start: int, elements: int) -> npt.NDArray[np.float64]:
        """A view of the sum."""
        return self._sum[start : start + elements]

    def fold_part(self, start: int, delta: Vector, examples: int) -> None:
        """Add a part of an update, in place; to the last bit what `fold` adds there. `count` belongs to it."""
        if not self.taken:
            add_weighted(self._sum[start : start + len(delta)], [delta], [float(examples)])

    def count(self, update: Update) -> None:
        """Count an update whose delta was added by `fold_part`."""
        Tally.fold(self, update)

    def add_part(self, start: int, values: npt.NDArray[np.float64]) -> None:
        """Add a part of another sum, in place; what that sum has counted comes by `add_state`."""
        if not self.taken:
            self._sum[start : start + len(values)] += values

    def mean(self) -> npt.NDArray[np.float64]:
        """The weighted mean delta, shape (parameters,).

        Raises:
            Refusal: `too_few_reports` when nothing was folded.
        """
        return self._sum / self._divisor()

    def mean_of(self, part: slice) -> npt.NDArray[np.float64]:
        return self._sum[part] / self._divisor()

    def take_mean(self) -> npt.NDArray[np.float64]:
        divisor, mean = self._divisor(), self._sum
        self.discard()
        mean /= divisor
        return mean

    def discard(self) -> None:
        Tally.discard(self)
        self._sum = np.empty(0)

    def _divisor(self) -> int:
        if self.examples == 0:
            raise Refusal(Code.TOO_FEW_REPORTS, "There is no update to take the mean of.")
        return self.examples


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

    def mean_of(self, part: slice) -> npt.NDArray[np.float64]:
        return self.delta[part]

    def take_mean(self) -> npt.NDArray[np.float64]:
        return self.delta

    def metrics(self) -> dict[str, float]:
        return self.tally.metrics()
