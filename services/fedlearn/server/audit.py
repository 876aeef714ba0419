"""Every action of an operator goes to the audit log before it is answered, and to the event log if it changed something."""

from collections.abc import Callable
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from fedlearn.core.errors import FedlearnError
from fedlearn.core.happenings import AuditEntry, Happening, Kind
from fedlearn.core.ids import TaskId
from fedlearn.server.console.overview import read
from fedlearn.server.surroundings import Surroundings

_SAYS = {
    "submit": "The task was submitted",
    "start": "The task was started",
    "cancel": "The task was cancelled",
    "pause": "The task was paused",
    "resume": "The task was resumed",
    "roll_back": "The task was rolled back to version {version}",
    "pin": "Version {version} was labelled {label}",
    "unpin": "The label {label} was removed",
}


def audited(around: Surroundings) -> type[APIRoute]:
    """The class of routes whose callers `operator_gate` has admitted; routes that anybody may call leave nothing.

    An action is named after the function of its route.
    """

    class AuditedRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Any]:
            handle = super().get_route_handler()

            async def handle_and_note(request: Request) -> Response:
                try:
                    response: Response = await handle(request)
                except FedlearnError as error:
                    await _note(around, request, self.name, error.code)
                    raise
                await _note(around, request, self.name, "done")
                return response

            return handle_and_note

    return AuditedRoute


async def _note(around: Surroundings, request: Request, action: str, outcome: str) -> None:
    actor: str | None = getattr(request.state, "operator", None)
    if actor is None:
        return
    named = request.path_params.get("task")
    if named is None and request.method == "POST" and outcome == "done":
        named = (await request.json())["task"]  # a submission names its task in the body
    task, now = None if named is None else TaskId(named), around.clock()
    await read(around.store.audit, AuditEntry(now, actor, action, task, outcome))
    if task is not None and outcome == "done" and action in _SAYS:
        what = _SAYS[action].format_map(request.path_params)
        told = [Happening(Kind.TASK_CHANGED, now, task, detail=f"{what} by an operator.")]
        await read(around.store.log, told)
        around.feed.happened(told)
        around.feed.task(task)
        if "version" in request.path_params or "label" in request.path_params:
            around.feed.versions(task)
