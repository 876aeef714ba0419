"""`core.replicas.LeaderLock` on PostgreSQL: an advisory lock of a session that lasts while its replica gives signs of life."""

from contextlib import suppress

from sqlalchemy import Connection, text

from fedlearn.adapters.database.engine import Database, translated_errors
from fedlearn.core.errors import FedlearnError, Outage

_KEY = 0x6665646C6C656164  # "fedllead"
_SESSION = (
    # a replica that is stopped, or cut off, lets go when the server ends its session: its sockets alone would stay open
    "SET idle_session_timeout = '{milliseconds}ms'",
    "SET tcp_keepalives_idle = 2",
    "SET tcp_keepalives_interval = 1",
    "SET tcp_keepalives_count = 3",
)


class AdvisoryLock:
    """A process that dies lets go of it at once; one that is silent for `lease_seconds`, then. Use it from one thread.

    It wants PostgreSQL 14 or newer, and a connection to the server itself or through a pool by sessions.
    """

    def __init__(self, database: Database, lease_seconds: float = 6.0) -> None:
        self._database, self.lease_seconds = database, lease_seconds
        self._session: Connection | None = None
        self._held = False

    def hold(self) -> bool:
        if self._session is not None:
            try:
                return self._try()
            except Outage:
                self.release()  # the session has ended, and the lock with it
        with translated_errors():
            self._session = self._database.connect_alone()
            for setting in _SESSION:
                self._session.execute(text(setting.format(milliseconds=int(self.lease_seconds * 1000))))
        try:
            return self._try()
        except Outage:
            self.release()
            raise

    def release(self) -> None:
        session, self._session, self._held = self._session, None, False
        if session is not None:
            with suppress(FedlearnError), translated_errors():
                session.close()

    def _try(self) -> bool:
        assert self._session is not None
        with translated_errors():
            if self._held:
                self._session.execute(text("SELECT 1"))
            else:
                self._held = self._session.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": _KEY}).scalar_one()
        return self._held
