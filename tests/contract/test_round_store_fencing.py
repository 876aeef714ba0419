"""Who led before does not write: one suite over SQLite and PostgreSQL."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from fedlearn.adapters.database import AdvisoryLock, DatabaseRoundStore
from fedlearn.core.errors import Code, Outage, Refusal
from fedlearn.core.ids import RoundId, TaskId
from fedlearn.core.policy import RoundPolicy
from fedlearn.core.ports import RoundStore, Task
from fedlearn.core.replicas import Leader
from fedlearn.core.rounds import Failed, ModelRef, Phase, Round, advance, start
from fedlearn.local.postgres import Postgres

NOW = 1_760_000_000.0
MNIST = TaskId("mnist")
REF = ModelRef(0, "mnist/0", "ab", 1)
TASK = Task(MNIST, "waiting_for_model", "d1", RoundPolicy(goal=2), 3, NOW, upload=REF)


@pytest.fixture
def make(database_url: str) -> Iterator[Callable[[], DatabaseRoundStore]]:
    """Replicas of the server, by what they see of one database."""
    made: list[DatabaseRoundStore] = []

    def make() -> DatabaseRoundStore:
        made.append(DatabaseRoundStore(database_url))
        made[-1].migrate()
        return made[-1]

    yield make
    for store in made:
        store.close()


@pytest.fixture
def store(make: Callable[[], DatabaseRoundStore]) -> DatabaseRoundStore:
    store = make()
    store.add_task(TASK, b"{}")
    store.start_task(MNIST, NOW)
    return store


def a_round(number: int = 1) -> Round:
    return start(RoundId(MNIST, number), TASK.policy, REF, NOW)


def abandoned(round_: Round) -> Round:
    return advance(round_, Failed(Code.TASK_CANCELLED), NOW + 1)[0]


def test_epochs_grow_and_tell_who_leads(store: DatabaseRoundStore) -> None:
    assert store.leader() is None
    assert store.take_lead("a", "http://a:8000") == 1
    assert store.take_lead("b", "http://b:8000") == 2
    assert store.leader() == Leader(2, "b", "http://b:8000")
    assert store.take_lead("a", "http://a:8000") == 3


def test_of_replicas_that_take_the_lead_at_once_each_has_an_epoch_of_its_own(
    store: DatabaseRoundStore, make: Callable[[], DatabaseRoundStore]
) -> None:
    replicas = [make() for _ in range(6)]
    epochs: list[int] = []
    threads = [threading.Thread(target=lambda r=r: epochs.append(r.take_lead("r", ""))) for r in replicas]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(epochs) == [1, 2, 3, 4, 5, 6]


WRITES: dict[str, Callable[[RoundStore], object]] = {
    "add_round": lambda s: s.add_round(a_round(2)),
    "save_round": lambda s: s.save_round(abandoned(a_round()), a_round()),
    "end_task": lambda s: s.end_task(MNIST, "completed"),
    "pause_task": lambda s: s.pause_task(MNIST, True),
    "roll_back": lambda s: s.roll_back(MNIST, 0, 0, NOW),
    "pin": lambda s: s.pin(MNIST, 0, "best"),
    "evaluate": lambda s: s.evaluate(MNIST, 0, {"accuracy": 0.5}),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_once_another_epoch_has_begun_nothing_of_the_earlier_is_written(
    store: DatabaseRoundStore, write: Callable[[RoundStore], object]
) -> None:
    first = store.fenced(store.take_lead("a", ""))
    first.add_round(a_round())
    second = store.fenced(store.take_lead("b", ""))
    before = store.task(MNIST), store.rounds(MNIST), store.versions(MNIST)
    with pytest.raises(Refusal) as caught:
        write(first)
    assert caught.value.code is Code.NOT_LEADER
    assert (store.task(MNIST), store.rounds(MNIST), store.versions(MNIST)) == before
    write(second)


def test_a_fenced_store_reads_on_after_its_epoch(store: DatabaseRoundStore) -> None:
    first = store.fenced(store.take_lead("a", ""))
    first.add_round(a_round())
    store.take_lead("b", "")
    assert first.round(RoundId(MNIST, 1)) == a_round()


def test_what_operators_do_needs_no_epoch(store: DatabaseRoundStore) -> None:
    store.take_lead("a", "")
    store.pause_task(MNIST, True)
    assert store.task(MNIST).state == "paused"


@pytest.fixture
def on_postgres(postgres: Postgres) -> Iterator[DatabaseRoundStore]:
    store = DatabaseRoundStore(postgres.new_database())
    store.migrate()
    store.add_task(TASK, b"{}")
    store.start_task(MNIST, NOW)
    yield store
    store.close()


def test_an_epoch_begins_only_after_the_writes_that_are_under_way(on_postgres: DatabaseRoundStore) -> None:
    first = on_postgres.fenced(on_postgres.take_lead("a", ""))
    order: list[str] = []
    taking = threading.Thread(target=lambda: order.append(f"epoch {on_postgres.take_lead('b', '')}"))
    with first._writing():
        taking.start()
        time.sleep(0.3)
        order.append("written")
    taking.join(10)
    assert order == ["written", "epoch 2"]


def test_who_stops_in_the_middle_of_a_write_holds_up_the_next_for_seconds_and_has_written_nothing(
    on_postgres: DatabaseRoundStore,
) -> None:
    first = on_postgres.fenced(on_postgres.take_lead("a", ""))
    first.add_round(a_round())
    began = time.monotonic()
    taking = threading.Thread(target=lambda: on_postgres.take_lead("b", ""))

    def write_and_stop() -> None:
        with first._writing() as connection:
            connection.exec_driver_sql("UPDATE rounds SET phase = 'abandoned'")
            taking.start()
            taking.join(10)  # what a stopped process does: nothing

    with pytest.raises(Outage):
        write_and_stop()
    assert not taking.is_alive()
    assert 4 < time.monotonic() - began < 8
    assert on_postgres.leader() == Leader(2, "b", "")
    assert on_postgres.round(RoundId(MNIST, 1)).phase is Phase.SELECTION


_LEADER = """
import sys
from fedlearn.adapters.database import AdvisoryLock, DatabaseRoundStore
from fedlearn.core.errors import Refusal
from fedlearn.core.ids import TaskId

store = DatabaseRoundStore(sys.argv[1])
assert AdvisoryLock(store.database, 1).hold()
leader = store.fenced(store.take_lead("a", ""))
print("leads", flush=True)
sys.stdin.readline()
try:
    leader.end_task(TaskId("mnist"), "failed")
except Refusal as refusal:
    print(refusal.code, flush=True)
"""


def test_a_leader_that_was_stopped_beyond_its_lease_and_wakes_up_writes_nothing(postgres: Postgres) -> None:
    url = postgres.new_database()
    store = DatabaseRoundStore(url)
    store.migrate()
    store.add_task(TASK, b"{}")
    store.start_task(MNIST, NOW)
    lock = AdvisoryLock(store.database, 5)
    with subprocess.Popen(
        [sys.executable, "-c", _LEADER, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "leads\n"
        process.send_signal(signal.SIGSTOP)
        give_up = time.monotonic() + 10
        while not lock.hold():
            assert time.monotonic() < give_up
            time.sleep(0.05)
        store.take_lead("b", "")
        process.stdin.write("write\n")
        process.stdin.flush()
        process.send_signal(signal.SIGCONT)
        assert process.stdout.read().splitlines()[-1] == "not_leader"  # after the line that logs it
    assert store.task(MNIST).state == "running"
    lock.release()
    store.close()
