"""How changes get to open pages: gathered, numbered, and never lost without a new overview."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from fedlearn.core.errors import Code, Outage
from fedlearn.core.ids import TaskId
from fedlearn.server.console import feed as feed_module
from fedlearn.server.console.feed import MAX_PAGES, Feed, Gathered

TASKS = [TaskId(f"task-{i}") for i in range(200)]


class Played:
    """Answers with the names of what has changed."""

    def __init__(self) -> None:
        self.looks = 0
        self.fails = False

    async def overview(self) -> str:
        self.looks += 1
        return "all"

    async def changes(self, gathered: Gathered) -> str:
        if self.fails:
            raise Outage(Code.DATABASE_UNAVAILABLE, "It is away.")
        return " ".join(sorted(gathered.tasks))


@pytest.fixture
def played() -> Played:
    return Played()


@pytest.fixture
async def feed(played: Played, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Feed]:
    monkeypatch.setattr(feed_module, "_PAUSE_SECONDS", 0.02)
    feed = Feed()
    feed.overview, feed.changes = played.overview, played.changes
    yield feed
    feed.close()


def parts(event: str) -> tuple[str, str, str]:
    """Id, kind and data of one event."""
    number, kind, data = event.removesuffix("\n\n").split("\n")
    return number.removeprefix("id: "), kind.removeprefix("event: "), data.removeprefix("data: ")


async def hear(stream: AsyncIterator[str]) -> tuple[str, str, str]:
    async with asyncio.timeout(5):
        return parts(await anext(stream))


async def test_a_page_gets_everything_and_then_what_changes(feed: Feed) -> None:
    page = feed.stream(None)
    assert (await hear(page))[1:] == ("overview", "all")
    feed.task(TASKS[0])
    assert (await hear(page))[1:] == ("changes", "task-0")


async def test_changes_that_come_together_are_one_message_for_all_pages(feed: Feed) -> None:
    pages = [feed.stream(None), feed.stream(None)]
    for page in pages:
        await hear(page)
    for task in TASKS[:3]:
        feed.task(task)
    assert [(await hear(page))[1:] for page in pages] == [("changes", "task-0 task-1 task-2")] * 2


async def test_what_changes_at_once_after_a_message_waits_for_the_next_one(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "_PAUSE_SECONDS", 0.2)
    page = feed.stream(None)
    await hear(page)
    began = asyncio.get_running_loop().time()
    for task in TASKS[:3]:
        feed.task(task)
        await hear(page)
    assert asyncio.get_running_loop().time() - began >= 0.4


async def test_a_page_that_comes_back_goes_on_where_it_was(feed: Feed, played: Played) -> None:
    page = feed.stream(None)
    await hear(page)
    feed.task(TASKS[0])
    last, _, _ = await hear(page)
    await page.aclose()
    feed.task(TASKS[1])
    assert (await hear(feed.stream(last)))[1:] == ("changes", "task-1")
    assert played.looks == 1


@pytest.mark.parametrize("last", ["", "nonsense", "0123abcd-7", "-1"])
async def test_a_page_that_was_told_by_another_server_gets_everything(feed: Feed, last: str) -> None:
    assert (await hear(feed.stream(last)))[1:] == ("overview", "all")


async def test_a_page_that_falls_behind_gets_everything_anew(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "_PAUSE_SECONDS", 0.0)
    slow, quick = feed.stream(None), feed.stream(None)
    await hear(slow)
    await hear(quick)
    for task in TASKS[:100]:
        feed.task(task)
        await hear(quick)
    assert (await hear(slow))[1] == "overview"


async def test_a_change_that_cannot_be_looked_up_is_made_good_by_everything(feed: Feed, played: Played) -> None:
    page = feed.stream(None)
    await hear(page)
    played.fails = True
    feed.task(TASKS[0])
    assert (await hear(page))[1] == "overview"


async def test_nothing_is_gathered_while_no_page_is_open(feed: Feed) -> None:
    feed.task(TASKS[0])
    page = feed.stream(None)
    await hear(page)
    feed.task(TASKS[1])
    assert (await hear(page))[2] == "task-1"


async def test_a_quiet_stream_beats(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "_HEARTBEAT_SECONDS", 0.02)
    page = feed.stream(None)
    await hear(page)
    async with asyncio.timeout(5):
        assert await anext(page) == "event: beat\ndata:\n\n"


async def test_there_is_an_end_to_the_pages_and_to_each_stream(feed: Feed) -> None:
    pages = [feed.stream(None) for _ in range(MAX_PAGES)]
    for page in pages:
        await hear(page)
    with pytest.raises(Outage) as refused:
        feed.admit()
    assert refused.value.code is Code.TOO_MANY_PAGES
    await pages[0].aclose()
    feed.admit()
    feed.close()
    async with asyncio.timeout(5):
        with pytest.raises(StopAsyncIteration):
            await anext(pages[1])
