"""Every dashboard's panel and every alert, asked of a real Prometheus that scrapes a real run."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from fedlearn.core.errors import Code
from fedlearn.core.learning import Examples, Shard
from fedlearn.core.updates import Update
from fedlearn.data.shards import write_shard
from fedlearn.local.identities import SERVER_AUDIENCE
from fedlearn.local.ports import free_port
from fedlearn.local.processes import start_program
from fedlearn.local.storage import LocalStorage
from support.prometheus import NAMESPACE, Prometheus, Target, program
from support.questions import DASHBOARDS, QUERIES, Query, alerts, filled, series_in, told, variables
from support.trial import Trial
from support.world import World, small_plan, wait_for

PROCESSES, DEVICES_EACH = 2, 2
TASK = "watched"
ALERTS = alerts(NAMESPACE)


@pytest.fixture(scope="module")
def prometheus(storage: LocalStorage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """It has seen rounds that were committed, one that was abandoned, a device that dropped out, and an update refused."""
    program("prometheus")
    directory = tmp_path_factory.mktemp("monitored")
    world = World.start(directory, storage)
    try:
        targets = [
            Target("server", "server-0", world.server_url),
            Target("aggregator", "aggregator-0", world.aggregator_url),
            *(start_devices(world, index, directory / "shards") for index in range(PROCESSES)),
        ]
        with Prometheus(directory, targets) as prometheus:
            live(world, prometheus)
            yield prometheus
    finally:
        world.stop()


def start_devices(world: World, index: int, shards: Path) -> Target:
    rng = np.random.default_rng(index)
    for number in range(index * DEVICES_EACH, (index + 1) * DEVICES_EACH):
        some = Examples(rng.random((40, 784), np.float32), np.zeros(40, np.int32))
        write_shard(shards / str(number), Shard(train=some, holdout=some))
    port = free_port()
    given = world.deployment.device(
        index, port=port, shards=shards, first_shard=index * DEVICES_EACH, count=DEVICES_EACH, dataset="mnist", seed=1
    )
    environment = {**given, "FEDLEARN_LEARNER": "synthetic"}
    log = world.deployment.directory / f"devices-{index}.log"
    service = world.services.add(start_program(f"device-{index}", ["device"], environment, log))
    service.wait_until_answering(f"http://127.0.0.1:{port}/healthz")
    return Target("device", f"device-{index}", f"http://127.0.0.1:{port}")


def live(world: World, prometheus: Prometheus) -> None:
    """Rounds until the test ends, and what goes wrong beside them."""
    world.submit(TASK, small_plan(), rounds=None, goal=3, over_selection=1.3)
    unlucky = Trial(world, "unlucky")
    unlucky.submit(rounds=5, reporting_timeout_seconds=20)
    one, other = unlucky.devices("a", "b")
    # one goes in the first round; in the second it sends what is no number
    first, second = unlucky.assign(one, other)
    assert one.accept(first).is_success
    assert one.drop_out(first, Code.TRAINING_FAILED).is_success
    assert other.drop_out(second, Code.DEVICE_STOPPING).is_success
    unlucky.reach(1, "abandoned")
    first, second = unlucky.assign(one, other)
    delta = np.full(unlucky.plan.parameters, np.nan, np.float32)
    unlucky.bring(one, first, Update(delta, examples=10, holdout_examples=0))
    assert other.drop_out(second, Code.DEVICE_STOPPING).is_success
    unlucky.reach(2, "abandoned")
    wait_for(lambda: prometheus.ask(f'fedlearn_task_model_version{{task="{TASK}"}} >= 3'), "some rounds", 60)
    with world.client(world.server_url, "fedlearn-evaluator", "evaluator-0", SERVER_AUDIENCE) as evaluator:
        for version in (1, 2):
            figures = {"metrics": {"accuracy": 0.5 + version / 10, "loss": 1 / version}}
            assert evaluator.put(f"/v1/evaluations/{TASK}/{version}", json=figures).is_success
    refused = f'fedlearn_updates_total{{result="{Code.UPDATE_NOT_FINITE}"}} >= 1'
    wait_for(lambda: prometheus.ask(refused), "the refusal to be scraped", 60)
    wait_for(lambda: prometheus.ask("fedlearn_task_scored_version == 2"), "the scores to be scraped", 60)


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.name)
def test_every_panel_shows_something(prometheus: Prometheus, query: Query, record_property: Any) -> None:
    expression = filled(query.expression)
    record_property("returned", told(wait_for(lambda: prometheus.numbers(expression), expression, 20)))


def test_a_latency_leaves_out_the_routes_that_wait_for_something_to_happen(prometheus: Prometheus) -> None:
    """Held at will, they would show how long nothing happened."""
    document = httpx.get(f"{prometheus.url_of('server')}/openapi.json", trust_env=False).json()
    held = {
        f"{method.upper()} {path}"
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if any(parameter["name"] == "wait_seconds" for parameter in operation.get("parameters", ()))
    }
    assert held
    for query in QUERIES:
        if query.panel in ("Latency", "Slowest routes") and "fedlearn_http_request_seconds" in query.expression:
            left_out = {route for group in re.findall(r'route!~"([^"]*)"', query.expression) for route in group.split("|")}
            assert held <= left_out


@pytest.mark.parametrize("name", DASHBOARDS)
def test_every_variable_has_values(prometheus: Prometheus, name: str) -> None:
    (source,) = (v for v in DASHBOARDS[name]["templating"]["list"] if v["name"] == "datasource")
    assert source["query"] == "prometheus"
    for variable, (selector, label) in variables(DASHBOARDS[name]).items():
        wanted = {"namespace": {NAMESPACE}, "task": {TASK, "unlucky"}}[variable]
        assert set(prometheus.values_of(label, selector)) == wanted


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_watches_what_is_there(prometheus: Prometheus, alert: str, record_property: Any) -> None:
    """Its whole expression is one that Prometheus takes, and each series in it exists."""
    prometheus.ask(ALERTS[alert])
    assert series_in(ALERTS[alert])
    for selector in series_in(ALERTS[alert]):
        record_property(selector, told(wait_for(lambda s=selector: prometheus.numbers(s), selector)))


def test_only_the_alert_for_the_unlucky_task_is_on_its_way(prometheus: Prometheus) -> None:
    counts = {alert: len(prometheus.ask(expression)) for alert, expression in ALERTS.items()}
    assert {alert for alert, count in counts.items() if count} <= {"FedlearnRoundsAbandoned"}
