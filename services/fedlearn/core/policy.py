"""What a task demands of its rounds, and when a phase has had enough."""

import math
from dataclasses import dataclass, field
from enum import StrEnum

from fedlearn.core.eligibility import Demands


class Verdict(StrEnum):
    WAIT = "wait"
    ENOUGH = "enough"
    TOO_FEW = "too_few"


@dataclass(frozen=True, slots=True)
class Quorum:
    """Count x time: enough at `goal` at once, or at `minimum` when the time is up; too few below it."""

    minimum: int
    goal: int
    timeout_seconds: float

    def verdict(self, count: int, elapsed_seconds: float, *, can_grow: bool = True) -> Verdict:
        """Judge `count` after `elapsed_seconds`; `can_grow=False` says that waiting brings no more."""
        if count >= self.goal:
            return Verdict.ENOUGH
        if can_grow and elapsed_seconds < self.timeout_seconds:
            return Verdict.WAIT
        return Verdict.ENOUGH if count >= self.minimum else Verdict.TOO_FEW


@dataclass(frozen=True, slots=True)
class RoundPolicy:
    """What a task demands of each of its rounds. Times are seconds, fractions are of the goal.

    Args:
        overlap_selection: whether devices gather for a round from when the one before it has begun to report, or only from its
            commit on.
    """

    goal: int
    over_selection: float = 1.3
    min_fraction: float = 0.8
    selection_timeout_seconds: float = 60.0
    reporting_timeout_seconds: float = 600.0
    aggregation_timeout_seconds: float = 600.0
    overlap_selection: bool = True
    demands: Demands = field(default_factory=Demands)

    @property
    def minimum(self) -> int:
        return max(1, self._times_goal(self.min_fraction))

    @property
    def selection(self) -> Quorum:
        return Quorum(self.minimum, self._times_goal(self.over_selection), self.selection_timeout_seconds)

    @property
    def reporting(self) -> Quorum:
        return Quorum(self.minimum, self.goal, self.reporting_timeout_seconds)

    def _times_goal(self, fraction: float) -> int:
        """Rounded up, but for what floats add: 100 * 0.55 is 55.00000000000001. The chart's checks count likewise."""
        return math.ceil(self.goal * fraction * (1 - 1e-12))
