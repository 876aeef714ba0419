"""Memory that updates are read into, used again and again: fresh memory costs as much as what is done with it."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from fedlearn.core.updates import Vector


class Buffers:
    """Memory for updates as they lie in storage, one per worker at most, and for opened ones, which wait to be added.

    Args:
        sealed_bytes: the most that an update has in storage.
        parameters: the elements of an opened one.
    """

    def __init__(self, sealed_bytes: int, parameters: int) -> None:
        self._sealed_bytes, self._parameters = sealed_bytes, parameters
        # list.pop and list.append are atomic
        self._sealed: list[memoryview] = []
        self._opened: list[Vector] = []

    @contextmanager
    def sealed(self) -> Iterator[memoryview]:
        """Memory for a sealed update; it is free again once it is opened, and then still in the cache."""
        memory = self._sealed.pop() if self._sealed else np.empty(self._sealed_bytes, np.uint8).data
        try:
            yield memory
        finally:
            self._sealed.append(memory)

    def take(self) -> Vector:
        """Memory for an opened update, until it is given back."""
        return self._opened.pop() if self._opened else np.empty(self._parameters, np.float32)

    def give(self, opened: Vector) -> None:
        self._opened.append(opened)
