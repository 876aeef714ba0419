import asyncio
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from fedlearn.core.errors import Code, Outage, Refusal, SetupError
from fedlearn.core.ids import TaskId
from fedlearn.core.learning import Examples, Weights
from fedlearn.device import evaluator
from fedlearn.device.evaluator import Evaluator
from fedlearn.device.learners import learner_factory
from fedlearn.device.workshop import LearnerFactory, Workshop
from fedlearn.learning.synthetic import SyntheticLearner
from fedlearn.protocol.messages import Model
from fedlearn.protocol.plans import ModelEncoding, Plan
from fedlearn.protocol.tensors import encode_model
from fedlearn.protocol.views import Evaluation, EvaluationJob
from support.desk import until
from support.sealed import BASE, BASE_FILE, PLAN

TEST = Examples(np.zeros((4, 784), np.float32), np.zeros(4, np.int32))
JOB = EvaluationJob(task="t", plan_digest=PLAN.digest, model=Model.of(BASE), model_url=BASE.key)


class PlayedServer:
    """A server with versions to score, and a storage with the model; fails first with what a test says."""

    def __init__(self, *jobs: EvaluationJob) -> None:
        self.jobs = list(jobs)
        self.asked: list[str] = []
        self.scored: list[tuple[TaskId, int, Mapping[str, float]]] = []
        self.failures: list[Exception] = []
        self.fetch_failures: list[Exception] = []
        self.served, self.version = PLAN, BASE_FILE

    async def next_evaluation(self, dataset: str, wait_seconds: float) -> EvaluationJob | None:
        self.asked.append(dataset)
        if self.failures:
            raise self.failures.pop(0)
        if not self.jobs:
            await asyncio.Event().wait()
        return self.jobs.pop(0)

    async def plan(self, digest: str) -> Plan:
        return self.served

    async def evaluate(self, task: TaskId, version: int, evaluation: Evaluation) -> None:
        self.scored.append((task, version, evaluation.metrics))

    def fetch(self, url: str, *, sha256: str, size_bytes: int) -> bytes:
        if self.fetch_failures:
            raise self.fetch_failures.pop(0)
        return self.version


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluator, "_AFTER_FAILURE_SECONDS", 0.01)


@asynccontextmanager
async def running(server: PlayedServer, learner: LearnerFactory = SyntheticLearner) -> AsyncIterator[Evaluator]:
    played: Any = server
    compute = ThreadPoolExecutor(1)
    workshop = Workshop(server=played, aggregator=None, identity=None, make_learner=learner, compute=compute)
    workshop.transfer = played
    evaluating = Evaluator("mnist", TEST, workshop)
    work = asyncio.create_task(evaluating.run())
    try:
        yield evaluating
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        await asyncio.to_thread(compute.shutdown)


async def test_each_version_is_scored_on_the_test_set() -> None:
    server = PlayedServer(JOB, JOB)
    async with running(server) as evaluating:
        await until(lambda: len(server.scored) == 2)
        assert evaluating.connected
    task, version, figures = server.scored[0]
    assert (task, version, set(server.asked)) == ("t", BASE.version, {"mnist"})
    assert 0 < figures["accuracy"] < 1


@pytest.mark.parametrize(
    "failure",
    [
        Outage(Code.SERVER_UNREACHABLE, "It does not answer."),
        Refusal(Code.UNAUTHENTICATED, "The token is not known yet."),
        SetupError(Code.SETTING_INVALID, "The token's file is just being renewed."),
        ValueError("unforeseen"),
    ],
    ids=["outage", "refusal", "setup error", "unforeseen"],
)
async def test_a_failure_ends_no_evaluator(failure: Exception) -> None:
    server = PlayedServer(JOB)
    server.failures = [failure]
    async with running(server):
        await until(lambda: server.scored)


async def test_readiness_falls_when_the_server_does_not_answer() -> None:
    server = PlayedServer(JOB)
    async with running(server) as evaluating:
        await until(lambda: server.scored and len(server.asked) == 2)
        assert evaluating.connected
    server.failures = [Outage(Code.SERVER_UNREACHABLE, "It does not answer.")] * 3
    async with running(server) as evaluating:
        await until(lambda: server.failures == [])
        assert not evaluating.connected


class Idle(PlayedServer):
    """Has nothing to score, and says so once."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    async def next_evaluation(self, dataset: str, wait_seconds: float) -> EvaluationJob | None:
        self.waits.append(wait_seconds)
        if len(self.waits) > 1:
            await asyncio.Event().wait()
        return None


async def test_readiness_does_not_wait_until_there_is_something_to_score() -> None:
    server = Idle()
    async with running(server) as evaluating:
        await until(lambda: len(server.waits) == 2)
        assert evaluating.connected
    assert server.waits == [1.0, 30.0]


@pytest.mark.parametrize("encoding", ["float32", "float16"])
async def test_keras_scores_the_version_itself_however_the_model_travels_to_devices(encoding: ModelEncoding) -> None:
    make_learner, _ = learner_factory("keras")
    from fedlearn.learning.models import get_weights, make_plan
    from fedlearn.learning.runtime import keras

    layers = [keras.Input((784,)), keras.layers.Dense(10, activation="softmax")]
    model = keras.Sequential(layers)
    plan = make_plan(model, dataset="mnist", model_encoding=encoding)
    version = encode_model(get_weights(model, plan), plan)  # as a submitter or the aggregator writes it: in float32
    server = PlayedServer(JOB.model_copy(update={"plan_digest": plan.digest}))
    server.served, server.version = plan, version
    async with running(server, make_learner):
        await until(lambda: server.scored, seconds=60)
    assert set(server.scored[0][2]) == {"loss", "accuracy"}


class Diverged(SyntheticLearner):
    def evaluate(self, weights: Weights, examples: Examples) -> Any:
        return {"loss": float("nan"), "accuracy": 0.1}


async def test_a_figure_that_is_no_number_is_left_out() -> None:
    server = PlayedServer(JOB)
    async with running(server, Diverged):
        await until(lambda: server.scored)
    assert server.scored[0][2] == {"accuracy": 0.1}


class Fails(SyntheticLearner):
    def evaluate(self, weights: Weights, examples: Examples) -> Any:
        raise ValueError("The test set does not fit this model.")


async def test_a_version_that_cannot_be_scored_does_not_hold_up_the_next() -> None:
    server = PlayedServer(JOB, JOB)
    async with running(server, Fails):
        await until(lambda: len(server.scored) == 2)
    assert [figures for _, _, figures in server.scored] == [{}, {}]


@pytest.mark.parametrize("code", [Code.PLAN_INVALID, Code.MODEL_MISMATCH, Code.SHARD_INVALID, Code.NOT_FOUND])
async def test_a_fault_of_the_version_itself_does_not_hold_up_the_next(code: Code) -> None:
    server = PlayedServer(JOB, JOB)
    server.fetch_failures = [Refusal(code, "It will be so again.")]
    async with running(server):
        await until(lambda: len(server.scored) == 2)
    assert [bool(figures) for _, _, figures in server.scored] == [False, True]


@pytest.mark.parametrize(
    "failure",
    [
        Outage(Code.STORAGE_UNAVAILABLE, "It does not answer."),
        Refusal(Code.FORBIDDEN, "The URL has expired."),
        Refusal(Code.UNAUTHENTICATED, "The token is not known yet."),
        SetupError(Code.SETTING_INVALID, "The token's file is just being renewed."),
    ],
    ids=lambda failure: failure.code,
)
async def test_what_passes_costs_a_version_no_figures(failure: Exception) -> None:
    server = PlayedServer(JOB, JOB)
    server.fetch_failures = [failure]
    async with running(server):
        await until(lambda: server.scored)
    assert server.scored[0][2]
