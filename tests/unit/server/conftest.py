from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fedlearn.adapters.database import DatabaseRoundStore
from support.desk import Desk


@pytest.fixture
def store(tmp_path: Path) -> DatabaseRoundStore:
    store = DatabaseRoundStore(f"sqlite:///{tmp_path / 'server.db'}")
    store.migrate()
    return store


@pytest.fixture
async def desk(store: DatabaseRoundStore) -> AsyncIterator[Desk]:
    desk = Desk(store)
    yield desk
    await desk.coordinator.stop()
    store.close()
