"""Connections, transactions, and what a library's errors mean.

SQLite: write-ahead log, one writing connection that the process's threads take in turn, and a pool of readers that never wait
for it. PostgreSQL: one pool; readers see one snapshot, writers lock what they change.
"""

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, Table, create_engine, event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DatabaseError,
    DataError,
    DBAPIError,
    InterfaceError,
    InternalError,
    OperationalError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import NullPool

from fedlearn.core.errors import Code, Outage, Refusal, SetupError
from fedlearn.telemetry.metrics import database as metrics
from fedlearn.telemetry.metrics.database import Operation

WAIT_SECONDS = 10
"""How long a call waits for a lock or for a connection before the database counts as not answering."""

_STATEMENT_SECONDS = 30
_IDLE_SECONDS = 5  # in the middle of a transaction, which takes milliseconds; a replica that takes over may wait for it
_UNDEFINED_TABLE, _DISK_FULL = "42P01", "53100"  # PostgreSQL's SQLSTATE


class Database:
    """Read and write transactions on one database. Opening it connects to nothing.

    Args:
        url: `sqlite:///path` or `postgresql+psycopg://user:password@host/name`; `postgresql://` means the same driver.

    Raises:
        SetupError: `setting_invalid` for a URL of another kind, or a driver that is not installed.
    """

    def __init__(self, url: str) -> None:
        parsed = _parse(url)
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        try:
            self._writer, self._reader = _open_sqlite(parsed) if self.is_sqlite else _open_postgresql(parsed)
            self._alone = self._writer if self.is_sqlite else _open_sessions(parsed)
        except ModuleNotFoundError as error:
            raise SetupError(
                Code.SETTING_INVALID, "The driver for PostgreSQL is missing: pip install 'fedlearn[postgresql]'."
            ) from error

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction in which every query sees the same state.

        Raises:
            Outage: `database_unavailable`.
        """
        with _observed(Operation.READ), translated_errors(), self._reader.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that is durable once the block has ended, and undone if the block raises.

        Raises:
            Outage: `database_unavailable`; if the connection broke while it committed, nobody knows whether it did.
        """
        with _observed(Operation.WRITE), translated_errors(), self._writer.begin() as connection:
            yield connection

    def connect_alone(self) -> Connection:
        """A connection outside the pool, for what belongs to a session. Each statement is a transaction; the caller closes it.

        Raises:
            Outage: `database_unavailable`.
        """
        with translated_errors():
            return self._alone.connect()

    def use_write_ahead_log(self) -> None:
        """Let SQLite's readers and its writer work side by side. The file remembers it."""
        with translated_errors():
            connection = self._writer.raw_connection()
            try:
                connection.cursor().execute("PRAGMA journal_mode = WAL")
            finally:
                connection.close()

    def close(self) -> None:
        self._writer.dispose()
        self._reader.dispose()


def insert_new(connection: Connection, table: Table, values: Mapping[str, Any]) -> bool:
    """Insert a row unless one of that key exists; whether it was inserted. Of concurrent callers exactly one is told True."""
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    statement = insert(table).values(values).on_conflict_do_nothing().returning(*table.primary_key)
    return connection.execute(statement).first() is not None


@contextmanager
def _observed(operation: Operation) -> Iterator[None]:
    with metrics.SECONDS.labels(operation).time():
        try:
            yield
        except Outage:
            metrics.ERRORS.labels(operation).inc()
            raise


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn a database that does not answer into an `Outage`; a fault of our own stays what it is.

    Raises:
        Outage: `database_unavailable`.
        Refusal: `bad_request` for a value that no row can hold: an integer of 70 bits, a NUL in a name.
    """
    try:
        yield
    except (DataError, OverflowError) as error:
        raise Refusal(Code.BAD_REQUEST, "A name or a number of the request is none that the database can hold.") from error
    except (SQLAlchemyError, sqlite3.Error) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        sqlite_name, sqlstate = getattr(cause, "sqlite_errorname", None), getattr(cause, "sqlstate", None)
        if sqlite_name == "SQLITE_FULL" or sqlstate == _DISK_FULL:
            detail = "The disk that holds the database is full: make room on it; nothing was changed."
        elif sqlite_name == "SQLITE_CANTOPEN":
            detail = "The database's file can't be opened: its directory must exist, and be writable."
        elif sqlstate == _UNDEFINED_TABLE or "no such table" in str(cause):
            detail = "The database has no tables yet: migrate it first."
        elif sqlite_name != "SQLITE_ERROR" and _is_outage(error):  # that one is SQLite's name for wrong SQL
            detail = "The database does not answer now; nothing is lost, try again."
        else:
            raise
        raise Outage(Code.DATABASE_UNAVAILABLE, detail) from error


def _is_outage(error: Exception) -> bool:
    if isinstance(error, OperationalError | InterfaceError | InternalError | PoolTimeoutError | sqlite3.Error):
        return True
    # SQLite reports a damaged file by the base class; its subclasses (integrity, data, programming) are our own faults
    return type(error) is DatabaseError or (isinstance(error, DBAPIError) and error.connection_invalidated)


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise SetupError(
            Code.SETTING_INVALID, "The database's URL can't be read: use sqlite:///path or postgresql://…"
        ) from error
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite", "postgresql+psycopg"):
        raise SetupError(
            Code.SETTING_INVALID, f"The database is {parsed.drivername}; use sqlite:///path or postgresql://host/name."
        )
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise SetupError(Code.SETTING_INVALID, "SQLite needs a file, sqlite:///path: what lies in memory survives no restart.")
    return parsed


def _open_sqlite(url: URL) -> tuple[Engine, Engine]:
    # isolation_level=None: the driver would begin transactions late, after the first reads; we begin them ourselves
    arguments = {"timeout": WAIT_SECONDS, "isolation_level": None, "check_same_thread": False}
    writer = create_engine(url, connect_args=arguments, pool_size=1, max_overflow=0, pool_timeout=WAIT_SECONDS)
    reader = create_engine(url, connect_args=arguments, pool_size=4, max_overflow=28, pool_timeout=WAIT_SECONDS)
    for engine, begin in ((writer, "BEGIN IMMEDIATE"), (reader, "BEGIN")):
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", lambda connection, begin=begin: connection.exec_driver_sql(begin))
    return writer, reader


def _configure_sqlite(connection: Any, _record: object) -> None:
    connection.execute("PRAGMA synchronous = FULL")  # fsync at each commit: what was acknowledged survives a power cut
    connection.execute("PRAGMA foreign_keys = ON")


def _open_postgresql(url: URL) -> tuple[Engine, Engine]:
    engine = create_engine(
        url,
        connect_args=_arguments(url),
        pool_size=5,
        max_overflow=5,
        pool_timeout=WAIT_SECONDS,
        pool_pre_ping=True,  # a restarted database costs nobody an error
    )
    event.listen(engine, "connect", _configure_postgresql)
    return (
        engine.execution_options(isolation_level="READ COMMITTED"),
        engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True),
    )


def _open_sessions(url: URL) -> Engine:
    engine = create_engine(url, connect_args=_arguments(url), poolclass=NullPool, isolation_level="AUTOCOMMIT")
    event.listen(engine, "connect", _configure_postgresql)
    return engine


def _arguments(url: URL) -> dict[str, int]:
    # a peer that vanished without a word is noticed within seconds, not after TCP's quarter of an hour
    arguments = {
        "connect_timeout": 5,
        "tcp_user_timeout": WAIT_SECONDS * 1000,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
    }
    return {name: value for name, value in arguments.items() if name not in url.query}


def _configure_postgresql(connection: Any, _record: object) -> None:
    connection.execute(f"SET lock_timeout = '{WAIT_SECONDS}s'")
    connection.execute(f"SET statement_timeout = '{_STATEMENT_SECONDS}s'")
    # a server that hangs in the middle of a transaction must not hold its locks for ever
    connection.execute(f"SET idle_in_transaction_session_timeout = '{_IDLE_SECONDS}s'")
    connection.commit()
