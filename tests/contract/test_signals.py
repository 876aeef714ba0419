"""What a transaction has changed is told to every replica, when it is durable and not before."""

import queue
from collections.abc import Callable, Iterator

import pytest

from fedlearn.adapters.database import DatabasePresences, DatabaseRoundStore, Listener
from fedlearn.core.errors import Code, Refusal
from fedlearn.core.ids import DeviceId, RoundId, TaskId
from fedlearn.core.policy import RoundPolicy
from fedlearn.core.ports import Task
from fedlearn.core.replicas import Presence
from fedlearn.core.rounds import ModelRef, start
from fedlearn.local.postgres import Postgres

NOW = 1_760_000_000.0
MNIST = TaskId("mnist")
REF = ModelRef(0, "mnist/0", "ab", 1)
TASK = Task(MNIST, "waiting_for_model", "d1", RoundPolicy(goal=2), 3, NOW, upload=REF)
Heard = queue.SimpleQueue[str]


def listen(store: DatabaseRoundStore) -> tuple[Listener, Heard]:
    heard = Heard()
    listener = Listener(store.database, heard.put)
    listener.start()
    assert heard.get(timeout=10) == "everything"
    return listener, heard


@pytest.fixture
def store(postgres: Postgres) -> Iterator[DatabaseRoundStore]:
    store = DatabaseRoundStore(postgres.new_database())
    store.migrate()
    yield store
    store.close()


@pytest.fixture
def heard(store: DatabaseRoundStore) -> Iterator[Heard]:
    listener, heard = listen(store)
    yield heard
    listener.stop()


def all_of(heard: Heard, count: int) -> set[str]:
    return {heard.get(timeout=5) for _ in range(count)}


CHANGES: dict[str, tuple[Callable[[DatabaseRoundStore], object], set[str]]] = {
    "a round that is added": (lambda s: s.add_round(start(RoundId(MNIST, 1), TASK.policy, REF, NOW)), {"task mnist"}),
    "a task that starts": (lambda s: s.start_task(MNIST, NOW), {"task mnist", "versions"}),
    "a task that ends": (lambda s: s.end_task(MNIST, "failed"), {"task mnist"}),
    "a replica that leads": (lambda s: s.take_lead("a", ""), {"leader"}),
    "a device that waits": (
        lambda s: DatabasePresences(s.database).put("a", [Presence(DeviceId("d"), "{}", True, 1, NOW)]),
        {"waiting"},
    ),
}


@pytest.mark.parametrize(("change", "signals"), CHANGES.values(), ids=CHANGES)
def test_signals_of(
    store: DatabaseRoundStore, heard: Heard, change: Callable[[DatabaseRoundStore], object], signals: set[str]
) -> None:
    store.add_task(TASK, b"{}")
    assert heard.get(timeout=5) == "task mnist"
    change(store)
    assert all_of(heard, len(signals)) == signals


def test_what_is_undone_is_not_told(store: DatabaseRoundStore, heard: Heard) -> None:
    store.add_task(TASK, b"{}")
    with pytest.raises(Refusal):
        store.add_task(TASK, b"{}")
    with pytest.raises(Refusal) as caught:
        store.fenced(7).end_task(MNIST, "failed")
    assert caught.value.code is Code.NOT_LEADER
    store.take_lead("a", "")
    assert [heard.get(timeout=5) for _ in range(2)] == ["task mnist", "leader"]


def test_a_listener_that_was_cut_off_is_told_so(own_postgres: Postgres) -> None:
    store = DatabaseRoundStore(own_postgres.new_database())
    store.migrate()
    listener, heard = listen(store)
    own_postgres.stop()
    own_postgres.start()
    assert heard.get(timeout=10) == "everything"
    store.take_lead("a", "")
    assert heard.get(timeout=5) == "leader"
    listener.stop()
    store.close()
