"""Killed, full, locked, damaged or away: what was acknowledged stays, and what failed says so and has changed nothing."""

import random
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event

from fedlearn.adapters.database import DatabaseRoundStore, engine
from fedlearn.core.errors import Code, Outage, Refusal, SetupError
from fedlearn.core.ids import DeviceId, RoundId, TaskId
from fedlearn.core.policy import RoundPolicy
from fedlearn.core.ports import Task
from fedlearn.core.rounds import CohortSelected, DeviceAccepted, ModelRef, Phase, RoundOpened, advance, start

MNIST = TaskId("mnist")
BASE = ModelRef(0, "mnist/0", "ab" * 32, 1)
POLICY = RoundPolicy(5)

WRITER = """
import sys
from fedlearn.adapters.database import DatabaseRoundStore
from fedlearn.core.ids import DeviceId, RoundId, TaskId
from fedlearn.core.rounds import *

store = DatabaseRoundStore(sys.argv[1])
task, devices = TaskId("mnist"), tuple(DeviceId(f"device-{i}") for i in range(5))
while True:
    before, base = store.latest_round(task), store.task(task).model
    if before is None or before.phase.ended:
        before = start(RoundId(task, before.id.number + 1 if before else 1), RoundPolicy(5), base, 1.0)
        for event in (CohortSelected(devices), RoundOpened(), UpdatesCounted(frozenset(devices), {})):
            before, _ = advance(before, event, 2.0)
        store.add_round(before)
    model = ModelRef(base.version + 1, f"mnist/{base.version + 1}", "cd" * 32, 1)
    after, _ = advance(before, Aggregated(Aggregate(model, frozenset(devices), 50, {"loss": 0.5})), 2.0)
    store.commit(after, before, 2.0)
    print(model.version, flush=True)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "fedlearn.db"


@pytest.fixture
def store(file: Path) -> Iterator[DatabaseRoundStore]:
    """SQLite with task `mnist` at version 0."""
    with closing(DatabaseRoundStore(f"sqlite:///{file}")) as store:
        store.migrate()
        store.add_task(Task(MNIST, "waiting_for_model", "d1" * 32, POLICY, None, 0.0, BASE), b"{}")
        store.start_task(MNIST, 0.0)
        yield store


def test_a_writer_killed_at_any_moment_leaves_no_half_of_a_commit(store: DatabaseRoundStore, file: Path) -> None:
    rng = random.Random(7)
    for _ in range(10):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, f"sqlite:///{file}"], stdout=subprocess.PIPE, text=True
        ) as writer:  # fmt: skip
            assert writer.stdout is not None
            acknowledged = [int(writer.stdout.readline()) for _ in range(rng.randint(1, 8))]
            with suppress(subprocess.TimeoutExpired):  # anywhere within its next round or two
                writer.wait(timeout=rng.uniform(0.0, 0.03))
            writer.kill()
            acknowledged += map(int, writer.stdout.read().split())
        pointer = store.task(MNIST).model
        rounds, versions = store.rounds(MNIST), store.versions(MNIST)
        aggregates = [round_.aggregate for round_ in rounds if round_.phase is Phase.COMMITTED]
        assert pointer is not None
        assert pointer.version >= acknowledged[-1]
        assert [version.ref.version for version in versions] == list(range(pointer.version + 1))
        assert [aggregate.model for aggregate in aggregates if aggregate] == [version.ref for version in versions[1:]]
        assert [round_.id.number for round_ in rounds if not round_.phase.ended] in ([], [len(rounds)])
        assert all(len(round_.participants) == 5 for round_ in rounds)


def test_sqlite_syncs_each_commit_and_lets_readers_and_a_writer_work_side_by_side(
    store: DatabaseRoundStore, file: Path
) -> None:
    database = engine.Database(f"sqlite:///{file}")
    with database.writing() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2  # FULL
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar_one() == 1
        store.task(MNIST)
    database.close()


def test_a_full_disk_is_an_outage_that_says_so_and_changes_nothing(store: DatabaseRoundStore, file: Path) -> None:
    limit = "PRAGMA max_page_count = 1"  # SQLite takes the file's present size for it: not one page more
    event.listen(Engine, "connect", configure := lambda connection, _: connection.execute(limit))
    try:
        with (
            closing(DatabaseRoundStore(f"sqlite:///{file}")) as full,
            pytest.raises(Outage, match=r"disk .* is full") as caught,
        ):
            full.add_task(Task(TaskId("big"), "waiting_for_model", "d2" * 32, POLICY, None, 0.0, BASE), b"x" * 100_000)
    finally:
        event.remove(Engine, "connect", configure)
    assert caught.value.code is Code.DATABASE_UNAVAILABLE
    assert [task.id for task in store.tasks()] == [MNIST]
    store.add_round(start(RoundId(MNIST, 1), POLICY, BASE, 1.0))


def test_a_lock_that_is_held_for_too_long_is_an_outage_for_writers_alone(
    store: DatabaseRoundStore, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "WAIT_SECONDS", 0.2)
    with (
        closing(sqlite3.connect(file, isolation_level=None)) as holder,
        closing(DatabaseRoundStore(f"sqlite:///{file}")) as other,
    ):
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(Outage):
            other.end_task(MNIST, "failed")
        assert other.task(MNIST).state == "running"
        holder.execute("ROLLBACK")
        other.end_task(MNIST, "failed")


def test_a_step_writes_the_rows_of_the_devices_that_it_changes(store: DatabaseRoundStore) -> None:
    devices = tuple(DeviceId(f"device-{i}") for i in range(100))
    opened = start(RoundId(MNIST, 1), RoundPolicy(100), BASE, 1.0)
    selected, _ = advance(advance(opened, CohortSelected(devices), 2.0)[0], RoundOpened(), 2.0)
    accepted, _ = advance(advance(selected, DeviceAccepted(devices[7]), 3.0)[0], DeviceAccepted(devices[3]), 3.0)
    store.add_round(opened)
    with rows_written("participants") as written:
        store.save_round(selected, opened)
        store.save_round(accepted, selected)
    assert written == [100, 2]


@contextmanager
def rows_written(table: str) -> Iterator[list[int]]:
    """How many rows each statement that writes to `table` was given."""
    written: list[int] = []

    def note(_connection: object, _cursor: object, statement: str, parameters: list[object], *_: object) -> None:
        if table in statement and not statement.startswith("SELECT"):
            written.append(len(parameters))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield written
    finally:
        event.remove(Engine, "before_cursor_execute", note)


class TestWhatCannotBeOpened:
    def test_a_directory_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(Outage, match="directory must exist"):
            DatabaseRoundStore(f"sqlite:///{tmp_path}/missing/fedlearn.db").migrate()

    def test_a_file_that_is_no_database_is_an_outage(self, file: Path) -> None:
        file.write_bytes(b"no database at all, but long enough for a header" * 100)
        with closing(DatabaseRoundStore(f"sqlite:///{file}")) as store, pytest.raises(Outage):
            store.ready()

    @pytest.mark.parametrize(
        "url",
        [
            pytest.param("mysql://user:hunter2@host/name", id="another database"),
            pytest.param("postgresql+psycopg2://user:hunter2@host/name", id="another driver"),
            pytest.param("sqlite://", id="memory"),
            pytest.param("sqlite:///:memory:", id="memory by name"),
            pytest.param("/var/lib/hunter2.db", id="no URL"),
        ],
    )
    def test_a_url_of_another_kind_is_refused_without_repeating_its_password(self, url: str) -> None:
        with pytest.raises(SetupError) as caught:
            DatabaseRoundStore(url)
        assert caught.value.code is Code.SETTING_INVALID
        assert "hunter2" not in str(caught.value)


def test_calls_fail_as_an_outage_while_postgresql_is_away_and_the_same_store_goes_on_after(own_postgres: Any) -> None:
    with closing(DatabaseRoundStore(own_postgres.new_database())) as store:
        store.migrate()
        own_postgres.stop()
        for call in (store.ready, store.tasks, lambda: store.end_task(MNIST, "failed"), store.migrate):
            with pytest.raises(Outage) as caught:
                call()
            assert caught.value.code is Code.DATABASE_UNAVAILABLE
        own_postgres.start()
        store.ready()
        assert store.tasks() == []


def test_a_restart_of_postgresql_between_two_calls_goes_unnoticed(own_postgres: Any) -> None:
    with closing(DatabaseRoundStore(own_postgres.new_database())) as store:
        store.migrate()
        own_postgres.stop()
        own_postgres.start()
        store.ready()
        with pytest.raises(Refusal):
            store.end_task(MNIST, "failed")
