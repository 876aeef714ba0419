"""The migrations make what the code expects, whatever the database was before."""

import json
from collections.abc import Iterator

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, create_engine, text

from fedlearn.adapters.database import DatabaseRoundStore
from fedlearn.adapters.database.migrations import configuration
from fedlearn.adapters.database.tables import metadata
from fedlearn.core.errors import Code, SetupError
from fedlearn.core.ids import TaskId
from fedlearn.core.ports import Task
from fedlearn.core.rounds import ModelRef, RoundPolicy


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """A view of the database beside the store's own."""
    engine = create_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def store(database_url: str) -> Iterator[DatabaseRoundStore]:
    store = DatabaseRoundStore(database_url)
    yield store
    store.close()


def test_from_empty_to_head_gives_the_tables_of_the_code(store: DatabaseRoundStore, engine: Engine) -> None:
    store.migrate()
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []


def test_migrating_again_changes_nothing(store: DatabaseRoundStore) -> None:
    task = Task(TaskId("mnist"), "waiting_for_model", "d1", RoundPolicy(2), None, 0.0, ModelRef(0, "0", "ab", 1))
    store.migrate()
    store.add_task(task, b"{}")
    store.migrate()
    assert store.tasks() == [task]


def test_a_database_of_a_newer_release_is_left_alone(store: DatabaseRoundStore, engine: Engine) -> None:
    store.migrate()
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SetupError, match="newer fedlearn") as caught:
        store.migrate()
    assert caught.value.code is Code.SETTING_INVALID
    with engine.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one() == "9999"


def test_a_migration_that_fails_leaves_no_half_of_itself(store: DatabaseRoundStore, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE signing_keys (other INTEGER)"))  # in the way of the last table
    with pytest.raises(Exception, match="signing_keys"):
        store.migrate()
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE signing_keys"))
    store.migrate()
    store.ready()


def test_versions_of_an_older_release_get_their_parents_and_what_is_in_them(store: DatabaseRoundStore, engine: Engine) -> None:
    with store._database.writing() as connection:
        command.upgrade(configuration(connection), "0001")
    aggregate = {"model": {}, "contributors": ["a", "b"], "examples": 70, "metrics": {}}
    rows = [
        "INSERT INTO plans (digest, body) VALUES ('d', 'x')",
        "INSERT INTO tasks (id, state, plan_digest, policy, created_at, upload_version, upload_key, upload_sha256,"
        " upload_size_bytes, model_version) VALUES ('t', 'running', 'd', '{}', '', 0, '', '', 1, 1)",
        "INSERT INTO rounds (task, number, revision, phase, phase_since, phase_seconds, opened_at, policy, base_version,"
        " base_key, base_sha256, base_size_bytes, aggregate) VALUES ('t', 3, '', 'committed', '', '{}', '', '{}', 0, '', '', 1,"
        f" '{json.dumps(aggregate)}')",
        *(
            "INSERT INTO model_versions (task, version, key, sha256, size_bytes, round, created_at)"
            f" VALUES ('t', {version}, '', '', 1, {round_}, '2026-01-01T00:00:00+00:00')"
            for version, round_ in ((0, "NULL"), (1, 3))
        ),
    ]
    with engine.begin() as connection:
        for row in rows:
            connection.exec_driver_sql(row)
    store.migrate()
    with engine.begin() as connection:
        # a replica of that release still writes such a row
        connection.exec_driver_sql(
            "INSERT INTO model_versions (task, version, key, sha256, size_bytes, round, created_at)"
            " VALUES ('t', 2, '', '', 1, 4, '2026-01-01T00:00:00+00:00')"
        )
    found = [(version.parent, version.contributors, version.examples) for version in store.versions(TaskId("t"))]
    assert found == [(None, None, None), (0, 2, 70), (1, None, None)]
