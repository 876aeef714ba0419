"""How a service is told of its cluster: by variables that a chart and the downward API set."""

from pathlib import Path

import pytest

from fedlearn.config import AggregatorSettings, ServerSettings, load
from fedlearn.core.errors import Code, SetupError

COMMON = {
    "FEDLEARN_AGGREGATOR_TOKEN_FILE": "/var/run/secrets/fedlearn/aggregator",
    "FEDLEARN_SERVER_TOKEN_FILE": "/var/run/secrets/fedlearn/server",
    "FEDLEARN_OPERATOR_TOKEN_FILE": "/etc/fedlearn/operator/token",
    "FEDLEARN_IDENTITY_KEY_FILE": "/etc/fedlearn/identity/private.pem",
    "FEDLEARN_STORAGE__ENDPOINT_URL": "http://fedlearn-storage:8333",
    "FEDLEARN_IDENTITY__NAMESPACE": "fl",
}
POD = {"FEDLEARN_CLUSTER__POD_NAME": "fedlearn-server-7d9-x", "FEDLEARN_CLUSTER__POD_UID": "3866ce38"}


@pytest.fixture(autouse=True)
def _common(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in COMMON.items():
        monkeypatch.setenv(name, value)


def refused(monkeypatch: pytest.MonkeyPatch, **variables: str) -> str:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SetupError) as error:
        load(ServerSettings)
    assert error.value.code is Code.SETTING_INVALID
    return error.value.detail


class TestIdentity:
    @pytest.mark.parametrize("kind", [ServerSettings, AggregatorSettings])
    def test_is_checked_by_the_cluster_where_nothing_else_is_said(
        self, kind: type[ServerSettings] | type[AggregatorSettings]
    ) -> None:
        assert load(kind).identity.mode == "token_review"

    def test_may_be_checked_by_the_clusters_keys(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FEDLEARN_IDENTITY__MODE", "jwks")
        monkeypatch.setenv("FEDLEARN_IDENTITY__JWKS", "https://kubernetes.default.svc/openid/v1/jwks")
        monkeypatch.setenv("FEDLEARN_IDENTITY__JWKS_CA_FILE", "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt")
        identity = load(ServerSettings).identity
        assert identity.jwks == "https://kubernetes.default.svc/openid/v1/jwks"
        assert identity.jwks_ca_file == Path("/var/run/secrets/kubernetes.io/serviceaccount/ca.crt")

    def test_by_keys_wants_to_know_where_they_are(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert "FEDLEARN_IDENTITY:" in refused(monkeypatch, FEDLEARN_IDENTITY__MODE="jwks")

    def test_has_no_use_for_keys_in_another_mode(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert "FEDLEARN_IDENTITY:" in refused(monkeypatch, FEDLEARN_IDENTITY__JWKS="/keys.json")

    def test_has_two_modes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert "FEDLEARN_IDENTITY__MODE" in refused(monkeypatch, FEDLEARN_IDENTITY__MODE="anybody")


class TestCluster:
    def test_is_none_where_nothing_is_said(self) -> None:
        assert not load(ServerSettings).cluster.enabled

    def test_is_described_by_the_chart_and_the_downward_api(self, monkeypatch: pytest.MonkeyPatch) -> None:
        given = {
            **POD,
            "FEDLEARN_CLUSTER__ENABLED": "true",
            "FEDLEARN_CLUSTER__NAMESPACE": "fl",
            "FEDLEARN_CLUSTER__DEVICE_SELECTOR": "app.kubernetes.io/component=device,app.kubernetes.io/instance=my",
            "FEDLEARN_CLUSTER__STATEFULSET": "my-fedlearn-device",
        }
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        cluster = load(ServerSettings).cluster
        assert (cluster.enabled, cluster.namespace, cluster.statefulset) == (True, "fl", "my-fedlearn-device")
        assert (cluster.pod_name, cluster.pod_uid) == ("fedlearn-server-7d9-x", "3866ce38")
        assert cluster.device_selector.endswith("instance=my")

    @pytest.mark.parametrize("missing", POD)
    def test_wants_the_servers_own_pod(self, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
        others = {name: value for name, value in POD.items() if name != missing}
        detail = refused(monkeypatch, FEDLEARN_CLUSTER__ENABLED="true", **others)
        assert "FEDLEARN_CLUSTER:" in detail
        assert "pod_name and pod_uid" in detail
