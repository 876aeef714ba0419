"""Tests against the cluster that `KUBECONFIG` points to, whose nodes have the images (`make images`, `make kind-up`), and
`python:3.11-slim` for bare pods, or what `FEDLEARN_TEST_IMAGE` names.

Each module installs into a namespace of its own, which enforces Pod Security "restricted", and leaves the cluster as it was.
"""

import os
import secrets
from collections.abc import Iterator

import pytest

from support.release import Cluster, Release

_WITHOUT = "it needs a cluster: set KUBECONFIG to one whose nodes have the images"
_FIGURES: dict[str, float] = {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "e2e" in item.path.parts:
            item.add_marker(pytest.mark.slow)
            if "KUBECONFIG" not in os.environ:
                item.add_marker(pytest.mark.skip(reason=_WITHOUT))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _FIGURES:
        terminalreporter.section("seconds on the cluster")
        for name, seconds in _FIGURES.items():
            terminalreporter.write_line(f"{seconds:8.1f}  {name}")


@pytest.fixture(scope="session")
def figures() -> dict[str, float]:
    """Seconds by what they are of; they are shown at the end."""
    return _FIGURES


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace of this module's own; nothing of the whole cluster's outlives it either."""
    before = _cluster_wide(cluster)
    with cluster.namespace(f"fedlearn-e2e-{secrets.token_hex(3)}") as name:
        yield name
    assert _cluster_wide(cluster) == before


@pytest.fixture(scope="module")
def bare(cluster: Cluster, namespace: str) -> Iterator[Release]:
    """A release that is not installed yet, and is uninstalled in the end."""
    release = Release(cluster, namespace)
    yield release
    release.uninstall()


def _cluster_wide(cluster: Cluster) -> set[str]:
    roles = cluster.rbac.list_cluster_role(label_selector="app.kubernetes.io/part-of=fedlearn").items
    bindings = cluster.rbac.list_cluster_role_binding(label_selector="app.kubernetes.io/part-of=fedlearn").items
    return {found.metadata.name for found in (*roles, *bindings)}
