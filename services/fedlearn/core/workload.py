"""How much local work each device of a cohort is given, so that a round's reports arrive together.

Why so, and what it does to the mean, stands in `docs/decisions/0015-work-by-speed.md`.
"""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from fedlearn.core.ids import DeviceId

_NEW_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Work:
    """A device's whole local training in a round, and how fast it is.

    Args:
        steps: all of the plan's steps on its shard, at least 1.
        seconds_per_step: as `smoothed` gives it; None for a device that has not been measured.
    """

    steps: int
    seconds_per_step: float | None


def smoothed(before: float | None, measured: float) -> float:
    """The estimate after one more measurement: an exponential mean, in which half of the weight is the newest one's."""
    return measured if before is None else before + _NEW_SHARE * (measured - before)


def fit(cohort: Mapping[DeviceId, Work], min_fraction: float) -> dict[DeviceId, int]:
    """The steps for each device: as many as it does in the time that the median device takes for all of its own.

    Of an even number of measured devices the lower of the middle two is the median. No device is given more than all of its
    steps or less than `min_fraction` of them, and one that has not been measured is given all.
    """
    times = [work.steps * work.seconds_per_step for work in cohort.values() if work.seconds_per_step is not None]
    if not times:
        return {device: work.steps for device, work in cohort.items()}
    target = statistics.median_low(times)
    return {device: _steps(work, target, min_fraction) for device, work in cohort.items()}


def within(steps: int, whole: int, min_fraction: float) -> int:
    """`steps`, but at least `min_fraction` of the whole training's, and at most all of them."""
    return min(whole, max(math.ceil(whole * min_fraction), steps))


def _steps(work: Work, target_seconds: float, min_fraction: float) -> int:
    if work.seconds_per_step is None or work.steps * work.seconds_per_step <= target_seconds:
        return work.steps
    return within(int(target_seconds / work.seconds_per_step), work.steps, min_fraction)
