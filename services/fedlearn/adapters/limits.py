"""What one caller, or all of them, may ask of a service: how much, how many at once, how often."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from fastapi import HTTPException, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fedlearn.adapters.answers import problem_answer
from fedlearn.config import LimitSettings
from fedlearn.core.errors import Code, Outage, Refusal

HEALTH = ("/healthz", "/readyz", "/metrics")
_BURST_SECONDS = 25.0  # all slots of a large device process may call at once, when their round begins or ends
_REMEMBERED = 100_000


class Rate:
    """So many events a second for each name, and after a pause as many as in 25 seconds at once."""

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second, self._burst, self._clock = per_second, per_second * _BURST_SECONDS, clock
        self._spent: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str) -> None:
        """Count an event.

        Raises:
            Outage: `too_many_requests`; it is not counted.
        """
        self.check(name)
        self._spent[name] = self._of(name) + 1.0, self._clock()
        self._spent.move_to_end(name)
        if len(self._spent) > _REMEMBERED:
            self._spent.popitem(last=False)

    def check(self, name: str) -> None:
        """Raises:
        Outage: `too_many_requests` where another event would be one too many.
        """
        if self._of(name) + 1.0 > self._burst:
            raise Outage(Code.TOO_MANY_REQUESTS, f"{name} asks more than {self._per_second:g} times a second.")

    def _of(self, name: str) -> float:
        """How many events are still held against it."""
        spent, at = self._spent.get(name, (0.0, 0.0))
        return max(0.0, spent - self._per_second * (self._clock() - at))


class Rates:
    """Of pods by their names; of callers who show no token, or a wrong one, by their addresses."""

    def __init__(self, limits: LimitSettings) -> None:
        self.callers = Rate(limits.requests_per_second)
        self.failures = Rate(limits.failures_per_second)

    async def by_address(self, request: Request) -> None:
        """A FastAPI dependency of routes that are open to anybody."""
        self.callers.take(address_of(request))


def address_of(request: Request) -> str:
    """Where a request comes from."""
    return request.client.host if request.client is not None else "unknown"


class Limits:
    """Middleware: refuses a body that is longer than any message, before it is held in memory, and a request too many."""

    def __init__(self, app: ASGIApp, limits: LimitSettings) -> None:
        self._app, self._limits, self._open = app, limits, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in HEALTH:
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > self._limits.body_bytes:
            await problem_answer(too_large(self._limits))(scope, receive, send)
            return
        if self._open >= self._limits.open_requests:
            busy = Outage(Code.BUSY, f"{self._open} requests are open here, and no more may be.")
            await problem_answer(busy)(scope, receive, send)
            return
        self._open += 1
        try:
            await self._app(scope, self._counted(receive), send)
        finally:
            self._open -= 1

    def _counted(self, receive: Receive) -> Receive:
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._limits.body_bytes:  # of all errors FastAPI passes only an HTTPException on from here
                raise HTTPException(413)
            return message

        return counted


def too_large(limits: LimitSettings) -> Refusal:
    return Refusal(Code.BODY_TOO_LARGE, f"A body may have {limits.body_bytes} bytes.")


class PunctualProtocol(HttpToolsProtocol):
    """uvicorn's protocol, but a connection whose request has not come whole in time is closed."""

    arrival_seconds = 60.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._arriving: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._arrived()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expect()

    def on_message_complete(self) -> None:
        self._arrived()
        super().on_message_complete()

    def _expect(self) -> None:
        self._arrived()
        self._arriving = self.loop.call_later(self.arrival_seconds, self.transport.close)

    def _arrived(self) -> None:
        if self._arriving is not None:
            self._arriving.cancel()
            self._arriving = None


def punctual_protocol(seconds: float) -> type[PunctualProtocol]:
    return type("PunctualProtocol", (PunctualProtocol,), {"arrival_seconds": seconds})


def raise_file_limit(wanted: int) -> None:
    """Let this process have so many open files, or as many as it may: each connection is one."""
    try:
        import resource  # noqa: PLC0415 - Windows has none
    except ModuleNotFoundError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
