"""When a replica begins to lead, and when it ends, whatever its lock does."""

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from fedlearn.core.errors import Code, Outage
from fedlearn.server.election import Election
from support.desk import until

LEASE_SECONDS = 0.4


class PlayedLock:
    """A lock that a test gives and takes."""

    lease_seconds = LEASE_SECONDS

    def __init__(self) -> None:
        self.free = self.reachable = True
        self.held = 0
        self.going_on = threading.Event()
        self.going_on.set()

    def hold(self) -> bool:
        self.going_on.wait(10)
        if not self.reachable:
            raise Outage(Code.DATABASE_UNAVAILABLE, "The test has cut it off.")
        self.held += self.free
        return self.free

    def release(self) -> None:
        self.held = 0


class PlayedCandidate:
    def __init__(self) -> None:
        self.epochs = 0
        self.leads = False
        self.fails: Exception | None = None

    async def lead(self) -> None:
        if self.fails is not None:
            raise self.fails
        self.epochs += 1
        self.leads = True

    async def follow(self) -> None:
        self.leads = False


class Vote:
    def __init__(self) -> None:
        self.lock, self.candidate = PlayedLock(), PlayedCandidate()
        self.election = Election(self.lock, self.candidate)
        self.run = asyncio.create_task(self.election.run())

    async def end(self) -> None:
        self.run.cancel()
        await asyncio.gather(self.run, return_exceptions=True)
        self.lock.going_on.set()
        await self.election.stop()


@pytest.fixture
async def vote() -> AsyncIterator[Vote]:
    vote = Vote()
    await until(lambda: vote.election.leads)
    yield vote
    if not vote.run.cancelled():
        await vote.end()


async def test_it_leads_while_it_holds_the_lock(vote: Vote) -> None:
    await until(lambda: vote.lock.held > 5)
    assert (vote.candidate.leads, vote.candidate.epochs) == (True, 1)


async def test_it_ends_as_soon_as_another_has_the_lock_and_leads_again_when_it_is_free(vote: Vote) -> None:
    vote.lock.free = False
    await until(lambda: not vote.candidate.leads)
    assert not vote.election.leads
    vote.lock.free = True
    await until(lambda: vote.candidate.leads)
    assert vote.candidate.epochs == 2


async def test_while_nobody_can_tell_it_leads_until_its_lease_is_over_and_no_longer(vote: Vote) -> None:
    loop = asyncio.get_running_loop()
    vote.lock.reachable, began = False, loop.time()
    await asyncio.sleep(LEASE_SECONDS / 3)
    assert vote.candidate.leads
    await until(lambda: not vote.candidate.leads)
    assert loop.time() - began < 1.5 * LEASE_SECONDS
    vote.lock.reachable = True
    await until(lambda: vote.candidate.leads)


async def test_a_lock_that_hangs_ends_the_lead_when_the_lease_is_over(vote: Vote) -> None:
    loop = asyncio.get_running_loop()
    vote.lock.going_on.clear()
    began = loop.time()
    await until(lambda: not vote.candidate.leads)
    assert loop.time() - began < 1.5 * LEASE_SECONDS
    vote.lock.going_on.set()
    await until(lambda: vote.candidate.leads)


async def test_a_refused_write_begins_a_new_epoch_if_the_lock_is_its_own_all_the_same(vote: Vote) -> None:
    vote.election.doubt()
    await until(lambda: vote.candidate.epochs == 2)
    assert vote.candidate.leads


@pytest.mark.parametrize(
    "failure", [Outage(Code.DATABASE_UNAVAILABLE, "It is away."), RuntimeError("a bug")], ids=["outage", "bug"]
)
async def test_a_replica_that_can_t_begin_lets_others_have_the_lock_and_tries_again(failure: Exception) -> None:
    vote = Vote()
    vote.candidate.fails = failure
    await until(lambda: vote.lock.held)
    await until(lambda: not vote.lock.held)
    assert not vote.election.leads
    vote.candidate.fails = None
    await until(lambda: vote.election.leads)
    await vote.end()


async def test_whoever_stops_lets_go(vote: Vote) -> None:
    await vote.end()
    assert (vote.lock.held, vote.candidate.leads) == (0, False)
