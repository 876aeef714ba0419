"""A namespace of a test's own in the cluster that KUBECONFIG points to; without one, the test is skipped."""

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
