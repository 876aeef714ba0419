"""The fence in the database: one row says whose epoch it is, and each fenced write looks at it in its own transaction."""

from sqlalchemy import Connection, select

from fedlearn.adapters.database.engine import insert_new
from fedlearn.adapters.database.signals import LEADER, announce, telling
from fedlearn.adapters.database.tables import leadership
from fedlearn.core.errors import Code, Refusal
from fedlearn.core.replicas import Leader
from fedlearn.telemetry.logs import log

_log = log(__name__)
_ROW = 1


def begin_epoch(connection: Connection, holder: str, address: str) -> int:
    """The next epoch, which begins when the transaction is durable; waits for fenced writes that are under way."""
    insert_new(connection, leadership, {"id": _ROW, "epoch": 0, "holder": "", "address": ""})
    change = leadership.update().where(leadership.c.id == _ROW)
    new = change.values(epoch=leadership.c.epoch + 1, holder=holder, address=address).returning(leadership.c.epoch)
    epoch: int = connection.execute(new).scalar_one()
    announce(connection, LEADER)
    return epoch


def check_epoch(connection: Connection, epoch: int, *signals: str) -> None:
    """Go on only in this epoch, let no other begin before the transaction ends, and send these signals with it.

    Raises:
        Refusal: `not_leader`.
    """
    told = telling(connection, *signals)
    current = select(leadership.c.epoch, *told).where(leadership.c.id == _ROW).with_for_update(read=True)
    row = connection.execute(current).one_or_none()
    if row is None or row.epoch != epoch:
        _log.warning("a write is refused: it is of an epoch that is over", epoch=epoch, code=Code.NOT_LEADER)
        raise Refusal(Code.NOT_LEADER, f"Epoch {epoch} is over: another replica leads the rounds.")


def read_leader(connection: Connection) -> Leader | None:
    row = connection.execute(select(leadership).where(leadership.c.id == _ROW)).one_or_none()
    return None if row is None else Leader(row.epoch, row.holder, row.address)
