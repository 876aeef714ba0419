import asyncio
import threading
import time
from collections.abc import Awaitable

import numpy as np
import pytest

from fedlearn.core import rounds
from fedlearn.core.errors import Code, Outage, Refusal
from fedlearn.core.ids import DeviceId, RoundId, TaskId
from fedlearn.core.ports import Task
from fedlearn.core.rounds import Phase, Standing
from fedlearn.server.runner import TaskRunner
from support.desk import Desk, until

A, B = DeviceId("a"), DeviceId("b")


async def refused(call: Awaitable[object]) -> Code:
    with pytest.raises(Refusal) as caught:
        async with asyncio.timeout(2):
            await call
    return caught.value.code


def counted(*devices: DeviceId, **refusals: Code) -> rounds.UpdatesCounted:
    return rounds.UpdatesCounted(frozenset(devices), {DeviceId(name): code for name, code in refusals.items()})


async def take_part(desk: Desk, runner: TaskRunner, number: int = 1, *devices: str) -> rounds.Round:
    """Bring a round to REPORTING with these devices."""
    held = desk.check_in(*(devices or (A, B)))
    round_ = await desk.reach(number, Phase.REPORTING)
    for device, check_in in held.items():
        assignment = await check_in
        assert assignment is not None
        assert assignment.device == device
    return round_


async def test_a_round_goes_through_all_its_phases_and_moves_the_model(desk: Desk) -> None:
    runner = await desk.drive(desk.add_task())
    round_ = await take_part(desk, runner)
    for device in (A, B):
        await runner.tell(round_.id, rounds.DeviceAccepted(device))
    await runner.tell(round_.id, counted(A))
    assert desk.round(1).participants[A].standing is Standing.REPORTED, "acknowledged before it was saved"
    await runner.tell(round_.id, counted(A, B))
    await until(lambda: desk.aggregator.closed)
    await runner.tell(round_.id, rounds.Aggregated(desk.aggregate(round_)))
    assert desk.round(1).phase is Phase.COMMITTED
    await until(lambda: desk.store.task(TaskId("t")).state == "completed")
    assert desk.store.task(TaskId("t")).model == desk.aggregate(round_).model
    assert desk.aggregator.opened == [round_.id]


async def test_devices_that_wait_already_when_a_task_begins_are_selected_at_once(desk: Desk) -> None:
    held = desk.check_in(A, B)
    await until(lambda: len(desk.fleet.waiting("mnist")) == 2)
    await desk.drive(desk.add_task())
    async with asyncio.timeout(2):
        assert all(await asyncio.gather(*held.values()))


async def test_devices_that_wait_already_when_a_round_begins_are_selected_at_once(desk: Desk) -> None:
    runner = await desk.drive(desk.add_task(rounds=2))
    round_ = await take_part(desk, runner)
    await runner.tell(round_.id, counted(A, B))
    held = desk.check_in(A, B)
    await until(lambda: desk.aggregator.closed)
    await runner.tell(round_.id, rounds.Aggregated(desk.aggregate(round_)))
    async with asyncio.timeout(2):
        assert [(await check_in).round for check_in in held.values()] == [2, 2]


@pytest.mark.parametrize("overlap", [True, False], ids=["overlap", "no overlap"])
async def test_devices_that_gathered_while_a_round_reported_do_not_wait_for_more_after_its_commit(
    desk: Desk, overlap: bool
) -> None:
    """Two of three that are wanted: without overlap the second round waits for a third one as long as the first did."""
    timeout = 1.0
    task = desk.add_task(rounds=2, goal=3, min_fraction=0.6, selection_timeout_seconds=timeout, overlap_selection=overlap)
    runner = await desk.drive(task)
    round_ = await take_part(desk, runner)
    await runner.tell(round_.id, counted(A))
    held = desk.check_in(A)
    await asyncio.sleep(timeout)
    await runner.tell(round_.id, counted(A, B))
    held |= desk.check_in(B)
    await runner.tell(round_.id, rounds.Aggregated(desk.aggregate(round_)))
    assert [(await check_in).round for check_in in held.values()] == [2, 2]
    selections = [desk.round(number).phase_seconds[Phase.SELECTION] for number in (1, 2)]
    assert selections[0] >= timeout
    assert (selections[1] < timeout) is overlap
    assert desk.round(2).base == desk.aggregate(round_).model, "nobody is given the model of before"


async def test_an_assignment_is_given_again_until_the_device_has_reported(desk: Desk) -> None:
    runner = await desk.drive(desk.add_task())
    round_ = await take_part(desk, runner)
    assert runner.assignment(A) is not None
    await runner.tell(round_.id, rounds.DeviceAccepted(A))
    assert runner.assignment(A) is not None, "a device that comes back after a crash goes on"
    await runner.tell(round_.id, counted(A))
    assert runner.assignment(A) is None
    assert runner.assignment(B) is not None


@pytest.mark.parametrize("standing", ["dropped", "refused", "not_selected"])
async def test_no_assignment_is_given_to_a_device_that_has_no_part(desk: Desk, standing: str) -> None:
    runner = await desk.drive(desk.add_task(min_fraction=0.5))
    round_ = await take_part(desk, runner)
    if standing == "dropped":
        await runner.tell(round_.id, rounds.DeviceDropped(A, Code.TRAINING_FAILED))
    elif standing == "refused":
        await runner.tell(round_.id, counted(a=Code.UPDATE_SHAPE))
    assert runner.assignment(A if standing != "not_selected" else DeviceId("c")) is None


async def test_a_device_that_was_not_selected_is_told_so_and_the_others_words_count(desk: Desk) -> None:
    runner = await desk.drive(desk.add_task())
    round_ = await take_part(desk, runner)
    foreign, known = await asyncio.gather(
        runner.tell(round_.id, rounds.DeviceAccepted(DeviceId("c"))),
        runner.tell(round_.id, rounds.DeviceAccepted(A)),
        return_exceptions=True,
    )
    assert isinstance(foreign, Refusal)
    assert foreign.code is Code.NOT_SELECTED
    assert known is None
    assert desk.round(1).participants[A].standing is Standing.ACCEPTED


async def test_word_of_a_round_that_has_ended_is_refused_even_after_the_task(desk: Desk) -> None:
    runner = await desk.drive(desk.add_task())
    round_ = await take_part(desk, runner)
    await runner.tell(round_.id, counted(A, B))
    await runner.tell(round_.id, rounds.Aggregated(desk.aggregate(round_)))
    assert await refused(runner.tell(round_.id, counted(A))) is Code.ROUND_CLOSED
    await until(lambda: desk.store.task(TaskId("t")).state == "completed")
    assert await refused(runner.tell(round_.id, counted(A))) is Code.ROUND_CLOSED


async def test_word_of_a_round_never_reaches_the_next_one(desk: Desk) -> None:
    runner = await desk.drive(desk.add_task(rounds=2))
    round_ = await take_part(desk, runner)
    await runner.tell(round_.id, counted(A, B))
    late: set[asyncio.Task[None]] = set()

    async def tell_until_the_next_round_runs() -> None:
        while runner.round is None or runner.round.id.number == 1:
            late.add(asyncio.create_task(runner.tell(round_.id, counted(A, B))))
            await asyncio.sleep(0)

    telling = asyncio.create_task(tell_until_the_next_round_runs())
    await runner.tell(round_.id, rounds.Aggregated(desk.aggregate(round_)))
    await telling
    second = await take_part(desk, runner, 2)
    async with asyncio.timeout(5):
        answers = await asyncio.gather(*late, return_exceptions=True)
    assert {answer.code for answer in answers if isinstance(answer, Refusal)} == {Code.ROUND_CLOSED}
    assert second.count(Standing.SELECTED) == 2
    assert desk.round(2).count(Standing.REPORTED) == 0


async def test_too_few_devices_abandon_a_round_and_the_next_one_begins_by_itself(desk: Desk) -> None:
    runner = await desk.drive(desk.add_task(selection_timeout_seconds=0.05))
    held = desk.check_in(A)
    first = await desk.reach(1, Phase.ABANDONED)
    assert first.reason is Code.TOO_FEW_DEVICES
    held |= desk.check_in(B)
    await desk.reach(2, Phase.SELECTION, Phase.CONFIGURATION, Phase.REPORTING, Phase.ABANDONED)
    await until(lambda: runner.round is not None and runner.round.phase is Phase.REPORTING)
    assert all(await asyncio.gather(*held.values()))


async def test_at_the_deadline_a_round_closes_with_the_minimum(desk: Desk) -> None:
    runner = await desk.drive(desk.add_task(min_fraction=0.5, reporting_timeout_seconds=0.3))
    round_ = await take_part(desk, runner)
    await runner.tell(round_.id, counted(A))
    closing = await desk.reach(1, Phase.AGGREGATION)
    assert closing.participants[B].standing is Standing.RELEASED
    assert closing.phase_seconds[Phase.REPORTING] >= 0.3


async def test_below_the_minimum_a_round_is_abandoned_at_its_deadline(desk: Desk) -> None:
    runner = await desk.drive(desk.add_task(reporting_timeout_seconds=0.1))
    round_ = await take_part(desk, runner)
    await runner.tell(round_.id, counted(A))
    assert (await desk.reach(1, Phase.ABANDONED)).reason is Code.TOO_FEW_REPORTS
    await until(lambda: round_.id in desk.aggregator.swept)


async def test_a_cancelled_task_ends_its_round_and_begins_no_other(desk: Desk) -> None:
    runner = await desk.drive(desk.add_task(rounds=None))
    await take_part(desk, runner)
    await desk.coordinator.cancel(TaskId("t"))
    assert desk.round(1).phase is Phase.ABANDONED
    assert desk.round(1).reason is Code.TASK_CANCELLED
    await until(lambda: desk.aggregator.swept)
    assert len(desk.store.rounds(TaskId("t"))) == 1


async def test_a_task_that_is_cancelled_between_two_rounds_ends(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = await desk.drive(desk.add_task(rounds=None))
    round_ = await take_part(desk, runner)
    await runner.tell(round_.id, counted(A, B))
    add_round, adding, cancelled = desk.store.add_round, asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def add_late(new: rounds.Round) -> None:
        loop.call_soon_threadsafe(adding.set)
        asyncio.run_coroutine_threadsafe(cancelled.wait(), loop).result()
        add_round(new)

    monkeypatch.setattr(desk.store, "add_round", add_late)
    await runner.tell(round_.id, rounds.Aggregated(desk.aggregate(round_)))
    await adding.wait()
    cancelling = asyncio.create_task(desk.coordinator.cancel(TaskId("t")))
    await until(lambda: desk.store.task(TaskId("t")).state == "cancelled")
    cancelled.set()
    await cancelling
    assert (await desk.reach(2, Phase.ABANDONED)).reason is Code.TASK_CANCELLED


async def test_a_server_that_comes_back_abandons_the_round_of_a_task_that_was_cancelled_meanwhile(desk: Desk) -> None:
    task = desk.add_task()
    desk.store.add_round(rounds.start(RoundId(task.id, 1), task.policy, task.upload, time.time()))
    desk.store.end_task(task.id, "cancelled")
    await desk.coordinator.start()
    assert (await desk.reach(1, Phase.ABANDONED)).reason is Code.TASK_CANCELLED


async def test_the_evaluators_figure_ends_a_task_at_its_target(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    task = desk.add_task(rounds=None, target=0.97)
    waits = asyncio.Event()
    changed = TaskRunner.changed

    async def noticed(runner: TaskRunner, seconds: float) -> None:
        waits.set()
        await changed(runner, seconds)

    monkeypatch.setattr(TaskRunner, "changed", noticed)
    desk.store.evaluate(TaskId("t"), 0, {"accuracy": 0.1})
    runner = await desk.drive(task)
    round_ = await take_part(desk, runner)
    await runner.tell(round_.id, counted(A, B))
    await runner.tell(round_.id, rounds.Aggregated(desk.aggregate(round_)))
    await waits.wait()
    assert desk.store.task(TaskId("t")).state == "running"
    desk.store.evaluate(TaskId("t"), 1, {"accuracy": float(np.float32(0.97))})  # a little less, as it is scored
    desk.coordinator.announce_versions()
    await until(lambda: desk.store.task(TaskId("t")).state == "completed", seconds=1.0)


async def test_a_refusal_of_the_aggregator_abandons_the_round(desk: Desk) -> None:
    desk.aggregator.refuses = Refusal(Code.AGGREGATOR_KEY_LOST, "The key is lost.")
    await desk.drive(desk.add_task())
    desk.check_in(A, B)
    assert (await desk.reach(1, Phase.ABANDONED)).reason is Code.AGGREGATOR_KEY_LOST


async def test_an_aggregator_that_refuses_every_round_is_not_asked_again_and_again_without_a_pause(desk: Desk) -> None:
    desk.aggregator.refuses = Refusal(Code.FORBIDDEN, "This service account may not do that.")
    await desk.drive(desk.add_task())
    desk.check_in(A, B)
    await desk.reach(3, Phase.ABANDONED)
    first, third = desk.round(1), desk.round(3)
    assert third.opened_at - first.opened_at > 0.5


async def test_a_server_that_comes_back_goes_on_with_the_round_it_finds(desk: Desk) -> None:
    runner = await desk.drive(desk.add_task())
    round_ = await take_part(desk, runner)
    await runner.tell(round_.id, counted(A))
    await desk.coordinator.stop()
    later = Desk(desk.store)
    await later.coordinator.start()
    try:
        # as a device does: the round may be ready for it by now, or soon
        assignment = await later.coordinator.check_in(B, later.checkin, 10.0)
        assert assignment is not None
        assert assignment.ticket
        assert later.aggregator.opened == [round_.id]
        runner = later.runner()
        await runner.tell(round_.id, counted(A, B))
        await until(lambda: later.aggregator.closed == [round_.id])
        await runner.tell(round_.id, rounds.Aggregated(later.aggregate(round_)))
        assert later.round(1).phase is Phase.COMMITTED
    finally:
        await later.coordinator.stop()


async def test_word_that_comes_before_the_round_is_loaded_waits_for_it(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = await desk.drive(desk.add_task())
    round_ = await take_part(desk, runner)
    await desk.coordinator.stop()
    may_read, read_task = threading.Event(), desk.store.task

    def late(task: TaskId) -> Task:
        assert may_read.wait(5)
        return read_task(task)

    later = Desk(desk.store)
    monkeypatch.setattr(desk.store, "task", late)  # the first that a runner reads
    await later.coordinator.start()
    try:
        runner = later.runner()
        telling = asyncio.create_task(runner.tell(round_.id, counted(A)))
        await asyncio.sleep(0.1)
        assert runner.round is None
        assert not telling.done()
        may_read.set()
        await telling
        assert later.round(1).participants[A].standing is Standing.REPORTED
    finally:
        may_read.set()
        await later.coordinator.stop()


async def test_when_another_server_was_first_callers_are_asked_to_come_again(desk: Desk) -> None:
    runner = await desk.drive(desk.add_task())
    round_ = await take_part(desk, runner)
    stored = desk.round(1)
    desk.store.save_round(rounds.advance(stored, rounds.DeviceAccepted(A), time.time())[0], stored)
    async with asyncio.timeout(2):
        with pytest.raises(Outage):
            await runner.tell(round_.id, rounds.DeviceAccepted(B))
    await until(lambda: runner.round is not None and runner.round.participants[A].standing is Standing.ACCEPTED)
    await runner.tell(round_.id, rounds.DeviceAccepted(B))
    assert desk.round(1).count(Standing.ACCEPTED) == 2


async def test_a_cohort_that_could_not_be_saved_is_free_again(desk: Desk) -> None:
    runner = await desk.drive(desk.add_task())
    stored = await desk.reach(1, Phase.SELECTION)
    await until(lambda: runner.round is not None)
    ended, _ = rounds.advance(stored, rounds.Failed(Code.INTERNAL), time.time())
    desk.store.save_round(ended, stored)
    held = desk.check_in(A, B)
    async with asyncio.timeout(5):
        assert [(await check_in).round for check_in in held.values()] == [2, 2]


async def test_the_last_round_of_a_task_is_swept_however_long_the_aggregator_is_away(desk: Desk) -> None:
    desk.aggregator.sweeping.clear()
    runner = await desk.drive(desk.add_task())
    round_ = await take_part(desk, runner)
    await runner.tell(round_.id, counted(A, B))
    await runner.tell(round_.id, rounds.Aggregated(desk.aggregate(round_)))
    await until(lambda: desk.store.task(TaskId("t")).state == "completed")
    desk.aggregator.sweeping.set()
    await until(lambda: desk.aggregator.swept)


async def test_a_round_that_the_aggregator_still_holds_after_its_end_is_swept(desk: Desk) -> None:
    runner = await desk.drive(desk.add_task())
    round_ = await take_part(desk, runner)
    await runner.tell(round_.id, counted(A, B))
    await runner.tell(round_.id, rounds.Aggregated(desk.aggregate(round_)))
    await until(lambda: desk.store.task(TaskId("t")).state == "completed")
    await desk.coordinator.stop()
    later = Desk(desk.store)
    await later.coordinator.start()
    assert await refused(later.coordinator.tell(round_.id, counted(A))) is Code.ROUND_CLOSED
    await later.coordinator.sweep(round_.id)
    async with asyncio.timeout(2):
        await later.coordinator.changed(TaskId("t"), 60)
    await until(lambda: later.aggregator.swept == [round_.id])
    await later.coordinator.stop()


async def test_word_of_a_task_that_nobody_knows_is_refused(desk: Desk) -> None:
    assert await refused(desk.coordinator.tell(RoundId(TaskId("nobody"), 1), rounds.Tick())) is Code.TASK_UNKNOWN
