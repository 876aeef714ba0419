import asyncio

import pytest

from fedlearn.core.eligibility import Demands
from fedlearn.core.ids import DeviceId
from fedlearn.core.rounds import ModelRef
from fedlearn.protocol.eligibility import DeviceConditions
from fedlearn.protocol.messages import Assignment, CheckIn, Model
from fedlearn.server.fleet import Elsewhere, Fleet

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


class Noted:
    """A journal that a test reads."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, bool]] = []

    def here(self, device: DeviceId, checkin: CheckIn, waiting: bool, seconds: float) -> None:
        self.lines.append((device, waiting))

    def gone(self, device: DeviceId) -> None:
        self.lines.append((device, False))


def elsewhere(waiting: bool = True, due: float = 100.0) -> Elsewhere:
    return Elsewhere(MNIST, waiting, due)


class TestSeveralReplicas:
    async def test_a_device_that_waits_elsewhere_can_be_selected_and_is_not_answered_here(self) -> None:
        fleet = Fleet(clock=lambda: 0.0)
        fleet.see_elsewhere({A: elsewhere(), B: elsewhere(waiting=False)})
        assert fleet.waiting("mnist") == [A]
        assert fleet.holds(A)
        assert not fleet.holds_here(A)
        assert not fleet.answer(A, assignment(A))

    async def test_a_device_that_waits_here_counts_once(self) -> None:
        fleet = Fleet(clock=lambda: 0.0)
        await wait(fleet, A)
        fleet.see_elsewhere({A: elsewhere(), B: elsewhere()})
        assert fleet.waiting("mnist") == [A, B]
        assert fleet.size("mnist") == 2

    async def test_a_device_that_was_not_heard_of_elsewhere_in_time_waits_there_no_more(self) -> None:
        now = 0.0
        fleet = Fleet(clock=lambda: now)
        fleet.see_elsewhere({A: elsewhere(due=5.0)})
        now = 6.0
        assert fleet.waiting("mnist") == []
        assert fleet.size("mnist") == 0

    async def test_a_change_elsewhere_wakes_the_rounds(self) -> None:
        woken: list[bool] = []
        Fleet(on_change=lambda: woken.append(True)).see_elsewhere({A: elsewhere()})
        assert woken

    async def test_others_are_told_when_a_device_begins_and_ends_to_wait(self) -> None:
        fleet, noted = Fleet(), Noted()
        fleet.journal = noted
        held = await wait(fleet, A)
        fleet.answer(A, assignment(A))
        await held
        assert noted.lines == [(A, True), (A, False)]

    async def test_a_round_that_lets_go_of_a_device_tells_nobody_where_it_is(self) -> None:
        """It may wait at another replica by then, which has said so."""
        fleet, noted = Fleet(), Noted()
        held = await wait(fleet, A)
        fleet.reserve([A])
        fleet.answer(A, assignment(A))
        await held
        fleet.journal = noted
        fleet.release([A])
        assert noted.lines == []
        assert fleet.missing("mnist", 60.0) == 1

    async def test_a_device_of_the_round_that_waited_elsewhere_is_missed_after_it(self) -> None:
        fleet = Fleet(clock=lambda: 0.0)
        fleet.see_elsewhere({A: elsewhere()})
        fleet.reserve([A])
        assert fleet.waiting("mnist") == []
        fleet.see_elsewhere({})
        fleet.release([A])
        assert fleet.missing("mnist", 60.0) == 1
        fleet.see_elsewhere({A: elsewhere()})
        assert fleet.missing("mnist", 60.0) == 0
