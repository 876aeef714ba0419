"""`core.replicas.Presences` on the server's database. Times are by the database's clock, which all replicas share."""

from collections.abc import Sequence

from sqlalchemy import ColumnElement, Connection, Float, delete, func, literal, select, text
from sqlalchemy.dialects import postgresql, sqlite

from fedlearn.adapters.database.engine import Database
from fedlearn.adapters.database.signals import WAITING, announce
from fedlearn.adapters.database.tables import presences
from fedlearn.core.ids import DeviceId
from fedlearn.core.replicas import Presence


class DatabasePresences:
    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, replica: str, present: Sequence[Presence], gone: Sequence[DeviceId] = ()) -> None:
        with self._database.writing() as connection:
            if not self._database.is_sqlite:  # a cache needs no disk
                connection.execute(text("SET LOCAL synchronous_commit = off"))
            if gone:
                connection.execute(delete(presences).where(presences.c.replica == replica, presences.c.device.in_(gone)))
            if present:
                _upsert(connection, replica, present)
            announce(connection, WAITING)

    def elsewhere(self, replica: str) -> Sequence[Presence]:
        columns = (presences.c.device, presences.c.checkin, presences.c.waiting, presences.c.seen_at)
        with self._database.reading() as connection:
            left = (presences.c.due - _now(connection)).label("left")
            rows = connection.execute(select(*columns, left).where(presences.c.replica != replica, left > 0)).all()
        return [Presence(DeviceId(row.device), row.checkin, row.waiting, row.left, row.seen_at) for row in rows]


def _upsert(connection: Connection, replica: str, present: Sequence[Presence]) -> None:
    insert = (sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert)(presences)
    now: float = connection.execute(select(_now(connection))).scalar_one()
    rows = [
        {
            "device": presence.device,
            "replica": replica,
            "checkin": presence.checkin,
            "waiting": presence.waiting,
            "due": now + presence.seconds,
            "seen_at": presence.seen_at,
        }
        # by name, so that two replicas that write of the same devices take their locks in the same order
        for presence in sorted(present, key=lambda presence: presence.device)
    ]
    columns = ("replica", "checkin", "waiting", "due", "seen_at")
    new = insert.excluded
    change = insert.on_conflict_do_update(
        index_elements=["device"],
        set_={name: new[name] for name in columns},
        where=new.waiting | (presences.c.replica == new.replica) | ~presences.c.waiting,
    )
    connection.execute(change, rows)


def _now(connection: Connection) -> ColumnElement[float]:
    if connection.dialect.name == "sqlite":
        return (func.julianday("now") - literal(2440587.5)) * 86400.0
    return func.extract("epoch", func.clock_timestamp()).cast(Float(53))
