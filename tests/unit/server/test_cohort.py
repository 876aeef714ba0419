import asyncio
from dataclasses import replace

import pytest

from fedlearn.core.errors import Code, Refusal
from fedlearn.core.ids import DeviceId, RoundId, TaskId
from fedlearn.core.policy import RoundPolicy
from fedlearn.core.rounds import (
    Aggregate,
    Aggregated,
    CohortSelected,
    DeviceDropped,
    DevicesAvailable,
    Failed,
    ModelRef,
    Round,
    RoundOpened,
    UpdatesCounted,
    advance,
    start,
)
from fedlearn.protocol.messages import CheckIn
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


POLICY = RoundPolicy(goal=3, min_fraction=0.3, over_selection=1.0, selection_timeout_seconds=10)
BASE, NEXT = ModelRef(0, "key", "0" * 64, 1), ModelRef(1, "next", "1" * 64, 1)


def one_round(cohort: Cohort, ending: str, policy: RoundPolicy = POLICY) -> None:
    """Let a cohort follow a round that reports from 5 s to 25 s, and is committed at 30 s or ends otherwise."""
    commit = UpdatesCounted(frozenset({A}), {}), Aggregated(Aggregate(NEXT, frozenset({A}), 1))
    steps = (Failed(Code.TOO_FEW_REPORTS),) if ending == "abandoned" else commit
    round_ = start(ID, policy, BASE, now=0.0)
    for event, now in zip((CohortSelected((A,)), RoundOpened(), *steps), (0.0, 5.0, 25.0, 30.0), strict=False):
        round_, _ = advance(round_, event, now)
        if now >= 5.0 or ending != "found while it reports":
            cohort.follow(round_)


@pytest.mark.parametrize(
    ("ending", "overlap", "gathered"),
    [
        pytest.param("committed", True, 26.0, id="since the round before began to report"),
        pytest.param("committed", False, 0.0, id="the task does not want it"),
        pytest.param("abandoned", True, 0.0, id="after a round that was abandoned they gather anew"),
        pytest.param("found while it reports", True, 0.0, id="nobody waited here before the crash"),
    ],
)
async def test_devices_gather_for_a_round_while_the_one_before_it_reports(ending: str, overlap: bool, gathered: float) -> None:
    fleet, policy = Fleet(clock=lambda: 31.0), replace(POLICY, overlap_selection=overlap)
    cohort = Cohort(fleet, "mnist")
    waiting = asyncio.create_task(fleet.wait(B, CheckIn(dataset="mnist", examples=10), 10.0))
    await asyncio.sleep(0)
    one_round(cohort, ending, policy)
    round_ = start(RoundId(TaskId("t"), 2), policy, NEXT, now=30.0)
    cohort.follow(round_)
    assert cohort.available(round_, 31.0) == DevicesAvailable(1, gathering_seconds=gathered)
    waiting.cancel()
