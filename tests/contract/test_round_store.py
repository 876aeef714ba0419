"""What every `RoundStore` does and refuses: one suite over SQLite and PostgreSQL."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from fedlearn.adapters.database import DatabaseRoundStore
from fedlearn.core.errors import Code, Outage, Refusal
from fedlearn.core.ids import DeviceId, RoundId, TaskId
from fedlearn.core.policy import RoundPolicy
from fedlearn.core.ports import ModelVersion, RoundStore, Task
from fedlearn.core.rounds import (
    Aggregate,
    Aggregated,
    CohortSelected,
    DeviceAccepted,
    DeviceDropped,
    Event,
    Failed,
    ModelRef,
    Participant,
    Phase,
    Round,
    RoundOpened,
    Standing,
    UpdatesCounted,
    advance,
    start,
)

NOW = 1_760_000_000.123
MNIST = TaskId("mnist")
POLICY = RoundPolicy(goal=3, over_selection=1.3, min_fraction=2 / 3)
DEVICES = tuple(DeviceId(f"device-{i}/{i % 2}") for i in (3, 1, 2, 0))
PLAN = b'{"plan_version":1}'


def ref(version: int, sha256: str = "ab" * 32) -> ModelRef:
    return ModelRef(version, f"mnist/{version}-{sha256[:8]}", sha256, 6_653_480 * 2**20)


def a_task(name: str = "mnist", created_at: float = NOW) -> Task:
    return Task(TaskId(name), "waiting_for_model", "d1" * 32, POLICY, 10, created_at, upload=ref(0), target_accuracy=0.97)


def step(round_: Round, *events: Event, now: float = NOW + 1.7) -> Round:
    for event in events:
        round_, _ = advance(round_, event, now)
    return round_


def opened(number: int = 1, base: ModelRef | None = None) -> Round:
    return start(RoundId(MNIST, number), POLICY, base or ref(0), NOW)


def aggregating(number: int = 1, base: ModelRef | None = None) -> Round:
    folded = UpdatesCounted(frozenset(DEVICES[:3]), {DEVICES[3]: Code.UPDATE_SHAPE})
    return step(opened(number, base), CohortSelected(DEVICES), RoundOpened(), folded)


def committed(round_: Round, sha256: str = "cd" * 32) -> Round:
    model = ref(round_.base.version + 1, sha256)
    metrics = {"loss": 0.1 + 0.2, "accuracy": 0.9}
    return step(round_, Aggregated(Aggregate(model, frozenset(DEVICES[:3]), 1800, metrics)), now=NOW + 9.3)


@pytest.fixture
def store(database_url: str) -> Iterator[RoundStore]:
    store = DatabaseRoundStore(database_url)
    store.migrate()
    yield store
    store.close()


@pytest.fixture
def running(store: RoundStore) -> RoundStore:
    """The store with task `mnist` at version 0."""
    store.add_task(a_task(), PLAN)
    store.start_task(MNIST, NOW)
    return store


def refused(code: Code) -> "pytest.RaisesExc[Refusal]":
    return pytest.RaisesExc(Refusal, check=lambda error: error.code is code)


class TestTasks:
    def test_a_task_comes_back_as_it_was_added_with_its_plan(self, store: RoundStore) -> None:
        store.add_task(a_task(), PLAN)
        assert store.task(MNIST) == a_task()
        assert store.plan("d1" * 32) == PLAN

    def test_a_task_without_an_end_or_a_target_comes_back_too(self, store: RoundStore) -> None:
        endless = replace(a_task(), rounds=None, target_accuracy=None)
        store.add_task(endless, PLAN)
        assert store.task(MNIST) == endless

    def test_tasks_are_listed_oldest_first(self, store: RoundStore) -> None:
        for name, age in (("b", 0.25), ("c", 0.0), ("a", 0.125), ("d", 0.0625)):
            store.add_task(a_task(name, math.floor(NOW) - age), PLAN)
        assert [task.id for task in store.tasks()] == ["b", "a", "d", "c"]

    def test_a_second_task_of_the_same_name_is_refused_and_changes_nothing(self, store: RoundStore) -> None:
        store.add_task(a_task(), PLAN)
        with refused(Code.TASK_EXISTS):
            store.add_task(replace(a_task(), plan_digest="e2" * 32, rounds=99), b"other")
        assert store.task(MNIST) == a_task()
        with refused(Code.NOT_FOUND):
            store.plan("e2" * 32)

    def test_two_tasks_share_a_plan(self, store: RoundStore) -> None:
        store.add_task(a_task("one"), PLAN)
        store.add_task(a_task("two"), PLAN)
        assert store.plan("d1" * 32) == PLAN

    def test_what_is_not_there_is_refused(self, store: RoundStore) -> None:
        with refused(Code.TASK_UNKNOWN):
            store.task(MNIST)
        with refused(Code.TASK_UNKNOWN):
            store.start_task(MNIST, NOW)
        with refused(Code.TASK_UNKNOWN):
            store.end_task(MNIST, "failed")
        with refused(Code.TASK_UNKNOWN):
            store.add_round(opened())
        with refused(Code.NOT_FOUND):
            store.plan("d1" * 32)
        assert store.tasks() == []

    def test_a_name_that_no_row_can_hold_is_refused(self, store: RoundStore) -> None:
        with pytest.raises(Refusal):
            store.task(TaskId("nul\0"))
        with pytest.raises(Refusal):
            store.version(MNIST, 2**70)

    def test_version_zero_starts_a_task_once(self, store: RoundStore) -> None:
        store.add_task(a_task(), PLAN)
        expected = replace(a_task(), state="running", model=ref(0))
        assert store.start_task(MNIST, NOW + 1) == expected
        assert store.start_task(MNIST, NOW + 2) == expected
        assert store.task(MNIST) == expected
        assert store.versions(MNIST) == [ModelVersion(MNIST, ref(0), None, NOW + 1)]

    @pytest.mark.parametrize("state", ["completed", "failed", "cancelled"])
    def test_the_first_end_of_a_task_stays(self, running: RoundStore, state: str) -> None:
        running.end_task(MNIST, state)
        for other in ("completed", "failed", "cancelled"):
            running.end_task(MNIST, other)
        assert running.task(MNIST) == replace(a_task(), state=state, model=ref(0))
        with refused(Code.TASK_STATE):
            running.start_task(MNIST, NOW)

    def test_a_task_does_not_end_as_running(self, running: RoundStore) -> None:
        with refused(Code.TASK_STATE):
            running.end_task(MNIST, "running")
        assert running.task(MNIST).state == "running"


class TestRounds:
    def test_rounds_are_found_by_number_in_order_and_by_being_the_latest(self, running: RoundStore) -> None:
        assert running.latest_round(MNIST) is None
        assert running.rounds(MNIST) == []
        for number in (2, 10, 1):
            running.add_round(opened(number))
        assert [round_.id.number for round_ in running.rounds(MNIST)] == [1, 2, 10]
        assert running.latest_round(MNIST) == opened(10)
        assert running.round(RoundId(MNIST, 2)) == opened(2)
        with refused(Code.ROUND_UNKNOWN):
            running.round(RoundId(MNIST, 3))

    def test_a_round_is_added_once(self, running: RoundStore) -> None:
        running.add_round(aggregating())
        with refused(Code.ROUND_CONFLICT):
            running.add_round(opened())
        assert running.round(RoundId(MNIST, 1)) == aggregating()

    def test_the_cohort_keeps_its_order(self, running: RoundStore) -> None:
        selected = step(opened(), CohortSelected(DEVICES))
        running.add_round(opened())
        running.save_round(selected, opened())
        accepted = step(selected, RoundOpened(), DeviceAccepted(DEVICES[2]), DeviceAccepted(DEVICES[0]))
        running.save_round(accepted, selected)
        assert tuple(running.round(accepted.id).participants) == DEVICES
        assert [tuple(round_.participants) for round_ in running.rounds(MNIST)] == [DEVICES]

    def test_a_saved_round_replaces_the_previous_one(self, running: RoundStore) -> None:
        before, after = aggregating(), step(aggregating(), Failed(Code.AGGREGATOR_KEY_LOST))
        running.add_round(opened())
        running.save_round(before, opened())
        running.save_round(after, before)
        assert running.round(before.id) == after
        assert running.rounds(MNIST) == [after]

    def test_a_round_that_has_moved_on_is_not_replaced(self, running: RoundStore) -> None:
        reporting = step(opened(), CohortSelected(DEVICES), RoundOpened())
        first = step(reporting, DeviceDropped(DEVICES[0], Code.TRAINING_FAILED))
        second = step(reporting, DeviceAccepted(DEVICES[1]))
        running.add_round(reporting)
        running.save_round(first, reporting)
        with refused(Code.ROUND_CONFLICT):
            running.save_round(second, reporting)
        with refused(Code.ROUND_CONFLICT):
            running.save_round(first, reporting)
        assert running.round(first.id) == first

    def test_a_round_that_was_never_added_is_not_replaced(self, running: RoundStore) -> None:
        with refused(Code.ROUND_CONFLICT):
            running.save_round(aggregating(), opened())
        assert running.rounds(MNIST) == []

    def test_a_round_with_whole_numbers_for_times_can_be_replaced(self, running: RoundStore) -> None:
        whole = replace(opened(), opened_at=100, phase_since=100)
        running.add_round(whole)
        running.save_round(step(whole, CohortSelected(DEVICES), now=101), running.round(whole.id))
        assert running.round(whole.id).phase_seconds == {Phase.SELECTION: 1.0}

    def test_a_cohort_that_was_chosen_anew_is_replaced_whole(self, running: RoundStore) -> None:
        before = step(opened(), CohortSelected(DEVICES))
        anew = {device: Participant(Standing.SELECTED) for device in (DEVICES[2], DeviceId("late"), DEVICES[0])}
        running.add_round(before)
        running.save_round(replace(before, participants=anew), before)
        assert list(running.round(before.id).participants.items()) == list(anew.items())


class TestCommit:
    def test_a_commit_saves_the_round_adds_the_version_and_moves_the_pointer(self, running: RoundStore) -> None:
        running.add_round(aggregating())
        running.commit(committed(aggregating()), aggregating(), NOW + 20)
        assert running.round(RoundId(MNIST, 1)) == committed(aggregating())
        assert running.task(MNIST).model == ref(1, "cd" * 32)
        assert running.version(MNIST, 1) == ModelVersion(
            MNIST, ref(1, "cd" * 32), 1, NOW + 20, parent=0, contributors=3, examples=1800
        )
        assert [version.ref.version for version in running.versions(MNIST)] == [0, 1]

    def test_a_base_that_was_superseded_is_refused_and_nothing_changes(self, running: RoundStore) -> None:
        for number in (1, 2):
            running.add_round(aggregating(number))
        running.commit(committed(aggregating(1)), aggregating(1), NOW)
        with refused(Code.BASE_SUPERSEDED):
            running.commit(committed(aggregating(2), "ef" * 32), aggregating(2), NOW)
        self._only_the_first_counts(running, second=aggregating(2))

    def test_another_model_of_the_same_version_is_another_base(self, running: RoundStore) -> None:
        foreign = aggregating(1, base=ref(0, "99" * 32))
        running.add_round(foreign)
        with refused(Code.BASE_SUPERSEDED):
            running.commit(committed(foreign), foreign, NOW)
        assert running.task(MNIST).model == ref(0)

    def test_a_round_that_has_moved_on_is_not_committed(self, running: RoundStore) -> None:
        running.add_round(aggregating())
        failed = step(aggregating(), Failed(Code.AGGREGATION_TIMEOUT))
        running.save_round(failed, aggregating())
        with refused(Code.ROUND_CONFLICT):
            running.commit(committed(aggregating()), aggregating(), NOW)
        assert running.round(failed.id) == failed
        assert running.task(MNIST).model == ref(0)
        assert len(running.versions(MNIST)) == 1

    def test_the_same_commit_again_is_a_conflict_not_a_superseded_base(self, running: RoundStore) -> None:
        running.add_round(aggregating())
        running.commit(committed(aggregating()), aggregating(), NOW)
        with refused(Code.ROUND_CONFLICT):
            running.commit(committed(aggregating()), aggregating(), NOW)

    def test_a_round_that_is_not_committed_moves_no_model(self, running: RoundStore) -> None:
        running.add_round(opened())
        with pytest.raises(ValueError, match="only a committed round"):
            running.commit(aggregating(), opened(), NOW)
        assert running.round(RoundId(MNIST, 1)) == opened()

    def _only_the_first_counts(self, store: RoundStore, second: Round) -> None:
        assert store.round(second.id) == second
        assert store.task(MNIST).model == ref(1, "cd" * 32)
        assert [version.round for version in store.versions(MNIST)] == [None, 1]


class TestPauses:
    def test_a_running_task_is_paused_and_goes_on(self, running: RoundStore) -> None:
        for _ in range(2):
            assert running.pause_task(MNIST, True) == replace(a_task(), state="paused", model=ref(0))
        assert running.task(MNIST).state == "paused"
        assert running.start_task(MNIST, NOW).state == "paused"
        for _ in range(2):
            assert running.pause_task(MNIST, False) == replace(a_task(), state="running", model=ref(0))

    def test_a_paused_task_may_end(self, running: RoundStore) -> None:
        running.pause_task(MNIST, True)
        running.end_task(MNIST, "cancelled")
        assert running.task(MNIST).state == "cancelled"

    def test_a_task_without_a_model_or_with_an_end_is_not_paused(self, store: RoundStore) -> None:
        with refused(Code.TASK_UNKNOWN):
            store.pause_task(MNIST, True)
        store.add_task(a_task(), PLAN)
        with refused(Code.TASK_STATE):
            store.pause_task(MNIST, True)
        store.start_task(MNIST, NOW)
        store.end_task(MNIST, "completed")
        for paused in (True, False):
            with refused(Code.TASK_STATE):
                store.pause_task(MNIST, paused)


class TestLineage:
    @pytest.fixture
    def grown(self, running: RoundStore) -> RoundStore:
        """The store with versions 0 to 2."""
        for number, sha256 in ((1, "c1" * 32), (2, "c2" * 32)):
            base = running.task(MNIST).model
            running.add_round(aggregating(number, base))
            running.commit(committed(aggregating(number, base), sha256), aggregating(number, base), NOW + number)
        return running

    def test_a_rollback_makes_a_new_version_of_the_chosen_ones_bytes_and_overwrites_nothing(self, grown: RoundStore) -> None:
        grown.evaluate(MNIST, 1, {"accuracy": 0.9})
        before = grown.versions(MNIST)
        restored = grown.roll_back(MNIST, 1, 2, NOW + 30)
        ref_3 = replace(ref(1, "c1" * 32), version=3)
        assert restored == ModelVersion(MNIST, ref_3, None, NOW + 30, {"accuracy": 0.9}, parent=1)
        assert grown.task(MNIST).model == ref_3
        assert grown.versions(MNIST) == [*before, restored]

    def test_the_next_round_starts_from_it_and_its_version_has_the_next_number(self, grown: RoundStore) -> None:
        base = grown.roll_back(MNIST, 0, 2, NOW + 30).ref
        grown.add_round(aggregating(3, base))
        grown.commit(committed(aggregating(3, base)), aggregating(3, base), NOW + 40)
        assert [(version.ref.version, version.parent) for version in grown.versions(MNIST)] == [
            (0, None), (1, 0), (2, 1), (3, 0), (4, 3)
        ]  # fmt: skip

    def test_a_round_that_runs_on_the_model_before_is_not_committed(self, grown: RoundStore) -> None:
        running = aggregating(3, grown.task(MNIST).model)
        grown.add_round(running)
        restored = grown.roll_back(MNIST, 1, 2, NOW + 30)
        with refused(Code.BASE_SUPERSEDED):
            grown.commit(committed(running), running, NOW + 40)
        assert grown.task(MNIST).model == restored.ref

    def test_a_rollback_from_a_version_that_is_not_the_tasks_is_refused_and_nothing_changes(self, grown: RoundStore) -> None:
        before = grown.versions(MNIST)
        with refused(Code.BASE_SUPERSEDED):
            grown.roll_back(MNIST, 0, 1, NOW)
        assert grown.versions(MNIST) == before
        assert grown.task(MNIST).model == before[-1].ref

    def test_a_rollback_to_what_is_not_there_is_refused(self, grown: RoundStore, store: RoundStore) -> None:
        with refused(Code.MODEL_UNKNOWN):
            grown.roll_back(MNIST, 7, 2, NOW)
        with refused(Code.TASK_UNKNOWN):
            grown.roll_back(TaskId("other"), 0, 0, NOW)
        store.add_task(a_task("waits"), PLAN)
        with refused(Code.BASE_SUPERSEDED):
            store.roll_back(TaskId("waits"), 0, 0, NOW)

    def test_of_two_rollbacks_at_once_one_is_refused(self, grown: RoundStore) -> None:
        def roll_back(version: int) -> str:
            try:
                grown.roll_back(MNIST, version, 2, NOW)
            except Refusal as refusal:
                return refusal.code
            return "done"

        with ThreadPoolExecutor(2) as threads:
            assert sorted(threads.map(roll_back, (0, 1))) == ["base_superseded", "done"]
        assert len(grown.versions(MNIST)) == 4

    def test_a_label_stands_at_one_version_of_a_task(self, grown: RoundStore) -> None:
        assert grown.pin(MNIST, 1, "production").labels == ("production",)
        grown.pin(MNIST, 1, "best")
        assert grown.version(MNIST, 1).labels == ("best", "production")
        grown.pin(MNIST, 2, "production")
        assert [version.labels for version in grown.versions(MNIST)] == [(), ("best",), ("production",)]
        for _ in range(2):
            grown.unpin(MNIST, "best")
        assert grown.version(MNIST, 1).labels == ()
        with refused(Code.MODEL_UNKNOWN):
            grown.pin(MNIST, 7, "production")


class TestEvaluations:
    def test_of_two_evaluations_the_first_stays(self, running: RoundStore) -> None:
        running.evaluate(MNIST, 0, {"accuracy": 0.1, "loss": 2.3})
        running.evaluate(MNIST, 0, {"accuracy": 0.2})
        assert running.version(MNIST, 0).evaluation == {"accuracy": 0.1, "loss": 2.3}

    def test_a_diverged_model_keeps_its_loss(self, running: RoundStore) -> None:
        running.evaluate(MNIST, 0, {"loss": math.nan, "accuracy": 0.1, "worst": math.inf})
        evaluation = running.version(MNIST, 0).evaluation
        assert evaluation is not None
        assert math.isnan(evaluation["loss"])
        assert evaluation["worst"] == math.inf

    def test_a_version_that_is_not_there_is_refused(self, running: RoundStore) -> None:
        with refused(Code.MODEL_UNKNOWN):
            running.version(MNIST, 1)
        with refused(Code.MODEL_UNKNOWN):
            running.evaluate(MNIST, 1, {})
        with refused(Code.MODEL_UNKNOWN):
            running.version(TaskId("other"), 0)

    def test_versions_wait_for_the_evaluator_oldest_first_unless_their_task_was_cancelled(self, running: RoundStore) -> None:
        for name, age in (("newer", 1.5), ("older", 2.5), ("cancelled", 3.5)):
            running.add_task(a_task(name), PLAN)
            running.start_task(TaskId(name), NOW - age)
        running.end_task(TaskId("cancelled"), "cancelled")
        running.end_task(TaskId("older"), "completed")
        assert [version.task for version in running.unevaluated()] == ["older", "newer", "mnist"]
        running.evaluate(TaskId("newer"), 0, {"loss": 1.0})
        assert [version.task for version in running.unevaluated()] == ["older", "mnist"]


class TestKeysAndReadiness:
    def test_the_first_signing_key_is_kept(self, store: RoundStore) -> None:
        assert store.signing_key(lambda: ("first", b"pem-1"), NOW) == ("first", b"pem-1")
        assert store.signing_key(lambda: ("second", b"pem-2"), NOW) == ("first", b"pem-1")

    def test_a_kept_key_is_not_made_again(self, store: RoundStore) -> None:
        store.signing_key(lambda: ("first", b"pem-1"), NOW)
        store.signing_key(lambda: pytest.fail("a key was made although there is one"), NOW)

    def test_a_migrated_database_is_ready(self, store: RoundStore) -> None:
        store.ready()

    def test_a_database_without_tables_is_not_ready(self, database_url: str) -> None:
        store = DatabaseRoundStore(database_url)
        with pytest.raises(Outage, match="migrate") as caught:
            store.ready()
        store.close()
        assert caught.value.code is Code.DATABASE_UNAVAILABLE
