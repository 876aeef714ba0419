"""More devices than may have updates in storage, over the real one: what lies there is bounded, and each of them is counted."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from fedlearn.core.errors import Code
from fedlearn.local.storage import LocalStorage
from support.trial import Trial, step
from support.world import World

SAVE_EVERY, PLACES, DEVICES = 4, 20, 24


@pytest.fixture
def world(storage: LocalStorage, tmp_path: Path) -> Iterator[World]:
    world = World.start(tmp_path, storage, {"FEDLEARN_SAVE_EVERY": str(SAVE_EVERY)})
    yield world
    world.stop()


def test_a_device_brings_its_update_as_soon_as_those_before_it_are_deleted(trial: Trial) -> None:
    devices = trial.devices(*(f"{number:02}" for number in range(DEVICES)))
    trial.introduce(*devices)
    trial.submit(goal=DEVICES, rounds=1)
    assignments, updates = trial.assign(*devices), [trial.update(10 + number) for number in range(DEVICES)]
    work = list(zip(devices, assignments, updates, strict=True))
    bodies = [trial.seal(*one) for one in work[:PLACES]]
    for (device, assignment, _), body in zip(work, bodies, strict=False):
        assert device.put(device.ask(assignment, body), body).status_code == 200
    with ThreadPoolExecutor(DEVICES) as threads:
        late = [threads.submit(trial.bring, *one) for one in work[PLACES:]]
        time.sleep(1.0)
        assert not any(one.done() for one in late)
        assert len(lying(trial)) == PLACES
        for (device, assignment, _), body in zip(work, bodies, strict=False):
            device.done(assignment, body)
        for one in late:
            one.result(timeout=15)
        assert len(lying(trial)) < PLACES
    trial.reach(1, "committed", "abandoned")
    assert {standing for standing, _ in trial.standings().values()} == {"reported"}
    assert np.abs(trial.model(1) - step(trial.model(0), updates)).max() < 1e-6


def test_who_waits_when_the_round_is_closed_hears_so_at_once(trial: Trial) -> None:
    devices = trial.devices(*(f"{number:02}" for number in range(PLACES + 1)))
    trial.introduce(*devices)
    trial.submit(goal=PLACES + 1, rounds=1)
    *inside, last = [
        (device, assignment, trial.seal(device, assignment, trial.update()))
        for device, assignment in zip(devices, trial.assign(*devices), strict=True)
    ]
    for device, assignment, body in inside:
        assert device.ask(assignment, body).status_code == 200
    device, assignment, body = last
    with ThreadPoolExecutor(1) as threads, trial.world.as_server() as server:
        asked = threads.submit(device.ask, assignment, body)
        time.sleep(1.0)
        assert not asked.done()
        assert server.post(f"/v1/rounds/{trial.name}/1/close").status_code == 202
        assert asked.result(timeout=5).json()["code"] == Code.UPDATE_LATE


def lying(trial: Trial) -> list[str]:
    """The updates that lie in storage."""
    return [key for key in trial.world.updates_of(trial.id()) if "/updates/" in key]
