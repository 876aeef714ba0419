"""A robust rule over sealed updates: the same window of each is fetched and opened, while the window before is combined.

Memory, beside the delta (float64, so twice the model), whatever comes:

- two blocks of `BLOCK_BYTES` and, for each fetching thread, one window, sealed and opened. Where a window of all updates is
  larger than a block, it is combined part by part, and fetched anew for each part;
- for a rule by distance one matrix of 8 bytes * updates^2, which the plan's `most_reports` holds at 128 MiB, or up to 512
  updates at most 16 MiB (see `core.distances`);
- what is known of each update: its header and keys, about 5.5 kB.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol

import numpy as np

from fedlearn.aggregator.strategies import rule_of
from fedlearn.core.distances import LANES, cut
from fedlearn.core.errors import Code, Refusal
from fedlearn.core.ports import ObjectStore
from fedlearn.core.robust import CoordinateRule, DistanceRule, Floats, Rows, Rule, weighted_sum
from fedlearn.core.updates import Vector
from fedlearn.protocol.envelope import Opening, UpdateContext, layout_of, open_envelope, read_header
from fedlearn.protocol.plans import Plan
from fedlearn.protocol.sealing import SealingKey

BLOCK_BYTES = 128 << 20
_FETCHERS = 8
_lanes = ThreadPoolExecutor(min(LANES, os.cpu_count() or 1), thread_name_prefix="combine")


class Sealed(NamedTuple):
    """One update as it lies in storage."""

    key: str
    digest: str
    context: UpdateContext


class Blocks(Protocol):
    """A round's updates as a matrix that is too large to hold at once."""

    updates: int
    parameters: int

    def of(self, chosen: Sequence[int]) -> Iterator[tuple[slice, Rows]]:
        """The coordinates and, shape (len(chosen), coordinates), their values in the chosen updates, until all were given.

        The rows are the caller's until it asks for the next.
        """
        ...


class SealedBlocks:
    """The updates in object storage, read by ranges. They have been opened and checked before as a whole; here each header is
    held against its digest, and each window's seal checked, once more.

    Args:
        key: the round's sealing key.
        block_bytes: how large the rows that are given at a time may be.

    Raises:
        Refusal: as `read_header` and `open_envelope`; `not_found`; `too_many_for_rule`.
        Outage: `storage_unavailable`; so may `of`.
    """

    def __init__(
        self,
        sealed: Sequence[Sealed],
        plan: Plan,
        key: SealingKey,
        store: ObjectStore,
        threads: ThreadPoolExecutor,
        *,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        most = plan.aggregation.most_reports
        if most is not None and len(sealed) > most:
            raise Refusal(Code.TOO_MANY_FOR_RULE, f"{len(sealed)} updates are in; the plan's aggregation takes {most} at most.")
        self.updates, self.parameters = len(sealed), plan.parameters
        self._sealed, self._store, self._threads = sealed, store, threads
        self._layout, self._key = layout_of(plan), key
        self._openings: list[Opening] = list(threads.map(self._open, sealed))
        self._block_bytes = block_bytes

    def of(self, chosen: Sequence[int]) -> Iterator[tuple[slice, Rows]]:
        most = max(1, min(self._layout.window_elements, self.parameters, self._block_bytes // (4 * len(chosen))))
        parts = [part for index in range(1, self._layout.windows + 1) for part in self._parts(index, most)]
        buffers = [np.empty((len(chosen), most), np.float32) for _ in range(min(2, len(parts)))]
        coming = self._fetch(parts[0], chosen, buffers[0])
        for number, (_, part) in enumerate(parts):
            for row in coming:
                row.result()
            if number + 1 < len(parts):
                coming = self._fetch(parts[number + 1], chosen, buffers[(number + 1) % 2])
            yield part, buffers[number % 2][:, : part.stop - part.start]

    def _open(self, sealed: Sealed) -> Opening:
        prefix = self._store.get(sealed.key, length=self._layout.header_bytes)
        return open_envelope(read_header(prefix, self._layout, sealed.digest), key=self._key, context=sealed.context)

    def _parts(self, index: int, most: int) -> Iterator[tuple[int, slice]]:
        window = self._layout.elements(index)
        for start in range(window.start, window.stop, most):
            yield index, slice(start, min(start + most, window.stop))

    def _fetch(self, place: tuple[int, slice], chosen: Sequence[int], rows: Rows) -> list[Future[None]]:
        index, part = place
        width = part.stop - part.start
        return [self._threads.submit(self._fill, update, index, part, rows[row, :width]) for row, update in enumerate(chosen)]

    def _fill(self, update: int, index: int, part: slice, row: Vector) -> None:
        opening, window = self._openings[update], self._layout.elements(index)
        start, length = opening.header.span(index)
        body = memoryview(bytearray(length))
        body = body[: self._store.get_into(self._sealed[update].key, body, start=start)]
        if len(row) == len(window):
            opening.window(index, body, row)
            return
        whole = np.empty(len(window), np.float32)
        opening.window(index, body, whole)
        row[:] = whole[part.start - window.start : part.stop - window.start]


def combine_sealed(sealed: Sequence[Sealed], plan: Plan, key: SealingKey, store: ObjectStore, examples: Floats) -> Floats:
    """The delta of updates in object storage by their plan's rule, shape (parameters,).

    Args:
        key: the round's sealing key.
        examples: as `combine`.

    Raises:
        Refusal: `too_few_for_rule`; as `SealedBlocks`.
        Outage: `storage_unavailable`.
    """
    aggregation = plan.aggregation
    assert aggregation.rule is not None
    if len(sealed) < aggregation.least_reports:
        raise Refusal(
            Code.TOO_FEW_FOR_RULE,
            f"{len(sealed)} updates are in; {aggregation.rule.name} as the plan has it needs at least "
            f"{aggregation.least_reports}.",
        )
    with fetchers() as threads:
        return combine(rule_of(aggregation.rule), SealedBlocks(sealed, plan, key, store, threads), examples)


def combine(rule: Rule, blocks: Blocks, examples: Floats) -> Floats:
    """The rule's delta of all updates, shape (parameters,).

    Args:
        examples: what each update claims to be made from, shape (updates,).
    """
    out = np.empty(blocks.parameters)
    everyone = range(blocks.updates)
    if isinstance(rule, CoordinateRule):
        for part, rows in blocks.of(everyone):
            target = out[part]
            list(_lanes.map(lambda lane, rows=rows, target=target: rule.combine(rows[:, lane], target[lane]), cut(rows)))
        return out
    factors = _coefficients(rule, blocks, examples)  # in a call of its own, so that no block of its pass is kept
    chosen = np.flatnonzero(factors)
    for part, rows in blocks.of([int(number) for number in chosen]):
        target = out[part]
        list(
            _lanes.map(
                lambda lane, rows=rows, target=target: weighted_sum(rows[:, lane], factors[chosen], target[lane]), cut(rows)
            )
        )
    return out


def _coefficients(rule: DistanceRule, blocks: Blocks, examples: Floats) -> Floats:
    measures = rule.begin(blocks.updates)
    for _, rows in blocks.of(range(blocks.updates)):
        list(_lanes.map(lambda job: job(), measures.jobs(rows)))
    return rule.coefficients(measures.result(), examples)


def fetchers() -> ThreadPoolExecutor:
    """Threads to fetch with; they are the close's own, since the close itself runs in one of the aggregator's."""
    return ThreadPoolExecutor(_FETCHERS, thread_name_prefix="gather")
