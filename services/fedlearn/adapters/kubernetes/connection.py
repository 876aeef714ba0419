"""The way to a cluster's API, and what its errors mean here."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubernetes import config
from kubernetes.client import ApiClient, Configuration
from kubernetes.client.exceptions import ApiException
from kubernetes.config import ConfigException
from urllib3 import Retry
from urllib3.exceptions import HTTPError

from fedlearn.core.errors import Code, Outage, Refusal, SetupError

CALL_SECONDS = (3.0, 7.0)
"""How long a call may take to connect, and from one byte of its answer to the next."""
_REFUSALS = {
    400: Code.BAD_REQUEST,
    401: Code.CLUSTER_DENIED,
    403: Code.CLUSTER_DENIED,
    404: Code.NOT_FOUND,
    422: Code.BAD_REQUEST,
}
_POOLED_CONNECTIONS = 40  # as many as the web framework has threads
# the client's generated part is typed, its configuration is not
_load_pod: Callable[..., None] = config.load_incluster_config
_load_kubeconfig: Callable[..., None] = config.load_kube_config
_list_contexts: Callable[[str], tuple[list[dict[str, Any]], dict[str, Any]]] = config.list_kube_config_contexts
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@dataclass(frozen=True, slots=True)
class Connection:
    """A cluster's API as one account sees it, and the namespace that is meant where none is said."""

    api: ApiClient
    namespace: str

    def close(self) -> None:
        self.api.rest_client.close()


def connect(kubeconfig: Path | None = None, context: str | None = None) -> Connection:
    """Connect as a kubeconfig says (the one given, else `$KUBECONFIG`); else as this pod; else by `~/.kube/config`.

    Nothing is sent yet. A pod's token is read again as the kubelet renews it.

    Args:
        context: which of the kubeconfig's contexts; its current one by default.

    Raises:
        SetupError: `setting_invalid` when there is no such configuration, or it can't be used.
    """
    settings = Configuration()
    settings.connection_pool_maxsize = _POOLED_CONNECTIONS
    # once more after a lost connection: whatever is asked here may be asked twice
    settings.retries = Retry(1, allowed_methods=None, backoff_factor=0.2, respect_retry_after_header=False)
    settings.keep_alive = True  # an API server whose machine has gone says no goodbye to a watch
    asked_for = kubeconfig is not None or context is not None or "KUBECONFIG" in os.environ
    where = str(kubeconfig or os.environ.get("KUBECONFIG") or Path.home() / ".kube" / "config")
    try:
        if not asked_for and "KUBERNETES_SERVICE_HOST" in os.environ:
            where = "this pod's service account"
            _load_pod(client_configuration=settings)
            namespace = _NAMESPACE_FILE.read_text().strip()
        else:
            namespace = _namespace(where, context)
            _load_kubeconfig(where, context, client_configuration=settings, persist_config=False)
    except Exception as error:  # the client's own, YAML's, and a TypeError for a file of another form
        said = " ".join(str(error).split()).rstrip(".")
        raise SetupError(Code.SETTING_INVALID, f"There is no way to a cluster by {where}: {said}.") from error
    return Connection(ApiClient(settings), namespace)


def _namespace(kubeconfig: str, context: str | None) -> str:
    contexts, current = _list_contexts(kubeconfig)
    for found in [current] if context is None else contexts:
        if context is None or found["name"] == context:
            return str(found["context"].get("namespace") or "default")
    raise ConfigException(f"it has no context {context}")


@contextmanager
def asking(what: str) -> Iterator[None]:
    """Turn errors of the API into ours; `what` says what is asked of it, as in "to list pods".

    Raises:
        Refusal: `cluster_denied`, `not_found`, or `bad_request` for what the API does not take.
        Outage: `cluster_unavailable`.
    """
    try:
        yield
    except ApiException as error:
        if error.status in _REFUSALS:
            raise Refusal(_REFUSALS[error.status], f"The Kubernetes API refuses {what}: {_said(error)}.") from error
        raise Outage(Code.CLUSTER_UNAVAILABLE, f"The Kubernetes API fails {what}: {_said(error)}.") from error
    except (HTTPError, ConfigException, OSError) as error:
        raise Outage(Code.CLUSTER_UNAVAILABLE, f"The Kubernetes API can't be asked {what}: {error}.") from error


def _said(error: ApiException) -> str:
    """The API's own sentence."""
    try:
        said = json.loads(error.body or "")["message"]
    except (ValueError, KeyError, TypeError):
        said = f"{error.status} {error.reason}"
    return str(said).rstrip(".")
