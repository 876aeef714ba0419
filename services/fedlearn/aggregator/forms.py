"""In what form opened updates wait until they are added: as float32, or those of int8 as they are encoded, a quarter of it."""

from collections.abc import Sequence
from concurrent.futures import Executor
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fedlearn.core.aggregation import WeightedSum
from fedlearn.core.updates import Update
from fedlearn.protocol.codecs import Int8
from fedlearn.protocol.envelope import Coming, UpdateContext, layout_of, open_encoded, open_update
from fedlearn.protocol.headers import TAG_BYTES
from fedlearn.protocol.plans import Plan
from fedlearn.protocol.sealing import SealingKey
from fedlearn.protocol.windows import OPENS_IN_PLACE

Memory = npt.NDArray[np.uint8]
_ALIGNED_BYTES = 64


class Opened(NamedTuple):
    """An update that was checked, and the memory that holds its delta."""

    update: Update
    memory: Memory


class Form(Protocol):
    """One plan's; `size_bytes` is what an opened update takes."""

    @property
    def size_bytes(self) -> int: ...

    def room(self, memory: Memory, index: int, length: int) -> memoryview | None:
        """Where in `memory` the sealed window `index` (from 1) is to be read, to be opened in its place; None: nowhere."""
        ...

    def open(self, sealed: Coming, *, key: SealingKey, context: UpdateContext, digest: str, memory: Memory) -> Update:
        """Open an update, which is then without its delta or has it in `memory`; raises as `open_update`.

        Args:
            memory: shape (size_bytes,); its content is undefined after a refusal.
        """
        ...

    def add(self, total: WeightedSum, opened: Sequence[Opened], threads: Executor | None, cores: int) -> None:
        """Add and count updates, in place and in their order, to the same bits in any form.

        Args:
            threads: where up to `cores` parts are added at once; not those that the caller runs in.
        """
        ...


class Decoded:
    """As float32."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._layout = plan, layout_of(plan)
        self.size_bytes = 4 * plan.parameters + TAG_BYTES  # the last window's tag comes behind it
        self._in_place = OPENS_IN_PLACE and plan.update.encoding == "float32"

    def room(self, memory: Memory, index: int, length: int) -> memoryview | None:
        if not self._in_place:
            return None
        start = 4 * self._layout.elements(index).start
        return memory.data[start : start + length]

    def open(self, sealed: Coming, *, key: SealingKey, context: UpdateContext, digest: str, memory: Memory) -> Update:
        out = memory[:-TAG_BYTES].view(np.float32)
        return open_update(sealed, key=key, context=context, plan=self._plan, digest=digest, out=out)

    def add(self, total: WeightedSum, opened: Sequence[Opened], threads: Executor | None, cores: int) -> None:
        total.fold_all([update for update, _ in opened], threads, cores)


class Encoded:
    """Of int8: each window's scales, exact values and codes, which are multiplied while they are added."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._layout, self.size_bytes = plan, layout_of(plan), 0
        self._places = [slice(0, 0)]  # windows count from 1
        for index in range(1, self._layout.windows + 1):
            length = self._layout.content_bytes(index)
            self._places.append(slice(self.size_bytes, self.size_bytes + length))
            self.size_bytes += -(-length // _ALIGNED_BYTES) * _ALIGNED_BYTES

    def room(self, memory: Memory, index: int, length: int) -> memoryview | None:  # noqa: ARG002
        return None

    def open(self, sealed: Coming, *, key: SealingKey, context: UpdateContext, digest: str, memory: Memory) -> Update:
        def place(index: int) -> Memory:
            return memory[self._places[index]]

        return open_encoded(sealed, place, key=key, context=context, plan=self._plan, digest=digest)

    def add(self, total: WeightedSum, opened: Sequence[Opened], threads: Executor | None, cores: int) -> None:  # noqa: ARG002
        factors, layout = [float(update.examples) for update, _ in opened], self._layout

        def add(index: int) -> None:
            elements, codec = layout.elements(index), layout.codec_at(index)
            assert isinstance(codec, Int8)
            contents = [memory[self._places[index]] for _, memory in opened]
            codec.add(total.part(elements.start, len(elements)), contents, factors)

        windows = range(1, 1 if total.taken else layout.windows + 1)  # what is late is only counted
        list(map(add, windows) if threads is None else threads.map(add, windows))
        for update, _ in opened:
            total.count(update)


def form_of(plan: Plan) -> Form:
    return Encoded(plan) if plan.update.encoding == "int8" else Decoded(plan)
