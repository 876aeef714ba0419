"""The devices that wait: check-ins held open until there is work. All of it is a cache; devices check in again."""

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from fedlearn.core.ids import DeviceId
from fedlearn.protocol.messages import Assignment, CheckIn
from fedlearn.telemetry.metrics import server as metrics


@dataclass(slots=True)
class _Waiter:
    checkin: CheckIn
    answer: asyncio.Future[Assignment | None] = field(repr=False)


def has_uploaded(checkin: CheckIn, assignment: Assignment) -> bool:
    """Whether the device has done its part already, and only the aggregator's word of it is still to come."""
    done = checkin.uploaded
    return done is not None and (done.task, done.round) == (assignment.task, assignment.round)


class Fleet:
    """Held check-ins by device; a later check-in of a device takes the place of its earlier one.

    Args:
        on_change: called when a device has begun to wait.
        is_leaving: whether a device is about to end, and gets no work any more.
    """

    def __init__(
        self, on_change: Callable[[], None] = lambda: None, is_leaving: Callable[[DeviceId], bool] = lambda _device: False
    ) -> None:
        self._waiters: dict[DeviceId, _Waiter] = {}
        self._reserved: set[DeviceId] = set()
        self._is_leaving = is_leaving
        self.on_change = on_change

    async def wait(self, device: DeviceId, checkin: CheckIn, seconds: float) -> Assignment | None:
        """Hold a check-in until `answer` has work for it; None when the time is up or a newer check-in has come."""
        if (older := self._waiters.get(device)) is not None:
            self._settle(older, None)
        waiter = _Waiter(checkin, asyncio.get_running_loop().create_future())
        self._waiters[device] = waiter
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
            metrics.DEVICES_WAITING.set(len(self._waiters))

    def waiting(self, dataset: str) -> list[DeviceId]:
        """The devices with shards of this dataset that wait, stay, and are not reserved for a round."""
        return [
            device
            for device, waiter in self._waiters.items()
            if waiter.checkin.dataset == dataset and device not in self._reserved and not self._is_leaving(device)
        ]

    def holds(self, device: DeviceId) -> bool:
        """Whether a check-in of this device is held."""
        return device in self._waiters

    def reserve(self, devices: Collection[DeviceId]) -> None:
        """Keep these devices for one round, so that no other selects them."""
        self._reserved.update(devices)

    def release(self, devices: Collection[DeviceId]) -> None:
        """The round of these devices has ended, or they have left it."""
        self._reserved.difference_update(devices)
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

    @staticmethod
    def _settle(waiter: _Waiter, answer: Assignment | None) -> None:
        if not waiter.answer.done():
            waiter.answer.set_result(answer)
