"""The devices that wait: check-ins held open until there is work, here or at another replica.

All of it is a cache; devices check in again.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Protocol

from fedlearn.core.eligibility import Demands, shortfall
from fedlearn.core.ids import DeviceId
from fedlearn.protocol.messages import Assignment, CheckIn
from fedlearn.telemetry.metrics import server as metrics


@dataclass(slots=True)
class _Waiter:
    checkin: CheckIn
    answer: asyncio.Future[Assignment | None] = field(repr=False)


@dataclass(slots=True)
class _Member:
    """A device that is known here, and the moment until which it should have come back."""

    checkin: CheckIn
    due: float


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A device that another replica knows.

    Args:
        waiting: whether its check-in is held there.
        due: the moment until which it should be heard of again, by this fleet's clock.
    """

    checkin: CheckIn
    waiting: bool
    due: float


class Journal(Protocol):
    """Where a fleet tells other replicas of its devices. It has to return at once."""

    def here(self, device: DeviceId, checkin: CheckIn, waiting: bool, seconds: float) -> None:
        """The device waits here, or is to be heard of again within so many seconds."""
        ...

    def gone(self, device: DeviceId) -> None:
        """Nobody knows whether the device comes back."""
        ...


class _NoJournal:
    def here(self, device: DeviceId, checkin: CheckIn, waiting: bool, seconds: float) -> None:
        pass

    def gone(self, device: DeviceId) -> None:
        pass


def has_uploaded(checkin: CheckIn, assignment: Assignment) -> bool:
    """Whether the device has done its part already, and only the aggregator's word of it is still to come."""
    done = checkin.uploaded
    return done is not None and (done.task, done.round) == (assignment.task, assignment.round)


def _meets(checkin: CheckIn, demands: Demands) -> bool:
    return shortfall(demands, checkin.conditions.domain(), checkin.examples, checkin.runtime) is None


_BACK_SECONDS = 10.0  # a device that was told to come back, or has left its round, is missed for so long


class Fleet:
    """Held check-ins by device; a later check-in of a device takes the place of its earlier one.

    Args:
        on_change: called when a device has begun to wait.
        is_leaving: whether a device is about to end, and gets no work any more.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        on_change: Callable[[], None] = lambda: None,
        is_leaving: Callable[[DeviceId], bool] = lambda _device: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._waiters: dict[DeviceId, _Waiter] = {}
        self._members: dict[DeviceId, _Member] = {}
        self._clock = clock
        self._counts, self._count_until = Counter[str](), 0.0
        self._reserved: dict[DeviceId, CheckIn | None] = {}
        self._is_leaving = is_leaving
        self._elsewhere: Mapping[DeviceId, Elsewhere] = {}
        self.on_change = on_change
        self.journal: Journal = _NoJournal()

    async def wait(self, device: DeviceId, checkin: CheckIn, seconds: float) -> Assignment | None:
        """Hold a check-in until `answer` has work for it; None when the time is up or a newer check-in has come."""
        if (older := self._waiters.get(device)) is not None:
            self._settle(older, None)
        waiter = _Waiter(checkin, asyncio.get_running_loop().create_future())
        self._waiters[device] = waiter
        self._remember(device, checkin, True, seconds)
        self.on_change()
        metrics.DEVICES_WAITING.set(len(self._waiters))
        try:
            async with asyncio.timeout(seconds):
                return await waiter.answer
        except TimeoutError:
            return None
        finally:
            if self._waiters.get(device) is waiter:
                del self._waiters[device]
                self._remember(device, checkin, False, 0.0)
            metrics.DEVICES_WAITING.set(len(self._waiters))

    def waiting(self, dataset: str, demands: Demands | None = None) -> list[DeviceId]:
        """The devices with shards of this dataset that wait, meet the demands, stay, and are not reserved for a round."""
        demands, now = demands or Demands(), self._clock()
        here = ((device, waiter.checkin) for device, waiter in self._waiters.items())
        there = (
            (device, other.checkin)
            for device, other in self._elsewhere.items()
            if other.waiting and other.due > now and device not in self._waiters
        )
        return [
            device
            for device, checkin in chain(here, there)
            if checkin.dataset == dataset
            and device not in self._reserved
            and _meets(checkin, demands)
            and not self._is_leaving(device)
        ]

    def see_elsewhere(self, devices: Mapping[DeviceId, Elsewhere]) -> None:
        """All devices that other replicas know now."""
        self._elsewhere = devices
        self.on_change()

    def expect(self, device: DeviceId, seconds: float) -> None:
        """The device was told to come back after so many seconds."""
        if (member := self._members.get(device)) is not None:
            self._remember(device, member.checkin, device in self._waiters, seconds)

    def forget(self, device: DeviceId) -> None:
        """The device has hung up: nobody knows whether it comes back."""
        if device not in self._waiters and self._members.pop(device, None) is not None:
            self.journal.gone(device)

    def size(self, dataset: str) -> int:
        """How many devices with shards of this dataset there are: at work, waiting, or about to come back."""
        now = self._clock()
        if now >= self._count_until:  # each device that is told to come back asks: once a second is often enough
            self._drop_the_lost()
            self._counts, self._count_until = Counter(member.checkin.dataset for member in self._known().values()), now + 1.0
        return self._counts[dataset]

    def missing(self, dataset: str, within_seconds: float) -> int:
        """How many devices don't wait now, are in no round, and were told to come back within this time."""
        soon = self._clock() + within_seconds + _BACK_SECONDS
        self._drop_the_lost()
        return sum(
            member.checkin.dataset == dataset
            and member.due <= soon
            and not self.holds(device)
            and device not in self._reserved
            and not self._is_leaving(device)
            for device, member in self._known().items()
        )

    def holds(self, device: DeviceId) -> bool:
        """Whether a check-in of this device is held, here or at another replica."""
        other = self._elsewhere.get(device)
        return device in self._waiters or (other is not None and other.waiting and other.due > self._clock())

    def holds_here(self, device: DeviceId) -> bool:
        return device in self._waiters

    def reserve(self, devices: Collection[DeviceId]) -> None:
        """Keep these devices for one round, so that no other selects them."""
        for device in devices:
            if device not in self._reserved:
                self._reserved[device] = self._checkin_of(device)

    def release(self, devices: Collection[DeviceId]) -> None:
        """The round of these devices has ended, or they have left it."""
        for device in devices:
            # where it comes back to, nobody knows: only here it is missed for a while
            if (checkin := self._reserved.pop(device, None)) is not None:
                self._members[device] = _Member(checkin, self._clock() + _BACK_SECONDS)
        self.on_change()

    def answer(self, device: DeviceId, assignment: Assignment) -> bool:
        """Answer the device's held check-in; False if it holds none now."""
        waiter = self._waiters.get(device)
        if waiter is None or waiter.answer.done() or has_uploaded(waiter.checkin, assignment):
            return False
        self._settle(waiter, assignment)
        return True

    def dismiss(self) -> None:
        """Answer every held check-in with nothing: the server stops."""
        for waiter in self._waiters.values():
            self._settle(waiter, None)

    def _checkin_of(self, device: DeviceId) -> CheckIn | None:
        known = self._members.get(device) or self._elsewhere.get(device)
        return None if known is None else known.checkin

    def _remember(self, device: DeviceId, checkin: CheckIn, waiting: bool, seconds: float) -> None:
        self._members[device] = _Member(checkin, self._clock() + seconds + _BACK_SECONDS)
        self.journal.here(device, checkin, waiting, seconds + _BACK_SECONDS)

    def _known(self) -> Mapping[DeviceId, _Member | Elsewhere]:
        now = self._clock()
        there = {device: other for device, other in self._elsewhere.items() if other.due > now}
        return {**there, **self._members} if there else self._members

    def _drop_the_lost(self) -> None:
        now = self._clock()
        for device in [
            device
            for device, member in self._members.items()
            if member.due < now and device not in self._waiters and device not in self._reserved
        ]:
            del self._members[device]

    @staticmethod
    def _settle(waiter: _Waiter, answer: Assignment | None) -> None:
        if not waiter.answer.done():
            waiter.answer.set_result(answer)
