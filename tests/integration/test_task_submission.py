"""A task is submitted by a Job that may be started again at any point: once more must never hurt."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedlearn.adapters.operator import OperatorClient
from fedlearn.cli.tasks import app
from fedlearn.core.errors import Code, Refusal, SetupError
from fedlearn.local.storage import LocalStorage
from fedlearn.protocol.plans import Plan
from fedlearn.protocol.tensors import encode_model, unflatten
from fedlearn.protocol.views import Policy, TaskAccepted, TaskSubmission
from support.world import HandDevice, World, random_model, random_update, small_plan

PLAN, POLICY = small_plan(), Policy(goal=2, selection_timeout_seconds=3600)


@pytest.fixture(scope="module")
def world(storage: LocalStorage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World.start(tmp_path_factory.mktemp("submission"), storage)
    yield world
    world.stop()


@pytest.fixture
def operator(world: World) -> Iterator[OperatorClient]:
    with world.operator() as client:
        yield client


def submit(
    operator: OperatorClient,
    task: str,
    policy: Policy = POLICY,
    *,
    learning_rate: float = 0.1,
    rounds: int = 3,
    target_accuracy: float | None = None,
) -> str:
    plan, model = small_plan(training={"learning_rate": learning_rate}), random_model(PLAN)
    return operator.submit(task, plan, model, policy=policy, rounds=rounds, target_accuracy=target_accuracy).state


def test_a_task_that_runs_already_stays_as_it_is(operator: OperatorClient) -> None:
    assert submit(operator, "twice") == "running"
    before = operator.task("twice")
    assert submit(operator, "twice") == "running"
    assert operator.task("twice") == before


def test_so_does_one_that_has_ended(operator: OperatorClient) -> None:
    submit(operator, "ended")
    operator.cancel("ended")
    assert submit(operator, "ended") == "cancelled"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        pytest.param({"learning_rate": 0.2}, "another plan:", id="plan"),
        pytest.param({"policy": POLICY.model_copy(update={"goal": 3})}, "another policy:", id="policy"),
        pytest.param({"rounds": 7, "target_accuracy": 0.5}, "another number of rounds and another target accuracy:", id="both"),
    ],
)
def test_another_task_of_the_name_is_refused_and_told_what_differs(
    operator: OperatorClient, changes: dict[str, object], named: str
) -> None:
    submit(operator, "other")
    with pytest.raises(Refusal, match=named) as refusal:
        submit(operator, "other", **changes)  # type: ignore[arg-type]  # the cases are of different types
    assert refusal.value.code is Code.TASK_EXISTS


@pytest.mark.parametrize(
    "policy",
    [
        pytest.param(Policy(goal=1), id="never"),
        pytest.param(Policy(goal=2, min_fraction=0.5), id="not those that close at their deadline"),
    ],
)
def test_a_task_whose_rounds_the_aggregator_would_not_publish_is_refused(operator: OperatorClient, policy: Policy) -> None:
    with pytest.raises(Refusal, match=r"may close with 1, .* min_cohort, 2: raise") as refused:
        submit(operator, "tiny", policy)
    assert refused.value.code is Code.COHORT_TOO_SMALL
    with pytest.raises(Refusal) as unknown:
        operator.task("tiny")
    assert unknown.value.code is Code.TASK_UNKNOWN


def test_the_chart_s_policy_is_taken_though_its_rounds_may_close_with_two_of_three(operator: OperatorClient) -> None:
    assert submit(operator, "charted", Policy(goal=3, min_fraction=0.5)) == "running"


class TestASubmitterThatDiedBeforeTheUpload:
    @staticmethod
    def begin(operator: OperatorClient, task: str, seed: int = 0) -> TaskAccepted:
        model = random_model(PLAN, seed)
        submission = TaskSubmission(
            task=task,
            plan=PLAN.model_dump(mode="json"),
            policy=POLICY,
            rounds=3,
            model_size_bytes=len(model),
            model_sha256=hashlib.sha256(model).hexdigest(),
        )
        return operator._call("POST", "/v1/tasks", TaskAccepted, submission)

    def test_can_begin_again(self, operator: OperatorClient) -> None:
        self.begin(operator, "orphan")
        assert operator.task("orphan").state == "waiting_for_model"
        assert submit(operator, "orphan") == "running"

    def test_keeps_its_name_from_another_version_0(self, operator: OperatorClient) -> None:
        self.begin(operator, "kept")
        with pytest.raises(Refusal) as refusal:
            self.begin(operator, "kept", seed=1)
        assert refusal.value.code is Code.TASK_EXISTS


class TestWaiting:
    def wait(self, world: World, task: str) -> BaseException | None:
        arguments = ["wait", "--task", task, "--server", world.server_url, "--wait-seconds", "0"]
        return CliRunner().invoke(app, arguments).exception

    def test_says_how_far_the_task_has_come(self, world: World, operator: OperatorClient) -> None:
        submit(operator, "waited-for")
        world.wait_for_phase("waited-for", 1, "selection")
        failure = self.wait(world, "waited-for")
        assert isinstance(failure, SetupError)
        assert "0 of 1 rounds" in failure.detail
        assert "round 1 is in selection" in failure.detail

    def test_is_in_vain_for_a_task_that_nobody_submitted(self, world: World) -> None:
        failure = self.wait(world, "nobody-s")
        assert isinstance(failure, SetupError)
        assert "nobody-s" in failure.detail

    def test_ends_with_a_committed_round(self, world: World) -> None:
        plan = small_plan(dataset="its-own")
        world.submit("committed", plan, goal=2, rounds=1)
        devices = [world.device(f"waiter-{number}", dataset=plan.dataset) for number in range(2)]
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(lambda device: take_part(device, plan), devices))
        world.wait_for_phase("committed", 1, "committed")
        assert self.wait(world, "committed") is None


def take_part(device: HandDevice, plan: Plan) -> None:
    assignment = device.assignment()
    device.upload(assignment, device.sealed(assignment, random_update(plan, seed=1), plan))
    device.server.close()
    device.aggregator.close()


def test_a_rule_that_needs_more_updates_than_the_goal_is_refused(operator: OperatorClient) -> None:
    plan = small_plan(aggregation={"strategy": "fedavg", "rule": {"name": "multi_krum", "byzantine": 1}})
    for policy, said in ((Policy(goal=4), "the policy's goal is 4"), (Policy(goal=5), "may close with 4")):
        with pytest.raises(Refusal, match=f"needs 5 updates or more.* {said}") as refusal:
            operator.submit("krum", plan, random_model(plan), policy=policy)
        assert refusal.value.code is Code.PLAN_INVALID


def test_a_model_can_be_taken_from_where_the_storage_is_out_of_reach(storage: LocalStorage, tmp_path: Path) -> None:
    """Such as behind a port-forward to a cluster's server: a signed URL would lead nowhere."""
    world = World.start(tmp_path, storage, server_settings={"FEDLEARN_STORAGE__PUBLIC_ENDPOINT_URL": "http://nowhere.invalid"})
    try:
        plan = small_plan()
        world.submit("far", plan)
        assert encode_model(unflatten(world.model("far", 0, plan), plan), plan) == random_model(plan)
    finally:
        world.stop()
