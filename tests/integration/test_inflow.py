"""More devices than may have updates in storage, over the real one: what lies there is bounded, and each of them is counted."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

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


def lying(trial: Trial) -> list[str]:
    """The updates that lie in storage."""
    return [key for key in trial.world.updates_of(trial.id()) if "/updates/" in key]
