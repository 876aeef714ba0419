"""What the dashboards' panels and the alerts ask of a Prometheus, and how their answers read."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from support.chart import CHART

Samples = Sequence[tuple[Mapping[str, str], float]]
DASHBOARDS: Mapping[str, Any] = {
    path.stem: json.loads(path.read_text()) for path in sorted((CHART / "dashboards").glob("*.json"))
}
_RULES = [
    rule for group in yaml.safe_load((CHART / "alerts" / "fedlearn.yaml").read_text())["groups"] for rule in group["rules"]
]
_UNSAID = ("__name__", "namespace", "instance", "job")
_MANY = 4


@dataclass(frozen=True)
class Query:
    """One expression of a panel, with the dashboard's variables in it."""

    dashboard: str
    panel: str
    reference: str
    expression: str

    @property
    def name(self) -> str:
        return f"{self.dashboard}: {self.panel} {self.reference}"


QUERIES = [
    Query(name, panel["title"], target["refId"], target["expr"])
    for name, dashboard in DASHBOARDS.items()
    for panel in dashboard["panels"]
    for target in panel.get("targets", ())
]


def alerts(namespace: str) -> dict[str, str]:
    """Each alert's expression in a release's namespace."""
    return {rule["alert"]: rule["expr"].replace("NAMESPACE", namespace) for rule in _RULES}


def series_in(expression: str) -> list[str]:
    """The selectors in an expression, each once."""
    return list(dict.fromkeys(re.findall(r"\b[a-z_]+\{[^}]*\}", expression)))


def filled(expression: str, namespace: str = ".*", rate_interval: str = "30s") -> str:
    """A panel's expression as Grafana sends it, with every task chosen."""
    window = {"$__rate_interval": rate_interval, "$__range": "5m", "$namespace": namespace, "$task": ".*"}
    for variable, value in window.items():
        expression = expression.replace(variable, value)
    assert "$" not in expression
    return expression


def variables(dashboard: Any) -> dict[str, tuple[str, str]]:
    """Of each variable that asks Prometheus: the selector and the label whose values it offers."""
    found = {}
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            match = re.fullmatch(r"label_values\((?P<selector>.*), (?P<label>\w+)\)", variable["query"]["query"])
            assert match is not None
            found[variable["name"]] = filled(match["selector"]), match["label"]
    return found


def told(samples: Samples, many: int = _MANY) -> str:
    """What came back, in one line: labels and values, the largest first."""
    ordered = sorted(samples, key=lambda sample: -sample[1])
    said = [f"{_legend(labels)}{value:.4g}" for labels, value in ordered[:many]]
    return "; ".join(said) + (f"; … {len(samples)} in all" if len(samples) > many else "")


def ask_all(ask: Callable[[str], Samples], expressions: Sequence[str]) -> dict[str, Samples]:
    """The answers to those that have one now."""
    return {expression: found for expression in expressions if (found := ask(expression))}


def _legend(labels: Mapping[str, str]) -> str:
    kept = dict.fromkeys(value for name, value in labels.items() if name not in _UNSAID and value)
    return " ".join(kept) + " " if kept else ""
