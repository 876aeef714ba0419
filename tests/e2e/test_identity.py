"""Who is refused on a real cluster, whose tokens nobody here has made; and that its public keys alone will do."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from kubernetes import client

from fedlearn import __version__
from support.release import NAME, Cluster, Release, restricted_pod

# no TensorFlow, since it is not about learning; and rounds without end, since they take no time then
VALUES = {
    "identity": {"mode": "jwks"},
    "task": {"rounds": None},
    "device": {"learner": "synthetic"},
    "evaluator": {"enabled": False},
}
MODES = ("jwks", "token_review")
_ASK = """
import pathlib, httpx
headers = {{"Authorization": "Bearer " + pathlib.Path("/token/token").read_text()}}
try:
    answer = httpx.post("{url}", json={body}, headers=headers)
    print(answer.status_code, answer.json().get("code"))
except httpx.TransportError:
    print(0, "unreachable")
"""
_CHECKIN = {"dataset": "none-of-theirs", "examples": 1, "wait_seconds": 0}


@pytest.fixture(scope="module")
def release(bare: Release) -> Release:
    bare.install(VALUES)
    bare.wait_for_versions(1)
    return bare


@pytest.fixture(scope="module", params=MODES)
def mode(request: pytest.FixtureRequest, release: Release) -> str:
    """The release checks tokens in each way in turn."""
    if request.param != "jwks":
        release.upgrade({**VALUES, "identity": {"mode": request.param}})
        release.wait_until_ready("server", 1)
        release.wait_until_ready("aggregator", 1)
    return str(request.param)


@pytest.fixture(scope="module")
def elsewhere(cluster: Cluster, namespace: str) -> Iterator[str]:
    """Another namespace, with a service account of the devices' name."""
    with cluster.namespace(f"{namespace}-other") as other:
        cluster.core.create_namespaced_service_account(
            other, client.V1ServiceAccount(metadata=client.V1ObjectMeta(name="fedlearn-device"))
        )
        yield other


@pytest.fixture(scope="module")
def stranger(cluster: Cluster, namespace: str) -> str:
    """A service account of the release's namespace that plays no role."""
    account = client.V1ServiceAccount(metadata=client.V1ObjectMeta(name="stranger"))
    cluster.core.create_namespaced_service_account(namespace, account)
    return "stranger"


def ask(
    release: Release,
    account: str = "fedlearn-device",
    *,
    audience: str = "fedlearn-server",
    namespace: str | None = None,
    service: str = "server",
    path: str = "/v1/checkins",
    body: Mapping[str, Any] = _CHECKIN,
) -> tuple[int, str | None]:
    """Status and code of a POST from a pod of this service account."""
    where = namespace or release.namespace
    port = {"server": 8000, "aggregator": 8003}[service]
    script = _ASK.format(url=f"http://fedlearn-{service}.{release.namespace}:{port}{path}", body=dict(body))
    status, code = release.cluster.run(where, _pod(account, audience, script)).split()
    return int(status), None if code == "None" else code


def test_a_device_s_account_is_let_in(release: Release, mode: str) -> None:
    assert ask(release) == (200, None)


def test_a_foreign_service_account_is_refused(release: Release, mode: str, stranger: str) -> None:
    assert ask(release, stranger) == (403, "forbidden")


def test_an_account_of_the_name_in_another_namespace_is_refused(release: Release, mode: str, elsewhere: str) -> None:
    # a network that enforces policies does not even let it through
    assert ask(release, namespace=elsewhere) in [(403, "forbidden"), (0, "unreachable")]


@pytest.mark.parametrize("audience", ["fedlearn-aggregator", "https://kubernetes.default.svc"])
def test_a_token_for_somebody_else_is_refused(release: Release, mode: str, audience: str) -> None:
    assert ask(release, audience=audience) == (401, "unauthenticated")


def test_a_device_can_t_play_the_server_at_the_aggregator(release: Release, mode: str) -> None:
    refused = ask(
        release,
        audience="fedlearn-aggregator",
        service="aggregator",
        path="/v1/models",
        body={"task": "t", "minimum": 2, "mixed": 2, "size_bytes": 1, "sha256": "0" * 64},
    )
    assert refused == (403, "forbidden")


def test_the_rounds_go_on(release: Release, mode: str) -> None:
    release.next_version()


def test_no_right_over_the_whole_cluster_is_taken_for_public_keys(cluster: Cluster, bare: Release) -> None:
    roles = cluster.rbac.list_cluster_role(label_selector="app.kubernetes.io/part-of=fedlearn").items
    of_this_release = [role.metadata.name for role in roles if role.metadata.name.startswith(f"{bare.namespace}-")]
    bare.upgrade(VALUES)
    left = cluster.rbac.list_cluster_role(label_selector="app.kubernetes.io/part-of=fedlearn").items
    assert of_this_release == [f"{bare.namespace}-fedlearn-token-review"]
    assert not [role for role in left if role.metadata.name.startswith(f"{bare.namespace}-")]


class TestTheStore:
    PORTS = (8333, 18333, 8888, 18888, 9333, 19333, 8080, 18080)

    def test_opens_one_port_and_its_own_grpc_to_those_who_have_its_certificate(self, release: Release) -> None:
        (pod,) = release.pods("storage")
        script = _KNOCK.format(host=pod.status.pod_ip, ports=self.PORTS)
        answers = json.loads(release.cluster.run(release.namespace, _pod("fedlearn-device", "fedlearn-server", script)))
        assert answers.pop("8333") == "open"
        assert answers.pop("18333") in ("wants a certificate", "closed")
        assert set(answers.values()) == {"closed"}


_KNOCK = """
import json, socket, ssl
def knock(port):
    try:
        raw = socket.create_connection(("{host}", port), timeout=3)
    except OSError:
        return "closed"
    if port == 8333:
        return "open"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        secure = context.wrap_socket(raw)
        secure.sendall(b"PRI * HTTP/2.0\\\\r\\\\n\\\\r\\\\nSM\\\\r\\\\n\\\\r\\\\n" + bytes(3) + bytes([4]) + bytes(5))
        return f"talks: {{secure.recv(100)!r}}"
    except ssl.SSLError as error:
        return "wants a certificate" if "CERTIFICATE_REQUIRED" in str(error) or "certificate" in str(error) else str(error)
print(json.dumps({{port: knock(port) for port in {ports}}}))
"""


_DEVICE = {f"app.kubernetes.io/{key}": value for key, value in (("name", NAME), ("instance", NAME), ("component", "device"))}


def _pod(account: str, audience: str, script: str) -> Mapping[str, Any]:
    """A pod that runs a script on the server's image, with a token, and with a device's labels: the network lets it through."""
    token = {"serviceAccountToken": {"audience": audience, "path": "token"}}
    volume = {"name": "token", "projected": {"sources": [token]}}
    command = ["python", "-c", script]
    return restricted_pod(f"fedlearn-server:{__version__}", command, volume, "/token", account=account, labels=_DEVICE)
