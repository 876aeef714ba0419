"""What the evaluator calls: the next version to score, and its figures."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response

from fedlearn.adapters.gate import Gate
from fedlearn.adapters.identity import Caller
from fedlearn.adapters.openapi import BY_TOKEN, problems
from fedlearn.config import ServerSettings
from fedlearn.core.errors import Code
from fedlearn.core.ids import TaskId
from fedlearn.protocol.messages import Model, TaskName, VersionNumber
from fedlearn.protocol.views import Evaluation, EvaluationJob
from fedlearn.server.coordinator import Coordinator
from fedlearn.server.forwarding import BY_LEADER, at_leader
from fedlearn.telemetry.metrics import tasks as metrics

_URL_SECONDS = 3600


def evaluator_routes(coordinator: Coordinator, gate: Gate, settings: ServerSettings) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["evaluator"])
    admit = gate.admit(settings.identity.evaluator)
    Evaluator = Annotated[Caller, Depends(admit)]  # noqa: N806 - a type
    around = coordinator.around

    @router.get(
        "/evaluations/next",
        summary="Wait for a version to score.",
        response_model=EvaluationJob,
        responses={204: {"description": "None now."}, **problems(*BY_TOKEN)},
    )
    async def next_evaluation(
        dataset: Annotated[str, Query(min_length=1, max_length=200, examples=["mnist"])],
        _caller: Evaluator,
        wait_seconds: Annotated[float, Query(ge=0, le=300)] = 30.0,
    ) -> EvaluationJob | Response:
        version = await coordinator.unevaluated(dataset, min(wait_seconds, settings.max_checkin_seconds))
        if version is None:
            return Response(status_code=204)
        task = await asyncio.to_thread(around.store.task, version.task)
        url = around.models.sign_get(version.ref.key, seconds=_URL_SECONDS)
        return EvaluationJob(task=task.id, plan_digest=task.plan_digest, model=Model.of(version.ref), model_url=url)

    @router.put(
        "/evaluations/{task}/{version}",
        dependencies=[Depends(admit), Depends(at_leader)],
        status_code=204,
        summary="The figures of a version on the test set.",
        responses=problems(*BY_TOKEN, *BY_LEADER, Code.MODEL_UNKNOWN),
    )
    async def evaluate(task: TaskName, version: VersionNumber, evaluation: Evaluation, _caller: Evaluator) -> None:
        await asyncio.to_thread(around.store.evaluate, TaskId(task), version, evaluation.metrics)
        metrics.scored(task, version, evaluation.metrics)
        coordinator.announce_versions()
        around.feed.version(TaskId(task), version)

    return router
