"""A server and an aggregator per module, and a task per test."""

import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fedlearn.core.errors import FedlearnError
from fedlearn.local.storage import LocalStorage
from support.command import Run
from support.trial import Trial
from support.world import World

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def world(storage: LocalStorage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The real services, shared by a module's tests."""
    world = World.start(tmp_path_factory.mktemp("world"), storage)
    yield world
    world.stop()


@pytest.fixture(autouse=True)
def _no_command_outlives_its_test() -> Iterator[None]:
    yield
    Run.kill_all()


@pytest.fixture
def make_trial(request: pytest.FixtureRequest) -> Iterator[Callable[..., Trial]]:
    """Makes tasks with names of their own; those that run at the test's end are cancelled."""
    made: list[Trial] = []

    def make(world: World, **plan: Any) -> Trial:
        words = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")
        made.append(Trial(world, f"{words.removeprefix('test-')[:30].strip('-')}-{next(_numbers)}", **plan))
        return made[-1]

    yield make
    for trial in made:
        try:
            trial.cancel()
        except FedlearnError:
            continue  # it was never submitted, or its server is gone


@pytest.fixture
def trial(world: World, make_trial: Callable[..., Trial]) -> Trial:
    """A task that is not submitted yet, in the module's world."""
    return make_trial(world)
