"""An object's bytes piece by piece, see `core.ports.Source`: out of memory, or from a connection that may break."""

import time
from collections.abc import Callable

from fedlearn.adapters.direct import Incoming
from fedlearn.core.errors import Code, Outage

Rest = Callable[[memoryview, int], None]
"""Fills memory with what the object has from there on."""


class Held:
    """All of it is in memory."""

    def __init__(self, body: bytes) -> None:
        self.size = len(body)
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
        self._broken = self._broken or not self._filled(out)
        if self._broken:
            self._rest(out, self._position)
        else:
            self.arrived += len(out)
        self._position += len(out)
        self.seconds += time.perf_counter() - began

    def close(self) -> None:
        """To be called at the end; the connection serves again if all has come by it."""
        self._incoming.close()

    def _filled(self, out: memoryview) -> bool:
        try:
            self._incoming.fill(out)
        except OSError:
            return False
        return True
