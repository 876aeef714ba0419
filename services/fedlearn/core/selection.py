"""Who takes part: the choice of a cohort among the devices that wait, and when the others come back."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from fedlearn.core.ids import DeviceId


def choose(waiting: Collection[DeviceId], size: int, rng: np.random.Generator) -> tuple[DeviceId, ...]:
    """Choose `size` of the `waiting` devices uniformly without replacement (McMahan et al. 2017, algorithm 1: S_t)."""
    ordered = sorted(waiting)
    if size >= len(ordered):
        return tuple(ordered)
    picks = rng.choice(len(ordered), size=size, replace=False)
    return tuple(ordered[i] for i in sorted(picks))


@dataclass(frozen=True, slots=True)
class Census:
    """How many devices there are, and how many of them the rounds to come will select."""

    devices: int
    wanted: int


@dataclass(frozen=True, slots=True)
class Pace:
    """What pace steering aims at (Bonawitz et al. 2019, section 2.3).

    Args:
        spare: how many times the devices that the next rounds want should wait at any moment.
        checkins_per_second: no more come than this, however many there are.
        meeting_seconds: devices of a small fleet that can't be held come back together, once in so long.
        longest_seconds: nobody stays away longer, so that a new task finds devices.
    """

    spare: float = 3.0
    checkins_per_second: float = 200.0
    meeting_seconds: float = 10.0
    longest_seconds: float = 900.0

    def away_seconds(self, census: Census, hold_seconds: float) -> float:
        """How long a device stays away between check-ins that are held for `hold_seconds`; 0 in a small fleet.

        Of n devices that are away for a and held for h, n h / (h + a) wait at any moment, and n / (h + a) come each second.
        """
        hold = max(hold_seconds, 1.0)
        by_need = hold * (census.devices / (self.spare * max(census.wanted, 1)) - 1.0)
        if by_need <= 0.0:
            return 0.0
        by_load = census.devices / self.checkins_per_second - hold
        return min(max(by_need, by_load), self.longest_seconds)

    def come_back(self, census: Census, hold_seconds: float, now: float, rng: np.random.Generator) -> float:
        """After how many seconds a device that got no work should check in again.

        A large fleet is spread, each device by its own draw. A small one is gathered, since a round needs its devices at one
        time: a device that can be held waits at the server all the time; others meet there at the next multiple of
        `meeting_seconds`.

        Args:
            hold_seconds: how long this device's check-in was held.
            now: seconds of a clock that is the same for all devices.
        """
        away = self.away_seconds(census, hold_seconds)
        if away > 0.0:
            return float(away * rng.uniform(0.5, 1.5))
        jitter = float(rng.uniform(0.0, 1.0))
        return jitter if hold_seconds >= self.meeting_seconds else self.meeting_seconds - now % self.meeting_seconds + jitter
