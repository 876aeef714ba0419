"""The serving side of HTTP: every service's app has the same problems, health, readiness, metrics and way to stop."""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from types import FrameType

import uvicorn
import uvloop
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedlearn import __version__
from fedlearn.adapters.answers import problem_answer
from fedlearn.adapters.limits import Limits, punctual_protocol, raise_file_limit, too_large
from fedlearn.adapters.openapi import DocumentedApp, problems
from fedlearn.config import LimitSettings
from fedlearn.core.errors import Code, FedlearnError, Outage, Refusal, SetupError
from fedlearn.telemetry import metrics
from fedlearn.telemetry.logs import log
from fedlearn.telemetry.metrics import http as http_metrics

_log = log(__name__)

_IDLE_SECONDS = 75  # longer than our callers keep an idle connection
_SPARE_FILES = 1000  # beside those of the open requests: idle connections, probes, the database
Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]
Ready = Callable[[], Awaitable[None]]


def make_app(
    title: str,
    description: str,
    *,
    lifespan: Lifespan,
    ready: Ready,
    unready: Code,
    on_stop: Callable[[], None] = lambda: None,
    on_scrape: Callable[[], None] = lambda: None,
    limits: LimitSettings | None = None,
) -> FastAPI:
    """An app with problems (RFC 9457) for every failure, `/healthz`, `/readyz` and `/metrics`.

    Args:
        ready: raises a FedlearnError while the service can't do its job.
        unready: its code, when what the service stands on is away; every route may give it.
        on_stop: called as soon as the service is asked to stop, so that it can let go of the requests that it holds.
        on_scrape: called in the event loop before the metrics are read, for those that are counted then.
        limits: what callers may ask; the settings' defaults where none are given.
    """
    app = DocumentedApp(title=title, description=description, version=__version__, lifespan=lifespan, common=(unready,))
    app.state.on_stop, app.state.limits = on_stop, limits or LimitSettings()
    app.add_middleware(Limits, limits=app.state.limits)
    app.add_middleware(_Stopwatch)
    app.add_exception_handler(FedlearnError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(AnyHTTPException, _on_http)
    app.add_exception_handler(Exception, _on_crash)

    @app.get("/healthz", tags=["health"], summary="Whether the process is alive.")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.get(
        "/readyz",
        tags=["health"],
        summary="Whether the service can do its job now.",
        response_model=dict[str, str],
        responses=problems(unready),
    )
    async def readyz() -> dict[str, str] | Response:
        try:
            await ready()
        except FedlearnError as error:
            return problem_answer(error, at_least=503)  # whatever it is elsewhere, here it says: not now
        return {"status": "ready"}

    @app.get("/metrics", tags=["health"], summary="Metrics for Prometheus.", response_class=Response)
    async def read_metrics() -> Response:
        on_scrape()
        body, content_type = await asyncio.to_thread(metrics.render)
        return Response(body, media_type=content_type)

    return app


class Probe:
    """Asks whether a dependency answers, for `/readyz`: in one thread at most, and for `seconds` at most.

    Args:
        ask: calls the dependency from a thread; an `Outage` is passed on.
        code: of the outage when there is no answer in time.
        name: how that outage calls the dependency.
    """

    def __init__(self, ask: Callable[[], object], code: Code, name: str, *, seconds: float = 2.0) -> None:
        self._ask, self._code, self._name, self._seconds = ask, code, name, seconds
        self._asking: asyncio.Task[object] | None = None

    async def __call__(self) -> None:
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(asyncio.to_thread(self._ask))
            self._asking.add_done_callback(_look)  # nobody may wait for it any more
        done, _ = await asyncio.wait({self._asking}, timeout=self._seconds)
        if not done:
            raise Outage(self._code, f"The {self._name} has not answered for {self._seconds:g} s.")
        await self._asking


def _look(asked: asyncio.Task[object]) -> None:
    """Take note of how it has ended: what nobody looks at is logged as an error by asyncio, with its trace."""
    if not asked.cancelled():
        asked.exception()


async def _on_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, FedlearnError)
    return problem_answer(error)


async def _on_invalid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5])
    return problem_answer(Refusal(Code.BAD_REQUEST, f"The request is not as documented: {faults}."))


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, AnyHTTPException)
    refusals = {
        404: Refusal(Code.NOT_FOUND, f"There is nothing at {request.url.path}."),
        405: Refusal(Code.METHOD_NOT_ALLOWED, f"{request.url.path} does not take {request.method}."),
        413: too_large(request.app.state.limits),
    }
    other = Refusal(Code.BAD_REQUEST, f"The request is not as documented: {error.detail}.")
    answer = problem_answer(refusals.get(error.status_code, other))
    answer.headers.update(error.headers or {})  # Allow, for 405
    return answer


async def _on_crash(request: Request, error: Exception) -> Response:
    _log.error("unforeseen failure", path=request.url.path, exc_info=error)
    return problem_answer(Outage(Code.INTERNAL, "The service failed in a way it did not foresee."))


def _name(route: object) -> str | None:
    """A route's methods and template: of our own making, whatever a caller sends."""
    path, methods = getattr(route, "path", None), getattr(route, "methods", None)
    return f"{'/'.join(sorted(methods - {'HEAD'}))} {path}" if path and methods else None


class _Stopwatch:
    """Times every request, by the template of its route."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                http_metrics.prepare(filter(None, map(_name, iter_route_contexts(scope["app"].routes))))
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            route = _name(scope.get("route"))  # the router has left it there
            http_metrics.observe(route or http_metrics.NO_ROUTE, status, time.perf_counter() - began)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_stop, self._loop = on_stop, asyncio.get_running_loop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._loop.call_soon_threadsafe(self._on_stop)
        super().handle_exit(sig, frame)


async def gone(request: Request) -> None:
    """Returns when the caller has hung up; for routes that hold a request whose body is read."""
    while (await request.receive())["type"] != "http.disconnect":
        continue


def serve(app: FastAPI, listener: socket.socket, *, grace_seconds: int = 10) -> None:
    """Serve, on uvloop, until SIGTERM or SIGINT, then let running requests end for `grace_seconds`.

    Raises:
        SetupError: `service_failed` when the app could not start.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(app, listener, grace_seconds))


async def _serve(app: FastAPI, listener: socket.socket, grace_seconds: int) -> None:
    limits: LimitSettings = app.state.limits
    raise_file_limit(limits.open_requests + _SPARE_FILES)
    config = uvicorn.Config(
        app,
        http=punctual_protocol(limits.arrival_seconds),
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=grace_seconds,
        timeout_keep_alive=_IDLE_SECONDS,
        backlog=4096,
        proxy_headers=False,
        server_header=False,
    )
    server = _Server(config, on_stop=app.state.on_stop)
    await server.serve(sockets=[listener])
    if not server.started:
        raise SetupError(Code.SERVICE_FAILED, f"{app.title} could not start; its log says why.")
