"""All that the database holds, as lines of text that any database takes: what a backup keeps of it.

Values go as they are stored, past the column types, so that what comes back is exact. Caches and the leader's row stay behind.
"""

import base64
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, Any

from alembic import command
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, MetaData, column, func, inspect, select, table, text
from sqlalchemy import Table as AnyTable

from fedlearn.adapters.database.engine import Database
from fedlearn.adapters.database.leadership import begin_epoch, read_leader
from fedlearn.adapters.database.migrations import configuration
from fedlearn.adapters.database.tables import audit, events, leadership, metadata, presences, tasks
from fedlearn.core.errors import Code, Refusal, SetupError

_LEFT_OUT = {leadership.name, presences.name}
_ROWS_AT_ONCE = 1000


def dump(database: Database, open_file: Callable[[str], IO[bytes]]) -> str:
    """Write each table to a file, as of one moment; the revision that they are of.

    Args:
        open_file: gives a binary file for a table's name.

    Raises:
        Outage: `database_unavailable`, also for a database that has no tables yet.
    """
    with database.reading() as connection:
        connection.execute(select(tasks.c.id).limit(1))
        revision = MigrationContext.configure(connection).get_current_revision()
        there = set(inspect(connection).get_table_names())
        for known in metadata.sorted_tables:  # what others refer to comes first
            if known.name in there and known.name not in _LEFT_OUT:
                _dump_table(connection, known.name, open_file(known.name))
    assert revision is not None
    return revision


def load(database: Database, revision: str, files: Iterable[tuple[str, IO[bytes]]], *, overwrite: bool) -> None:
    """Make the database what a dump says, and bring it to this release's form; all of it or nothing.

    Whoever led the rounds on it before does not any more.

    Args:
        files: each table's name and file, in the order in which they were dumped.
        overwrite: whether tasks that it holds may go.

    Raises:
        Refusal: `backup_refused` for a database that holds tasks, without `overwrite`.
        SetupError: `setting_invalid` for a revision that this release does not know.
    """
    if database.is_sqlite:
        database.use_write_ahead_log()
    with database.writing() as connection:
        config = configuration(connection)
        if revision not in {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}:
            newer = f"The backup is of a newer fedlearn (revision {revision}): restore it with that one."
            raise SetupError(Code.SETTING_INVALID, newer)
        before = _clear(connection, overwrite)
        command.upgrade(config, revision)
        for name, file in files:
            _load_table(connection, name, file)
        command.upgrade(config, "head")
        _count_on(connection)
        if before is not None:
            connection.execute(leadership.insert().values(id=1, epoch=before, holder="", address=""))
        begin_epoch(connection, "", "")


def refuse_tasks(connection: Connection) -> None:
    """Raises:
    Refusal: `backup_refused` for a database that holds tasks.
    """
    if inspect(connection).has_table(tasks.name) and connection.execute(select(tasks.c.id).limit(1)).first() is not None:
        raise Refusal(
            Code.BACKUP_REFUSED, "The database holds tasks: nothing was changed. To replace all of them, say --overwrite."
        )


def _clear(connection: Connection, overwrite: bool) -> int | None:
    """Drop all tables; the epoch that it was."""
    if not overwrite:
        refuse_tasks(connection)
    there = set(inspect(connection).get_table_names())
    ours = [known for known in metadata.sorted_tables if known.name in there]
    leader = read_leader(connection) if leadership.name in there else None
    for known in reversed(ours):
        known.drop(connection)
    if "alembic_version" in there:
        AnyTable("alembic_version", MetaData()).drop(connection)
    return None if leader is None else leader.epoch


def _dump_table(connection: Connection, name: str, file: IO[bytes]) -> None:
    names = [found["name"] for found in inspect(connection).get_columns(name)]
    file.write(_line(names))
    stored = table(name, *map(column, names))
    with connection.execution_options(yield_per=_ROWS_AT_ONCE).execute(select(stored)) as rows:
        for row in rows:
            file.write(_line([_plain(value) for value in row]))


def _load_table(connection: Connection, name: str, file: IO[bytes]) -> None:
    lines = iter(file)
    names: list[str] = json.loads(next(lines))
    insert = table(name, *map(column, names)).insert()
    for rows in _batches(dict(zip(names, map(_stored, json.loads(line)), strict=True)) for line in lines):
        connection.execute(insert, rows)


def _batches(rows: Iterator[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    batch: list[Mapping[str, Any]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == _ROWS_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


def _count_on(connection: Connection) -> None:
    """Let the numbers of the logs go on after the highest; SQLite does by itself."""
    if connection.dialect.name == "postgresql":
        for counted in (events, audit):
            highest = connection.execute(select(func.max(counted.c.number))).scalar_one()
            if highest is not None:
                sequence = text(f"SELECT setval(pg_get_serial_sequence('{counted.name}', 'number'), :highest)")
                connection.execute(sequence, {"highest": highest})


def _plain(value: Any) -> Any:
    return {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes | memoryview) else value


def _stored(value: Any) -> Any:
    return base64.b64decode(value["base64"]) if isinstance(value, dict) else value


def _line(values: list[Any]) -> bytes:
    return json.dumps(values, separators=(",", ":")).encode() + b"\n"
