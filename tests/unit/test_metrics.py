"""The rules that every metric keeps: its name, its help, its labels and their values."""

import importlib
import pkgutil
import re
from collections.abc import Iterator

import pytest
from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

from fedlearn.core.errors import Code
from fedlearn.core.rounds import Standing
from fedlearn.telemetry import metrics
from fedlearn.telemetry.metrics import device, http, server, tasks
from support.metrics_page import PAGE, page

MODULES = [importlib.import_module(f"{metrics.__name__}.{m.name}") for m in pkgutil.iter_modules(metrics.__path__)]
DECLARED = {m._name: m for module in (metrics, *MODULES) for m in vars(module).values() if isinstance(m, MetricWrapperBase)}
UNITS = ("seconds", "bytes", "ratio", "info")
WITHOUT_A_UNIT = {  # what is counted at this moment, and what has no unit
    "fedlearn_devices_waiting",
    "fedlearn_fleet_devices",
    "fedlearn_fleet_pods",
    "fedlearn_server_leader",
    "fedlearn_task_abandoned_rounds",
    "fedlearn_task_federated_loss",
    "fedlearn_task_model_version",
    "fedlearn_task_round",
    "fedlearn_task_round_devices",
    "fedlearn_task_round_examples",
    "fedlearn_task_scored_version",
    "fedlearn_task_test_loss",
}
BY_TASK = {name for name in DECLARED if name.startswith("fedlearn_task_")}
LATE = {"fedlearn_http_request_seconds"}  # its routes are known when an app starts


@pytest.fixture
def _no_task_is_shown() -> Iterator[None]:
    yield
    for number in range(2 * tasks.ENDED_TASKS):
        name = f"task-{number}"
        tasks.begin(name, version=0, round_timeout_seconds=1, now=0)
        tasks.end(name)


def sample(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


@pytest.mark.parametrize("name", DECLARED)
def test_its_name_says_what_is_measured_and_in_which_unit(name: str) -> None:
    metric = DECLARED[name]
    assert re.fullmatch(r"fedlearn(_[a-z]+){1,5}", name)
    unit = name.rpartition("_")[2]
    if isinstance(metric, Counter):
        assert unit != "total"  # the client adds it
    elif isinstance(metric, Histogram):
        assert unit in UNITS
    else:
        assert unit in UNITS or name in WITHOUT_A_UNIT


@pytest.mark.parametrize("name", DECLARED)
def test_its_help_is_a_sentence(name: str) -> None:
    assert re.match(r"[A-Z1].*\.$", DECLARED[name]._documentation)


@pytest.mark.parametrize("name", DECLARED)
def test_its_labels_grow_by_nothing_and_their_values_exist_from_the_start(name: str) -> None:
    metric = DECLARED[name]
    assert not {"round", "device", "pod", "version"} & set(metric._labelnames) or name == "fedlearn_build_info"
    assert ("task" in metric._labelnames) == (name in BY_TASK)
    if metric._labelnames and name not in BY_TASK | LATE:
        assert metric._metrics


def test_only_gauges_name_a_task_since_what_is_removed_must_not_have_counted() -> None:
    assert all(isinstance(DECLARED[name], Gauge) for name in BY_TASK)


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == page(), "run: make docs"


class TestTasks:
    def begin(self, name: str) -> None:
        tasks.begin(name, version=3, round_timeout_seconds=90, now=1000)

    @pytest.mark.usefixtures("_no_task_is_shown")
    def test_one_that_ended_keeps_its_figures_but_nothing_that_an_alert_watches(self) -> None:
        self.begin("ends")
        tasks.committed("ends", version=4, devices=2, examples=20, figures={"accuracy": 0.5}, now=1010)
        tasks.end("ends")
        tasks.scored("ends", 4, {"accuracy": 0.75})
        assert sample("fedlearn_task_test_accuracy_ratio", task="ends") == 0.75
        assert sample("fedlearn_task_federated_accuracy_ratio", task="ends") == 0.5
        assert sample("fedlearn_task_federated_loss", task="ends") is None
        assert sample("fedlearn_task_commit_timestamp_seconds", task="ends") is None
        assert sample("fedlearn_task_abandoned_rounds", task="ends") is None

    @pytest.mark.usefixtures("_no_task_is_shown")
    def test_only_the_last_that_ended_are_shown(self) -> None:
        for number in range(tasks.ENDED_TASKS + 5):
            self.begin(f"ended-{number}")
            tasks.end(f"ended-{number}")
        tasks.scored("ended-0", 3, {"accuracy": 0.5})
        shown = {labels[0] for labels in tasks.MODEL_VERSION._metrics}
        assert {name for name in shown if name.startswith("ended-")} == {f"ended-{n}" for n in range(5, tasks.ENDED_TASKS + 5)}
        assert sample("fedlearn_task_test_accuracy_ratio", task="ended-0") is None

    @pytest.mark.usefixtures("_no_task_is_shown")
    def test_a_commit_ends_a_row_of_abandoned_rounds(self) -> None:
        self.begin("unlucky")
        tasks.abandoned("unlucky")
        tasks.abandoned("unlucky")
        assert sample("fedlearn_task_abandoned_rounds", task="unlucky") == 2
        tasks.committed("unlucky", version=4, devices=2, examples=20, figures={}, now=1010)
        assert sample("fedlearn_task_abandoned_rounds", task="unlucky") == 0


def test_what_is_not_foreseen_is_counted_as_other() -> None:
    for count, name, labels in (
        (lambda: device.count_session("-v[]+^^"), "fedlearn_device_sessions_total", {"shape": "other"}),
        (
            lambda: server.count_dropout(Standing.ACCEPTED, Code.PORT_BUSY),
            "fedlearn_round_dropouts_total",
            {"standing": "accepted", "reason": "other"},
        ),
    ):
        before = sample(name, **labels)
        assert before is not None
        count()
        assert sample(name, **labels) == before + 1


@pytest.mark.parametrize("code", [Code.UPDATE_SHAPE, Code.NOT_FOUND, Code.STORAGE_DENIED, Code.BAD_REQUEST])
def test_what_may_become_of_an_update_is_counted_from_the_start_and_on_the_page(code: Code) -> None:
    assert sample("fedlearn_updates_total", result=code) is not None
    (row,) = (line for line in page().splitlines() if line.startswith("| `fedlearn_updates_total`"))
    assert f"`{code}`" in row


@pytest.mark.parametrize(("status", "kind"), [(204, "2xx"), (304, "2xx"), (409, "4xx"), (500, "5xx"), (503, "5xx")])
def test_an_answer_is_counted_by_its_class(status: int, kind: str) -> None:
    http.prepare(["GET /tested"])
    name, labels = "fedlearn_http_request_seconds_count", {"route": "GET /tested", "status": kind}
    before = sample(name, **labels) or 0
    http.observe("GET /tested", status, 0.1)
    assert sample(name, **labels) == before + 1
