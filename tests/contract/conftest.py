"""An empty database for each test, SQLite's or PostgreSQL's."""

from pathlib import Path

import pytest

from fedlearn.local.postgres import Postgres


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'fedlearn.db'}"
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database()
