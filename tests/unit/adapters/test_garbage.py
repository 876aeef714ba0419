import asyncio
import gc
import weakref
from typing import Any

from fedlearn.adapters.garbage import seldom_full_collections


class Knot:
    """Refers to itself, so that only the collector frees it."""

    def __init__(self) -> None:
        self.itself = self


async def test_objects_that_are_made_set_off_no_full_collection_but_the_clock_does() -> None:
    full, freed = list[object](), asyncio.Event()

    def note(phase: str, info: dict[str, Any]) -> None:
        if phase == "stop" and info["generation"] == 2:
            full.append(info)

    async with seldom_full_collections(0.2):
        gc.callbacks.append(note)
        try:
            kept = [list[int]() for _ in range(500_000)]
            knot = Knot()
            lost = weakref.ref(knot, lambda _: freed.set())
            gc.collect(1)  # it is young no more
            del knot
            assert not full
            async with asyncio.timeout(5):
                await freed.wait()
            assert full
            assert lost() is None
            assert len(kept) == 500_000
        finally:
            gc.callbacks.remove(note)


async def test_afterwards_everything_is_as_it_was() -> None:
    before = gc.get_threshold()
    async with seldom_full_collections():
        assert gc.get_threshold() != before
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0
