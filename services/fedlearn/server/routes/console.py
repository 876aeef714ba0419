"""The page at `/`, and what it reads."""

import asyncio
from collections.abc import Callable
from importlib.resources import files
from pathlib import PurePath
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Response
from fastapi.responses import StreamingResponse

from fedlearn.adapters.gate import operator_gate
from fedlearn.adapters.limits import Rates
from fedlearn.adapters.openapi import BY_OPERATOR, problems
from fedlearn.core.errors import Code, Refusal
from fedlearn.core.ids import TaskId
from fedlearn.core.ports import RoundStore
from fedlearn.protocol.console import AuditView, EventView, History, Overview
from fedlearn.protocol.messages import TaskName
from fedlearn.server.console.feed import Feed
from fedlearn.server.console.overview import Console, audit_views, event_view, read

_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
Limit = Annotated[int, Query(ge=1, le=1000, description="How many.")]
Before = Annotated[int | None, Query(ge=0, description="Only entries with a lower number.")]


def page_routes() -> APIRouter:
    """The page and what belongs to it. Nothing of it comes from elsewhere, and nothing of it is inline."""
    router = APIRouter(include_in_schema=False)
    directory = files("fedlearn.server.console") / "assets"
    assets = {asset.name: asset.read_bytes() for asset in directory.iterdir() if PurePath(asset.name).suffix in _TYPES}

    def answer(name: str) -> Response:
        if name not in assets:
            raise Refusal(Code.NOT_FOUND, f"There is nothing at /console/{name}.")
        return Response(assets[name], headers=_HEADERS, media_type=_TYPES[PurePath(name).suffix])

    @router.get("/")
    async def page() -> Response:
        return answer("index.html")

    @router.get("/console/{name}")
    async def asset(name: str) -> Response:
        return answer(name)

    return router


def console_routes(console: Console, feed: Feed, store: RoundStore, token: Callable[[], str], rates: Rates) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["operators"])

    @router.get("/overview", summary="Everything that the console shows at first.")
    async def overview() -> Overview:
        return await console.overview()

    @router.get(
        "/stream",
        summary="Server-sent events: the overview, then its `changes`, and a `beat` when it is quiet.",
        response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {}}}, **problems(Code.TOO_MANY_PAGES)},
    )
    async def stream(
        last_event_id: Annotated[str | None, Header(max_length=100, description="Go on after this event.")] = None,
        after: Annotated[str | None, Query(max_length=100, description="The same, where no header can be sent.")] = None,
    ) -> StreamingResponse:
        feed.admit()
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(feed.stream(last_event_id or after), media_type="text/event-stream", headers=headers)

    @router.get(
        "/tasks/{task}/history", summary="A task's last rounds in brief, and versions.", responses=problems(Code.TASK_UNKNOWN)
    )
    async def history(task: TaskName) -> History:
        return await console.history(TaskId(task))

    @router.get("/events", summary="The event log, newest first.")
    async def events(limit: Limit = 200, before: Before = None) -> list[EventView]:
        found = await read(store.happenings, limit, before)
        return [event_view(happening, number) for number, happening in found]

    @router.get(
        "/audit",
        summary="Who did what with the operators' token, newest first.",
        dependencies=[Depends(operator_gate(token, rates))],
        responses=problems(*BY_OPERATOR),
    )
    async def audit(limit: Limit = 200, before: Before = None) -> list[AuditView]:
        return audit_views(await asyncio.to_thread(store.audit_entries, limit, before))

    return router
