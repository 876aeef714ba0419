"""Light clients that hold polls, and a bare app that answers as many: what the load benchmark is made of.

One process holds any number of connections, and speaks just enough HTTP/1.1 to send a prepared request and to see when its
answer is whole.
"""

import asyncio
import multiprocessing
import os
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Annotated, Any, NamedTuple

import uvicorn
import uvloop
from fastapi import Body, FastAPI

BARE_ANSWER_BYTES = 1500  # an assignment of the benchmark has about as many
CONNECTING_AT_ONCE = 200


class Answer(NamedTuple):
    """What came back on one connection, and when it was whole (UTC seconds)."""

    at: float
    status: int
    body: bytes


class _Poll(asyncio.Protocol):
    """One connection: a request at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._buffer = b""
        self._answered: asyncio.Future[Answer] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def ask(self, request: bytes) -> "asyncio.Future[Answer]":
        assert self.transport is not None
        self._buffer, self._answered = b"", asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self._answered

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found or self._answered is None or self._answered.done():
            return
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        if len(body) >= int(fields[b"content-length"]):
            self._answered.set_result(Answer(time.time(), int(head.split(b" ", 2)[1]), body))

    def connection_lost(self, error: Exception | None) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(error or ConnectionResetError("closed before its answer"))


async def _hold(port: int, orders: Connection) -> None:
    loop = asyncio.get_running_loop()
    polls: dict[int, _Poll] = {}
    waiting: dict[int, asyncio.Future[Answer]] = {}
    turns = asyncio.Semaphore(CONNECTING_AT_ONCE)

    async def ask(index: int, request: bytes) -> None:
        if index not in polls:
            async with turns:
                _, polls[index] = await loop.create_connection(_Poll, "127.0.0.1", port)
        waiting[index] = polls[index].ask(request)

    while (order := await asyncio.to_thread(orders.recv)) is not None:
        what, given = order
        if what == "ask":
            await asyncio.gather(*(ask(index, request) for index, request in given.items()))
            orders.send(time.time())
        else:  # collect: the answers that have come once there are so many, or the time is up
            count, seconds = given
            give_up = time.monotonic() + seconds
            # an event would cost each answer more than looking costs all of them
            while sum(answer.done() for answer in waiting.values()) < count and time.monotonic() < give_up:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            come = {index: answer for index, answer in waiting.items() if answer.done()}
            for index in come:
                del waiting[index]
            orders.send({index: answer.exception() or answer.result() for index, answer in come.items()})
    for answer in waiting.values():
        answer.cancel()
    for poll in polls.values():
        assert poll.transport is not None
        poll.transport.abort()


def _run(port: int, core: int, orders: Connection) -> None:
    os.sched_setaffinity(0, {core})
    uvloop.run(_hold(port, orders))


class Clients:
    """A process of light clients on one core; a context manager."""

    def __init__(self, port: int, core: int) -> None:
        self._orders, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("spawn").Process(target=_run, args=(port, core, theirs), daemon=True)

    def __enter__(self) -> "Clients":
        self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._orders.send(None)
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()

    def ask(self, requests: dict[int, bytes], seconds: float = 120.0) -> None:
        """Send each request on its client's connection; returns when all are sent."""
        self._orders.send(("ask", requests))
        self._receive(seconds)

    def collect(self, count: int, seconds: float) -> dict[int, Answer]:
        """The answers that have come once there are `count`, or after `seconds`; raises what a connection broke with."""
        self._orders.send(("collect", (count, seconds)))
        answers: dict[int, Answer | Exception] = self._receive(seconds + 30)
        broken = [answer for answer in answers.values() if isinstance(answer, Exception)]
        if broken:
            raise RuntimeError(f"{len(broken)} of {len(answers)} connections broke, the first: {broken[0]!r}")
        return {index: answer for index, answer in answers.items() if not isinstance(answer, Exception)}

    def _receive(self, seconds: float) -> Any:
        if not self._orders.poll(seconds):
            raise TimeoutError(f"The clients have not come back in {seconds:g} s.")
        return self._orders.recv()


def post(path: str, body: bytes, token: str) -> bytes:
    """A request as it goes over the wire."""
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {token}\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def bare_app() -> FastAPI:
    """Holds polls and answers them when it is told to: no identity, no fleet, no database, no answer of its own for each."""
    app, waiting, answer = FastAPI(), list[asyncio.Future[None]](), {"text": "x" * BARE_ANSWER_BYTES}

    @app.post("/v1/checkins")
    async def hold(_checkin: Annotated[dict[str, Any], Body()]) -> dict[str, str]:
        waiting.append(asyncio.get_running_loop().create_future())
        await waiting[-1]
        return answer

    @app.get("/waiting")
    async def count() -> int:
        return len(waiting)

    @app.post("/release/{devices}")
    async def release(devices: int) -> float:
        now, chosen = time.time(), waiting[:devices]
        del waiting[:devices]
        for poll in chosen:
            poll.set_result(None)
        return now

    return app


def serve_bare(port: int, core: int) -> None:
    os.sched_setaffinity(0, {core})
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        config = uvicorn.Config(bare_app(), port=port, log_config=None, access_log=False, backlog=4096)
        runner.run(uvicorn.Server(config).serve())


def percentile(values: Sequence[float], part: float) -> float:
    """The value below which this part of them lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]
