"""How operators steer tasks that run: pause and resume, back to an earlier version, labels on versions."""

import asyncio
from typing import Any

from fastapi import APIRouter, Depends

from fedlearn.adapters.openapi import BY_OPERATOR, problems
from fedlearn.core.errors import Code
from fedlearn.core.ids import TaskId
from fedlearn.protocol.messages import Label, TaskName, VersionNumber
from fedlearn.protocol.views import RollBack, TaskView, VersionView
from fedlearn.server.coordinator import Coordinator
from fedlearn.server.forwarding import BY_LEADER, at_leader
from fedlearn.server.views import task_view, version_view


def add_steering_routes(router: APIRouter, coordinator: Coordinator, operator: list[Any]) -> None:
    """Add to the routes under `/v1/tasks`."""
    store = coordinator.around.store

    @router.post(
        "/{task}/pause",
        dependencies=[*operator, Depends(at_leader)],
        summary="Let the running round end, and start no other.",
        responses=problems(*BY_OPERATOR, *BY_LEADER, Code.TASK_UNKNOWN, Code.TASK_STATE),
    )
    async def pause(task: TaskName) -> TaskView:
        return task_view(await coordinator.pause(TaskId(task), True))

    @router.post(
        "/{task}/resume",
        dependencies=[*operator, Depends(at_leader)],
        summary="Go on with a paused task.",
        responses=problems(*BY_OPERATOR, *BY_LEADER, Code.TASK_UNKNOWN, Code.TASK_STATE),
    )
    async def resume(task: TaskName) -> TaskView:
        return task_view(await coordinator.pause(TaskId(task), False))

    @router.post(
        "/{task}/models/{version}/rollback",
        dependencies=[*operator, Depends(at_leader)],
        summary="Make this version the task's model again, as a new version: the next round starts from it.",
        responses=problems(*BY_OPERATOR, *BY_LEADER, Code.TASK_UNKNOWN, Code.MODEL_UNKNOWN, Code.BASE_SUPERSEDED),
    )
    async def roll_back(task: TaskName, version: VersionNumber, expected: RollBack | None = None) -> VersionView:
        current = None if expected is None else expected.current
        return version_view(await coordinator.roll_back(TaskId(task), version, current))

    @router.put(
        "/{task}/models/{version}/labels/{label}",
        dependencies=operator,
        summary="Give this version a label, such as production, which leaves the version that had it.",
        responses=problems(*BY_OPERATOR, Code.MODEL_UNKNOWN),
    )
    async def pin(task: TaskName, version: VersionNumber, label: Label) -> VersionView:
        return version_view(await asyncio.to_thread(store.pin, TaskId(task), version, label))

    @router.delete(
        "/{task}/labels/{label}",
        status_code=204,
        dependencies=operator,
        summary="Remove a label.",
        responses=problems(*BY_OPERATOR),
    )
    async def unpin(task: TaskName, label: Label) -> None:
        await asyncio.to_thread(store.unpin, TaskId(task), label)
