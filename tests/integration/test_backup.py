"""`fedlearn backup` of a running system, and `restore` to another storage and another database: the next round begins there."""

import json
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from fedlearn.local.postgres import Postgres
from fedlearn.local.storage import LocalStorage
from support.command import Run
from support.trial import Trial, step
from support.world import World, wait_for


@pytest.fixture(scope="module")
def other_storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStorage]:
    with LocalStorage(tmp_path_factory.mktemp("other-storage")) as storage:
        yield storage


@pytest.fixture(scope="module")
def other_world(other_storage: LocalStorage, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A system elsewhere, on PostgreSQL, whose services are down."""
    url = {"FEDLEARN_DATABASE_URL": postgres.new_database()}
    world = World.start(tmp_path_factory.mktemp("elsewhere"), other_storage, server_settings=url)
    for role in ("server", "aggregator"):
        world.kill(role)
    yield world
    world.stop()


def settings(world: World, role: str) -> dict[str, str]:
    """The server's database, and the models as this role may reach them."""
    return {
        "FEDLEARN_DATABASE_URL": world.environments["server"]["FEDLEARN_DATABASE_URL"],
        "FEDLEARN_STORAGE": world.environments[role]["FEDLEARN_STORAGE"],
    }


def one_round(trial: Trial, number: int) -> np.ndarray:
    """A round of two devices; what its model must be."""
    devices = trial.devices("a", "b")
    assignments = trial.assign(*devices)
    assert {assignment.round for assignment in assignments} == {number}
    updates = [trial.update(10), trial.update(40)]
    for device, assignment, update in zip(devices, assignments, updates, strict=True):
        trial.bring(device, assignment, update)
    assert trial.reach(number, "committed", "abandoned").phase == "committed"
    return step(trial.model(number - 1), updates)


def test_what_was_backed_up_in_the_middle_of_a_round_goes_on_elsewhere(
    world: World, other_world: World, make_trial: Callable[..., Trial], tmp_path: Path
) -> None:
    trial = make_trial(world)
    trial.submit(goal=2, rounds=3)
    first = one_round(trial, 1)
    trial.assign(*trial.devices("a", "b"))  # round 2 has begun
    file = tmp_path / "backup.tar"
    status, _, said = Run("backup", str(file), **settings(world, "server")).end()
    assert status == 0, said
    assert "Backed up" in said
    assert stat.S_IMODE(file.stat().st_mode) == 0o600

    status, _, said = Run("restore", str(file), **settings(other_world, "aggregator")).end()
    assert status == 0, said
    other_world.restart("server", "aggregator")
    there = Trial(other_world, trial.name)
    assert np.abs(there.model(1) - first).max() < 1e-6
    assert there.round(2).phase == "reporting"
    for number in (2, 3):
        expected = one_round(there, number)
        assert np.abs(there.model(number) - expected).max() < 1e-6
    wait_for(lambda: there.state() == "completed", "the task to complete")

    status, _, said = Run("restore", str(file), **settings(other_world, "aggregator")).end()
    assert status == 1
    assert "--overwrite" in said
    assert there.state() == "completed"


def test_a_backup_is_never_written_over_another_file(world: World, tmp_path: Path) -> None:
    file = tmp_path / "notes"
    file.write_text("mine")
    status, _, said = Run("backup", str(file), **settings(world, "server")).end()
    assert (status, file.read_text()) == (1, "mine")
    assert "exists already" in said


def test_a_backup_that_can_t_be_made_leaves_no_file(world: World, tmp_path: Path) -> None:
    given = settings(world, "server")
    wrong = json.dumps({**json.loads(given["FEDLEARN_STORAGE"]), "secret_key": "wrong"})
    status, _, said = Run("backup", str(tmp_path / "backup.tar"), **{**given, "FEDLEARN_STORAGE": wrong}).end()
    assert status == 1, said
    assert list(tmp_path.iterdir()) == []
