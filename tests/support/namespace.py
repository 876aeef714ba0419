"""A namespace of a test's own in the cluster that KUBECONFIG points to; without one, the test is skipped."""

import json
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.world import wait_for


class Namespace:
    """Makes what tests need beside fedlearn, as the cluster's administrator. What pods run does not matter: nothing, here.

    Args:
        api: an ApiClient of the `kubernetes` package.
    """

    def __init__(self, api: Any, name: str) -> None:
        from kubernetes import client

        self.api, self.name = api, name
        self.core = client.CoreV1Api(api)

    def account(self, name: str) -> None:
        self.core.create_namespaced_service_account(self.name, {"metadata": {"name": name}})

    def pod(self, name: str, *, account: str = "default", labels: dict[str, str] | None = None, runs: bool = False) -> str:
        """Make a pod, and wait until it has a node; its UID. With `runs` it sleeps, and else it never starts."""
        container: dict[str, Any] = {"name": "main", "image": "nothing", "imagePullPolicy": "Never"}
        if runs:
            image = os.environ.get("FEDLEARN_TEST_IMAGE", "python:3.11-slim")
            container |= {"image": image, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "3600"]}
        spec = {"serviceAccountName": account, "containers": [container], "terminationGracePeriodSeconds": 30}
        self.core.create_namespaced_pod(self.name, {"metadata": {"name": name, "labels": labels or {}}, "spec": spec})

        def scheduled() -> Any:
            pod = self.core.read_namespaced_pod(name, self.name)
            return pod.spec.node_name and pod

        uid: str = wait_for(scheduled, f"a node for {name}").metadata.uid
        return uid

    def delete_pod(self, name: str) -> None:
        """Delete a pod at once, as a node does that has ended it."""
        from kubernetes.client.exceptions import ApiException

        self.core.delete_namespaced_pod(name, self.name, grace_period_seconds=0)

        def gone() -> bool:
            try:
                self.core.read_namespaced_pod(name, self.name)
            except ApiException as error:
                return error.status == 404
            return False

        wait_for(gone, f"the end of {name}")

    def token(self, account: str, audiences: Sequence[str] = (), pod: tuple[str, str] | None = None) -> str:
        """A token of this account for these audiences (the API server's by default), bound to a pod (name, UID)."""
        spec: dict[str, Any] = {"expirationSeconds": 600, "audiences": list(audiences)}
        if pod is not None:
            spec["boundObjectRef"] = {"kind": "Pod", "apiVersion": "v1", "name": pod[0], "uid": pod[1]}
        from kubernetes import client

        request = client.AuthenticationV1TokenRequest(spec=client.V1TokenRequestSpec.from_dict(spec))
        made: str = self.core.create_namespaced_service_account_token(account, self.name, request).status.token
        return made

    def allow(self, account: str, *rules: tuple[str, str, str]) -> None:
        """A Role with these rules, each an API group, a resource and its verbs, for this account."""
        from kubernetes import client

        roles = client.RbacAuthorizationV1Api(self.api)
        given = [{"apiGroups": [group], "resources": [what], "verbs": verbs.split()} for group, what, verbs in rules]
        roles.create_namespaced_role(self.name, {"metadata": {"name": account}, "rules": given})
        roles.create_namespaced_role_binding(self.name, _binding("Role", account, account, self.name))

    @contextmanager
    def may_review_tokens(self, *accounts: str) -> Iterator[None]:
        """A ClusterRole for these accounts, for a while."""
        from kubernetes import client

        roles = client.RbacAuthorizationV1Api(self.api)
        rule = {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]}
        roles.create_cluster_role({"metadata": {"name": self.name}, "rules": [rule]})
        names = [f"{self.name}-{account}" for account in accounts]
        try:
            for name, account in zip(names, accounts, strict=True):
                roles.create_cluster_role_binding(_binding("ClusterRole", self.name, account, self.name, name))
            yield
        finally:
            for name in names:
                roles.delete_cluster_role_binding(name)
            roles.delete_cluster_role(self.name)

    def kubeconfig(self, account: str, directory: Path, server: str = "") -> Path:
        """A kubeconfig by which one is this account."""
        settings = self.api.configuration
        cluster = {"server": server or settings.host, "certificate-authority": settings.ssl_ca_cert}
        config = {
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": cluster}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": account, "namespace": self.name}}],
            "users": [{"name": account, "user": {"token": self.token(account)}}],
        }
        path = directory / f"{account}.kubeconfig"
        path.write_text(json.dumps(config))
        return path

    def events(self, reason: str) -> list[Any]:
        """As `kubectl get events` finds them."""
        found: list[Any] = self.core.list_namespaced_event(self.name, field_selector=f"reason={reason}").items
        return found


def _binding(kind: str, role: str, account: str, namespace: str, name: str = "") -> dict[str, Any]:
    return {
        "metadata": {"name": name or role},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}],
    }


@contextmanager
def own_namespace(purpose: str) -> Iterator[Namespace]:
    """A new namespace, which goes with everything in it."""
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("This needs a Kubernetes cluster: set KUBECONFIG.")
    from kubernetes import client, config

    settings = client.Configuration()
    config.load_kube_config(os.environ["KUBECONFIG"], client_configuration=settings)
    api = client.ApiClient(settings)
    name = f"fedlearn-{purpose}-{secrets.token_hex(4)}"
    core = client.CoreV1Api(api)
    core.create_namespace({"metadata": {"name": name}})
    try:
        wait_for(lambda: core.list_namespaced_service_account(name).items, f"the default account of {name}")
        yield Namespace(api, name)
    finally:
        core.delete_namespace(name)
        api.rest_client.close()
