import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import structlog
import uvicorn
from fastapi import FastAPI, Response
from pydantic import BaseModel

from fedlearn.adapters.http import ServiceClient, TokenFile, first_of, get_json, persist, spawn
from fedlearn.adapters.listeners import listen
from fedlearn.adapters.web import make_app
from fedlearn.core.errors import Code, FedlearnError, Outage, Refusal, SetupError

AWAY = Outage(Code.STORAGE_UNAVAILABLE, "It does not answer.")


class Greeting(BaseModel):
    words: str


# --- calls


@asynccontextmanager
async def calling(app: FastAPI, **options: Any) -> AsyncIterator[ServiceClient]:
    """A client of an app that is served in this process."""
    listener = listen("127.0.0.1", 0)
    listener.listen()
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with ServiceClient(url, "server", unreachable=Code.SERVER_UNREACHABLE, **options) as client:
        yield client
    server.should_exit = True
    await serving
    listener.close()


def app_that(answer: Response | FedlearnError | dict[str, str]) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield

    async def ready() -> None:
        return

    app = make_app("service", "A service.", lifespan=lifespan, ready=ready, unready=Code.DATABASE_UNAVAILABLE)

    @app.get("/call", response_model=None)
    async def call() -> Response | dict[str, str]:
        if isinstance(answer, FedlearnError):
            raise answer
        return answer

    return app


async def test_an_answer_is_read_as_its_type() -> None:
    async with calling(app_that({"words": "good morning"})) as client:
        assert (await client.call("GET", "/call", Greeting)).words == "good morning"
        assert await client.fetch("GET", "/call") == b'{"words":"good morning"}'


@pytest.mark.parametrize(
    "error",
    [Refusal(Code.TASK_EXISTS, "There is one."), AWAY, Refusal(Code.UNAUTHENTICATED, "No token.")],
    ids=lambda e: e.code,
)
async def test_an_error_crosses_the_wire_as_what_it_is(error: FedlearnError) -> None:
    async with calling(app_that(error)) as client:
        with pytest.raises(type(error)) as caught:
            await client.call("GET", "/call", Greeting)
    assert (caught.value.code, caught.value.detail) == (error.code, error.detail)


async def test_a_connection_that_a_stranger_has_taken_is_given_up() -> None:
    """A proxy on the way that answers for a service which is not there yet keeps its connection, and answers for ever."""
    connections = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        said = (
            b"404 Not Found\r\nContent-Length: 0\r\n\r\n"
            if connections == 1
            else b'200 OK\r\nContent-Length: 15\r\n\r\n{"words": "me"}'
        )
        with suppress(asyncio.IncompleteReadError):  # the client goes
            while b"connection: close" not in (await reader.readuntil(b"\r\n\r\n")).lower():
                writer.write(b"HTTP/1.1 " + said)
            writer.write(b"HTTP/1.1 " + said)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, ServiceClient(url, "server", unreachable=Code.SERVER_UNREACHABLE) as client:
        for _ in range(2):
            with pytest.raises(Outage):
                await client.fetch("GET", "/call")
        for _ in range(3):
            assert (await client.call("GET", "/call", Greeting)).words == "me"
    assert connections == 3  # the stranger's, the first of the service's, and one that is kept


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(Response("<html>bad gateway</html>", 502), id="a proxy's page"),
        pytest.param(Response('{"detail": "x"}', 500), id="no problem"),
        pytest.param(Response("{}", 200), id="another form"),
        pytest.param(Response("", 200), id="nothing"),
        pytest.param(Response("", 302, {"location": "http://elsewhere/"}), id="another address"),
    ],
)
async def test_an_answer_that_is_none_of_the_services_is_an_outage(answer: Response) -> None:
    async with calling(app_that(answer)) as client:
        with pytest.raises(Outage) as caught:
            await client.call("GET", "/call", Greeting)
    assert caught.value.code is Code.SERVER_UNREACHABLE


async def test_a_service_that_is_not_there_is_an_outage() -> None:
    async with ServiceClient("http://127.0.0.1:9", "server", unreachable=Code.SERVER_UNREACHABLE) as client:
        with pytest.raises(Outage) as caught:
            await client.call("GET", "/call", Greeting)
    assert caught.value.code is Code.SERVER_UNREACHABLE
    with pytest.raises(Outage):
        get_json("http://127.0.0.1:9/v1/keys", "server", Code.SERVER_UNREACHABLE)


async def test_each_call_shows_the_token_of_the_moment() -> None:
    app, seen, tokens = app_that({"words": ""}), list[str | None](), iter(["first", "second"])

    @app.middleware("http")
    async def look(request: Any, call_next: Any) -> Any:
        seen.append(request.headers.get("authorization"))
        return await call_next(request)

    async with calling(app, token=lambda: next(tokens)) as client:
        await client.fetch("GET", "/call")
        await client.fetch("GET", "/call")
    assert seen == ["Bearer first", "Bearer second"]


# --- tokens in files


def test_a_token_is_read_again_after_a_while(tmp_path: Path) -> None:
    now = 100.0
    path = tmp_path / "token"
    path.write_text("first\n")
    token = TokenFile(path, lambda: now)
    assert token() == "first"
    path.write_text("second\n")
    assert token() == "first"
    now += 10
    assert token() == "second"


def test_a_token_that_can_not_be_read_is_a_fault_of_the_setup_and_may_come_later(tmp_path: Path) -> None:
    token = TokenFile(tmp_path / "token", lambda: 0.0)
    with pytest.raises(SetupError) as caught:
        token()
    assert caught.value.code is Code.SETTING_INVALID
    (tmp_path / "token").write_text("here now")
    assert token() == "here now"


# --- persistence


async def test_an_outage_is_waited_out() -> None:
    outcomes = [AWAY, AWAY, None]

    async def action() -> str:
        if (outcome := outcomes.pop(0)) is not None:
            raise outcome
        return "done"

    assert await persist(action) == "done"


async def test_an_outage_that_lasts_is_passed_on_when_the_time_is_over() -> None:
    attempts = 0

    async def action() -> None:
        nonlocal attempts
        attempts += 1
        raise AWAY

    with pytest.raises(Outage):
        await persist(action, seconds=0.3)
    assert 2 <= attempts <= 6, "the pauses grow"


async def test_a_refusal_is_not_asked_for_again() -> None:
    attempts = 0

    async def action() -> None:
        nonlocal attempts
        attempts += 1
        raise Refusal(Code.FORBIDDEN, "No.")

    with pytest.raises(Refusal):
        await persist(action)
    assert attempts == 1


# --- work in the background


async def test_work_in_the_background_is_held_while_it_runs_and_its_failure_is_logged() -> None:
    group: set[asyncio.Task[None]] = set()

    async def fail() -> None:
        raise ZeroDivisionError

    with structlog.testing.capture_logs() as lines:
        task = spawn(fail(), group)
        assert group == {task}
        await asyncio.wait(group)
        await asyncio.sleep(0)
    assert group == set()
    assert [(line["log_level"], type(line["exc_info"])) for line in lines] == [("error", ZeroDivisionError)]


async def test_work_that_is_cancelled_is_no_failure() -> None:
    group: set[asyncio.Task[None]] = set()

    async def wait() -> None:
        await asyncio.Event().wait()

    with structlog.testing.capture_logs() as lines:
        spawn(wait(), group).cancel()
        await asyncio.wait(group)
        await asyncio.sleep(0)
    assert lines == []


# --- work beside watches


async def after(event: asyncio.Event, refused: bool = False) -> str:
    await event.wait()
    if refused:
        raise Refusal(Code.FORBIDDEN, "It went wrong.")
    return "done"


async def watch(event: asyncio.Event, refused: bool) -> None:
    await after(event, refused)


async def test_work_goes_on_when_a_watch_has_ended_well_and_the_others_are_still_watched() -> None:
    end, first, second = asyncio.Event(), asyncio.Event(), asyncio.Event()
    working = asyncio.create_task(first_of(after(end), watch(first, False), watch(second, True)))
    first.set()
    await asyncio.sleep(0.01)
    assert not working.done()
    second.set()
    with pytest.raises(Refusal):
        await working
    assert not end.is_set()


async def test_work_that_has_ended_does_not_wait_for_its_watches() -> None:
    end, never = asyncio.Event(), asyncio.Event()
    end.set()
    assert await first_of(after(end), watch(never, True)) == "done"
