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
    newest, maker = Newest[str, int](), Maker()
    waiting = [asyncio.create_task(newest.get("a", maker)) for _ in range(10)]
    await asyncio.sleep(0)
    maker.may_go_on.set()
    assert await asyncio.gather(*waiting) == [1] * 10
    assert await newest.get("a", maker) == 1


async def test_another_key_is_made_anew_and_takes_the_place() -> None:
    newest, maker = Newest[str, int](), Maker()
    maker.may_go_on.set()
    assert [await newest.get(key, maker) for key in "abba"] == [1, 2, 2, 3]


async def test_who_waits_for_an_older_key_still_gets_it() -> None:
    newest, older, newer = Newest[str, int](), Maker(), Maker()
    waiting = asyncio.create_task(newest.get("a", older))
    await asyncio.sleep(0)
    newer.may_go_on.set()
    newer.made = 41
    assert await newest.get("b", newer) == 42
    older.may_go_on.set()
    assert await waiting == 1


async def test_a_failure_is_everybodys_who_waits_and_the_next_tries_again() -> None:
    newest, maker = Newest[str, int](), Maker()
    maker.may_go_on.set()

    async def fail() -> int:
        maker.made += 1
        raise ValueError("not now")

    answers = await asyncio.gather(*(newest.get("a", fail) for _ in range(3)), return_exceptions=True)
    assert [str(answer) for answer in answers] == ["not now"] * 3
    assert maker.made == 1
    assert await newest.get("a", maker) == 2


async def test_who_stops_waiting_takes_it_from_nobody() -> None:
    newest, maker = Newest[str, int](), Maker()
    impatient, patient = (asyncio.create_task(newest.get("a", maker)) for _ in range(2))
    await asyncio.sleep(0)
    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient
    maker.may_go_on.set()
    assert await patient == 1
