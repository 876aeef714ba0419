"""The page docs/monitoring-on-a-cluster.md: what a release's own Prometheus answered to all that dashboards and alerts ask."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from support.questions import QUERIES, Samples, alerts, told

PAGE = Path(__file__).parents[2] / "docs" / "monitoring-on-a-cluster.md"
_INTRODUCTION = """# Monitoring, asked on a cluster

<!-- Written by FEDLEARN_WRITE_PAGES=1 python -m pytest tests/e2e/test_monitoring.py, not by hand. -->

The chart was installed with `monitoring.demo.enabled=true`, three devices and MNIST, and every expression of the
[dashboards](monitoring.md#dashboards) and of the [alerts](monitoring.md#alerts) was put to the Prometheus that came with it
({versions}), while rounds ran. One round was made to fail: a device was scaled away in its middle, and none could be spared.
`$__rate_interval` was {rate_interval}. Of many series the first are shown.
"""


@dataclass(frozen=True)
class Answers:
    """By expression: the samples that came back."""

    versions: Mapping[str, str]
    targets: Samples
    panels: Mapping[str, Samples]
    alerts: Mapping[str, Samples]
    series: Mapping[str, Mapping[str, Samples]]


def page(answers: Answers, rate_interval: str) -> str:
    """The whole page."""
    versions = ", ".join(f"{name} {version.removeprefix('v')}" for name, version in answers.versions.items())
    return "\n".join([_INTRODUCTION.format(versions=versions, rate_interval=rate_interval), *_sections(answers)])


def _sections(answers: Answers) -> Iterator[str]:
    yield _table("Targets", ("component", "pod", "up"), ((t["component"], t["pod"], f"{up:g}") for t, up in answers.targets))
    for dashboard in dict.fromkeys(query.dashboard for query in QUERIES):
        asked = [query for query in QUERIES if query.dashboard == dashboard]
        rows = ((q.panel, _code(q.expression), told(answers.panels.get(q.expression, ())) or "nothing") for q in asked)
        yield _table(dashboard.capitalize(), ("panel", "expression", "answer"), rows)
    raw = alerts("NAMESPACE")
    fired = ((alert, _code(raw[alert]), told(found) or "nothing: silent") for alert, found in answers.alerts.items())
    yield _table("Alerts", ("alert", "expression", "answer"), fired)
    watched = {series.partition("{")[0]: found for given in answers.series.values() for series, found in given.items()}
    rows = ((f"`{name}`", str(len(found)), told(found, 2)) for name, found in sorted(watched.items()))
    yield _table("What the alerts watch", ("series", "number", "values"), rows)


def _table(title: str, head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join([f"## {title}", "", *(f"| {' | '.join(row)} |" for row in lines), ""])


def _code(expression: str) -> str:
    """In one line of a table."""
    return f"`{' '.join(expression.split())}`".replace("|", "\\|")
