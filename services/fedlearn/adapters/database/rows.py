"""Between domain objects and rows: pure, and exact in both directions."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import cache
from typing import Any

from sqlalchemy import RowMapping

from fedlearn.core.eligibility import Demands
from fedlearn.core.errors import Code
from fedlearn.core.ids import DeviceId, RoundId, TaskId
from fedlearn.core.policy import RoundPolicy
from fedlearn.core.ports import ModelVersion, Task
from fedlearn.core.rounds import Aggregate, ModelRef, Participant, Phase, Round, Standing

Values = dict[str, Any]
"""A row to write, by column."""

Member = tuple[str, str, str | None]
"""A participant as it is read: device, standing, code."""


def ref_values(ref: ModelRef, prefix: str = "") -> Values:
    return {f"{prefix}{name}": value for name, value in asdict(ref).items()}


def read_ref(row: RowMapping, prefix: str = "") -> ModelRef:
    return ModelRef(row[f"{prefix}version"], row[f"{prefix}key"], row[f"{prefix}sha256"], row[f"{prefix}size_bytes"])


def read_policy(document: Mapping[str, Any]) -> RoundPolicy:
    """Policies of earlier versions demand nothing of devices."""
    return RoundPolicy(**{**document, "demands": Demands(**document.get("demands", {}))})


def task_values(task: Task) -> Values:
    return {
        "id": task.id,
        "state": task.state,
        "plan_digest": task.plan_digest,
        "policy": asdict(task.policy),
        "rounds": task.rounds,
        "created_at": task.created_at,
        **ref_values(task.upload, "upload_"),
        "target_accuracy": task.target_accuracy,
    }


def read_task(row: RowMapping) -> Task:
    """Read a row of `tasks` joined with the version that it points to."""
    return Task(
        id=TaskId(row["id"]),
        state=row["state"],
        plan_digest=row["plan_digest"],
        policy=read_policy(row["policy"]),
        rounds=row["rounds"],
        created_at=row["created_at"],
        upload=read_ref(row, "upload_"),
        model=None if row["version"] is None else read_ref(row),
        target_accuracy=row["target_accuracy"],
    )


def version_values(
    task: TaskId,
    ref: ModelRef,
    round_number: int | None,
    now: float,
    *,
    parent: int | None = None,
    made: Aggregate | None = None,
) -> Values:
    return {
        "task": task,
        **ref_values(ref),
        "round": round_number,
        "created_at": now,
        "parent": parent,
        "contributors": None if made is None else len(made.contributors),
        "examples": None if made is None else made.examples,
    }


def read_version(row: RowMapping, labels: Iterable[str] = ()) -> ModelVersion:
    parent = row["parent"]
    if parent is None and row["round"] is not None:  # written by a release that knew no other parents
        parent = row["version"] - 1
    return ModelVersion(
        task=TaskId(row["task"]),
        ref=read_ref(row),
        round=row["round"],
        created_at=row["created_at"],
        evaluation=row["evaluation"],
        parent=parent,
        contributors=row["contributors"],
        examples=row["examples"],
        labels=tuple(labels),
    )


def round_values(round_: Round) -> Values:
    """The round's own row; its participants have rows of their own."""
    values = {
        "task": round_.id.task,
        "number": round_.id.number,
        "phase": str(round_.phase),
        "phase_since": round_.phase_since,
        "phase_seconds": {str(phase): seconds for phase, seconds in round_.phase_seconds.items()},
        "opened_at": round_.opened_at,
        "reason": None if round_.reason is None else str(round_.reason),
        "policy": asdict(round_.policy),
        **ref_values(round_.base, "base_"),
        "aggregate": None if round_.aggregate is None else _aggregate_document(round_.aggregate),
    }
    if round_.start is not None:  # the revisions of rounds that were saved before this column hold good
        values["start"] = asdict(round_.start)
    return {**values, "revision": _revision(values, round_.participants)}


def _revision(values: Values, participants: Mapping[DeviceId, Participant]) -> str:
    """SHA-256 of all that the round holds, so that equal revisions mean equal rounds (the reverse may fail: 1 and 1.0)."""
    standings = [participant.standing for participant in participants.values()]
    codes = [participant.code for participant in participants.values()]
    return hashlib.sha256(json.dumps([values, list(participants), standings, codes]).encode()).hexdigest()


def participant_values(round_id: RoundId, device: DeviceId, place: int, participant: Participant) -> Values:
    return {
        "task": round_id.task,
        "number": round_id.number,
        "device": device,
        "place": place,
        "standing": str(participant.standing),
        "code": None if participant.code is None else str(participant.code),
    }


def read_round(row: RowMapping, members: Iterable[Member]) -> Round:
    """Read a row of `rounds` and its participants, in their order."""
    return Round(
        id=RoundId(TaskId(row["task"]), row["number"]),
        policy=read_policy(row["policy"]),
        base=read_ref(row, "base_"),
        start=None if row["start"] is None else ModelRef(**row["start"]),
        opened_at=row["opened_at"],
        phase=Phase(row["phase"]),
        phase_since=row["phase_since"],
        participants={DeviceId(device): _participant(standing, code) for device, standing, code in members},
        phase_seconds={Phase(phase): seconds for phase, seconds in row["phase_seconds"].items()},
        reason=None if row["reason"] is None else Code(row["reason"]),
        aggregate=None if row["aggregate"] is None else _read_aggregate(row["aggregate"]),
    )


@cache  # a few hundred values stand for all devices of all rounds, and making them anew is half of the time of a load
def _participant(standing: str, code: str | None) -> Participant:
    return Participant(Standing(standing), None if code is None else Code(code))


def _aggregate_document(aggregate: Aggregate) -> Values:
    return {
        "model": asdict(aggregate.model),
        "contributors": sorted(aggregate.contributors),
        "examples": aggregate.examples,
        "metrics": dict(aggregate.metrics),
    }


def _read_aggregate(document: Values) -> Aggregate:
    return Aggregate(
        model=ModelRef(**document["model"]),
        contributors=frozenset(map(DeviceId, document["contributors"])),
        examples=document["examples"],
        metrics=document["metrics"],
    )
