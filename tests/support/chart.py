"""The chart, rendered by Helm's own engine, as data."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import helm_python
import yaml

CHART = Path(__file__).parents[2] / "charts" / "fedlearn"
NAMESPACE = "learning"
VALUES_FILES = sorted((CHART / "ci").glob("*-values.yaml"))
Manifest = Mapping[str, Any]
SEVERAL = {"server": {"replicas": 2}, "database": {"existingSecret": "postgresql"}}
"""Values for several servers."""


@cache
def chart() -> helm_python.Chart:
    return helm_python.Chart.load(CHART)


def values(name: str) -> dict[str, Any]:
    """The values of `ci/<name>-values.yaml`."""
    return yaml.safe_load((CHART / "ci" / f"{name}-values.yaml").read_text()) or {}


@dataclass(frozen=True)
class Pod:
    """A pod template, and what it belongs to."""

    owner: Manifest
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    spec: Mapping[str, Any]

    @property
    def component(self) -> str:
        return self.labels["app.kubernetes.io/component"]

    @property
    def containers(self) -> Sequence[Mapping[str, Any]]:
        """All of them, those that run first included."""
        return [*self.spec.get("initContainers", ()), *self.spec["containers"]]

    @property
    def main(self) -> Mapping[str, Any]:
        return self.spec["containers"][0]  # type: ignore[no-any-return]

    @property
    def secrets(self) -> set[str]:
        """Every Secret that this pod can read."""
        volumes = {v["secret"]["secretName"] for v in self.spec.get("volumes", ()) if "secret" in v}
        variables = {
            e["valueFrom"]["secretKeyRef"]["name"]
            for container in self.containers
            for e in container.get("env", ())
            if "secretKeyRef" in e.get("valueFrom", {})
        }
        return volumes | variables

    @property
    def tokens(self) -> set[str]:
        """The audiences of the tokens in this pod; `kubernetes` for one that the cluster's own API takes."""
        sources = [s for v in self.spec.get("volumes", ()) for s in v.get("projected", {}).get("sources", ())]
        return {s["serviceAccountToken"].get("audience", "kubernetes") for s in sources if "serviceAccountToken" in s}


@dataclass(frozen=True)
class Rendered:
    """All that a release is made of, hooks included."""

    texts: Mapping[str, str]

    @cached_property
    def manifests(self) -> Sequence[Manifest]:
        found: list[Manifest] = []
        for name, text in self.texts.items():
            if not name.endswith("NOTES.txt"):
                # the loader in C is ten times as fast as `safe_load_all`, and as safe
                found += [manifest for manifest in yaml.load_all(text, yaml.CSafeLoader) if manifest]
        return found

    def of(self, kind: str) -> Mapping[str, Manifest]:
        """The manifests of a kind by their names."""
        return {m["metadata"]["name"]: m for m in self.manifests if m["kind"] == kind}

    @property
    def notes(self) -> str:
        return next(text for name, text in self.texts.items() if name.endswith("NOTES.txt"))

    @cached_property
    def pods(self) -> Mapping[str, Pod]:
        """Pod templates by component."""
        return {pod.component: pod for pod in self._pods()}

    def environment(self, component: str) -> Mapping[str, str]:
        """The settings of a component's pod that are no secret."""
        container = self.pods[component].main
        config = [self.of("ConfigMap")[source["configMapRef"]["name"]]["data"] for source in container.get("envFrom", ())]
        given = {e["name"]: e["value"] for e in container.get("env", ()) if "value" in e}
        return {**{name: value for data in config for name, value in data.items()}, **given}

    def _pods(self) -> Iterator[Pod]:
        for manifest in self.manifests:
            template = manifest if manifest["kind"] == "Pod" else manifest.get("spec", {}).get("template")
            if template is not None:
                meta = template["metadata"]
                yield Pod(manifest, meta["labels"], meta.get("annotations", {}), template["spec"])


def render(given: Mapping[str, Any] | None = None, *, name: str = "fedlearn", namespace: str = NAMESPACE) -> Rendered:
    """The chart with these values.

    Raises:
        HelmError: for values that the schema or the chart refuses.
    """
    return Rendered(chart().render(dict(given or {}), name=name, namespace=namespace))
