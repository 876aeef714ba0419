from pathlib import Path

import pytest

from fedlearn.adapters.kubernetes import connection as module
from fedlearn.adapters.kubernetes.connection import Connection, asking, connect
from fedlearn.core.errors import Code, FedlearnError, Outage, Refusal, SetupError
from support.played_api import Answer, PlayedApi, connected, failure


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither in a pod, nor with a kubeconfig."""
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def in_a_pod(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """What the kubelet gives a pod."""
    for name, content in {"token": "of-the-pod", "ca.crt": "-", "namespace": "pods-own\n"}.items():
        (tmp_path / name).write_text(content)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setattr("kubernetes.config.incluster_config.SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr("kubernetes.config.incluster_config.SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setattr(module, "_NAMESPACE_FILE", tmp_path / "namespace")
    return tmp_path


def host(kubeconfig: Path | None = None) -> tuple[str, str]:
    """Where a connection leads, and the namespace that it means."""
    connection = connect(kubeconfig)
    return connection.api.configuration.host, connection.namespace


class TestWhichCluster:
    def test_a_kubeconfig_that_is_given_comes_first(
        self, api: PlayedApi, in_a_pod: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        given = api.kubeconfig(namespace="given")
        monkeypatch.setenv("KUBECONFIG", "/nowhere")
        assert host(given) == (api.url, "given")

    def test_then_that_of_the_environment(self, api: PlayedApi, in_a_pod: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(namespace="of-the-environment")))
        assert host() == (api.url, "of-the-environment")

    def test_then_the_pods_own(self, monkeypatch: pytest.MonkeyPatch, in_a_pod: Path) -> None:
        monkeypatch.setattr(module, "ApiClient", lambda settings: type("Client", (), {"configuration": settings}))
        assert host() == ("https://10.0.0.1:443", "pods-own")

    def test_then_that_of_the_home(self, api: PlayedApi, tmp_path: Path) -> None:
        home = tmp_path / "home" / ".kube"
        home.mkdir(parents=True)
        (home / "config").write_bytes(api.kubeconfig(namespace="of-the-home").read_bytes())
        assert host() == (api.url, "of-the-home")

    def test_and_none_is_said_so(self) -> None:
        with pytest.raises(SetupError, match=r"no way to a cluster by .*home/\.kube/config") as error:
            connect()
        assert error.value.code is Code.SETTING_INVALID

    def test_a_pod_without_a_token_is_said_so(self, in_a_pod: Path) -> None:
        (in_a_pod / "token").unlink()
        with pytest.raises(SetupError, match="by this pod's service account: Service token file does not exist"):
            connect()


class TestAKubeconfig:
    @pytest.mark.parametrize(
        "text", ["", "{", "[1, 2]", "kind: Config\n", "current-context: a\ncontexts: []\nclusters: []\nusers: []\n"], ids=ascii
    )
    def test_that_is_none_is_named_in_one_line(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "broken").write_text(text)
        with pytest.raises(SetupError, match="broken") as error:
            connect(tmp_path / "broken")
        assert "\n" not in error.value.detail

    def test_without_a_context_of_that_name_is_said_so(self, api: PlayedApi) -> None:
        with pytest.raises(SetupError, match="has no context elsewhere"):
            connect(api.kubeconfig(), "elsewhere")

    def test_s_context_may_be_named(self, api: PlayedApi) -> None:
        connection = connect(api.kubeconfig(), "played")
        assert connection.namespace == "fl"
        connection.close()

    def test_without_a_namespace_means_default(self, api: PlayedApi) -> None:
        connection = connect(api.kubeconfig(namespace=""))
        assert connection.namespace == "default"
        connection.close()


class TestErrors:
    @pytest.mark.parametrize(
        ("status", "kind", "code"),
        [
            (400, Refusal, Code.BAD_REQUEST),
            (401, Refusal, Code.CLUSTER_DENIED),
            (403, Refusal, Code.CLUSTER_DENIED),
            (404, Refusal, Code.NOT_FOUND),
            (422, Refusal, Code.BAD_REQUEST),
            (409, Outage, Code.CLUSTER_UNAVAILABLE),
            (429, Outage, Code.CLUSTER_UNAVAILABLE),
            (500, Outage, Code.CLUSTER_UNAVAILABLE),
            (503, Outage, Code.CLUSTER_UNAVAILABLE),
        ],
    )
    def test_an_answer_of_the_api_is_one_of_ours_with_its_sentence(
        self, api: PlayedApi, connection: Connection, status: int, kind: type[FedlearnError], code: Code
    ) -> None:
        api.answer("GET version", failure(status, "because of this."))
        with pytest.raises(kind, match="because of this") as error, asking("to tell its version"):
            _version(connection)
        assert error.value.detail.endswith(" to tell its version: because of this.")
        assert error.value.code is code

    def test_an_answer_without_a_sentence_is_told_by_its_status(self, api: PlayedApi, connection: Connection) -> None:
        api.answer("GET version", Answer(503, "from a proxy"))
        with pytest.raises(Outage, match="503 Service Unavailable"), asking("to tell its version"):
            _version(connection)

    def test_a_cluster_that_is_not_there_is_an_outage(self, api: PlayedApi) -> None:
        with connected(api, "http://127.0.0.1:9") as nowhere, pytest.raises(Outage) as outage, asking("to tell its version"):
            _version(nowhere)
        assert outage.value.code is Code.CLUSTER_UNAVAILABLE


def _version(connection: Connection) -> object:
    from kubernetes.client import VersionApi

    return VersionApi(connection.api).get_code()
