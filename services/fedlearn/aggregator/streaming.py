"""Updates that are too large to be held in memory: read twice by ranges, once to check all of it and once to add it.

Only a few spans of windows are in memory at a time, however large the model is. The second reading opens each seal again.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fedlearn.core.errors import Code, Refusal
from fedlearn.core.ports import ObjectStore
from fedlearn.core.updates import Update, Vector, check_claims
from fedlearn.protocol.envelope import Metadata, Opening, UpdateContext, layout_of, open_envelope, open_metadata, read_header
from fedlearn.protocol.plans import Plan
from fedlearn.protocol.sealing import SealingKey

_SPAN_BYTES = 16 << 20
_ahead = ThreadPoolExecutor(8, thread_name_prefix="ahead")


class Window(NamedTuple):
    """Opened coordinates from `start` on; the caller's until it asks for the next."""

    start: int
    delta: Vector


@dataclass(frozen=True, slots=True)
class Checked:
    """An update that was read to its last byte, and is sound."""

    key: str
    opening: Opening
    metadata: Metadata

    @property
    def update(self) -> Update:
        """What it says of itself, without its delta."""
        return self.metadata.update()


class Reader:
    """Reads one round's updates from storage, span by span, the next while one is worked on."""

    def __init__(self, plan: Plan, key: SealingKey, store: ObjectStore) -> None:
        self._plan, self._key, self._store, self._layout = plan, key, store, layout_of(plan)

    def check(self, key: str, digest: str, context: UpdateContext) -> Checked:
        """Read all of an update and check it as `open_update` and `check_claims` do.

        Raises:
            Refusal: as these, and `not_found`.
            Outage: `storage_unavailable`.
        """
        size = self._store.size(key)
        if size is not None and size > self._layout.max_bytes:
            raise Refusal(Code.UPDATE_TOO_LARGE, f"The plan's updates have at most {self._layout.max_bytes} bytes.")
        prefix = self._store.get(key, length=self._layout.header_bytes)
        header = read_header(prefix, self._layout, digest)
        if size != header.total_bytes:
            raise Refusal(Code.UPDATE_MALFORMED, f"It has {size} bytes; its header says {header.total_bytes}.")
        opening = open_envelope(header, key=self._key, context=context)
        start, length = header.span(0)
        sealed = self._store.get(key, start=start, length=length)
        checked = Checked(key, opening, open_metadata(opening, sealed, context))
        check_claims(checked.update, max_examples=self._plan.max_examples, figures=self._plan.figures)
        for _ in self.windows(checked, 1):
            pass
        return checked

    def windows(self, checked: Checked, first: int) -> Iterator[Window]:
        """The windows from number `first` on, from 1; raises as `check`."""
        spans = list(self._spans(checked, first))
        buffers = [memoryview(bytearray(max((length for _, _, length in spans), default=0))) for _ in range(2)]
        delta: Vector = np.empty(min(self._layout.window_elements, self._layout.parameters), np.float32)
        coming = [self._fetch(checked.key, span, buffers[number]) for number, span in enumerate(spans[:1])]
        for number, (indexes, start, length) in enumerate(spans):
            coming.pop(0).result()
            if number + 1 < len(spans):
                coming.append(self._fetch(checked.key, spans[number + 1], buffers[(number + 1) % 2]))
            sealed = buffers[number % 2][:length]
            for index in indexes:
                at, size = checked.opening.header.span(index)
                elements = self._layout.elements(index)
                out = delta[: len(elements)]
                checked.opening.window(index, sealed[at - start : at - start + size], out)
                yield Window(elements.start, out)

    def _spans(self, checked: Checked, first: int) -> Iterator[tuple[range, int, int]]:
        """Windows that are read at once, and where their bytes lie."""
        header, index = checked.opening.header, first
        while index <= self._layout.windows:
            begin, start = index, header.span(index).start
            end = start
            while index <= self._layout.windows and (index == begin or sum(header.span(index)) - start <= _SPAN_BYTES):
                end = sum(header.span(index))
                index += 1
            yield range(begin, index), start, end - start

    def _fetch(self, key: str, span: tuple[range, int, int], buffer: memoryview) -> Future[None]:
        _, start, length = span

        def fetch() -> None:
            got = self._store.get_into(key, buffer[:length], start=start)
            if got != length:
                raise Refusal(Code.UPDATE_MALFORMED, f"{got} of {length} bytes are there from {start} on.")

        return _ahead.submit(fetch)
