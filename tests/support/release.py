"""A release on a real cluster: installed by Helm's own engine, watched through the API that a person's kubectl uses."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import helm_python
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from fedlearn.protocol.views import FleetView, RoundView, VersionView
from support.chart import CHART
from support.world import wait_for

NAME = "fedlearn"
PATIENCE_SECONDS = 300.0
_HOOKS = ("task", "test")
Manifest = Mapping[str, Any]


class Cluster:
    """What `KUBECONFIG` points to."""

    def __init__(self) -> None:
        config.load_kube_config()
        self.api = client.ApiClient()
        self.core, self.apps, self.rbac = (
            client.CoreV1Api(self.api),
            client.AppsV1Api(self.api),
            client.RbacAuthorizationV1Api(self.api),
        )

    def close(self) -> None:
        self.api.close()

    def version(self) -> str:
        return str(client.VersionApi(self.api).get_code().git_version)

    @contextmanager
    def namespace(self, name: str) -> Iterator[str]:
        """A namespace that admits restricted pods alone, and is gone afterwards with all that was in it."""
        enforced = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
        self.core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=name, labels=enforced)))
        try:
            yield name
        finally:
            self.core.delete_namespace(name)
            wait_for(lambda: self._is_gone(name), f"namespace {name} to be gone", PATIENCE_SECONDS)

    def run(self, namespace: str, pod: Manifest) -> str:
        """Run a pod to its end, and return what it printed."""
        name = pod["metadata"]["name"]
        self.core.create_namespaced_pod(namespace, pod)

        def ended() -> str | None:
            phase = self.core.read_namespaced_pod(name, namespace).status.phase
            return phase if phase in ("Succeeded", "Failed") else None

        phase = wait_for(ended, f"pod {name} to end", PATIENCE_SECONDS)
        said: str = self.core.read_namespaced_pod_log(name, namespace)
        self.core.delete_namespaced_pod(name, namespace, grace_period_seconds=0)
        assert phase == "Succeeded", said
        return said

    def get(self, namespace: str, service: str, path: str, **query: str) -> Any:
        """GET from a Service by way of the cluster's API, as JSON; None while nothing answers."""
        place = f"/api/v1/namespaces/{namespace}/services/{service}/proxy/{path.lstrip('/')}"
        given = self.api.param_serialize("GET", place, query_params=list(query.items()), auth_settings=["BearerToken"])
        try:
            answer = self.api.call_api(*given, _request_timeout=(5, 10))
            data = answer.read()
        except HTTPError:  # it was sent to a pod that is no more
            return None
        if answer.status in (404, 500, 502, 503, 504):
            return None
        assert answer.status == 200, f"{place}: {answer.status} {data!r}"
        return json.loads(data)

    def _is_gone(self, namespace: str) -> bool:
        try:
            self.core.read_namespace(namespace)
        except ApiException as error:
            return bool(error.status == 404)
        return False


@dataclass
class Release:
    """The chart installed as `fedlearn` in a namespace."""

    cluster: Cluster
    namespace: str
    task: str = "mnist-2nn"

    # --- by Helm

    def install(self, values: Mapping[str, Any]) -> None:
        """Returns when the task is submitted, as `helm install` does."""
        with self._helm() as helm:
            helm.install(CHART, NAME, dict(values), timeout=900)

    def upgrade(self, values: Mapping[str, Any]) -> None:
        with self._helm() as helm:
            helm.upgrade(CHART, NAME, dict(values), timeout=900)

    def test(self) -> str:
        """What `helm test` prints; it raises when the test fails."""
        with self._helm() as helm:
            return str(helm.test(NAME, timeout=600, logs=True)["logs"])

    def uninstall(self) -> str:
        """What `helm uninstall` says of what it left."""
        with self._helm() as helm:
            said = str(helm.uninstall(NAME, wait="legacy", timeout=300, ignore_not_found=True).get("info", ""))
        wait_for(lambda: not self.pods(), "the pods to be gone", PATIENCE_SECONDS)
        return said

    @contextmanager
    def _helm(self) -> Iterator[helm_python.Config]:
        with helm_python.Config(namespace=self.namespace) as found:
            yield found

    # --- as kubectl sees it

    def pods(self, component: str | None = None) -> list[Any]:
        """The release's pods, those of hooks left out."""
        return [pod for pod in self._pods(component) if pod.metadata.labels["app.kubernetes.io/component"] not in _HOOKS]

    def hook_pods(self, component: str) -> list[Any]:
        return self._pods(component)

    def _pods(self, component: str | None) -> list[Any]:
        selector = f"app.kubernetes.io/instance={NAME}" + (f",app.kubernetes.io/component={component}" if component else "")
        return self.cluster.core.list_namespaced_pod(self.namespace, label_selector=selector).items  # type: ignore[no-any-return]

    def ready(self, component: str | None = None) -> list[Any]:
        """Those that are ready and not on their way out."""
        return [pod for pod in self.pods(component) if pod.metadata.deletion_timestamp is None and _is_ready(pod)]

    def wait_until_ready(self, component: str, number: int) -> None:
        """Wait until the component is rolled out and has so many pods, all ready."""
        wait_for(
            lambda: self._is_rolled_out(component) and len(self.ready(component)) == number == len(self.pods(component)),
            f"{number} ready pods of {component}",
            PATIENCE_SECONDS,
        )

    def delete_pod(self, component: str, ordinal: int = 0) -> str:
        """Delete one pod of a component, as `kubectl delete pod` does."""
        pods = sorted(self.ready(component), key=lambda pod: pod.metadata.name)
        name = pods[ordinal].metadata.name
        self.cluster.core.delete_namespaced_pod(name, self.namespace)
        return str(name)

    def evict(self, pod: str) -> bool:
        """As `kubectl drain` does; False where a disruption budget does not allow it now."""
        eviction = client.V1Eviction(metadata=client.V1ObjectMeta(name=pod, namespace=self.namespace))
        try:
            self.cluster.core.create_namespaced_pod_eviction(pod, self.namespace, eviction)
        except ApiException as error:
            if error.status == 429:
                return False
            raise
        return True

    def scale_devices(self, number: int) -> None:
        """As `kubectl scale` does."""
        self.cluster.apps.patch_namespaced_stateful_set_scale(f"{NAME}-device", self.namespace, {"spec": {"replicas": number}})

    def events(self) -> list[Any]:
        return self.cluster.core.list_namespaced_event(self.namespace).items  # type: ignore[no-any-return]

    def claims(self) -> dict[str, str]:
        """The claims' UIDs by their names."""
        found = self.cluster.core.list_namespaced_persistent_volume_claim(self.namespace).items
        return {claim.metadata.name: claim.metadata.uid for claim in found}

    def secrets(self) -> dict[str, Mapping[str, str]]:
        """What the chart's Secrets hold, Helm's own left out."""
        found = self.cluster.core.list_namespaced_secret(self.namespace).items
        return {secret.metadata.name: secret.data for secret in found if secret.type == "Opaque"}

    def _is_rolled_out(self, component: str) -> bool:
        """What `kubectl rollout status` waits for."""
        apps, name = self.cluster.apps, f"{NAME}-{component}"
        if component in ("server", "evaluator"):
            found = apps.read_namespaced_deployment(name, self.namespace)
            return found.status.observed_generation == found.metadata.generation and (
                found.status.updated_replicas == found.status.ready_replicas == found.spec.replicas
            )
        found = apps.read_namespaced_stateful_set(name, self.namespace)
        return found.status.observed_generation == found.metadata.generation and (
            found.status.current_revision == found.status.update_revision
        )

    # --- as the server tells it

    def ask(self, path: str) -> Any:
        """GET from the server, by way of the cluster's API; None while it does not answer."""
        return self.cluster.get(self.namespace, f"{NAME}-server:8000", path)

    def versions(self) -> list[VersionView]:
        """Committed versions in order; empty while the server does not answer."""
        found = self.ask(f"v1/tasks/{self.task}/models") or []
        return [view for view in map(VersionView.model_validate, found) if view.round is not None]

    def rounds(self) -> list[RoundView]:
        return [RoundView.model_validate(one) for one in self.ask(f"v1/tasks/{self.task}/rounds") or []]

    def fleet(self) -> FleetView:
        return FleetView.model_validate(wait_for(lambda: self.ask("v1/devices"), "the fleet", PATIENCE_SECONDS))

    def wait_for_versions(self, number: int) -> list[VersionView]:
        """Wait until so many rounds are committed."""

        def enough() -> Sequence[VersionView] | None:
            found = self.versions()
            return found if len(found) >= number else None

        return list(self._slowly(enough, f"{number} committed rounds"))

    def wait_for_round(self, condition: Callable[[RoundView], bool], what: str) -> RoundView:
        """Wait until a round of the task is like that."""
        found: RoundView = self._slowly(lambda: next(filter(condition, self.rounds()), None), what)
        return found

    def next_version(self) -> float:
        """Seconds until one more round is committed."""
        before, began = len(self.versions()), time.monotonic()
        self.wait_for_versions(before + 1)
        return time.monotonic() - began

    def _slowly(self, condition: Callable[[], Any], what: str) -> Any:
        """`wait_for`, with pauses that spare a cluster on a small machine."""
        give_up = time.monotonic() + PATIENCE_SECONDS
        while not (found := condition()):
            assert time.monotonic() < give_up, f"waited {PATIENCE_SECONDS:.0f} s in vain for {what}"
            time.sleep(0.2)
        return found


def restricted_pod(
    image: str,
    command: Sequence[str],
    volume: Manifest,
    mounted_at: str,
    *,
    account: str = "default",
    labels: Mapping[str, str] | None = None,
) -> Manifest:
    """A pod that Pod Security "restricted" admits, with one volume."""
    container = {
        "name": "main",
        "image": image,
        "command": list(command),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": volume["name"], "mountPath": mounted_at}, {"name": "tmp", "mountPath": "/tmp"}],
    }
    return {
        "metadata": {"name": "by-hand", "labels": dict(labels or {})},
        "spec": {
            "serviceAccountName": account,
            "automountServiceAccountToken": False,
            "restartPolicy": "Never",
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 10001,
                "fsGroup": 10001,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": [volume, {"name": "tmp", "emptyDir": {}}],
        },
    }


def _is_ready(pod: Any) -> bool:
    return any(condition.type == "Ready" and condition.status == "True" for condition in pod.status.conditions or ())
