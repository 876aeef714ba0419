import gc
from typing import Any

from fedlearn.imports import uncollected


def test_what_is_made_within_it_is_not_looked_at_then_nor_as_something_young_later() -> None:
    collected = list[int]()

    def note(phase: str, info: dict[str, Any]) -> None:
        if phase == "start":
            collected.append(info["generation"])

    gc.collect()
    gc.callbacks.append(note)
    try:
        with uncollected():
            kept = [list[int]() for _ in range(500_000)]
            with uncollected():
                pass
            assert not gc.isenabled()
        assert gc.isenabled()
        assert not collected
        assert gc.get_count()[0] < 1000
    finally:
        gc.callbacks.remove(note)
    assert any(kept is one for one in gc.get_objects(generation=2))


def test_what_was_frozen_before_stays_frozen() -> None:
    """As in what a nursery forks: a collection that looked at it would copy it."""
    gc.freeze()
    try:
        before = gc.get_freeze_count()
        with uncollected():
            pass
        assert gc.get_freeze_count() >= before > 0
    finally:
        gc.unfreeze()
