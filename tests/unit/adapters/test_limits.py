import asyncio
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request

from fedlearn.adapters.limits import Rate, punctual_protocol, raise_file_limit
from fedlearn.adapters.listeners import listen
from fedlearn.adapters.web import make_app
from fedlearn.config import LimitSettings
from fedlearn.core.errors import Code, Outage
from fedlearn.protocol.problems import error_of, problem_of


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class TestRate:
    def test_a_burst_is_let_through_and_then_so_many_a_second(self) -> None:
        clock = Clock()
        rate = Rate(2.0, clock)
        for _ in range(50):
            rate.take("a")
        with pytest.raises(Outage) as refused:
            rate.take("a")
        assert refused.value.code is Code.TOO_MANY_REQUESTS
        rate.take("b")
        clock.now += 1.0
        rate.take("a")
        rate.take("a")
        with pytest.raises(Outage):
            rate.take("a")

    def test_checking_counts_nothing(self) -> None:
        rate = Rate(1.0, Clock())
        for _ in range(100):
            rate.check("a")
        rate.take("a")


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    yield


def service(limits: LimitSettings) -> FastAPI:
    async def ready() -> None:
        pass

    app = make_app("service", "", lifespan=lifespan, ready=ready, unready=Code.DATABASE_UNAVAILABLE, limits=limits)
    app.state.go = asyncio.Event()

    @app.get("/v1/held")
    async def held() -> str:
        await app.state.go.wait()
        return "done"

    @app.post("/v1/body")
    async def body(request: Request) -> int:
        return len(await request.body())

    return app


def client_of(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service")


async def test_one_request_too_many_is_refused_while_health_is_answered_and_later_ones_are_taken() -> None:
    app = service(LimitSettings(open_requests=16))
    async with client_of(app) as client:
        open_ones = [asyncio.create_task(client.get("/v1/held")) for _ in range(16)]
        await asyncio.sleep(0)
        async with asyncio.timeout(10):
            while (refused := await client.post("/v1/body", content=b"abc")).status_code == 200:
                continue  # they are not all there yet
        assert (refused.status_code, refused.json()["code"]) == (503, Code.BUSY)
        assert refused.headers["retry-after"] == "1"
        for path in ("/healthz", "/readyz", "/metrics"):
            assert (await client.get(path)).status_code == 200
        app.state.go.set()
        assert {(await held).status_code for held in open_ones} == {200}
        assert (await client.post("/v1/body", content=b"abc")).json() == 3


async def test_the_longest_body_is_a_setting() -> None:
    async with client_of(service(LimitSettings(body_bytes=65536))) as client:
        assert (await client.post("/v1/body", content=bytes(65536))).json() == 65536
        refused = await client.post("/v1/body", content=bytes(65537))
        assert (refused.status_code, refused.json()["code"]) == (413, Code.BODY_TOO_LARGE)


def test_too_many_requests_is_an_outage_for_the_caller_who_tries_again() -> None:
    problem = problem_of(Outage(Code.TOO_MANY_REQUESTS, "Too often."))
    assert problem.status == 429
    assert isinstance(error_of(problem), Outage)


@asynccontextmanager
async def served(app: FastAPI, arrival_seconds: float) -> AsyncIterator[int]:
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, http=punctual_protocol(arrival_seconds), log_config=None))
    listener.listen()
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await serving
        listener.close()


@pytest.mark.parametrize(
    "part",
    [b"", b"POST /v1/body HT", b"POST /v1/body HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nab"],
    ids=["nothing", "half a head", "half a body"],
)
async def test_a_connection_whose_request_does_not_come_is_closed(part: bytes) -> None:
    async with served(service(LimitSettings()), 0.3) as port, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(part)
        assert await reader.read() == b""
        writer.close()


async def test_a_request_that_has_come_is_held_for_longer_than_it_may_take_to_come() -> None:
    app = service(LimitSettings())
    async with served(app, 0.2) as port, httpx.AsyncClient(trust_env=False) as client:
        held = asyncio.create_task(client.get(f"http://127.0.0.1:{port}/v1/held"))
        await asyncio.sleep(0.5)
        app.state.go.set()
        assert (await held).json() == "done"


@pytest.fixture
def few_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("few_files")
def test_a_process_may_open_as_many_files_as_it_holds_requests() -> None:
    raise_file_limit(600)
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 600
    raise_file_limit(100)
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 600
