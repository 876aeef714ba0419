import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from fedlearn.adapters.openapi import problems
from fedlearn.adapters.web import Probe, make_app
from fedlearn.core.errors import Code, FedlearnError, Outage

AWAY = Outage(Code.DATABASE_UNAVAILABLE, "It does not answer.")


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    yield


def app_with(error: Exception | None = None) -> FastAPI:
    """An app whose readiness and whose one route fail so."""

    async def ready() -> None:
        if error is not None:
            raise error

    app = make_app("service", "A service.", lifespan=lifespan, ready=ready, unready=Code.DATABASE_UNAVAILABLE)

    @app.get("/v1/thing", summary="A thing.", responses=problems(Code.NOT_FOUND))
    async def thing(number: int = 0) -> dict[str, int]:
        if error is not None:
            raise error
        return {"number": number}

    return app


async def get(app: FastAPI, path: str) -> httpx.Response:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        return await client.get(path)


async def test_what_is_not_foreseen_is_a_problem_that_says_nothing_of_the_inside() -> None:
    answer = await get(app_with(ZeroDivisionError("secret")), "/v1/thing")
    assert (answer.status_code, answer.json()["code"]) == (500, Code.INTERNAL)
    assert answer.headers["content-type"] == "application/problem+json"
    assert "secret" not in answer.text
    assert "ZeroDivision" not in answer.text


async def test_readiness_gives_the_reason() -> None:
    answer = await get(app_with(AWAY), "/readyz")
    assert (answer.status_code, answer.json()["code"]) == (503, Code.DATABASE_UNAVAILABLE)
    assert (await get(app_with(AWAY), "/healthz")).status_code == 200
    assert (await get(app_with(), "/readyz")).json() == {"status": "ready"}


async def test_who_is_not_ready_answers_503_whatever_the_reason_is_elsewhere() -> None:
    answer = await get(app_with(Outage(Code.SHARD_INVALID, "It holds no example.")), "/readyz")
    problem = answer.json()
    assert (answer.status_code, problem["status"], problem["code"], problem["detail"]) == (
        503,
        503,
        Code.SHARD_INVALID,
        "It holds no example.",
    )


async def test_what_every_route_may_give_is_documented_beside_its_own() -> None:
    document = (await get(app_with(), "/openapi.json")).json()
    answers = document["paths"]["/v1/thing"]["get"]["responses"]
    documented = {
        code
        for answer in answers.values()
        for code in answer["content"].get("application/problem+json", {}).get("examples", ())
    }
    everywhere = {Code.BAD_REQUEST, Code.BODY_TOO_LARGE, Code.TOO_MANY_REQUESTS, Code.BUSY, Code.INTERNAL}
    assert documented == {Code.NOT_FOUND, Code.DATABASE_UNAVAILABLE, *everywhere}
    assert "HTTPValidationError" not in document["components"]["schemas"]


# --- probes


@pytest.fixture
def may_answer() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


async def test_a_dependency_that_hangs_is_asked_once_however_many_probes_come(may_answer: threading.Event) -> None:
    asked: list[int] = []

    def ask() -> None:
        asked.append(1)
        may_answer.wait(10)

    probe = Probe(ask, Code.STORAGE_UNAVAILABLE, "object storage", seconds=0.05)
    for _ in range(3):
        answers = await asyncio.gather(*(probe() for _ in range(20)), return_exceptions=True)
        assert {answer.code for answer in answers if isinstance(answer, FedlearnError)} == {Code.STORAGE_UNAVAILABLE}
    assert len(asked) == 1
    may_answer.set()
    await Probe(ask, Code.STORAGE_UNAVAILABLE, "object storage")()
    await probe()


async def test_a_dependency_that_says_no_is_believed_and_asked_again() -> None:
    answers: list[Exception | None] = [AWAY, None]

    def ask() -> None:
        if (answer := answers.pop(0)) is not None:
            raise answer

    probe = Probe(ask, Code.DATABASE_UNAVAILABLE, "database")
    with pytest.raises(Outage):
        await probe()
    await probe()


async def test_an_answer_that_comes_too_late_is_logged_by_nobody(may_answer: threading.Event) -> None:
    logged: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: logged.append(context))

    def ask() -> None:
        if not may_answer.is_set():
            may_answer.wait(10)
            raise AWAY

    probe = Probe(ask, Code.DATABASE_UNAVAILABLE, "database", seconds=0.05)
    with pytest.raises(Outage, match="has not answered"):
        await probe()
    late = probe._asking
    assert late is not None
    may_answer.set()
    await asyncio.wait({late})
    del late
    await probe()
    gc.collect()
    assert not logged
