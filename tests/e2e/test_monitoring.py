"""A release with the chart's own Prometheus and Grafana: all that dashboards and alerts ask is asked there, while rounds run.

`FEDLEARN_WRITE_PAGES=1` writes what was answered into docs/monitoring-on-a-cluster.md.
"""

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from kubernetes.client import CustomObjectsApi
from kubernetes.client.exceptions import ApiException

from support.answers_page import PAGE, Answers, page
from support.chart import render
from support.questions import DASHBOARDS, QUERIES, Query, Samples, alerts, ask_all, filled, series_in, variables
from support.release import NAME, Cluster, Release
from support.world import wait_for

# every device is needed in every round, so that one that leaves is a round abandoned; rounds have a middle
TASK = {"epochs": 8, "rounds": 1000, "minFraction": 1, "overSelection": 1, "selectionTimeoutSeconds": 5}
VALUES = {"task": TASK, "monitoring": {"demo": {"enabled": True}}}
TARGETS = {"server": 1, "aggregator": 1, "evaluator": 1, "device": 3}
RATE_INTERVAL = "1m"
EXPRESSIONS = [query.expression for query in QUERIES]
ALERTS = alerts(NAME)


@pytest.fixture(scope="module")
def release(bare: Release) -> Release:
    bare.install(VALUES)
    return bare


@pytest.fixture(scope="module")
def ask(release: Release) -> Callable[[str], Samples]:
    """Asks the release's Prometheus; what is no number is left out."""
    skip_without_image(release, "prometheus")

    def numbers(expression: str) -> Samples:
        result = prometheus(release, "query", query=expression)["result"]
        found = [(sample["metric"], float(sample["value"][1])) for sample in result]
        return [(labels, value) for labels, value in found if not math.isnan(value)]

    return numbers


def prometheus(release: Release, path: str, **query: str) -> Any:
    """What the release's Prometheus answers; it fails for an expression that Prometheus does not take."""
    answer = release.cluster.get(release.namespace, f"{NAME}-prometheus:9090", f"api/v1/{path}", **query)
    assert answer["status"] == "success", f"{query}: {answer}"
    return answer["data"]


def skip_without_image(release: Release, component: str) -> None:
    """Wait until the component is ready; skip where the nodes neither have its image nor can fetch it."""

    def is_there() -> bool:
        if release.ready(component):
            return True
        for pod in release.pods(component):
            for status in pod.status.container_statuses or ():
                if status.state.waiting and status.state.waiting.reason == "ImagePullBackOff":
                    pytest.skip(f"the cluster has no image {status.image} and can't fetch it")
        return False

    wait_for(is_there, f"{component} to be ready", 300)


@pytest.fixture(scope="module")
def answers(release: Release, ask: Callable[[str], Samples], cluster: Cluster) -> Iterator[Answers]:
    """What each expression gave, after rounds that committed and one that lost a device and was abandoned."""
    release.wait_for_versions(4)
    wait_for(lambda: ask("fedlearn_task_scored_version >= 3"), "the scores", 120)
    caught = release.wait_for_round(lambda view: view.phase == "reporting" and view.seconds < 2, "a round that has just begun")
    release.scale_devices(2)
    ended = release.wait_for_round(
        lambda view: view.round == caught.round and view.phase in ("committed", "abandoned"), "its end"
    )
    assert ended.phase == "abandoned"
    release.scale_devices(3)
    found: dict[str, Samples] = {}
    give_up = time.monotonic() + 150
    asked = {filled(expression, release.namespace, RATE_INTERVAL): expression for expression in EXPRESSIONS}

    def ask_again() -> None:
        """All of them, so that each tells of what has just happened; some have nothing to say before or after it."""
        found.update({asked[expression]: samples for expression, samples in ask_all(ask, list(asked)).items()})

    while len(found) < len(asked) and time.monotonic() < give_up:
        ask_again()
    ask_again()
    release.wait_until_ready("device", 3)
    release.next_version()
    wait_for(lambda: ask("fedlearn_task_abandoned_rounds == 0"), "the commit to be read", 60)
    wait_for(lambda: targets(ask) == TARGETS, "all targets to be up", 60)
    here = alerts(release.namespace)
    answers = Answers(
        versions={"Kubernetes": cluster.version(), "Prometheus": prometheus(release, "status/buildinfo")["version"]},
        targets=ask(f'up{{namespace="{release.namespace}"}}'),
        panels=found,
        alerts={name: ask(expression) for name, expression in here.items()},
        series={name: {s: ask(s) for s in series_in(expression)} for name, expression in here.items()},
    )
    yield answers
    if "FEDLEARN_WRITE_PAGES" in os.environ:
        PAGE.write_text(page(answers, RATE_INTERVAL))


def targets(ask: Callable[[str], Samples]) -> Mapping[str, int]:
    """How many of each component are up."""
    return {labels["component"]: round(number) for labels, number in ask("sum by (component) (up)")}


def test_prometheus_finds_and_reads_everybody(answers: Answers) -> None:
    up = [(labels["component"], value) for labels, value in answers.targets]
    assert {component: up.count((component, 1.0)) for component, _ in up} == TARGETS
    assert {labels["pod"] for labels, _ in answers.targets if labels["component"] == "device"} == {
        f"{NAME}-device-{ordinal}" for ordinal in range(3)
    }


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.name)
def test_every_panel_shows_something(answers: Answers, query: Query) -> None:
    assert answers.panels.get(query.expression)


@pytest.mark.parametrize("name", DASHBOARDS)
def test_every_variable_has_values(release: Release, answers: Answers, name: str) -> None:
    for variable, (selector, label) in variables(DASHBOARDS[name]).items():
        found = prometheus(release, f"label/{label}/values", **{"match[]": selector})
        assert found == {"namespace": [release.namespace], "task": [release.task]}[variable]


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_watches_what_is_there(answers: Answers, alert: str) -> None:
    assert answers.series[alert]
    assert all(answers.series[alert].values())


def test_no_alert_fires_where_all_is_well(answers: Answers) -> None:
    assert not any(answers.alerts.values())


def test_prometheus_has_loaded_the_alerts(release: Release, answers: Answers) -> None:
    rules = prometheus(release, "rules")["groups"]
    assert {rule["name"]: rule["health"] for group in rules for rule in group["rules"]} == dict.fromkeys(ALERTS, "ok")


def test_grafana_has_the_dashboards_and_reaches_prometheus(release: Release) -> None:
    skip_without_image(release, "grafana")
    found = release.cluster.get(release.namespace, f"{NAME}-grafana:3000", "api/search", type="dash-db")
    assert {dashboard["uid"] for dashboard in found} == {f"fedlearn-{name}" for name in DASHBOARDS}
    path = "api/datasources/proxy/uid/prometheus/api/v1/query"
    answer = release.cluster.get(release.namespace, f"{NAME}-grafana:3000", path, query="sum(up)")
    assert answer["data"]["result"]


@pytest.mark.parametrize("kind", ["ServiceMonitor", "PodMonitor", "PrometheusRule"])
def test_the_operator_s_definitions_take_what_the_chart_makes(cluster: Cluster, namespace: str, kind: str) -> None:
    """The cluster's own API checks it, and nothing is made; it needs the operator's custom resource definitions only."""
    switched_on = {name: {"enabled": True} for name in ("serviceMonitor", "podMonitor", "rules")} | {"namespace": "monitoring"}
    (manifest,) = render({"monitoring": switched_on}).of(kind).values()
    body: Any = {**manifest, "metadata": {**manifest["metadata"], "namespace": namespace}}
    try:
        CustomObjectsApi(cluster.api).create_namespaced_custom_object(
            "monitoring.coreos.com", "v1", namespace, f"{kind.lower()}s", body, dry_run="All", field_validation="Strict"
        )
    except ApiException as error:
        if error.status == 404:
            pytest.skip("the cluster has no custom resource definitions of the Prometheus operator")
        raise
