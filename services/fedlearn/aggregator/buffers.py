"""Memory that updates are read into."""

import numpy as np

from fedlearn.core.updates import Vector


class Buffer:
    """Memory for one update as it lies in storage, and as it is opened."""

    def __init__(self, sealed_bytes: int, parameters: int) -> None:
        self.sealed = np.empty(sealed_bytes, np.uint8).data
        self.delta: Vector = np.empty(parameters, np.float32)


class Buffers:
    """Buffers that are used again and again, one per worker at most: fresh memory costs as much as what is done with it."""

    def __init__(self, sealed_bytes: int, parameters: int) -> None:
        self._sizes, self._free = (sealed_bytes, parameters), list[Buffer]()

    def take(self) -> Buffer:
        # list.pop and list.append are atomic
        return self._free.pop() if self._free else Buffer(*self._sizes)

    def give(self, buffer: Buffer) -> None:
        self._free.append(buffer)
