"""Memory that updates are read into, used again and again: fresh memory costs as much as what is done with it."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from fedlearn.core.updates import Vector


class Buffers:
    """Memory for the pieces that updates are read in, one per worker at most, and for opened ones, which wait to be added.

    Args:
        piece_bytes: the longest piece.
        parameters: the elements of an opened one.
    """

    def __init__(self, piece_bytes: int, parameters: int) -> None:
        self._piece_bytes, self._parameters = piece_bytes, parameters
        # list.pop and list.append are atomic
        self._pieces: list[memoryview] = []
        self._opened: list[Vector] = []

    @contextmanager
    def piece(self) -> Iterator[memoryview]:
        """Memory for one piece after the other of an update; it stays in the cache."""
        memory = self._pieces.pop() if self._pieces else np.empty(self._piece_bytes, np.uint8).data
        try:
            yield memory
        finally:
            self._pieces.append(memory)

    def take(self) -> Vector:
        """Memory for an opened update, until it is given back."""
        return self._opened.pop() if self._opened else np.empty(self._parameters, np.float32)

    def give(self, opened: Vector) -> None:
        self._opened.append(opened)
