"""The event log, the audit log, and rounds in brief. Each function works within its caller's transaction."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Table, delete, func, insert, select

from fedlearn.adapters.database.tables import audit, events, participants, rounds
from fedlearn.core.errors import Code
from fedlearn.core.happenings import AuditEntry, Happening, Kind
from fedlearn.core.ids import DeviceId, RoundId, TaskId
from fedlearn.core.ports import RoundSummary
from fedlearn.core.rounds import Phase, Standing

KEPT_EVENTS, KEPT_AUDIT = 10_000, 100_000


def insert_happenings(connection: Connection, happenings: Sequence[Happening]) -> None:
    if happenings:
        rows = [
            {
                "at": told.at,
                "kind": told.kind.value,
                "task": told.task,
                "round": told.round,
                "code": None if told.code is None else told.code.value,
                "count": told.count,
                "devices": list(told.devices),
                "detail": told.detail,
            }
            for told in happenings
        ]
        _append(connection, events, rows, KEPT_EVENTS)


def load_happenings(connection: Connection, limit: int, before: int | None) -> Sequence[tuple[int, Happening]]:
    return [
        (
            row.number,
            Happening(
                Kind(row.kind),
                row.at,
                TaskId(row.task),
                row.round,
                None if row.code is None else Code(row.code),
                row.count,
                tuple(map(DeviceId, row.devices)),
                row.detail,
            ),
        )
        for row in _newest(connection, events, limit, before)
    ]


def insert_audit(connection: Connection, entry: AuditEntry) -> None:
    row = {
        "at": entry.at,
        "actor": entry.actor,
        "action": entry.action,
        "task": entry.task,
        "outcome": entry.outcome,
    }
    _append(connection, audit, [row], KEPT_AUDIT)


def load_audit(connection: Connection, limit: int, before: int | None) -> Sequence[tuple[int, AuditEntry]]:
    return [
        (row.number, AuditEntry(row.at, row.actor, row.action, None if row.task is None else TaskId(row.task), row.outcome))
        for row in _newest(connection, audit, limit, before)
    ]


def load_summaries(connection: Connection, task: TaskId, limit: int) -> Sequence[RoundSummary]:
    """The last rounds of a task, with their participants counted by the database."""
    newest = select(rounds).where(rounds.c.task == task).order_by(rounds.c.number.desc()).limit(limit)
    rows = list(connection.execute(newest).mappings())[::-1]
    if not rows:
        return []
    counts = (
        select(participants.c.number, participants.c.standing, func.count())
        .where(participants.c.task == task, participants.c.number >= rows[0]["number"])
        .group_by(participants.c.number, participants.c.standing)
    )
    standings: defaultdict[int, dict[Standing, int]] = defaultdict(dict)
    for number, standing, count in connection.execute(counts):
        standings[number][Standing(standing)] = count
    return [
        RoundSummary(
            id=RoundId(task, row["number"]),
            phase=Phase(row["phase"]),
            reason=None if row["reason"] is None else Code(row["reason"]),
            base_version=row["base_version"],
            opened_at=row["opened_at"],
            phase_since=row["phase_since"],
            phase_seconds={Phase(phase): seconds for phase, seconds in row["phase_seconds"].items()},
            standings=standings[row["number"]],
            **_result(row["aggregate"]),
        )
        for row in rows
    ]


def _result(aggregate: dict[str, Any] | None) -> dict[str, Any]:
    if aggregate is None:
        return {}
    return {
        "version": aggregate["model"]["version"],
        "examples": aggregate["examples"],
        "metrics": aggregate["metrics"],
    }


def _append(connection: Connection, log: Table, rows: list[dict[str, Any]], kept: int) -> None:
    connection.execute(insert(log), rows)
    newest: int = connection.execute(select(func.max(log.c.number))).scalar_one()
    connection.execute(delete(log).where(log.c.number <= newest - kept))


def _newest(connection: Connection, log: Table, limit: int, before: int | None) -> Sequence[Any]:
    query = select(log).order_by(log.c.number.desc()).limit(limit)
    return connection.execute(query if before is None else query.where(log.c.number < before)).all()
