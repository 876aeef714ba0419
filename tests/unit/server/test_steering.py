"""A task that is paused, resumed and rolled back while its rounds run."""

import asyncio

import pytest

from fedlearn.core import rounds
from fedlearn.core.errors import Code, Refusal
from fedlearn.core.ids import DeviceId, TaskId
from fedlearn.core.rounds import Phase
from support.desk import Desk, until

TASK = TaskId("t")
A, B = DeviceId("a"), DeviceId("b")


async def finish(desk: Desk, number: int) -> None:
    """Bring a round that devices wait for to its commit."""
    round_ = await desk.reach(number, Phase.REPORTING)
    runner = desk.runner()
    await runner.tell(round_.id, rounds.UpdatesCounted(frozenset({A, B}), {}))
    await runner.tell(round_.id, rounds.Aggregated(desk.aggregate(round_)))


async def test_a_paused_task_ends_its_round_and_starts_no_other_until_it_is_resumed(desk: Desk) -> None:
    await desk.drive(desk.add_task(rounds=3))
    desk.check_in(A, B)
    await desk.reach(1, Phase.REPORTING)
    assert (await desk.coordinator.pause(TASK, True)).state == "paused"
    await finish(desk, 1)
    assert desk.round(1).phase is Phase.COMMITTED
    await asyncio.sleep(0.1)
    latest = desk.store.latest_round(TASK)
    assert latest is not None
    assert latest.id.number == 1
    assert (await desk.coordinator.pause(TASK, False)).state == "running"
    desk.check_in(A, B)
    await desk.reach(2, Phase.REPORTING)


async def test_a_server_that_starts_again_leaves_a_paused_task_at_rest_and_can_resume_it(desk: Desk) -> None:
    desk.add_task()
    desk.store.pause_task(TASK, True)
    await desk.coordinator.start()
    await asyncio.sleep(0.05)
    assert desk.store.latest_round(TASK) is None
    await desk.coordinator.pause(TASK, False)
    await until(lambda: desk.store.latest_round(TASK))


async def test_a_paused_task_can_be_cancelled(desk: Desk) -> None:
    desk.add_task()
    desk.store.pause_task(TASK, True)
    await desk.coordinator.start()
    await desk.coordinator.cancel(TASK)
    await until(desk.coordinator._supervisors[TASK].done)
    assert desk.store.task(TASK).state == "cancelled"
    assert desk.store.latest_round(TASK) is None


async def test_a_rollback_abandons_the_running_round_and_the_next_one_starts_from_the_chosen_version(desk: Desk) -> None:
    await desk.drive(desk.add_task(rounds=3))
    desk.check_in(A, B)
    await finish(desk, 1)
    desk.check_in(A, B)
    running = await desk.reach(2, Phase.REPORTING)
    assert running.base.version == 1
    restored = await desk.coordinator.roll_back(TASK, 0, current=1)
    assert (restored.ref.version, restored.parent, restored.ref.sha256) == (2, 0, desk.round(1).base.sha256)
    assert (desk.round(2).phase, desk.round(2).reason) == (Phase.ABANDONED, Code.BASE_SUPERSEDED)
    desk.check_in(A, B)
    following = await desk.reach(3, Phase.REPORTING)
    assert following.base == restored.ref
    await finish(desk, 3)
    assert desk.store.version(TASK, 3).parent == 2


async def test_a_rollback_of_somebody_who_has_not_seen_the_newest_version_is_refused(desk: Desk) -> None:
    await desk.drive(desk.add_task(rounds=3))
    desk.check_in(A, B)
    await finish(desk, 1)
    following = await desk.reach(2, Phase.SELECTION, Phase.REPORTING)
    with pytest.raises(Refusal) as refused:
        await desk.coordinator.roll_back(TASK, 0, current=0)
    assert refused.value.code is Code.BASE_SUPERSEDED
    assert not desk.round(following.id.number).phase.ended
