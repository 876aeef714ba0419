"""A task whose rounds another replica drives, as this one shows it and answers for it."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from fedlearn.adapters.database import DatabaseRoundStore
from fedlearn.core import rounds
from fedlearn.core.errors import Code, Outage, Refusal
from fedlearn.core.ids import DeviceId, RoundId, TaskId
from fedlearn.core.rounds import Phase, Round
from support.desk import Desk, until

A, B = DeviceId("a"), DeviceId("b")
T = TaskId("t")


@pytest.fixture
async def follower(desk: Desk) -> AsyncIterator[Desk]:
    """Another server on the desk's database, which doesn't lead."""
    follower = Desk(desk.store)
    await follower.coordinator.follow()
    yield follower
    await follower.coordinator.stop()


async def driven(desk: Desk, *devices: str, number: int = 1) -> Round:
    """A round that the desk has brought to REPORTING with these devices, which wait there."""
    held = desk.check_in(*devices)
    round_ = await desk.reach(number, Phase.REPORTING)
    await asyncio.gather(*held.values())
    return round_


async def ended(desk: Desk, round_: Round) -> None:
    runner = desk.runner()
    await runner.tell(round_.id, rounds.UpdatesCounted(frozenset(round_.participants), {}))
    await until(lambda: round_.id in desk.aggregator.closed)
    await runner.tell(round_.id, rounds.Aggregated(desk.aggregate(round_)))


async def test_a_device_that_checks_in_at_a_follower_gets_its_assignment(desk: Desk, follower: Desk) -> None:
    await desk.drive(desk.add_task())
    await driven(desk, "a", "b")
    await follower.coordinator.following.read_now(T)
    held = follower.coordinator.check_in(A, follower.checkin, 5.0)
    async with asyncio.timeout(2):
        assignment = await held
    assert assignment is not None
    assert (assignment.round, assignment.device) == (1, A)


async def test_a_device_that_waits_at_a_follower_is_answered_when_its_round_is_read(desk: Desk, follower: Desk) -> None:
    await desk.drive(desk.add_task())
    held = follower.check_in("a")
    await asyncio.sleep(0)
    await driven(desk, "a", "b")
    await follower.coordinator.following.read_now(T)
    async with asyncio.timeout(2):
        assert (await held["a"]).device == A


async def test_what_was_prepared_for_one_round_is_not_given_in_the_next(desk: Desk, follower: Desk) -> None:
    """However few of the steps between them a follower sees."""
    await desk.drive(desk.add_task(rounds=2))
    first = await driven(desk, "a", "b")
    following = follower.coordinator.following
    await following.read_now(T)
    assert following.tasks[T].assignment(A) is not None
    held = desk.check_in("a", "b")
    desk.aggregator.opening.clear()
    await ended(desk, first)
    await desk.reach(2, Phase.CONFIGURATION)
    await following.read_now(T)
    assert following.tasks[T].assignment(A) is None
    desk.aggregator.opening.set()
    await asyncio.gather(*held.values())
    await following.read_now(T)
    assignment = following.tasks[T].assignment(A)
    assert assignment is not None
    assert assignment.round == 2


async def test_a_follower_whose_signals_are_late_looks_before_it_refuses(desk: Desk, follower: Desk) -> None:
    await desk.drive(desk.add_task(rounds=2))
    first = await driven(desk, "a", "b")
    await follower.coordinator.following.read_now(T)
    await ended(desk, first)
    second = await driven(desk, "a", "b", number=2)
    await follower.coordinator.while_wanted(second.id, A, 0.0)  # it has seen only the first
    with pytest.raises(Refusal) as caught:
        await follower.coordinator.while_wanted(first.id, A, 0.0)
    assert caught.value.code is Code.ROUND_CLOSED


async def test_a_follower_whose_signals_are_late_gives_no_assignment_that_is_over(desk: Desk, follower: Desk) -> None:
    runner = await desk.drive(desk.add_task())
    round_ = await driven(desk, "a", "b")
    await follower.coordinator.following.read_now(T)
    await runner.tell(round_.id, rounds.DeviceDropped(A, Code.NOT_ELIGIBLE))
    assert await follower.coordinator.check_in(A, follower.checkin, 0.0) is None


async def test_who_waits_while_wanted_is_told_of_the_end_that_another_replica_saved(desk: Desk, follower: Desk) -> None:
    await desk.drive(desk.add_task())
    round_ = await driven(desk, "a", "b")
    await follower.coordinator.following.read_now(T)
    waiting = asyncio.create_task(follower.coordinator.while_wanted(round_.id, A, 10.0))
    await asyncio.sleep(0)
    await ended(desk, round_)
    await follower.coordinator.following.read_now(T)
    with pytest.raises(Refusal) as caught:
        await waiting
    assert caught.value.code is Code.ROUND_CLOSED


@pytest.mark.parametrize("seen", [True, False], ids=["seen", "unseen"])
async def test_who_leads_next_selects_the_devices_of_the_round_before(desk: Desk, follower: Desk, seen: bool) -> None:
    """Even if it has not seen that round's end, nor perhaps that another one has begun."""
    await desk.drive(desk.add_task(rounds=2))
    first = await driven(desk, "a", "b")
    following = follower.coordinator.following
    await following.read_now(T)
    await ended(desk, first)
    await desk.reach(2, Phase.SELECTION)
    if seen:
        await following.read_now(T)
    await desk.coordinator.follow()
    follower.check_in("a", "b")
    await follower.coordinator.lead(follower.store)
    await desk.reach(2, Phase.REPORTING)


async def test_who_waits_while_wanted_is_told_though_the_round_s_end_was_not_seen(desk: Desk, follower: Desk) -> None:
    await desk.drive(desk.add_task(rounds=2))
    first = await driven(desk, "a", "b")
    await follower.coordinator.following.read_now(T)
    waiting = asyncio.create_task(follower.coordinator.while_wanted(first.id, A, 10.0))
    await asyncio.sleep(0)
    await ended(desk, first)
    await desk.reach(2, Phase.SELECTION)
    await follower.coordinator.following.read_now(T)
    async with asyncio.timeout(2):
        with pytest.raises(Refusal):
            await waiting


async def test_a_round_that_nobody_has_read_yet_is_not_said_to_be_closed(desk: Desk, follower: Desk) -> None:
    await desk.drive(desk.add_task())
    round_ = await driven(desk, "a", "b")
    follower.coordinator.leads = True  # it has just begun to, and no runner is there
    with pytest.raises(Outage):
        await follower.coordinator.while_wanted(round_.id, A, 0.0)
    with pytest.raises(Outage):
        await follower.coordinator.tell(round_.id, rounds.DeviceAccepted(A))
    with pytest.raises(Refusal):
        await follower.coordinator.tell(RoundId(T, 7), rounds.DeviceAccepted(A))


async def test_a_task_that_has_ended_is_followed_no_more(desk: Desk, follower: Desk) -> None:
    await desk.drive(desk.add_task())
    round_ = await driven(desk, "a", "b")
    await follower.coordinator.following.read_now(T)
    assert follower.coordinator.watched() == [T]
    await ended(desk, round_)
    await until(lambda: desk.store.task(T).state == "completed")
    await follower.coordinator.following.read_now(T)
    assert follower.coordinator.watched() == []


async def test_a_leader_of_an_earlier_epoch_stops_at_its_next_write(desk: Desk, store: DatabaseRoundStore) -> None:
    told = asyncio.Event()
    desk.coordinator.on_fenced = told.set
    await desk.coordinator.lead(store.fenced(store.take_lead("first", "")))
    await desk.drive(desk.add_task())
    await desk.reach(1, Phase.SELECTION)
    store.take_lead("second", "")
    desk.check_in("a", "b")  # enough for a cohort, which the first can't save
    async with asyncio.timeout(5):
        await told.wait()
    assert desk.round(1).phase is Phase.SELECTION


async def test_who_leads_next_goes_on_with_the_round(desk: Desk, follower: Desk, store: DatabaseRoundStore) -> None:
    await desk.coordinator.lead(store.fenced(store.take_lead("first", "")))
    await desk.drive(desk.add_task())
    round_ = await driven(desk, "a", "b")
    await desk.coordinator.follow()
    await follower.coordinator.lead(store.fenced(store.take_lead("second", "")))
    await ended(follower, round_)
    assert follower.round(1).phase is Phase.COMMITTED
