import asyncio

import pytest

from fedlearn.aggregator import inflow as inflow_module
from fedlearn.aggregator.inflow import Inflow
from fedlearn.core.errors import Code, Outage
from fedlearn.core.ids import DeviceId
from support.desk import until

PLACES = 20 + 20
DEVICES = [DeviceId(f"device-{number}") for number in range(PLACES + 2)]


async def full() -> Inflow:
    inflow = Inflow(save_every=20)
    async with asyncio.timeout(1.0):
        for device in DEVICES[:PLACES]:
            await inflow.enter(device)
    return inflow


async def test_who_finds_no_place_waits_for_the_first_that_is_left() -> None:
    inflow = await full()
    first, second = (asyncio.create_task(inflow.enter(device)) for device in DEVICES[PLACES:])
    await asyncio.sleep(0.05)
    assert not first.done()
    inflow.leave(DEVICES[7])
    await until(first.done)
    await asyncio.sleep(0.05)
    assert not second.done()
    inflow.leave(DEVICES[PLACES])
    await until(second.done)


async def test_who_has_a_place_gets_no_other_by_asking_again_and_leaves_one_only() -> None:
    inflow = await full()
    async with asyncio.timeout(1.0):
        await inflow.enter(DEVICES[3])
    for _ in range(3):
        inflow.leave(DEVICES[3])
    first, second = (asyncio.create_task(inflow.enter(device)) for device in DEVICES[PLACES:])
    await until(first.done)
    await asyncio.sleep(0.05)
    assert not second.done()
    second.cancel()


async def test_a_device_that_asks_twice_at_once_takes_one_place() -> None:
    inflow = await full()
    twice = [asyncio.create_task(inflow.enter(DEVICES[PLACES])) for _ in range(2)]
    await asyncio.sleep(0.05)
    for device in DEVICES[:2]:
        inflow.leave(device)
    await asyncio.wait_for(asyncio.gather(*twice), 1.0)
    async with asyncio.timeout(1.0):
        await inflow.enter(DEVICES[PLACES + 1])


async def test_a_device_that_comes_back_keeps_its_new_place_as_long_as_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inflow_module, "_SECONDS", 0.4)
    inflow = Inflow(save_every=20)
    await inflow.enter(DEVICES[0])
    await asyncio.sleep(0.3)
    inflow.leave(DEVICES[0])
    for device in DEVICES[:PLACES]:
        await inflow.enter(device)
    late = asyncio.create_task(inflow.enter(DEVICES[PLACES]))
    await asyncio.sleep(0.2)
    assert not late.done()
    late.cancel()


async def test_nobody_waits_for_a_round_that_takes_no_updates_any_more() -> None:
    inflow = await full()
    late = [asyncio.create_task(inflow.enter(device)) for device in DEVICES[PLACES:]]
    await asyncio.sleep(0.05)
    assert not any(task.done() for task in late)
    inflow.close()
    await asyncio.wait_for(asyncio.gather(*late), 1.0)


async def test_those_that_have_died_with_their_places_hold_up_nobody_for_longer_than_these_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inflow_module, "_SECONDS", 0.2)
    inflow = await full()
    await asyncio.sleep(0.1)
    late = [asyncio.create_task(inflow.enter(device)) for device in DEVICES[PLACES:]]
    await asyncio.sleep(0.05)
    assert not any(task.done() for task in late)
    async with asyncio.timeout(1.0):
        await asyncio.gather(*late)
    inflow = await full()
    await asyncio.sleep(0.3)
    async with asyncio.timeout(0.1):
        for device in DEVICES[PLACES:]:
            await inflow.enter(device)


async def test_few_updates_a_sum_leave_places_enough_to_keep_folding_busy() -> None:
    inflow = Inflow(save_every=1)
    async with asyncio.timeout(1.0):
        for device in DEVICES[:17]:
            await inflow.enter(device)
    late = asyncio.create_task(inflow.enter(DEVICES[17]))
    await asyncio.sleep(0.05)
    assert not late.done()
    late.cancel()


async def test_who_finds_no_place_in_time_is_asked_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    inflow = await full()
    for device in DEVICES[:PLACES]:
        inflow.keep(device)
    monkeypatch.setattr(inflow_module, "_SECONDS", 0.1)
    for _ in range(2):
        with pytest.raises(Outage) as caught:
            await inflow.enter(DEVICES[PLACES])
        assert caught.value.code is Code.BUSY
    inflow.leave(DEVICES[0])
    await inflow.enter(DEVICES[PLACES])


async def test_an_update_that_lies_in_storage_has_its_place_until_it_is_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inflow_module, "_SECONDS", 0.2)
    inflow = await full()
    for device in DEVICES[:PLACES]:
        inflow.keep(device)
    await asyncio.sleep(0.3)
    with pytest.raises(Outage):
        await inflow.enter(DEVICES[PLACES])
