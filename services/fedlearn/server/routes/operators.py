"""What people and their tools call: tasks, rounds and versions. Reading is open; what changes something wants the token."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from fastapi.responses import StreamingResponse

from fedlearn.adapters.gate import operator_gate
from fedlearn.adapters.limits import Rates
from fedlearn.adapters.openapi import BY_OPERATOR, problems
from fedlearn.core.errors import Code, Refusal
from fedlearn.core.ids import RoundId, TaskId
from fedlearn.protocol.messages import Model, RoundNumber, TaskName, VersionNumber
from fedlearn.protocol.views import Download, RoundView, TaskAccepted, TaskSubmission, TaskView, VersionView
from fedlearn.server.audit import audited
from fedlearn.server.coordinator import Coordinator
from fedlearn.server.forwarding import BY_LEADER, at_leader
from fedlearn.server.routes.steering import add_steering_routes
from fedlearn.server.submission import start_task, submit_task
from fedlearn.server.views import round_view, task_view, version_view

_URL_SECONDS = 3600
_READ_BYTES = 4 * 1024 * 1024
read = asyncio.to_thread


def operator_routes(coordinator: Coordinator, token: Callable[[], str], rates: Rates) -> APIRouter:
    """Everything under `/v1/tasks`."""
    router = APIRouter(prefix="/v1/tasks", tags=["operators"], route_class=audited(coordinator.around))
    operator = [Depends(operator_gate(token, rates))]
    _task_routes(router, coordinator, operator)
    _round_routes(router, coordinator)
    _model_routes(router, coordinator, operator)
    add_steering_routes(router, coordinator, operator)
    return router


def _task_routes(router: APIRouter, coordinator: Coordinator, operator: list[Any]) -> None:
    store = coordinator.around.store

    @router.post(
        "",
        status_code=201,
        dependencies=operator,
        summary="Submit a task; then upload version 0 and start it.",
        responses=problems(
            *BY_OPERATOR, Code.PLAN_INVALID, Code.TASK_EXISTS, Code.COHORT_TOO_SMALL, Code.AGGREGATOR_UNREACHABLE
        ),
    )
    async def submit(submission: TaskSubmission) -> TaskAccepted:
        return await submit_task(coordinator, submission)

    @router.post(
        "/{task}/start",
        dependencies=[*operator, Depends(at_leader)],
        summary="Version 0 is uploaded: begin with the rounds.",
        responses=problems(
            *BY_OPERATOR,
            *BY_LEADER,
            Code.TASK_UNKNOWN,
            Code.TASK_STATE,
            Code.MODEL_MISSING,
            Code.MODEL_MISMATCH,
            Code.STORAGE_UNAVAILABLE,
            Code.STORAGE_DENIED,
        ),
    )
    async def start(task: TaskName) -> TaskView:
        started = await start_task(coordinator, TaskId(task))
        coordinator.around.feed.version(started.id, started.upload.version)
        return task_view(started)

    @router.post(
        "/{task}/cancel",
        dependencies=[*operator, Depends(at_leader)],
        summary="End a task and abandon its running round.",
        responses=problems(*BY_OPERATOR, *BY_LEADER, Code.TASK_UNKNOWN),
    )
    async def cancel(task: TaskName) -> TaskView:
        await read(store.task, TaskId(task))
        await coordinator.cancel(TaskId(task))
        return task_view(await read(store.task, TaskId(task)))

    @router.get("", summary="All tasks.")
    async def tasks() -> list[TaskView]:
        return [task_view(task) for task in await read(store.tasks)]

    @router.get("/{task}", summary="One task.", responses=problems(Code.TASK_UNKNOWN))
    async def one_task(task: TaskName) -> TaskView:
        return task_view(await read(store.task, TaskId(task)))

    @router.get("/{task}/plan", summary="A task's plan.", responses=problems(Code.TASK_UNKNOWN))
    async def plan(task: TaskName) -> dict[str, Any]:
        found = await read(store.task, TaskId(task))
        return (await coordinator.plan(found.plan_digest)).model_dump(mode="json")


def _round_routes(router: APIRouter, coordinator: Coordinator) -> None:
    around, store = coordinator.around, coordinator.around.store

    @router.get("/{task}/rounds", summary="All rounds of a task.", responses=problems(Code.TASK_UNKNOWN))
    async def task_rounds(task: TaskName) -> list[RoundView]:
        await read(store.task, TaskId(task))
        return [round_view(round_, around.clock) for round_ in await read(store.rounds, TaskId(task))]

    @router.get(
        "/{task}/rounds/current",
        summary="The latest round; with `wait_seconds`, after its next change.",
        responses=problems(Code.TASK_UNKNOWN, Code.ROUND_UNKNOWN),
    )
    async def current(task: TaskName, wait_seconds: Annotated[float, Query(ge=0, le=60)] = 0.0) -> RoundView:
        if wait_seconds:
            await coordinator.changed(TaskId(task), wait_seconds)
        latest = await read(store.latest_round, TaskId(task))
        if latest is None:
            await read(store.task, TaskId(task))
            raise Refusal(Code.ROUND_UNKNOWN, f"The task {task!r} has no round yet.")
        return round_view(latest, around.clock)

    @router.get("/{task}/rounds/{number}", summary="One round.", responses=problems(Code.ROUND_UNKNOWN))
    async def one_round(task: TaskName, number: RoundNumber) -> RoundView:
        return round_view(await read(store.round, RoundId(TaskId(task), number)), around.clock)


def _model_routes(router: APIRouter, coordinator: Coordinator, operator: list[Any]) -> None:
    around, store = coordinator.around, coordinator.around.store

    @router.get("/{task}/models", summary="All versions of a task's model.", responses=problems(Code.TASK_UNKNOWN))
    async def models(task: TaskName) -> list[VersionView]:
        await read(store.task, TaskId(task))
        return [version_view(version) for version in await read(store.versions, TaskId(task))]

    @router.get(
        "/{task}/models/{version}/download",
        dependencies=operator,
        summary="A signed URL of one version.",
        responses=problems(*BY_OPERATOR, Code.MODEL_UNKNOWN),
    )
    async def download(task: TaskName, version: VersionNumber) -> Download:
        ref = (await read(store.version, TaskId(task), version)).ref
        url = around.models.sign_get(ref.key, seconds=_URL_SECONDS)
        return Download(model=Model.of(ref), url=url, valid_seconds=_URL_SECONDS)

    @router.get(
        "/{task}/models/{version}/file",
        dependencies=operator,
        summary="One version's file, for those who can't reach the object storage: a browser behind a port-forward.",
        response_class=StreamingResponse,
        responses={
            200: {"content": {"application/octet-stream": {}}},
            **problems(*BY_OPERATOR, Code.MODEL_UNKNOWN, Code.STORAGE_UNAVAILABLE, Code.STORAGE_DENIED),
        },
    )
    async def download_file(task: TaskName, version: VersionNumber) -> StreamingResponse:
        ref = (await read(store.version, TaskId(task), version)).ref
        first = await read(around.models.get, ref.key, length=min(_READ_BYTES, ref.size_bytes))

        async def parts() -> AsyncIterator[bytes]:
            yield first
            for start in range(len(first), ref.size_bytes, _READ_BYTES):
                yield await read(around.models.get, ref.key, start=start, length=_READ_BYTES)

        headers = {
            "Content-Disposition": f'attachment; filename="{task}-{version}.safetensors"',
            "Content-Length": str(ref.size_bytes),
        }
        return StreamingResponse(parts(), media_type="application/octet-stream", headers=headers)
