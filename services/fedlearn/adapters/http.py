"""The calling side of HTTP: a client of one service, with this caller's token, that turns problems back into errors."""

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import aiohttp
import httpx
from pydantic import BaseModel, ValidationError

from fedlearn.core.errors import Code, FedlearnError, Outage, SetupError
from fedlearn.protocol.problems import Problem, error_of
from fedlearn.telemetry.logs import log

_log = log(__name__)
Answer = TypeVar("Answer", bound=BaseModel)
Result = TypeVar("Result")
_REREAD_SECONDS = 10.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.05, 5.0
# a long poll is patient with an answer, not with an address behind which there is nobody any more
_CONNECT_SECONDS = 10.0
_IDLE_SECONDS = 60.0  # less than the services keep an idle connection, so that no call meets one that closes
TICKET_HEADER = "Fedlearn-Ticket"


class TokenFile:
    """A token in a file that its issuer (kubelet) renews: read again every few seconds.

    Raises:
        SetupError: `setting_invalid` when the file can't be read.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = path, clock
        self._read_at, self._token = -_REREAD_SECONDS, ""

    def __call__(self) -> str:
        if self._clock() - self._read_at >= _REREAD_SECONDS or not self._token:
            try:
                self._token = self._path.read_text().strip()
            except OSError as error:
                raise SetupError(Code.SETTING_INVALID, f"The token in {self._path} can't be read: {error.strerror}.") from error
            self._read_at = self._clock()
        return self._token


def get_json(url: str, name: str, unreachable: Code) -> Mapping[str, Any]:
    """GET a JSON object from a service, from a thread.

    Raises:
        Outage: `unreachable`.
    """
    try:
        response = httpx.get(url, timeout=10, trust_env=False).raise_for_status()
        found: Mapping[str, Any] = response.json()
    except (httpx.HTTPError, ValueError) as error:
        raise Outage(unreachable, f"The {name} does not give {url}: {error}.") from error
    return found


def error_in(content: bytes, asked: str, status: int, name: str, unreachable: Code) -> FedlearnError:
    """The error that an answer without success stands for.

    Args:
        asked: the request's method and path.
    """
    try:
        return error_of(Problem.model_validate_json(content))
    except ValidationError:
        return Outage(unreachable, f"The {name} answered {asked} with {status} and no problem.")


class ServiceClient:
    """A client of the service at `base_url`, usable inside its `async with`.

    Args:
        name: how errors call the service.
        token: gives the bearer token of each request, or None for anonymous calls.
        unreachable: the code of the outage when it does not answer.
    """

    def __init__(self, base_url: str, name: str, *, token: Callable[[], str] | None = None, unreachable: Code) -> None:
        self._base_url, self._name, self._token, self._unreachable = base_url.rstrip("/"), name, token, unreachable
        self._entered = AsyncExitStack()
        self._session: aiohttp.ClientSession | None = None
        self._strange = False  # whether the last answer was none of the service's

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_SECONDS)
        self._session = await self._entered.enter_async_context(aiohttp.ClientSession(connector=connector))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._entered.aclose()

    async def call(
        self,
        method: str,
        path: str,
        answer: type[Answer],
        body: BaseModel | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_seconds: float = 30.0,
    ) -> Answer:
        """Send one request and read its answer.

        Raises:
            Refusal: the service's own, with its code.
            Outage: the service's own, or the client's `unreachable` code when there is no answer.
        """
        content = await self.fetch(method, path, body, headers=headers, timeout_seconds=timeout_seconds)
        try:
            return answer.model_validate_json(content)
        except ValidationError as error:
            raise Outage(
                self._unreachable, f"The {self._name} answered {method} {path} in a form that is not known."
            ) from error

    async def fetch(
        self,
        method: str,
        path: str,
        body: BaseModel | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_seconds: float = 30.0,
    ) -> bytes:
        """Send one request and return its answer's body (empty for 204); raises as `call`."""
        assert self._session is not None
        sent: dict[str, str] = dict(headers or {})
        if self._token is not None:
            sent["Authorization"] = f"Bearer {self._token()}"
        if (
            self._strange
        ):  # a proxy on the way, say, that took the connection before the service was there: it shall not keep it
            sent["Connection"] = "close"
        data = None
        if body is not None:
            data, sent["Content-Type"] = body.model_dump_json().encode(), "application/json"
        try:
            async with self._session.request(
                method,
                self._base_url + path,
                data=data,
                headers=sent,
                timeout=aiohttp.ClientTimeout(timeout_seconds, sock_connect=_CONNECT_SECONDS),
                allow_redirects=False,
            ) as response:
                status, content = response.status, await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            reason = str(error) or type(error).__name__
            raise Outage(self._unreachable, f"The {self._name} at {self._base_url} does not answer: {reason}.") from error
        if 200 <= status < 300:
            self._strange = False
            return content
        told = error_in(content, f"{method} {path}", status, self._name, self._unreachable)
        self._strange = told.code is self._unreachable
        raise told


async def persist(action: Callable[[], Awaitable[Result]], *, seconds: float = math.inf) -> Result:
    """Repeat an action while it raises `Outage`, with growing, jittered pauses; after `seconds` its outage is raised."""
    loop = asyncio.get_running_loop()
    give_up, pause = loop.time() + seconds, _FIRST_PAUSE_SECONDS
    while True:
        try:
            return await action()
        except Outage:
            if loop.time() + pause > give_up:
                raise
        await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads retries, protects nothing
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


async def first_of(work: Coroutine[Any, Any, Result], *watches: Coroutine[Any, Any, None]) -> Result:
    """Do `work` beside `watches`: if one of these fails before its end, the work is cancelled, and that failure raised."""
    doing = asyncio.create_task(work)
    watching = {asyncio.create_task(watch) for watch in watches}
    left = {doing, *watching}
    try:
        while doing in left:
            done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
            for watch in done - {doing} if doing in left else ():
                watch.result()
        return await doing
    finally:
        for task in (doing, *watching):
            task.cancel()
        await asyncio.gather(doing, *watching, return_exceptions=True)


def spawn(work: Coroutine[Any, Any, None], group: set[asyncio.Task[None]]) -> asyncio.Task[None]:
    """Start work in the background; `group` holds it while it runs, so that it can be cancelled. Its failure is logged."""

    def ended(task: asyncio.Task[None]) -> None:
        group.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("work in the background failed", exc_info=error)

    task = asyncio.create_task(work)
    group.add(task)
    task.add_done_callback(ended)
    return task
