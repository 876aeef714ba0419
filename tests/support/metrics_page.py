"""Writes docs/metrics.md from the declarations in `fedlearn.telemetry.metrics`: `python tests/support/metrics_page.py`."""

import importlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

from prometheus_client.metrics import Histogram, MetricWrapperBase

from fedlearn.telemetry import metrics
from fedlearn.telemetry.metrics import http

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
SECTIONS = {
    "server": "The server's",
    "tasks": "The server's, by task",
    "database": "The server's, of its database",
    "aggregator": "The aggregator's",
    "storage": "The server's and the aggregator's, of object storage",
    "device": "A device process's",
    "transfers": "A device process's and the evaluator's, of object storage",
    "evaluator": "The evaluator's",
    "http": "Every service's, of its API",
    "": "Every service's",
}
_HEAD = ("| metric | kind | meaning | labels |", "|---|---|---|---|")
_INTRODUCTION = """# Metrics

<!-- Written by tests/support/metrics_page.py from services/fedlearn/telemetry/metrics/; a test fails when they differ. -->

Every service serves its metrics at `/metrics`, without a token: counts, durations, and means over many devices, never what
one device has learnt; a pod with a single device shows its training times and how many examples it has, as the server knows
them. Names are `fedlearn_<noun>_<what>_<unit>`. Every label has a fixed set of values that exist from the start,
so that a rate is 0, not absent, before the first event. No label names a round or a device.

Beside these stand the Prometheus client's own: `process_resident_memory_bytes`, `process_cpu_seconds_total`,
`process_start_time_seconds`, `process_open_fds` and `python_gc_…`.

[Dashboards and alerts](monitoring.md) are made of them.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([_INTRODUCTION, *(_section(name, title) for name, title in SECTIONS.items())])


def _section(name: str, title: str) -> str:
    module = importlib.import_module(f"{metrics.__name__}.{name}") if name else metrics
    note = [(module.__doc__ or "").strip(), ""] if name else []
    return "\n".join([f"## {title}", "", *note, *_HEAD, *map(_row, declared(module)), ""])


def declared(module: ModuleType) -> Iterator[MetricWrapperBase]:
    """The metrics that a module declares, in its order."""
    return (metric for metric in vars(module).values() if isinstance(metric, MetricWrapperBase))


def _row(metric: MetricWrapperBase) -> str:
    name = metric._name + ("_total" if metric._type == "counter" else "")
    labels = "; ".join(f"`{label}`{_values(metric, index)}" for index, label in enumerate(metric._labelnames))
    kind = metric._type
    if isinstance(metric, Histogram):
        kind += f" to {metric._upper_bounds[-2]:g} s"
    return f"| `{name}` | {kind} | {metric._documentation} | {labels} |"


def _values(metric: MetricWrapperBase, index: int) -> str:
    if metric._labelnames[index] in ("task", "version", "route"):
        return ""
    if metric is http.REQUEST_SECONDS:  # its series come with an app's routes and requests
        return ": " + ", ".join(_words(http.Status))
    return ": " + ", ".join(_words(str(labels[index]) for labels in metric._metrics))


def _words(values: Iterable[str]) -> list[str]:
    return [f"`{value}`" if value else "none" for value in dict.fromkeys(values)]


if __name__ == "__main__":
    PAGE.write_text(page())
