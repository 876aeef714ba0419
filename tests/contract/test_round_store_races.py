"""Several replicas, each with its own connections, do the same thing at the same moment."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import pytest

from fedlearn.adapters.database import DatabaseRoundStore
from fedlearn.core.errors import Code, Refusal
from fedlearn.core.ids import DeviceId, RoundId, TaskId
from fedlearn.core.policy import RoundPolicy
from fedlearn.core.ports import Task
from fedlearn.core.rounds import (
    Aggregate,
    Aggregated,
    CohortSelected,
    ModelRef,
    Participant,
    Round,
    RoundOpened,
    Standing,
    UpdatesCounted,
    advance,
    start,
)

MNIST = TaskId("mnist")
DEVICES = tuple(DeviceId(f"device-{i}") for i in range(8))
BASE = ModelRef(0, "mnist/0", "ab" * 32, 1)
REPLICAS = 4


@pytest.fixture
def replicas(database_url: str) -> Iterator[Sequence[DatabaseRoundStore]]:
    """Stores on one database, as the server's replicas hold them, with task `mnist` at version 0."""
    stores = [DatabaseRoundStore(database_url) for _ in range(REPLICAS)]
    stores[0].migrate()
    stores[0].add_task(Task(MNIST, "waiting_for_model", "d1" * 32, RoundPolicy(8), None, 0.0, BASE), b"{}")
    stores[0].start_task(MNIST, 0.0)
    yield stores
    for store in stores:
        store.close()


def at_once(replicas: Sequence[DatabaseRoundStore], call: Callable[[DatabaseRoundStore, int], object]) -> list[object]:
    """Make the call on all replicas at the same moment; what each returned, or the code that it was refused with."""
    barrier = threading.Barrier(len(replicas))

    def run(number: int) -> object:
        barrier.wait()
        try:
            return call(replicas[number], number)
        except Refusal as refusal:
            return refusal.code

    with ThreadPoolExecutor(len(replicas)) as threads:
        return list(threads.map(run, range(len(replicas))))


def aggregating(number: int, base: ModelRef = BASE) -> Round:
    round_ = start(RoundId(MNIST, number), RoundPolicy(8), base, 1.0)
    for event in (CohortSelected(DEVICES), RoundOpened(), UpdatesCounted(frozenset(DEVICES), {})):
        round_, _ = advance(round_, event, 2.0)
    return round_


def committed(round_: Round, writer: int) -> Round:
    version = round_.base.version + 1 + writer  # a number that is free whoever else has won
    model = ModelRef(version, f"mnist/{version}", f"{version:064}", 1)
    after, _ = advance(round_, Aggregated(Aggregate(model, frozenset(DEVICES), 80)), 3.0)
    return after


def save(before: Round, after: Sequence[Round], store: DatabaseRoundStore, number: int) -> None:
    store.save_round(after[number], before)


def test_of_writers_that_read_the_same_round_exactly_one_wins(replicas: Sequence[DatabaseRoundStore]) -> None:
    before = aggregating(1)
    replicas[0].add_round(before)
    for turn in range(20):
        after = [
            replace(before, phase_since=10.0 * turn, participants=dict.fromkeys(DEVICES, Participant(Standing.DROPPED, code)))
            for code in (Code.UPDATE_LATE, Code.UPDATE_SHAPE, Code.UPDATE_DTYPE, Code.UPDATE_BASE)
        ]
        told = at_once(replicas, partial(save, before, after))
        assert sorted(map(str, told)) == ["None", *["round_conflict"] * (REPLICAS - 1)]
        assert replicas[0].round(before.id) == after[told.index(None)]
        before = after[told.index(None)]


def commit(before: Sequence[Round], store: DatabaseRoundStore, number: int) -> None:
    store.commit(committed(before[number], number), before[number], 4.0)


def test_of_rounds_with_the_same_base_exactly_one_is_committed(replicas: Sequence[DatabaseRoundStore]) -> None:
    base, winners = BASE, []
    for turn in range(10):
        rounds = [aggregating(1 + turn * REPLICAS + n, base) for n in range(REPLICAS)]
        for round_ in rounds:
            replicas[0].add_round(round_)
        told = at_once(replicas, partial(commit, rounds))
        assert sorted(map(str, told)) == ["None", *["base_superseded"] * (REPLICAS - 1)]
        winner = committed(rounds[told.index(None)], told.index(None))
        assert winner.aggregate is not None
        assert replicas[0].task(MNIST).model == winner.aggregate.model
        assert [replicas[0].round(round_.id) for round_ in rounds if round_.id != winner.id] == [
            round_ for round_ in rounds if round_.id != winner.id
        ]
        base = winner.aggregate.model
        winners.append(winner.id.number)
    assert [version.round for version in replicas[0].versions(MNIST)] == [None, *winners]


def test_of_replicas_that_open_the_same_round_exactly_one_does(replicas: Sequence[DatabaseRoundStore]) -> None:
    told = at_once(replicas, lambda store, _: store.add_round(aggregating(1)))
    assert sorted(map(str, told)) == ["None", *["round_conflict"] * (REPLICAS - 1)]


def test_of_submitters_of_the_same_task_exactly_one_is_heard(replicas: Sequence[DatabaseRoundStore]) -> None:
    tasks = [Task(TaskId("new"), "waiting_for_model", "d2" * 32, RoundPolicy(8), n, 0.0, BASE) for n in range(REPLICAS)]
    told = at_once(replicas, lambda store, n: store.add_task(tasks[n], b"{}"))
    assert sorted(map(str, told)) == ["None", *["task_exists"] * (REPLICAS - 1)]
    assert replicas[0].task(TaskId("new")) == tasks[told.index(None)]


def test_version_zero_that_arrives_several_times_at_once_starts_the_task_once(replicas: Sequence[DatabaseRoundStore]) -> None:
    replicas[0].add_task(Task(TaskId("new"), "waiting_for_model", "d2" * 32, RoundPolicy(8), 1, 0.0, BASE), b"{}")
    told = at_once(replicas, lambda store, _: store.start_task(TaskId("new"), 5.0))
    assert told == [replicas[0].task(TaskId("new"))] * REPLICAS
    assert len(replicas[0].versions(TaskId("new"))) == 1


def test_replicas_that_start_at_once_agree_on_the_signing_key(replicas: Sequence[DatabaseRoundStore]) -> None:
    made = threading.Barrier(REPLICAS)  # no replica goes on before all have made a key of their own

    def make(number: int) -> tuple[str, bytes]:
        made.wait(timeout=30)
        return f"kid-{number}", b"pem"

    told = at_once(replicas, lambda store, n: store.signing_key(lambda: make(n), 1.0))
    assert len(set(told)) == 1
    assert replicas[0].signing_key(lambda: ("late", b"pem"), 2.0) == told[0]


def test_a_reader_never_sees_half_of_a_write(replicas: Sequence[DatabaseRoundStore]) -> None:
    states = [
        replace(aggregating(1), opened_at=float(age), participants={device: Participant(standing) for device in DEVICES})
        for age, standing in enumerate((Standing.ACCEPTED, Standing.REPORTED))
    ]
    replicas[0].add_round(states[0])
    done = threading.Event()

    def write(store: DatabaseRoundStore) -> None:
        try:
            for turn in range(200):
                store.save_round(states[(turn + 1) % 2], states[turn % 2])
        finally:
            done.set()

    def read(store: DatabaseRoundStore) -> int:
        torn = 0
        while not done.is_set():
            torn += store.round(states[0].id) not in states
            torn += store.rounds(MNIST)[0] not in states
        return torn

    assert at_once(replicas[:3], lambda store, n: read(store) if n else write(store)) == [None, 0, 0]


def test_processes_that_start_at_once_migrate_once(database_url: str) -> None:
    program = (
        "import sys; from fedlearn.adapters.database import DatabaseRoundStore as S; s = S(sys.argv[1]); s.migrate(); s.ready()"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", program, database_url], stderr=subprocess.PIPE, text=True)
        for _ in range(REPLICAS)
    ]  # fmt: skip
    assert [(process.communicate(timeout=60)[1], process.returncode) for process in started] == [("", 0)] * REPLICAS
