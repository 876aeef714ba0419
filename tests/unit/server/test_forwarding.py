"""What a replica that does not lead does with a request that only the leader can answer."""

import socket
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import pytest
from fastapi import Depends, FastAPI

from fedlearn.adapters.database import DatabaseRoundStore
from fedlearn.adapters.web import make_app
from fedlearn.core.errors import Code
from fedlearn.server import forwarding
from fedlearn.server.forwarding import Answered, Forwarder, at_leader, give_back


class Leader(BaseHTTPRequestHandler):
    """Answers what the test has put in, or hangs up."""

    asked: list[tuple[str, str, bytes, str | None]]
    answer: tuple[int, bytes] | None

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append((self.command, self.path, body, self.headers["Authorization"]))
        if self.answer is None:
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.send_response(self.answer[0])
        self.send_header("Content-Type", "application/problem+json")
        self.send_header("Content-Length", str(len(self.answer[1])))
        self.end_headers()
        self.wfile.write(self.answer[1])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def leader() -> Iterator[type[Leader]]:
    kind = type("Played", (Leader,), {"asked": [], "answer": (409, b'{"state": "odd"}'), "address": ""})
    with HTTPServer(("127.0.0.1", 0), kind) as server:
        kind.address = f"http://127.0.0.1:{server.server_port}"  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield kind
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "_PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(forwarding, "_LOOK_AGAIN_SECONDS", 0.05)


@pytest.fixture
async def follower(store: DatabaseRoundStore) -> AsyncIterator[httpx.AsyncClient]:
    async def ready() -> None:
        pass

    app: FastAPI = make_app("played", "", lifespan=None, ready=ready, unready=Code.INTERNAL)  # type: ignore[arg-type]
    app.add_exception_handler(Answered, give_back)

    @app.post("/v1/words", dependencies=[Depends(at_leader)])
    async def words(word: dict[str, Any]) -> dict[str, Any]:
        return {"here": word}

    async with Forwarder(store, "me", lambda: app.state.leads) as forwarder:
        app.state.forwarder, app.state.leads = forwarder, False
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://me") as client:
            client.app = app  # type: ignore[attr-defined]
            yield client
    store.close()


async def say(follower: httpx.AsyncClient, **headers: str) -> httpx.Response:
    return await follower.post("/v1/words?loud=1", json={"a": 1}, headers={"Authorization": "Bearer mine", **headers})


async def test_the_request_goes_to_the_leader_as_it_is_and_its_answer_comes_back(
    follower: httpx.AsyncClient, store: DatabaseRoundStore, leader: type[Leader]
) -> None:
    store.take_lead("other", leader.address)  # type: ignore[attr-defined]
    answer = await say(follower)
    assert (answer.status_code, answer.content) == (409, b'{"state": "odd"}')
    assert answer.headers["content-type"] == "application/problem+json"
    assert leader.asked == [("POST", "/v1/words?loud=1", b'{"a":1}', "Bearer mine")]


async def test_who_leads_answers_itself(follower: httpx.AsyncClient, store: DatabaseRoundStore, leader: type[Leader]) -> None:
    store.take_lead("other", leader.address)  # type: ignore[attr-defined]
    follower.app.state.leads = True  # type: ignore[attr-defined]
    assert (await say(follower)).json() == {"here": {"a": 1}}
    assert leader.asked == []


async def test_what_was_forwarded_once_is_not_forwarded_again(
    follower: httpx.AsyncClient, store: DatabaseRoundStore, leader: type[Leader]
) -> None:
    store.take_lead("other", leader.address)  # type: ignore[attr-defined]
    answer = await say(follower, **{"Fedlearn-Forwarded": "other"})
    assert (answer.status_code, answer.json()["code"]) == (503, Code.NOT_LEADER)
    assert leader.asked == []


@pytest.mark.parametrize("address", [None, "http://127.0.0.1:1"], ids=["nobody leads yet", "its leader is dead"])
async def test_without_a_leader_it_is_waited_for_and_then_refused(
    follower: httpx.AsyncClient, store: DatabaseRoundStore, address: str | None
) -> None:
    if address is not None:
        store.take_lead("other", address)
    answer = await say(follower)
    assert (answer.status_code, answer.json()["code"]) == (503, Code.NOT_LEADER)


async def test_a_request_whose_answer_is_lost_is_not_sent_again(
    follower: httpx.AsyncClient, store: DatabaseRoundStore, leader: type[Leader]
) -> None:
    """It may have been carried out: a rollback would be made twice."""
    store.take_lead("other", leader.address)  # type: ignore[attr-defined]
    leader.answer = None
    answer = await say(follower)
    assert (answer.status_code, answer.json()["code"]) == (503, Code.SERVER_UNREACHABLE)
    assert len(leader.asked) == 1
