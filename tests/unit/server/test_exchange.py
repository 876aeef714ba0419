"""What replicas tell each other of their devices."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import pytest

from fedlearn.adapters.database import DatabasePresences, DatabaseRoundStore
from fedlearn.core.ids import DeviceId
from fedlearn.core.replicas import Presence
from fedlearn.protocol.messages import CheckIn
from fedlearn.server.exchange import Exchange
from fedlearn.server.fleet import Fleet
from fedlearn.server.roster import Roster
from fedlearn.server.speeds import Speeds
from support.desk import until

A, B = DeviceId("a"), DeviceId("b")
MNIST = CheckIn(dataset="mnist", examples=10)
Join = Callable[..., "Replica"]


class Replica:
    """A server's fleet and roster, and what connects them with the others'."""

    def __init__(self, store: DatabaseRoundStore, name: str, leads: bool) -> None:
        self.fleet, self.roster = Fleet(), Roster(time.time)
        self.exchange = self.fleet.journal = Exchange(
            DatabasePresences(store.database),
            name,
            self.fleet,
            roster=self.roster,
            speeds=Speeds(),
            is_busy=lambda: leads,
            clock=time.time,
            now=time.monotonic,
        )
        self.work = [asyncio.create_task(self.exchange.tell()), asyncio.create_task(self.exchange.look())]


@pytest.fixture
async def join(store: DatabaseRoundStore) -> AsyncIterator[Join]:
    joined: list[Replica] = []

    def join(name: str, leads: bool = True) -> Replica:
        joined.append(Replica(store, name, leads))
        return joined[-1]

    yield join
    work = [task for replica in joined for task in replica.work]
    for task in work:
        task.cancel()
    await asyncio.gather(*work, return_exceptions=True)
    store.close()


async def told(replica: Replica) -> None:
    """Signals are PostgreSQL's; here the test gives them."""
    await asyncio.sleep(0.15)
    replica.exchange.look_again()


async def test_a_device_that_waits_at_one_replica_can_be_selected_at_the_other(join: Join) -> None:
    one, other = join("one"), join("other")
    held = asyncio.create_task(one.fleet.wait(A, MNIST, 10.0))
    await told(other)
    await until(lambda: other.fleet.waiting("mnist") == [A])
    one.fleet.dismiss()
    await held
    await told(other)
    await until(lambda: other.fleet.waiting("mnist") == [])
    assert other.fleet.missing("mnist", 60.0) == 1, "it has said that it comes back"


async def test_a_device_that_hangs_up_is_nobody_s(join: Join) -> None:
    one, other = join("one"), join("other")
    held = asyncio.create_task(one.fleet.wait(A, MNIST, 10.0))
    await told(other)
    await until(lambda: other.fleet.waiting("mnist") == [A])
    held.cancel()
    await asyncio.gather(held, return_exceptions=True)
    one.fleet.forget(A)
    await told(other)
    await until(lambda: other.fleet.size("mnist") == 0)


async def test_a_device_that_goes_from_one_to_the_other_waits_there(join: Join) -> None:
    one, other = join("one"), join("other")
    first = asyncio.create_task(one.fleet.wait(A, MNIST, 10.0))
    await told(other)
    one.roster.check_in(A, MNIST)
    second = asyncio.create_task(other.fleet.wait(A, MNIST, 10.0))
    one.fleet.dismiss()
    await first
    await told(one)
    await until(lambda: one.fleet.waiting("mnist") == [A])
    other.fleet.dismiss()
    await second


async def test_the_roster_shows_who_was_heard_of_elsewhere_and_when(join: Join) -> None:
    one, other = join("one"), join("other")
    held = asyncio.create_task(one.fleet.wait(A, MNIST, 10.0))
    await told(other)
    await until(lambda: A in other.roster.visits)
    visit = other.roster.visits[A]
    assert visit.checkin == MNIST
    assert abs(visit.at - time.time()) < 5
    one.fleet.dismiss()
    await held


async def test_what_a_newer_release_has_written_is_passed_over(join: Join, store: DatabaseRoundStore) -> None:
    presences, one = DatabasePresences(store.database), join("one")
    newer = Presence(A, '{"dataset": "mnist", "examples": 10, "mood": "good"}', True, 60.0, time.time())
    known = Presence(B, '{"dataset": "mnist", "examples": 10}', True, 60.0, time.time())
    presences.put("newer", [newer, known])
    one.exchange.look_now()
    await until(lambda: one.fleet.waiting("mnist") == [B])


async def test_a_database_that_is_away_stops_neither_way(join: Join, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedlearn.server import exchange as module

    monkeypatch.setattr(module, "_OUTAGE_PAUSE_SECONDS", 0.01)
    one, other = join("one"), join("other")
    real, failures = DatabasePresences.put, 3

    def put(self: DatabasePresences, *given: object) -> None:
        nonlocal failures
        if failures:
            failures -= 1
            raise RuntimeError("unforeseen")
        real(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(DatabasePresences, "put", put)
    held = asyncio.create_task(one.fleet.wait(A, MNIST, 10.0))
    await until(lambda: not failures)
    await told(other)
    await until(lambda: other.fleet.waiting("mnist") == [A])
    one.fleet.dismiss()
    await held
