"""Rounds in the database: insert, load, and the compare-and-set. Each function works within its caller's transaction."""

from collections.abc import Mapping, Sequence
from itertools import groupby

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from fedlearn.adapters.database.engine import insert_new
from fedlearn.adapters.database.rows import Values, participant_values, read_round, round_values
from fedlearn.adapters.database.tables import participants, rounds
from fedlearn.core.errors import Code, Refusal
from fedlearn.core.ids import DeviceId, RoundId, TaskId
from fedlearn.core.rounds import Participant, Round

_CHANGE = (
    update(participants)
    .where(
        participants.c.task == bindparam("of_task"),
        participants.c.number == bindparam("of_number"),
        participants.c.device == bindparam("of_device"),
    )
    .values(standing=bindparam("standing"), code=bindparam("code"))
)


def insert_round(connection: Connection, round_: Round) -> None:
    """Raises:
    Refusal: `round_conflict` when the round is there already.
    """
    if not insert_new(connection, rounds, round_values(round_)):
        raise Refusal(Code.ROUND_CONFLICT, f"Round {round_.id} exists already.")
    _insert_participants(connection, round_.id, round_.participants, first=0)


def replace_round(connection: Connection, round_: Round, previous: Round) -> None:
    """Replace `previous` by `round_`, writing only the participants that changed.

    Raises:
        Refusal: `round_conflict` when the stored round is no longer `previous`.
    """
    change = update(rounds).where(rounds.c.task == round_.id.task, rounds.c.number == round_.id.number)
    values, expected = round_values(round_), round_values(previous)["revision"]
    if connection.execute(change.where(rounds.c.revision == expected).values(values)).rowcount == 0:
        # The digests of equal rounds differ where an integer stands for a float, or after an upgrade has added a field.
        if load_round(connection, round_.id, lock=True) != previous:
            raise Refusal(Code.ROUND_CONFLICT, f"Round {round_.id} has moved on; load it again.")
        connection.execute(change.values(values))
    _replace_participants(connection, round_.id, round_.participants, previous.participants)


def load_round(connection: Connection, round_id: RoundId, *, lock: bool = False) -> Round | None:
    """The stored round; with `lock`, nobody else changes it until the transaction ends."""
    query = select(rounds).where(rounds.c.task == round_id.task, rounds.c.number == round_id.number)
    row = connection.execute(query.with_for_update() if lock else query).mappings().one_or_none()
    if row is None:
        return None
    members = connection.execute(
        select(participants.c.device, participants.c.standing, participants.c.code)
        .where(participants.c.task == round_id.task, participants.c.number == round_id.number)
        .order_by(participants.c.place)
    )
    return read_round(row, (tuple(member) for member in members))


def load_rounds(connection: Connection, task: TaskId) -> Sequence[Round]:
    """All rounds of the task, in order of number."""
    columns = (participants.c.number, participants.c.device, participants.c.standing, participants.c.code)
    members = connection.execute(
        select(*columns).where(participants.c.task == task).order_by(participants.c.number, participants.c.place)
    )
    cohorts = {
        number: [(device, standing, code) for _, device, standing, code in group]
        for number, group in groupby(members, key=lambda member: member[0])
    }
    rows = connection.execute(select(rounds).where(rounds.c.task == task).order_by(rounds.c.number)).mappings()
    return [read_round(row, cohorts.get(row["number"], ())) for row in rows]


def _replace_participants(
    connection: Connection,
    round_id: RoundId,
    current: Mapping[DeviceId, Participant],
    previous: Mapping[DeviceId, Participant],
) -> None:
    if current is previous:
        return
    if list(current)[: len(previous)] != list(previous):  # some are gone or stand elsewhere: no step of a round does that
        connection.execute(
            delete(participants).where(participants.c.task == round_id.task, participants.c.number == round_id.number)
        )
        _insert_participants(connection, round_id, current, first=0)
        return
    # by identity first: a step makes new participants only of those that it changes; comparing all takes a millisecond
    touched = {device: participant for device, participant in current.items() if previous.get(device) is not participant}
    changed: list[Values] = [
        {
            "of_task": round_id.task,
            "of_number": round_id.number,
            "of_device": device,
            "standing": str(participant.standing),
            "code": None if participant.code is None else str(participant.code),
        }
        for device, participant in touched.items()
        if device in previous and participant != previous[device]
    ]
    if changed:
        connection.execute(_CHANGE, changed)
    added = {device: participant for device, participant in touched.items() if device not in previous}
    _insert_participants(connection, round_id, added, first=len(previous))


def _insert_participants(
    connection: Connection, round_id: RoundId, added: Mapping[DeviceId, Participant], *, first: int
) -> None:
    if added:
        rows = [
            participant_values(round_id, device, place, participant)
            for place, (device, participant) in enumerate(added.items(), start=first)
        ]
        connection.execute(insert(participants), rows)
