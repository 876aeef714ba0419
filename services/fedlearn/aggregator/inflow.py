"""How many of a round's updates may be on their way into storage or lie there, before further devices have to wait.

Partial sums bound what the storage holds only where they keep pace: a thousand devices that are ready at once upload faster
than what they upload is folded and deleted.
"""

import asyncio
from typing import Final

from fedlearn.core.errors import Code, Outage
from fedlearn.core.ids import DeviceId

_SECONDS: Final = 20.0  # a place is waited for, and kept for an upload, so long: who has one may have died, or have a slow line
_LEAST: Final = 16  # on their way, so that folding has something to do


class Inflow:
    """Places of one round's devices, each from asking for an upload's URL until the update is deleted or refused.

    A place is given up when no word of the update has come after 20 s.

    Args:
        save_every: after more updates than this a partial sum is written, and they are deleted; as many may be on their way.
    """

    def __init__(self, save_every: int) -> None:
        self._places = asyncio.Semaphore(save_every + max(save_every, _LEAST))
        self._inside: dict[DeviceId, asyncio.TimerHandle] = {}
        self._waiting = 0

    async def enter(self, device: DeviceId) -> None:
        """Return when there is a place, or once the round takes no updates any more.

        Raises:
            Outage: `busy` after 20 s without one.
        """
        if device in self._inside:
            return
        self._waiting += 1
        try:
            async with asyncio.timeout(_SECONDS):
                await self._places.acquire()
        except TimeoutError as error:
            raise Outage(
                Code.BUSY, "As many updates lie in storage as may: ask again when some of them are added up."
            ) from error
        finally:
            self._waiting -= 1
        if device in self._inside:  # it has asked twice at once
            self._places.release()
        else:
            self._inside[device] = asyncio.get_running_loop().call_later(_SECONDS, self.leave, device)

    def keep(self, device: DeviceId) -> None:
        """Its update lies in storage: it has its place until `leave`."""
        if (timer := self._inside.get(device)) is not None:
            timer.cancel()

    def leave(self, device: DeviceId) -> None:
        """Whatever became of its update."""
        if (timer := self._inside.pop(device, None)) is not None:
            timer.cancel()
            self._places.release()

    def close(self) -> None:
        """Let go of all that wait: the round takes no updates any more."""
        for _ in range(self._waiting):
            self._places.release()
