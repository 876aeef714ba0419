"""What only the leader can answer, asked of another replica: the request goes to the leader, and its answer back."""

import asyncio
from collections.abc import Callable

import aiohttp
from fastapi import Request, Response

from fedlearn.core.errors import Code, FedlearnError, Outage
from fedlearn.core.ports import RoundStore
from fedlearn.core.replicas import Leader
from fedlearn.protocol.problems import Problem
from fedlearn.telemetry.logs import log

_log = log(__name__)
_PATIENCE_SECONDS = 12.0  # for a leader; a bit more than it costs to find a new one
_ANSWER_SECONDS = 30.0
_LOOK_AGAIN_SECONDS = 0.5
_PASSED_ON = ("authorization", "content-type", "accept", "user-agent")
_GIVEN_BACK = ("content-type", "www-authenticate", "allow", "retry-after")
_HEADER = "Fedlearn-Forwarded"


BY_LEADER = (Code.NOT_LEADER, Code.SERVER_UNREACHABLE)
"""What every route gives that only the leader can answer."""


class Answered(Exception):
    """The leader has answered: its response takes the place of this replica's."""

    def __init__(self, response: Response) -> None:
        super().__init__()
        self.response = response


async def give_back(_request: Request, error: Exception) -> Response:
    """The handler of `Answered`."""
    assert isinstance(error, Answered)
    return error.response


async def at_leader(request: Request) -> None:
    """A FastAPI dependency of routes that only the leader can answer. It stands behind the one that checks the caller's token:
    the leader checks it once more, but sees no wrong ones, which it would hold against this replica.

    Raises:
        Answered: this replica does not lead.
        Outage: `not_leader` when no leader takes the request in time, `server_unreachable` when it may have.
    """
    forwarder: Forwarder | None = getattr(request.app.state, "forwarder", None)
    if forwarder is not None:
        await forwarder.pass_on(request)


class _NotTaken(Exception):
    """The request has not reached a leader: it may be sent again."""


class Forwarder:
    """Usable inside its `async with`.

    Args:
        leads: whether this replica does.
        name: this replica's, by which it knows itself as the leader of before.
    """

    def __init__(self, store: RoundStore, name: str, leads: Callable[[], bool]) -> None:
        self._store, self._name, self._leads = store, name, leads
        self._leader: Leader | None = None
        self._news = asyncio.Event()
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "Forwarder":
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60),
            timeout=aiohttp.ClientTimeout(_ANSWER_SECONDS, sock_connect=2.0),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

    def look_again(self) -> None:
        """Another replica has begun to lead, or this one."""
        self._leader = None
        self._news.set()
        self._news = asyncio.Event()

    async def pass_on(self, request: Request) -> None:
        """Return if this replica leads; else raise what `at_leader` does."""
        give_up = asyncio.get_running_loop().time() + _PATIENCE_SECONDS
        while not self._leads():
            if _HEADER in request.headers:
                raise Outage(Code.NOT_LEADER, "This replica of the server does not lead the rounds.")
            news = self._news
            try:
                raise Answered(await self._ask(request))
            except _NotTaken:
                self._leader = None
            if asyncio.get_running_loop().time() > give_up:
                raise Outage(Code.NOT_LEADER, "No replica of the server leads the rounds now: try again.")
            try:
                async with asyncio.timeout(_LOOK_AGAIN_SECONDS):
                    await news.wait()
            except TimeoutError:
                continue

    async def _ask(self, request: Request) -> Response:
        leader = await self._find()
        if leader is None or leader.holder == self._name:  # its own epoch is over, or has not quite begun
            raise _NotTaken
        assert self._session is not None
        url = leader.address + request.url.path + (f"?{request.url.query}" if request.url.query else "")
        headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
        try:
            async with self._session.request(
                request.method,
                url,
                data=await request.body(),
                headers={**headers, _HEADER: self._name},
                allow_redirects=False,
            ) as answer:
                content = await answer.read()
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise _NotTaken from error
        except (aiohttp.ClientError, TimeoutError) as error:
            self._leader = None
            raise Outage(Code.SERVER_UNREACHABLE, "The server that leads has not answered: repeat the call.") from error
        if answer.status == 503 and _is_no_leader(content):
            raise _NotTaken
        given = {name: answer.headers[name] for name in _GIVEN_BACK if name in answer.headers}
        return Response(content, answer.status, given)

    async def _find(self) -> Leader | None:
        if self._leader is None:
            try:
                self._leader = await asyncio.to_thread(self._store.leader)
            except FedlearnError as error:
                _log.warning("the leader can't be looked up", code=error.code, detail=error.detail)
        return self._leader


def _is_no_leader(content: bytes) -> bool:
    try:
        return Problem.model_validate_json(content).code is Code.NOT_LEADER
    except ValueError:
        return False
