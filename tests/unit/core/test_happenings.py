"""What is told of a round's way."""

from dataclasses import replace

import pytest

from fedlearn.core.errors import Code
from fedlearn.core.happenings import MAX_NAMED_DEVICES, Kind, between
from fedlearn.core.ids import DeviceId, RoundId, TaskId
from fedlearn.core.policy import RoundPolicy
from fedlearn.core.rounds import Aggregate, ModelRef, Participant, Phase, Round, Standing

BASE = ModelRef(3, "key", "ab" * 32, 100)
A, B, C = (DeviceId(name) for name in "abc")
NOW = 1000.0


def a_round(phase: Phase = Phase.REPORTING, **standings: Participant) -> Round:
    participants = {DeviceId(name): participant for name, participant in standings.items()}
    return Round(RoundId(TaskId("mnist"), 7), RoundPolicy(goal=3), BASE, 900.0, phase, 990.0, participants)


BUSY = Participant(Standing.ACCEPTED)
REPORTED = Participant(Standing.REPORTED)
REFUSED = Participant(Standing.REFUSED, Code.UPDATE_NOT_FINITE)


def test_what_is_going_well_is_no_news() -> None:
    assert between(a_round(a=BUSY, b=BUSY), a_round(a=REPORTED, b=BUSY), NOW) == ()


def test_devices_with_the_same_reason_are_told_of_together() -> None:
    dropped = Participant(Standing.DROPPED, Code.TRAINING_FAILED)
    told = between(a_round(a=BUSY, b=BUSY, c=BUSY), a_round(a=REFUSED, b=REFUSED, c=dropped), NOW)
    assert [(event.kind, event.code, event.count, event.devices) for event in told] == [
        (Kind.UPDATE_REFUSED, Code.UPDATE_NOT_FINITE, 2, (A, B)),
        (Kind.DEVICE_DROPPED, Code.TRAINING_FAILED, 1, (C,)),
    ]
    assert {(event.at, event.task, event.round) for event in told} == {(NOW, "mnist", 7)}


def test_nobody_is_told_of_twice() -> None:
    first = a_round(a=REFUSED, b=BUSY)
    (told,) = between(first, a_round(a=REFUSED, b=REFUSED), NOW)
    assert told.devices == (B,)


def test_of_many_devices_only_the_first_are_named() -> None:
    names = [f"d{i}" for i in range(1000)]
    (told,) = between(
        a_round(**dict.fromkeys(names, BUSY)), a_round(**dict.fromkeys(names, REFUSED)), NOW
    )  # fmt: skip
    assert (told.count, len(told.devices)) == (1000, MAX_NAMED_DEVICES)


@pytest.mark.parametrize(
    ("reason", "standings", "detail"),
    [
        (Code.TOO_FEW_REPORTS, {"a": REPORTED, "b": REFUSED}, "1 of 2 devices reported; 3 were needed."),
        (Code.TASK_CANCELLED, {"a": REPORTED, "b": BUSY}, "1 of 2 devices reported."),
        (Code.TOO_FEW_DEVICES, {}, "No device was selected; 3 were needed."),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_abandoned_round_says_why(reason: Code, standings: dict[str, Participant], detail: str) -> None:
    before = a_round(**standings)
    told = between(before, replace(before, phase=Phase.ABANDONED, reason=reason, phase_since=NOW), NOW)
    assert [(event.kind, event.code, event.detail) for event in told] == [(Kind.ROUND_ABANDONED, reason, detail)]


def test_a_committed_round_says_what_it_brought() -> None:
    before = a_round(Phase.AGGREGATION, a=REPORTED, b=REPORTED)
    aggregate = Aggregate(replace(BASE, version=4), frozenset({A, B}), 12_000)
    (told,) = between(before, replace(before, phase=Phase.COMMITTED, aggregate=aggregate), NOW)
    assert told.kind is Kind.ROUND_COMMITTED
    assert told.detail == "2 of 2 devices reported; version 4 from 12,000 examples."
