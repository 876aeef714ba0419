"""What the console reads, over HTTP: the stream, the logs, and who may see them."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from support.trial import Trial
from support.world import World

Event = tuple[str, str, Any]


@contextmanager
def stream(world: World, last: str = "") -> Iterator[Iterator[Event]]:
    """The events of a stream: id, kind and data."""
    headers = {"Last-Event-ID": last} if last else {}
    with (
        httpx.Client(base_url=world.server_url, trust_env=False, timeout=20) as client,
        client.stream("GET", "/v1/stream", headers=headers) as answer,
    ):
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield _events(answer.iter_lines())


def _events(lines: Iterator[str]) -> Iterator[Event]:
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "id" in fields:
            yield fields["id"], fields["event"], json.loads(fields["data"])
            fields = {}


def test_a_round_is_heard_of_from_its_opening_to_its_commit(trial: Trial) -> None:
    with stream(trial.world) as events:
        kind, first = next(events)[1:]
        assert kind == "overview"
        assert trial.name not in {task["task"] for task in first["tasks"]}
        trial.submit()
        a, b = trial.devices("a", "b")
        for device, assignment in zip((a, b), trial.assign(a, b), strict=True):
            trial.bring(device, assignment, trial.update())
        phases, standings, versions, logged = list[str](), dict[str, str](), set[int](), list[str]()
        for _, kind, changes in events:
            assert kind == "changes"
            phases += [line["phase"] for line in changes["rounds"] if line["task"] == trial.name]
            for move in changes["moves"]:
                standings |= {device: part["standing"] for device, part in move["devices"].items() if move["round"] == 1}
            versions |= {version["model"]["version"] for version in changes["versions"]}
            logged += [event["kind"] for event in changes["events"] if event["task"] == trial.name]
            if "committed" in phases and 1 in versions:
                break
    assert phases[-1] == "committed"
    assert standings == {a.id: "reported", b.id: "reported"}
    assert "round_committed" in logged


def test_a_stream_goes_on_after_the_last_event_that_was_heard(trial: Trial) -> None:
    with stream(trial.world) as events:
        last, kind, _ = next(events)
        assert kind == "overview"
    trial.submit(rounds=None)
    with stream(trial.world, last) as events:
        for _, kind, changes in events:
            assert kind == "changes"
            if trial.name in {task["task"] for task in changes["tasks"]}:
                break


def test_a_busy_server_sends_at_most_four_messages_a_second(trial: Trial) -> None:
    device = trial.device("a")

    def sent() -> int:
        """The number of the last message."""
        with stream(trial.world) as events:
            return int(next(events)[0].rpartition("-")[2])

    began, before, calls = time.monotonic(), sent(), 0
    while time.monotonic() - began < 2:
        device.check_in(0.0)
        calls += 1
    messages, seconds = sent() - before, time.monotonic() - began
    assert 2 <= messages <= 4 * seconds + 1
    assert calls > messages


def test_a_server_that_stops_lets_go_of_its_pages(trial: Trial) -> None:
    world = trial.world
    with stream(world) as events:
        next(events)
        began = time.monotonic()
        world.server.process.terminate(8)
        assert time.monotonic() - began < 5
    world.restart("server")


def test_the_audit_log_is_the_operators_and_names_the_token_by_its_fingerprint(trial: Trial) -> None:
    world = trial.world
    trial.submit()
    trial.cancel()
    with httpx.Client(base_url=world.server_url, trust_env=False) as client:
        assert client.get("/v1/audit").status_code == 401
        token = world.deployment.operator_token()
        answer = client.get("/v1/audit", headers={"Authorization": f"Bearer {token}"})
        refused = client.post(f"/v1/tasks/{trial.name}/start", headers={"Authorization": f"Bearer {token}"})
        assert refused.status_code == 409
        after = client.get("/v1/audit?limit=1", headers={"Authorization": f"Bearer {token}"}).json()
    mine = [entry for entry in answer.json() if entry["task"] == trial.name]
    assert [(entry["action"], entry["outcome"]) for entry in mine] == [
        ("cancel", "done"),
        ("start", "done"),
        ("submit", "done"),
    ]
    assert len({entry["actor"] for entry in mine}) == 1
    assert token not in answer.text
    assert (after[0]["action"], after[0]["outcome"]) == ("start", "task_state")


def test_what_happened_is_still_known_after_a_restart(trial: Trial) -> None:
    world = trial.world
    trial.submit()
    trial.cancel()
    before = httpx.get(f"{world.server_url}/v1/events", trust_env=False).json()
    world.kill("server")
    world.restart("server")
    assert httpx.get(f"{world.server_url}/v1/events", trust_env=False).json() == before
    abandoned = next(event for event in before if event["kind"] == "round_abandoned" and event["task"] == trial.name)
    assert (abandoned["code"], abandoned["title"]) == ("task_cancelled", "The task was cancelled.")


@pytest.mark.parametrize(
    "path", ["/console/../app.py", "/console/%2e%2e%2fapp.py", "/console/overview.py", "/console/nothing.js"]
)
def test_only_the_pages_own_files_are_served(world: World, path: str) -> None:
    assert httpx.get(f"{world.server_url}{path}", trust_env=False).status_code == 404
