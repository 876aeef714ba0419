import asyncio

import pytest

from fedlearn.device.workshop import Newest


class Maker:
    """Makes values when a test lets it, and counts how often."""

    def __init__(self) -> None:
        self.made = 0
        self.may_go_on = asyncio.Event()

    async def __call__(self) -> int:
        self.made += 1
        made = self.made
        await self.may_go_on.wait()
        return made


async def test_what_several_want_at_once_is_made_once() -> None:
    newest, maker = Newest[str, str, int](most=2), Maker()
    waiting = [asyncio.create_task(newest.get("task", "a", maker)) for _ in range(10)]
    await asyncio.sleep(0)
    maker.may_go_on.set()
    assert await asyncio.gather(*waiting) == [1] * 10
    assert await newest.get("task", "a", maker) == 1


async def test_another_key_is_made_anew_and_takes_the_place() -> None:
    newest, maker = Newest[str, str, int](most=2), Maker()
    maker.may_go_on.set()
    assert [await newest.get("task", key, maker) for key in "abba"] == [1, 2, 2, 3]


async def test_who_waits_for_an_older_key_still_gets_it() -> None:
    newest, older, newer = Newest[str, str, int](most=2), Maker(), Maker()
    waiting = asyncio.create_task(newest.get("task", "a", older))
    await asyncio.sleep(0)
    newer.may_go_on.set()
    newer.made = 41
    assert await newest.get("task", "b", newer) == 42
    older.may_go_on.set()
    assert await waiting == 1


async def test_a_failure_is_everybodys_who_waits_and_the_next_tries_again() -> None:
    newest, maker = Newest[str, str, int](most=2), Maker()
    maker.may_go_on.set()

    async def fail() -> int:
        maker.made += 1
        raise ValueError("not now")

    answers = await asyncio.gather(*(newest.get("task", "a", fail) for _ in range(3)), return_exceptions=True)
    assert [str(answer) for answer in answers] == ["not now"] * 3
    assert maker.made == 1
    assert await newest.get("task", "a", maker) == 2


async def test_who_stops_waiting_takes_it_from_nobody() -> None:
    newest, maker = Newest[str, str, int](most=2), Maker()
    impatient, patient = (asyncio.create_task(newest.get("task", "a", maker)) for _ in range(2))
    await asyncio.sleep(0)
    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient
    maker.may_go_on.set()
    assert await patient == 1


@pytest.fixture
def maker() -> Maker:
    maker = Maker()
    maker.may_go_on.set()
    return maker


async def test_each_owner_has_its_own_newest(maker: Maker) -> None:
    newest = Newest[str, str, int](most=2)
    assert [await newest.get(owner, owner, maker) for owner in "xyxyxy"] == [1, 2, 1, 2, 1, 2]
    assert await newest.get("x", "another", maker) == 3
    assert await newest.get("y", "y", maker) == 2


async def test_of_too_many_owners_the_one_that_was_asked_for_longest_ago_is_dropped(maker: Maker) -> None:
    newest = Newest[str, str, int](most=2)
    assert [await newest.get(owner, "a", maker) for owner in "xyxz"] == [1, 2, 1, 3]
    assert await newest.get("x", "a", maker) == 1
    assert await newest.get("y", "a", maker) == 4


async def test_values_are_dropped_where_all_would_be_too_large_together_but_for_the_last(maker: Maker) -> None:
    newest = Newest[str, str, int](most=9, most_bytes=100)
    for owner, size in (("x", 40), ("y", 40), ("z", 20)):
        await newest.get(owner, "a", maker, size_bytes=size)
    assert maker.made == 3
    assert [await newest.get(owner, "a", maker) for owner in "xyz"] == [1, 2, 3]
    assert await newest.get("x", "b", maker, size_bytes=60) == 4
    assert await newest.get("z", "a", maker) == 3
    assert await newest.get("huge", "a", maker, size_bytes=1000) == 5
    assert await newest.get("huge", "a", maker) == 5
    assert await newest.get("z", "a", maker) == 6


async def test_what_was_dropped_while_it_was_being_made_still_comes_to_who_waits() -> None:
    newest, slow, quick = Newest[str, str, int](most=1), Maker(), Maker()
    waiting = asyncio.create_task(newest.get("x", "a", slow))
    await asyncio.sleep(0)
    quick.may_go_on.set()
    assert await newest.get("y", "a", quick) == 1
    slow.may_go_on.set()
    assert await waiting == 1
