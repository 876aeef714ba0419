"""The original project's steps by hand, in its order: real processes, real data, real storage."""

import json
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from fedlearn.core.errors import Code
from fedlearn.local.identities import SERVER_AUDIENCE
from fedlearn.local.storage import LocalStorage
from fedlearn.protocol.problems import MEDIA_TYPE
from support.command import PORTS, Run
from support.trial import Trial, step
from support.world import World, wait_for

READY_SECONDS = 120


class Walk:
    """`fedlearn up --manual`, and a person with a browser or curl."""

    def __init__(self, out: Path, *options: str) -> None:
        self.run = Run("up", "--manual", "--out", str(out), *PORTS, "--device-port", "0", *options)
        mark = out / "up.json"
        wait_for(lambda: mark.exists() or self.run.process.poll() is not None, "everything to be up", seconds=READY_SECONDS)
        if not mark.exists():
            pytest.fail(str(self.run.end()))
        self.places: dict[str, Any] = json.loads(mark.read_text())

    def url(self, who: str) -> str:
        found: str = self.places["devices"].get(who) or self.places[who]
        return found

    def take(self, who: str, path: str, method: str = "GET") -> dict[str, Any]:
        answer = httpx.request(
            method, self.url(who) + path, headers={"Accept": "application/json"}, timeout=120, trust_env=False
        )
        assert answer.status_code == 200, answer.text
        told: dict[str, Any] = answer.json()
        assert told["happened"].endswith(".")
        assert told["next"]
        return told

    def refused(self, who: str, path: str) -> str:
        answer = httpx.post(self.url(who) + path, timeout=120, trust_env=False)
        assert (answer.status_code, answer.headers["content-type"]) == (409, MEDIA_TYPE), answer.text
        assert answer.json()["code"] == Code.STEP_OUT_OF_ORDER
        detail: str = answer.json()["detail"]
        return detail

    def finish(self, method: str = "GET") -> dict[str, Any]:
        """The steps after the devices'."""
        self.take("aggregator", "/aggregate_models", method)
        self.take("aggregator", "/send_model_secagg", method)
        return self.take("server", "/send_model_clients", method)["figures"]


def test_two_rounds_by_hand_in_the_original_order_reach_97_percent(tmp_path: Path) -> None:
    walk = Walk(tmp_path / "up", "--devices", "2", "--partitioner", "full")
    scores = []
    for number, method in ((1, "GET"), (2, "POST")):
        assert "/modeltrain" in walk.refused("device-1", "/sendstatus")
        assert "/modeltrain" in walk.refused("device-2", "/sendmodel")
        assert "device-1, device-2" in walk.refused("aggregator", "/aggregate_models")
        assert "/aggregate_models" in walk.refused("aggregator", "/send_model_secagg")
        assert "/modeltrain" in walk.refused("server", "/send_model_clients")
        for path in ("/modeltrain", "/sendstatus", "/sendmodel"):
            for device in ("device-1", "device-2"):
                told = walk.take(device, path, method)
                assert (told["figures"]["device"], told["figures"]["round"]) == (device, number)
        assert "/aggregate_models" in walk.refused("device-1", "/modeltrain")
        aggregated = walk.take("aggregator", "/aggregate_models", method)
        assert aggregated["figures"] == {"round": number, "version": number, "updates": 2, "examples": 108_000}
        assert "/send_model_secagg" in walk.refused("aggregator", "/aggregate_models")
        assert "/send_model_secagg" in walk.refused("server", "/send_model_clients")
        walk.take("aggregator", "/send_model_secagg", method)
        assert "/send_model_clients" in walk.refused("aggregator", "/send_model_secagg")
        scores.append(walk.take("server", "/send_model_clients", method)["figures"]["accuracy"])
    assert 0.9 < scores[0] < scores[1]
    assert scores[1] >= 0.97

    walk.run.process.send_signal(signal.SIGINT)
    code, printed, errors = walk.run.end()
    assert (code, errors) == (0, "")
    for url in (walk.url("server") + "/docs", walk.url("device-2") + "/sendmodel", walk.places["storage"]):
        assert url in printed
    assert walk.run.processes() == []


def test_one_device_may_take_all_its_steps_before_the_others_begin(tmp_path: Path) -> None:
    walk = Walk(tmp_path / "up", "--devices", "3", "--learner", "synthetic")
    assert list(walk.places["devices"]) == ["device-1", "device-2", "device-3"]
    for device in ("device-3", "device-1"):
        for path in ("/modeltrain", "/sendstatus", "/sendmodel"):
            walk.take(device, path)
    walk.take("device-2", "/modeltrain")
    assert walk.refused("aggregator", "/aggregate_models").startswith("/sendmodel of device-2 comes first")
    walk.take("device-2", "/sendstatus")
    walk.take("device-2", "/sendmodel")
    assert walk.finish()["version"] == 1


def test_a_browser_gets_a_page_that_links_to_the_next_step_and_curl_gets_text(tmp_path: Path) -> None:
    walk = Walk(tmp_path / "up", "--devices", "2", "--learner", "synthetic")
    url = walk.url("device-1")
    ahead = httpx.get(f"{url}/modeltrain", headers={"Sec-Purpose": "prefetch;prerender"}, trust_env=False)
    assert ahead.status_code == 409
    page = httpx.get(f"{url}/modeltrain", headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}, trust_env=False)
    assert page.headers["content-type"].startswith("text/html")
    assert '<a href="/sendstatus">' in page.text
    text = httpx.get(f"{url}/sendstatus", trust_env=False)
    assert text.headers["content-type"].startswith("text/plain")
    assert "\nNext: /sendmodel" in text.text


# --- the same protocol beneath: what dies goes on


@pytest.fixture(scope="module")
def by_hand(storage: LocalStorage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    manual = {"FEDLEARN_MANUAL": "true"}
    world = World.start(tmp_path_factory.mktemp("by-hand"), storage, aggregator_settings=manual, server_settings=manual)
    yield world
    world.stop()


@pytest.mark.parametrize(
    ("dies", "after"),
    [
        pytest.param("aggregator", "/sendmodel", id="the aggregator with the updates in storage"),
        pytest.param("aggregator", "/aggregate_models", id="the aggregator with a model that nobody knows of"),
        pytest.param("server", "/send_model_secagg", id="the server with a model that is not committed"),
    ],
)
def test_a_walk_goes_on_where_a_service_has_died(
    by_hand: World, make_trial: Callable[..., Trial], dies: str, after: str
) -> None:
    trial = make_trial(by_hand)
    trial.submit(rounds=1)
    devices = trial.devices("a", "b")
    updates = [trial.update(), trial.update()]
    for device, assignment, update in zip(devices, trial.assign(*devices), updates, strict=True):
        trial.bring(device, assignment, update)
    base = trial.model(0)

    def take(url: str, path: str) -> None:
        def done() -> bool:
            return httpx.post(url + path, timeout=60, trust_env=False).is_success

        wait_for(done, path)  # a service that has just come back hears of the round from the other one

    def perhaps_die(step: str) -> None:
        if step == after:
            by_hand.kill(dies)
            by_hand.restart(dies)

    perhaps_die("/sendmodel")
    take(by_hand.aggregator_url, "/aggregate_models")
    perhaps_die("/aggregate_models")
    take(by_hand.aggregator_url, "/send_model_secagg")
    perhaps_die("/send_model_secagg")
    assert trial.round().phase == "aggregation"
    evaluator = by_hand.client(by_hand.server_url, "fedlearn-evaluator", "evaluator-0", SERVER_AUDIENCE)
    with ThreadPoolExecutor(1) as threads:
        given: Future[None] = threads.submit(take, by_hand.server_url, "/send_model_clients")
        trial.reach(1, "committed")
        evaluator.put(f"/v1/evaluations/{trial.name}/1", json={"metrics": {"accuracy": 0.5}}).raise_for_status()
        given.result()
    assert trial.model(1) == pytest.approx(step(base, updates), abs=1e-6)
