"""Memory that updates are read into, used again and again: fresh memory costs as much as what is done with it."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from fedlearn.aggregator.forms import Memory, form_of
from fedlearn.protocol.envelope import layout_of
from fedlearn.protocol.plans import Plan


class Buffers:
    """Memory for the pieces that updates are read in, one per worker at most, and for opened ones, which wait to be added.

    Args:
        piece_bytes: the longest piece.
        opened_bytes: of an opened one.
    """

    def __init__(self, piece_bytes: int, opened_bytes: int) -> None:
        self.sizes = piece_bytes, opened_bytes
        # list.pop and list.append are atomic
        self._pieces: list[memoryview] = []
        self._opened: list[Memory] = []

    @classmethod
    def of(cls, plan: Plan, earlier: "Buffers | None" = None) -> "Buffers":
        """Those for updates of this plan: the earlier ones, if they have its sizes."""
        sizes = layout_of(plan).longest_piece, form_of(plan).size_bytes
        return earlier if earlier is not None and earlier.sizes == sizes else cls(*sizes)

    @contextmanager
    def piece(self) -> Iterator[memoryview]:
        """Memory for one piece after the other of an update; it stays in the cache."""
        memory = self._pieces.pop() if self._pieces else np.empty(self.sizes[0], np.uint8).data
        try:
            yield memory
        finally:
            self._pieces.append(memory)

    def take(self) -> Memory:
        """Memory for an opened update, until it is given back."""
        return self._opened.pop() if self._opened else np.empty(self.sizes[1], np.uint8)

    def give(self, opened: Memory) -> None:
        self._opened.append(opened)
