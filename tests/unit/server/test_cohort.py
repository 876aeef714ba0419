import asyncio

import pytest

from fedlearn.core.errors import Code, Refusal
from fedlearn.core.ids import DeviceId, RoundId, TaskId
from fedlearn.core.policy import RoundPolicy
from fedlearn.core.rounds import (
    CohortSelected,
    DeviceDropped,
    Failed,
    ModelRef,
    Round,
    RoundOpened,
    UpdatesCounted,
    advance,
    start,
)
from fedlearn.server.cohort import Cohort
from fedlearn.server.fleet import Fleet

A, B, C = (DeviceId(name) for name in "abc")
ID = RoundId(TaskId("t"), 1)


def reporting() -> Round:
    round_ = start(ID, RoundPolicy(goal=2, over_selection=1.5), ModelRef(0, "key", "0" * 64, 1), now=0.0)
    for event in (CohortSelected((A, B, C)), RoundOpened()):
        round_, _ = advance(round_, event, 1.0)
    return round_


class WatchedFleet(Fleet):
    """Shows what is reserved."""

    @property
    def reserved(self) -> set[DeviceId]:
        return set(self._reserved)


def test_who_has_reported_or_left_is_free_for_other_rounds_at_once() -> None:
    fleet = WatchedFleet()
    cohort, round_ = Cohort(fleet, "mnist"), reporting()
    cohort.follow(round_)
    assert fleet.reserved == {A, B, C}
    round_, _ = advance(round_, UpdatesCounted(frozenset({A}), {}), 2.0)
    cohort.follow(round_)
    assert fleet.reserved == {B, C}
    round_, _ = advance(round_, DeviceDropped(B, Code.TRAINING_FAILED), 3.0)
    cohort.follow(round_)
    assert fleet.reserved == {C}


def test_a_device_that_another_round_has_taken_meanwhile_stays_there_when_this_one_ends() -> None:
    fleet = WatchedFleet()
    cohort, round_ = Cohort(fleet, "mnist"), reporting()
    cohort.follow(round_)
    round_, _ = advance(round_, UpdatesCounted(frozenset({A}), {}), 2.0)
    cohort.follow(round_)
    fleet.reserve([A])
    cohort.follow(advance(round_, Failed(Code.TASK_CANCELLED), 3.0)[0])
    assert fleet.reserved == {A}


async def test_as_soon_as_the_goal_has_reported_the_others_are_told() -> None:
    cohort, round_ = Cohort(Fleet(), "mnist"), reporting()
    cohort.follow(round_)
    waiting = asyncio.create_task(cohort.while_wanted(ID, C, 10.0))
    await asyncio.sleep(0)
    cohort.follow(advance(round_, UpdatesCounted(frozenset({A, B}), {}), 2.0)[0])
    with pytest.raises(Refusal) as refused:
        await waiting
    assert refused.value.code is Code.ROUND_CLOSED


async def test_while_it_is_wanted_a_device_hears_so_when_its_wait_is_over() -> None:
    cohort = Cohort(Fleet(), "mnist")
    cohort.follow(reporting())
    await cohort.while_wanted(ID, C, 0.01)


@pytest.mark.parametrize(
    ("asked", "device", "code"),
    [(ID, DeviceId("stranger"), Code.NOT_SELECTED), (RoundId(TaskId("t"), 2), A, Code.ROUND_CLOSED)],
)
async def test_who_has_no_part_is_refused_at_once(asked: RoundId, device: DeviceId, code: Code) -> None:
    cohort = Cohort(Fleet(), "mnist")
    cohort.follow(reporting())
    with pytest.raises(Refusal) as refused:
        await cohort.while_wanted(asked, device, 10.0)
    assert refused.value.code is code


async def test_a_server_that_stops_answers_who_waits_and_ends_nobodys_work() -> None:
    cohort = Cohort(Fleet(), "mnist")
    cohort.follow(reporting())
    waiting = asyncio.create_task(cohort.while_wanted(ID, C, 10.0))
    await asyncio.sleep(0)
    cohort.leave()
    await waiting
