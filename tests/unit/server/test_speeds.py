import asyncio

import pytest

from fedlearn.core.ids import DeviceId
from fedlearn.core.rounds import Phase
from fedlearn.protocol.messages import CheckIn, Speed
from fedlearn.protocol.plans import LocalTraining, Plan
from fedlearn.server.runner import TaskRunner
from fedlearn.server.speeds import Speeds
from support.desk import Desk
from support.world import small_plan

ADAPTIVE = small_plan(training=LocalTraining(batch_size=10, epochs=2, min_steps_fraction=0.1))
DEVICES = [DeviceId(name) for name in "abc"]


def checkin(seconds_per_step: float | None, round_: int = 1, plan: Plan = ADAPTIVE, examples: int = 95) -> CheckIn:
    """Of a device whose whole training has 20 steps, after a round in which it did 10."""
    speed = None
    if seconds_per_step is not None:
        speed = Speed(task="t", round=round_, plan_digest=plan.digest, steps=10, seconds=10 * seconds_per_step)
    return CheckIn(dataset="mnist", examples=examples, speed=speed)


def test_a_slow_device_has_less_to_do_and_the_others_all() -> None:
    speeds = Speeds()
    for device, speed in zip(DEVICES, (0.1, 0.1, 0.5), strict=True):
        speeds.note(device, checkin(speed))
    assert speeds.steps(DEVICES, ADAPTIVE) == {"c": 4}


def test_a_plan_that_does_not_allow_less_gives_everybody_all() -> None:
    plan, speeds = small_plan(), Speeds()
    for device, speed in zip(DEVICES, (0.1, 0.1, 0.5), strict=True):
        speeds.note(device, checkin(speed, plan=plan))
    assert speeds.steps(DEVICES, plan) == {}


def test_what_a_check_in_repeats_is_counted_once() -> None:
    speeds = Speeds()
    for speed, round_ in ((0.1, 1), (0.3, 2), (0.3, 2), (0.3, 2)):
        speeds.note(DEVICES[0], checkin(speed, round_))
    speeds.note(DEVICES[1], checkin(0.1))
    assert speeds.steps(DEVICES, ADAPTIVE) == {"a": 10}  # it takes 0.2 s for each: half of the time for half of the steps


def test_a_speed_with_another_plan_says_nothing() -> None:
    speeds, other = Speeds(), small_plan(training=LocalTraining(min_steps_fraction=0.1))
    speeds.note(DEVICES[0], checkin(0.1))
    speeds.note(DEVICES[1], checkin(0.9, plan=other))
    assert speeds.steps(DEVICES, ADAPTIVE) == {}


def test_a_device_goes_on_with_its_speed_when_its_shard_grows() -> None:
    speeds = Speeds()
    speeds.note(DEVICES[0], checkin(0.1))
    speeds.note(DEVICES[1], checkin(0.1, examples=190))
    speeds.note(DEVICES[2], checkin(None))
    assert speeds.steps(DEVICES, ADAPTIVE) == {"b": 20}


def test_devices_that_were_heard_of_longest_ago_are_forgotten() -> None:
    speeds = Speeds(most=2)
    for device, speed in zip(DEVICES, (0.5, 0.1, 0.1), strict=True):
        speeds.note(device, checkin(speed))
    assert speeds.steps(DEVICES, ADAPTIVE) == {}


@pytest.mark.parametrize("least", [0.1, 1.0])
async def test_an_assignment_says_how_much_a_slow_device_has_to_do(desk: Desk, least: float) -> None:
    plan = small_plan(training=LocalTraining(batch_size=10, epochs=2, min_steps_fraction=least))
    held = {
        device: asyncio.create_task(desk.coordinator.check_in(device, checkin(speed, plan=plan), 10.0))
        for device, speed in zip(DEVICES, (0.1, 0.1, 0.5), strict=True)
    }
    runner = TaskRunner(desk.add_task(goal=3), plan, desk.around)
    driving = asyncio.create_task(runner.run())
    await desk.reach(1, Phase.REPORTING)
    steps = {
        device: assignment.local_steps for device, assignment in zip(held, await asyncio.gather(*held.values()), strict=True)
    }
    assert steps == {"a": None, "b": None, "c": 4 if least < 1 else None}
    driving.cancel()
    await asyncio.gather(driving, return_exceptions=True)
