"""Fetching, opening and adding overlap: none of them holds up what another thread does for another update."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from fedlearn.adapters.memory import MemoryObjectStore
from fedlearn.aggregator.folding import Folding
from fedlearn.core.aggregation import WeightedSum
from fedlearn.core.ids import DeviceId
from fedlearn.core.ports import Source
from support.sealed import SealedRound, updates_of, weighted_mean

SECONDS = 10.0
SLOW = DeviceId("slow")


class Gate:
    """Holds up whoever comes first, until it is opened."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()

    def pass_through(self) -> None:
        if not self.reached.is_set():
            self.reached.set()
            assert self.open.wait(SECONDS)


class SlowSource:
    """Stops at its second piece, when the header has come."""

    def __init__(self, source: Source, gate: Gate) -> None:
        self.size, self.seconds, self._source, self._gate, self._pieces = source.size, 0.0, source, gate, 0

    def fill(self, out: memoryview) -> None:
        self._pieces += 1
        if self._pieces == 2:
            self._gate.pass_through()
        self._source.fill(out)


class SlowStore(MemoryObjectStore):
    """Gives the update of one device slowly."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate()

    @contextmanager
    def reading(self, key: str) -> Iterator[Source]:
        with super().reading(key) as source:
            yield SlowSource(source, self.gate) if f"/{SLOW}/" in key else source


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(3) as pool:
        yield pool


def folded(folding: Folding) -> set[DeviceId]:
    return set(folding.counts().folded)


def test_others_are_fetched_opened_and_added_while_one_is_still_on_its_way(threads: ThreadPoolExecutor) -> None:
    store = SlowStore()
    sealed, updates = SealedRound(store), updates_of(20)
    digests = {device: sealed.bring(device, update) for device, update in updates.items()}
    late = next(iter(updates.values()))
    folding = Folding(sealed.descriptor, sealed.plan, sealed.key, store)
    slow = threads.submit(folding.consider, SLOW, sealed.bring(SLOW, late))
    assert store.gate.reached.wait(SECONDS)
    for done in [threads.submit(folding.consider, *item) for item in digests.items()]:
        done.result(SECONDS)
    assert folded(folding) == set(digests)
    store.gate.open.set()
    slow.result(SECONDS)
    expected = weighted_mean({**updates, SLOW: late})
    assert np.abs(folding.total(folding.counts().folded).mean() - expected).max() < 1e-9


def test_others_are_fetched_and_opened_while_what_has_come_is_added(
    threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, add = Gate(), WeightedSum.fold_all

    def slowly(total: WeightedSum, *given: Any) -> None:
        gate.pass_through()
        add(total, *given)

    monkeypatch.setattr(WeightedSum, "fold_all", slowly)
    store = SlowStore()  # SLOW's comes as far as its second piece
    sealed, updates = SealedRound(store), updates_of(9)
    digests = {device: sealed.bring(device, update) for device, update in updates.items()}
    folding = Folding(sealed.descriptor, sealed.plan, sealed.key, store)
    adding = threads.submit(_all, folding.consider, list(digests.items())[:8])
    assert gate.reached.wait(SECONDS), "eight are added at once"
    opening = threads.submit(folding.consider, SLOW, sealed.bring(SLOW, updates[next(iter(updates))]))
    assert store.gate.reached.wait(SECONDS), "it is fetched while the lock of the sum is held"
    assert not adding.done()
    store.gate.open.set()
    gate.open.set()
    for done in (adding, opening):
        done.result(SECONDS)
    assert folded(folding) == {*list(digests)[:8], SLOW}


def _all(call: Callable[..., None], items: list[Any]) -> None:
    for item in items:
        call(*item)
