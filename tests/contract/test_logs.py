"""The event log, the audit log and rounds in brief, over SQLite and PostgreSQL."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from fedlearn.adapters.database import DatabaseRoundStore, logs
from fedlearn.core.errors import Code, Refusal
from fedlearn.core.happenings import AuditEntry, Happening, Kind
from fedlearn.core.ids import DeviceId, RoundId, TaskId
from fedlearn.core.policy import RoundPolicy
from fedlearn.core.ports import Task
from fedlearn.core.rounds import Aggregate, ModelRef, Participant, Phase, Round, Standing, start

TASK = TaskId("mnist")
POLICY = RoundPolicy(goal=2)
BASE = ModelRef(0, "mnist/0", "ab" * 32, 100)
NOW = 1_760_000_000.123
REFUSED = Happening(Kind.UPDATE_REFUSED, NOW, TASK, 1, Code.UPDATE_NOT_FINITE, 30, (DeviceId("a"), DeviceId("b/3")), "So.")


@pytest.fixture
def store(database_url: str) -> Iterator[DatabaseRoundStore]:
    store = DatabaseRoundStore(database_url)
    store.migrate()
    store.add_task(Task(TASK, "waiting_for_model", "d1", POLICY, None, NOW, BASE), b"{}")
    store.start_task(TASK, NOW)
    yield store
    store.close()


def opened(number: int = 1) -> Round:
    return start(RoundId(TASK, number), POLICY, BASE, NOW)


def told(store: DatabaseRoundStore) -> list[Happening]:
    return [happening for _, happening in store.happenings(1000)]


def test_what_happened_comes_back_as_it_was_and_newest_first(store: DatabaseRoundStore) -> None:
    plain = Happening(Kind.TASK_CHANGED, NOW + 1, TASK)
    store.log([REFUSED])
    store.log([plain])
    assert told(store) == [plain, REFUSED]


def test_a_log_is_read_on_from_where_the_last_page_ended(store: DatabaseRoundStore) -> None:
    store.log([replace(REFUSED, round=number) for number in range(1, 8)])
    first = store.happenings(3)
    assert [happening.round for _, happening in first] == [7, 6, 5]
    assert [happening.round for _, happening in store.happenings(3, first[-1][0])] == [4, 3, 2]


def test_an_event_is_saved_with_its_round_or_not_at_all(store: DatabaseRoundStore) -> None:
    round_ = opened()
    store.add_round(round_)
    later = replace(round_, phase=Phase.CONFIGURATION)
    store.save_round(later, round_, [REFUSED])
    with pytest.raises(Refusal):
        store.save_round(later, replace(round_, opened_at=NOW + 9), [replace(REFUSED, count=31)])
    model = replace(BASE, version=1)
    committed = replace(later, phase=Phase.COMMITTED, aggregate=Aggregate(model, frozenset(), 1))
    store.commit(committed, later, NOW, [replace(REFUSED, count=32)])
    assert [happening.count for happening in told(store)] == [32, 30]


@pytest.mark.parametrize("log", ["events", "audit"])
def test_a_log_keeps_its_newest_entries(store: DatabaseRoundStore, log: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "KEPT_EVENTS", 5)
    monkeypatch.setattr(logs, "KEPT_AUDIT", 5)
    for number in range(1, 10):
        store.log([replace(REFUSED, round=number)])
        store.audit(AuditEntry(NOW + number, "operator 0", "cancel", TASK, "done"))
    kept = [happening.round for happening in told(store)]
    if log == "audit":
        kept = [round(entry.at - NOW) for _, entry in store.audit_entries(1000)]
    assert kept == [9, 8, 7, 6, 5]


def test_the_audit_log_comes_back_as_it_was(store: DatabaseRoundStore) -> None:
    entries = [
        AuditEntry(NOW, "operator 1f", "submit", TASK, "done"),
        AuditEntry(NOW + 1, "operator 1f", "x", None, "forbidden"),
    ]
    for entry in entries:
        store.audit(entry)
    assert [entry for _, entry in store.audit_entries(10)] == entries[::-1]


def test_rounds_in_brief_count_their_devices(store: DatabaseRoundStore) -> None:
    for number in (1, 2, 3):
        round_ = opened(number)
        store.add_round(round_)
        standings = [Standing.REPORTED] * number + [Standing.REFUSED]
        participants = {DeviceId(f"d{i}"): Participant(standing) for i, standing in enumerate(standings)}
        store.save_round(replace(round_, participants=participants, phase=Phase.ABANDONED, reason=Code.TOO_FEW_REPORTS), round_)
    brief = store.round_summaries(TASK, 2)
    assert [(line.id.number, line.phase, line.reason) for line in brief] == [
        (2, Phase.ABANDONED, Code.TOO_FEW_REPORTS),
        (3, Phase.ABANDONED, Code.TOO_FEW_REPORTS),
    ]
    assert brief[1].standings == {Standing.REPORTED: 3, Standing.REFUSED: 1}
    assert store.round_summaries(TaskId("other"), 5) == []
