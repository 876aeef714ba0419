"""An object's bytes piece by piece, see `core.ports.Source`: out of memory, or from a connection that may break."""

import time
from collections.abc import Callable

from fedlearn.adapters.direct import Incoming
from fedlearn.core.errors import Code, Outage

Rest = Callable[[memoryview, int], None]
"""Fills memory with what the object has from there on."""


class Held:
    """All of it is in memory.

    Args:
        seconds: what that took.
    """

    def __init__(self, body: bytes, seconds: float = 0.0) -> None:
        self.size, self.seconds = len(body), seconds
        self._left = memoryview(body)

    def fill(self, out: memoryview) -> None:
        if len(out) > len(self._left):
            raise Outage(Code.STORAGE_UNAVAILABLE, f"The object ends {len(out) - len(self._left)} bytes too early.")
        out[:], self._left = self._left[: len(out)], self._left[len(out) :]


class Arriving:
    """It is on its way; from where its connection breaks on it is asked for anew.

    Args:
        seconds: what it has taken until now.
    """

    def __init__(self, incoming: Incoming, rest: Rest, seconds: float) -> None:
        self.size, self.seconds, self.arrived = incoming.size, seconds, 0
        self._incoming, self._rest, self._position, self._broken = incoming, rest, 0, False

    def fill(self, out: memoryview) -> None:
        began = time.perf_counter()
        if not self._broken:
            try:
                self._incoming.fill(out)
                self.arrived += len(out)
            except OSError:
                self._broken = True
        if self._broken:
            self._rest(out, self._position)
        self._position += len(out)
        self.seconds += time.perf_counter() - began

    def close(self) -> None:
        """To be called at the end; the connection serves again if all has come by it."""
        self._incoming.close()
