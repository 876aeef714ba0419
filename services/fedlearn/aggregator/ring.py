"""Opened updates: those that are being opened, and those that are counted and wait, until several are added in one pass.

All of one round's are within `BYTES` together, however many workers there are and however many updates come.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fedlearn.aggregator.buffers import Buffers
from fedlearn.aggregator.forms import Memory, Opened
from fedlearn.core.updates import Update

BYTES = 64 << 20
_TOGETHER = 8  # of so many the sum is read and written once
_ALWAYS_FREE = 4  # so many workers don't wait for room, if it is for more than that


class Slot:
    """Memory for one opened update."""

    def __init__(self, memory: Memory) -> None:
        self.memory, self.kept = memory, False


class Ring:
    """One round's. `filling` is called by any thread; the rest by one at a time.

    Args:
        buffers: where the memory comes from, and goes back to; two updates have room, so one has at most `BYTES` / 2.
        alone: whether each update is taken out as soon as it is counted.
    """

    def __init__(self, buffers: Buffers, *, alone: bool = False) -> None:
        most = max(2, BYTES // max(1, buffers.sizes[1]))
        # whoever waits for room waits for those that are being opened, or for their being added
        self._together = 1 if alone else max(1, min(_TOGETHER, most + 1 - _ALWAYS_FREE))
        self._room, self._buffers = threading.Semaphore(most), buffers
        self._waiting: list[tuple[Update, Slot]] = []

    @contextmanager
    def filling(self) -> Iterator[Slot]:
        """Memory to open an update in, as soon as there is room; it goes back at the end, unless it was kept by then."""
        self._room.acquire()
        slot = Slot(self._buffers.take())
        try:
            yield slot
        finally:
            if not slot.kept:
                self._give_back(slot)

    def keep(self, update: Update, slot: Slot) -> None:
        """Let an update, whose delta the slot's memory holds, wait until it is added."""
        slot.kept = True
        self._waiting.append((update, slot))

    @property
    def full(self) -> bool:
        """Whether as many wait as are added at once."""
        return len(self._waiting) >= self._together

    def drain(self, add: Callable[[list[Opened]], None]) -> None:
        """Add all that wait, and give their memory back."""
        add([Opened(update, slot.memory) for update, slot in self._waiting])
        while self._waiting:
            self._give_back(self._waiting.pop()[1])

    def _give_back(self, slot: Slot) -> None:
        self._buffers.give(slot.memory)
        self._room.release()
