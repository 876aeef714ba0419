"""Word of what has changed, from the transaction that changed it to every replica: PostgreSQL's LISTEN and NOTIFY.

A signal says only where to look. One may be lost while a replica is cut off: it is told when it listens again, and looks at
everything. On SQLite, with its one server, there are none.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, select

from fedlearn.adapters.database.engine import Database
from fedlearn.core.errors import Code, Outage
from fedlearn.telemetry.logs import log

_log = log(__name__)
_CHANNEL = "fedlearn"
_PAUSES_SECONDS = (0.1, 0.5, 1.0, 2.0)
_TURN_SECONDS = 1.0  # for so long one wait for signals lasts; only then a stop is noticed

EVERYTHING = "everything"
"""Signals may have been missed."""
LEADER = "leader"
VERSIONS = "versions"
WAITING = "waiting"
TASK = "task "
"""Followed by the task's name: it, or one of its rounds, has changed."""


def announce(connection: Connection, *signals: str) -> None:
    """Tell all replicas once this transaction is durable, and only then."""
    if told := telling(connection, *signals):
        connection.execute(select(*told))


def telling(connection: Connection, *signals: str) -> list[ColumnElement[Any]]:
    """The columns by which any query of this transaction tells them: a statement less."""
    if connection.dialect.name != "postgresql":
        return []
    return [func.pg_notify(_CHANNEL, signal).label(f"told_{number}") for number, signal in enumerate(signals)]


class Listener:
    """Hears signals in a thread of its own, over a connection of its own.

    Args:
        hear: called in that thread with each signal, `EVERYTHING` first and after each interruption.
    """

    def __init__(self, database: Database, hear: Callable[[str], None]) -> None:
        self._database, self._hear = database, hear
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="signals", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Returns when the thread has ended, or after two seconds."""
        self._stopping.set()
        self._thread.join(2 * _TURN_SECONDS)

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                for signal in self._signals():
                    failures = 0
                    self._hear(signal)
            except Exception as error:  # whatever it is: a server that hears nothing would be of no use
                if not isinstance(error, Outage):
                    _log.exception("hearing signals failed, and begins again")
                elif not failures:
                    _log.warning("signals are not heard", code=error.code, detail=error.detail)
                self._stopping.wait(_PAUSES_SECONDS[min(failures, len(_PAUSES_SECONDS) - 1)])
                failures += 1

    def _signals(self) -> Iterator[str]:
        with closing(self._database.connect_alone()) as connection:
            driver: Any = connection.connection.driver_connection
            failure: type[Exception] = connection.dialect.loaded_dbapi.Error
            try:
                driver.execute(f"LISTEN {_CHANNEL}")
                yield EVERYTHING
                while not self._stopping.is_set():
                    for notification in driver.notifies(timeout=_TURN_SECONDS):
                        yield notification.payload
            except failure as error:
                raise Outage(Code.DATABASE_UNAVAILABLE, f"The database's signals have ended: {error}.") from error
