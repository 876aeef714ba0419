import asyncio

import pytest

from fedlearn.core.eligibility import Demands
from fedlearn.core.ids import DeviceId
from fedlearn.core.rounds import ModelRef
from fedlearn.protocol.eligibility import DeviceConditions
from fedlearn.protocol.messages import Assignment, CheckIn, Model
from fedlearn.server.fleet import Fleet

Held = asyncio.Task[Assignment | None]
A, B = DeviceId("a"), DeviceId("b/3")
MNIST = CheckIn(dataset="mnist", examples=10)


def assignment(device: DeviceId) -> Assignment:
    digest = "0" * 64
    return Assignment(
        task="t",
        round=1,
        device=device,
        plan_digest=digest,
        model=Model.of(ModelRef(0, "key", digest, 1)),
        model_url="http://storage/key",
        seconds_left=1.0,
        ticket="ticket",
    )


async def wait(
    fleet: Fleet, device: DeviceId, checkin: CheckIn = MNIST, seconds: float = 10.0
) -> asyncio.Task[Assignment | None]:
    """A held check-in."""
    waiting = asyncio.create_task(fleet.wait(device, checkin, seconds))
    await asyncio.sleep(0)
    return waiting


async def test_a_waiting_device_is_answered_with_its_assignment() -> None:
    fleet = Fleet()
    waiting = await wait(fleet, A)
    assert fleet.waiting("mnist") == [A]
    assert fleet.answer(A, assignment(A))
    assert await waiting == assignment(A)
    assert fleet.waiting("mnist") == []


async def test_a_check_in_ends_with_nothing_when_its_time_is_up() -> None:
    fleet = Fleet()
    assert await fleet.wait(A, MNIST, seconds=0.0) is None
    assert fleet.waiting("mnist") == []


async def test_a_device_that_does_not_wait_is_not_answered() -> None:
    assert not Fleet().answer(A, assignment(A))


async def test_a_device_is_answered_only_once() -> None:
    fleet = Fleet()
    waiting = await wait(fleet, A)
    assert fleet.answer(A, assignment(A))
    assert not fleet.answer(A, assignment(A))
    await waiting


async def test_a_later_check_in_takes_the_place_of_an_earlier_one() -> None:
    fleet = Fleet()
    earlier, later = await wait(fleet, A), await wait(fleet, A)
    assert await earlier is None
    assert fleet.waiting("mnist") == [A]
    assert fleet.answer(A, assignment(A))
    assert await later == assignment(A)


async def test_a_device_that_hangs_up_does_not_wait_any_more() -> None:
    fleet = Fleet()
    waiting = await wait(fleet, A)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert fleet.waiting("mnist") == []


async def test_the_earlier_check_in_of_a_device_that_hangs_up_does_not_end_its_later_one() -> None:
    fleet = Fleet()
    earlier, later = await wait(fleet, A), await wait(fleet, A)
    earlier.cancel()
    await asyncio.gather(earlier, return_exceptions=True)
    assert fleet.waiting("mnist") == [A]
    later.cancel()


async def test_a_reserved_device_is_nobody_elses_until_it_is_released() -> None:
    fleet = Fleet()
    waiting = [await wait(fleet, A), await wait(fleet, B)]
    fleet.reserve([A])
    assert fleet.waiting("mnist") == [B]
    fleet.release([A])
    assert fleet.waiting("mnist") == [A, B]
    for held in waiting:
        held.cancel()


async def test_devices_of_another_dataset_are_passed_by() -> None:
    fleet = Fleet()
    waiting = await wait(fleet, A, CheckIn(dataset="fashion-mnist", examples=10))
    assert fleet.waiting("mnist") == []
    assert fleet.waiting("fashion-mnist") == [A]
    waiting.cancel()


async def test_a_device_that_does_not_meet_the_demands_is_passed_by() -> None:
    fleet = Fleet()
    at_work = MNIST.model_copy(update={"conditions": DeviceConditions(idle=False)})
    held = [await wait(fleet, A), await wait(fleet, B, at_work)]
    assert fleet.waiting("mnist") == [A, B]
    assert fleet.waiting("mnist", Demands(idle=True)) == [A]
    fleet.dismiss()
    await asyncio.gather(*held)


async def test_all_held_check_ins_end_when_the_server_stops() -> None:
    fleet = Fleet()
    waiting = [await wait(fleet, A), await wait(fleet, B)]
    fleet.dismiss()
    assert await asyncio.gather(*waiting) == [None, None]


class Hours:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_a_device_that_was_told_to_come_back_is_missed_for_a_while_and_then_lost() -> None:
    hours = Hours()
    fleet = Fleet(clock=hours)
    await fleet.wait(A, MNIST, seconds=0.0)
    fleet.expect(A, 1.0)
    held = await wait(fleet, B)
    assert (fleet.missing("mnist", 60.0), fleet.size("mnist"), fleet.size("other")) == (1, 2, 0)
    hours.now = 12.0
    assert (fleet.missing("mnist", 60.0), fleet.size("mnist")) == (0, 1)
    fleet.dismiss()
    await held


async def test_a_device_that_comes_back_much_later_is_of_the_fleet_and_not_missed() -> None:
    fleet = Fleet(clock=Hours())
    await fleet.wait(A, MNIST, seconds=0.0)
    fleet.expect(A, 600.0)
    assert (fleet.missing("mnist", 60.0), fleet.size("mnist")) == (0, 1)


async def test_a_device_at_work_is_not_missed_until_its_round_lets_it_go() -> None:
    fleet = Fleet(clock=Hours())
    held = await wait(fleet, A)
    fleet.reserve([A])
    assert fleet.answer(A, assignment(A))
    await held
    assert (fleet.missing("mnist", 60.0), fleet.size("mnist")) == (0, 1)
    fleet.release([A])
    assert fleet.missing("mnist", 60.0) == 1


async def test_a_device_that_hangs_up_is_forgotten() -> None:
    fleet = Fleet()
    held = await wait(fleet, A)
    held.cancel()
    await asyncio.wait({held})
    fleet.forget(A)
    assert (fleet.missing("mnist", 60.0), fleet.size("mnist")) == (0, 0)


async def test_it_tells_of_each_device_that_begins_to_wait_or_is_released() -> None:
    changes: list[int] = []
    fleet = Fleet(on_change=lambda: changes.append(len(fleet.waiting("mnist"))))
    waiting = await wait(fleet, A)
    fleet.reserve([A])
    fleet.release([A])
    assert changes == [1, 1]
    waiting.cancel()
