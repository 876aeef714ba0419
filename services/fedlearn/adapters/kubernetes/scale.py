"""How many devices there are: the replicas of their StatefulSet, through its scale subresource."""

from dataclasses import dataclass

from kubernetes.client import AppsV1Api

from fedlearn.adapters.kubernetes.connection import CALL_SECONDS, Connection, asking
from fedlearn.core.errors import Code, Refusal


@dataclass(frozen=True, slots=True)
class Scaled:
    """What was asked for, and how many pods there were when it was."""

    namespace: str
    statefulset: str
    before: int
    wanted: int


def find_statefulset(connection: Connection, namespace: str, selector: str) -> str:
    """The name of the one StatefulSet with these labels; the account needs `list` on StatefulSets.

    Raises:
        Refusal: `not_found` when there is none, or more than one; `cluster_denied`.
        Outage: `cluster_unavailable`.
    """
    with asking("to list StatefulSets"):
        found = AppsV1Api(connection.api).list_namespaced_stateful_set(
            namespace, label_selector=selector, _request_timeout=CALL_SECONDS
        )
    names = sorted(item.metadata.name for item in found.items if item.metadata and item.metadata.name)
    if len(names) == 1:
        return names[0]
    if names:
        raise Refusal(
            Code.NOT_FOUND, f"Several StatefulSets of namespace {namespace} are meant by {selector}: {', '.join(names)}."
        )
    raise Refusal(Code.NOT_FOUND, f"Namespace {namespace} has no StatefulSet with the labels {selector}.")


def scale(connection: Connection, namespace: str, statefulset: str, replicas: int) -> Scaled:
    """Ask for so many replicas; the account needs `patch` on `statefulsets/scale`. The pods come and go afterwards.

    Raises:
        Refusal: `not_found`, `cluster_denied`.
        Outage: `cluster_unavailable`.
    """
    with asking(f"to scale {namespace}/{statefulset}"):
        answer = AppsV1Api(connection.api).patch_namespaced_stateful_set_scale(
            statefulset, namespace, {"spec": {"replicas": replicas}}, _request_timeout=CALL_SECONDS
        )
    before = 0 if answer.status is None else answer.status.replicas
    return Scaled(namespace, statefulset, before, replicas)
