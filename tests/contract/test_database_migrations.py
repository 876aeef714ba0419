"""The migrations make what the code expects, whatever the database was before."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, create_engine, text

from fedlearn.adapters.database import DatabaseRoundStore, migrations
from fedlearn.adapters.database.migrations import configuration
from fedlearn.adapters.database.tables import metadata
from fedlearn.core.errors import Code, SetupError
from fedlearn.core.ids import DeviceId, TaskId
from fedlearn.core.policy import RoundPolicy
from fedlearn.core.ports import Task
from fedlearn.core.rounds import ModelRef, Phase


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
    with store.database.writing() as connection:
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


# what every release has written; later columns may be empty
_OF_THE_FIRST = (
    "INSERT INTO plans (digest, body) VALUES ('d', :bytes)",
    "INSERT INTO tasks (id, state, plan_digest, policy, rounds, created_at, upload_version, upload_key, upload_sha256,"
    " upload_size_bytes, model_version, target_accuracy) VALUES ('t', 'running', 'd', '{\"goal\": 2}', 9,"
    " '2026-01-01T00:00:00+00:00', 0, 'k0', 'a0', 10, 1, 0.97)",
    "INSERT INTO rounds (task, number, revision, phase, phase_since, phase_seconds, opened_at, policy, base_version,"
    " base_key, base_sha256, base_size_bytes, aggregate) VALUES ('t', 1, 'r', 'committed', '2026-01-01T00:00:09.5+00:00',"
    " '{\"selection\": 1.5}', '2026-01-01T00:00:01+00:00', '{\"goal\": 2}', 0, 'k0', 'a0', 10, '{\"model\": {\"version\": 1,"
    ' "key": "k1", "sha256": "a1", "size_bytes": 10}, "contributors": ["a", "b"], "examples": 70,'
    ' "metrics": {}}\')',
    "INSERT INTO participants (task, number, device, place, standing, code) VALUES ('t', 1, 'b', 0, 'reported', NULL)",
    "INSERT INTO participants (task, number, device, place, standing, code) VALUES ('t', 1, 'a', 1, 'refused', 'update_shape')",
    "INSERT INTO model_versions (task, version, key, sha256, size_bytes, round, created_at, evaluation)"
    " VALUES ('t', 0, 'k0', 'a0', 10, NULL, '2026-01-01T00:00:00+00:00', '{\"accuracy\": 0.1}')",
    "INSERT INTO model_versions (task, version, key, sha256, size_bytes, round, created_at)"
    " VALUES ('t', 1, 'k1', 'a1', 10, 1, '2026-01-01T00:00:09.5+00:00')",
    "INSERT INTO signing_keys (generation, kid, private_key, created_at)"
    " VALUES (1, 'kid', :bytes, '2026-01-01T00:00:00+00:00')",
)
_NEW_YEAR = 1_767_225_600.0


def _revisions() -> list[str]:
    script = Path(migrations.__file__).parent / "versions"
    return sorted(path.name.partition("_")[0] for path in script.glob("0*.py"))


@pytest.mark.parametrize("revision", _revisions())
def test_from_each_earlier_revision_the_data_come_along(store: DatabaseRoundStore, engine: Engine, revision: str) -> None:
    with store.database.writing() as connection:
        command.upgrade(configuration(connection), revision)
    with engine.begin() as connection:
        for row in _OF_THE_FIRST:
            connection.execute(text(row.replace('":', '"\\:')), {"bytes": b"x"} if ":bytes" in row else {})
    store.migrate()
    task = store.task(TaskId("t"))
    assert (task.state, task.policy, task.rounds, task.created_at) == ("running", RoundPolicy(goal=2), 9, _NEW_YEAR)
    assert (task.model, task.upload) == (ModelRef(1, "k1", "a1", 10), ModelRef(0, "k0", "a0", 10))
    (round_,) = store.rounds(TaskId("t"))
    assert (round_.phase, round_.phase_since, round_.base.version) == (Phase.COMMITTED, _NEW_YEAR + 9.5, 0)
    assert list(round_.participants) == ["b", "a"]
    assert round_.participants[DeviceId("a")].code is Code.UPDATE_SHAPE
    assert round_.aggregate is not None
    assert round_.aggregate.examples == 70
    assert [(v.ref.version, v.round, v.parent, v.evaluation) for v in store.versions(TaskId("t"))] == [
        (0, None, None, {"accuracy": 0.1}),
        (1, 1, 0, None),
    ]
    assert store.plan("d") == b"x"
    assert store.signing_key(lambda: ("", b""), 0.0) == ("kid", b"x")
    assert store.take_lead("a", "") == 1
