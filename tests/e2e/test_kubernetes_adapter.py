"""The adapters to a real API server: pods as they come and go, Events, the scale subresource, and the verbs that these need."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from kubernetes.client import AppsV1Api

from fedlearn.adapters.kubernetes.connection import Connection, connect
from fedlearn.adapters.kubernetes.events import EventRecorder, Happening
from fedlearn.adapters.kubernetes.pods import PodWatch
from fedlearn.adapters.kubernetes.reviews import TokenReviewVerifier
from fedlearn.adapters.kubernetes.scale import find_statefulset, scale
from fedlearn.core.errors import Code, FedlearnError, Outage, Refusal
from support.namespace import Namespace, own_namespace
from support.relay import relay
from support.world import wait_for

LABELS = {"app.kubernetes.io/component": "device", "app.kubernetes.io/instance": "e2e"}
SELECTOR = ",".join(f"{name}={value}" for name, value in LABELS.items())
SERVER = "fedlearn-server"
COMMITTED = Happening(
    "fedlearn-device.mnist-2nn.4.18f", "RoundCommitted", "Commit", "mnist-2nn round 4 committed version 4.", 1_800_000_000.0
)


@pytest.fixture(scope="module")
def home() -> Iterator[Namespace]:
    with own_namespace("adapter") as home:
        home.account(SERVER)
        home.allow(SERVER, ("", "pods", "list watch"), ("events.k8s.io", "events", "create"))
        home.account("nobody")
        home.account("operator")
        home.allow("operator", ("apps", "statefulsets", "list"), ("apps", "statefulsets/scale", "patch"))
        yield home


def connected(home: Namespace, account: str, directory: Path, server: str = "") -> Connection:
    return connect(home.kubeconfig(account, directory, server))


@pytest.fixture
def server(home: Namespace, tmp_path: Path) -> Iterator[Connection]:
    """The server's account, with the verbs of its Role and no others."""
    connection = connected(home, SERVER, tmp_path)
    yield connection
    connection.close()


@pytest.fixture
def nobody(home: Namespace, tmp_path: Path) -> Iterator[Connection]:
    connection = connected(home, "nobody", tmp_path)
    yield connection
    connection.close()


@pytest.fixture
def watch(home: Namespace, server: Connection) -> Iterator[PodWatch]:
    watch = PodWatch(server.api, home.name, SELECTOR)
    watch.start()
    wait_for(lambda: watch.watching, "the pods to be watched")
    yield watch
    watch.stop()
    assert not watch._thread.is_alive()


def wait_for_states(watch: PodWatch, **states: str) -> None:
    def reached() -> bool:
        return {name: pod.state.value for name, pod in watch.pods.items()} == {
            name.replace("_", "-"): state for name, state in states.items()
        }

    wait_for(reached, f"pods to be {states}", seconds=120)


class TestPods:
    def test_are_seen_from_their_beginning_to_their_end(self, home: Namespace, watch: PodWatch) -> None:
        home.pod("beside")
        uid = home.pod("device-0", labels=LABELS, runs=True)
        wait_for_states(watch, device_0="ready")
        assert (watch.pods["device-0"].uid, bool(watch.pods["device-0"].node)) == (uid, True)
        home.core.delete_namespaced_pod("device-0", home.name)  # with its 30 s of grace
        wait_for_states(watch, device_0="terminating")
        home.delete_pod("device-0")
        wait_for_states(watch)

    def test_of_one_name_are_told_apart(self, home: Namespace, watch: PodWatch) -> None:
        first = home.pod("device-1", labels=LABELS)
        wait_for(lambda: "device-1" in watch.pods, "the first")
        home.delete_pod("device-1")
        second = home.pod("device-1", labels=LABELS)
        wait_for(lambda: "device-1" in watch.pods and watch.pods["device-1"].uid == second, "the second")
        assert first != second
        home.delete_pod("device-1")

    def test_that_were_before_are_listed(self, home: Namespace, server: Connection) -> None:
        home.pod("device-2", labels=LABELS)
        late = PodWatch(server.api, home.name, SELECTOR)
        late.start()
        wait_for(lambda: late.watching, "the pods to be watched")
        assert set(late.pods) == {"device-2"}
        late.stop()
        home.delete_pod("device-2")

    def test_are_listed_again_when_the_watch_stood_in_a_past_that_is_forgotten(
        self, home: Namespace, server: Connection
    ) -> None:
        home.pod("device-3", labels=LABELS)
        old = PodWatch(server.api, home.name, SELECTOR)
        old._version = "1"
        old.start()
        wait_for(lambda: "device-3" in old.pods and old.watching, "the list")
        old.stop()
        home.delete_pod("device-3")

    def test_that_come_while_the_cluster_is_out_of_reach_are_seen_afterwards(self, home: Namespace, tmp_path: Path) -> None:
        there = urlsplit(home.api.configuration.host)
        with relay(there.hostname or "", there.port or 443) as way:
            connection = connected(home, SERVER, tmp_path, f"https://127.0.0.1:{way.port}")
            watch = PodWatch(connection.api, home.name, SELECTOR)
            watch.start()
            wait_for(lambda: watch.watching, "the pods to be watched")
            way.cut()
            wait_for(lambda: not watch.watching, "the loss to be noticed")
            home.pod("device-4", labels=LABELS)
            way.mend()
            wait_for(lambda: watch.watching, "the cluster to be found again")
            wait_for(lambda: "device-4" in watch.pods, "what has come in between")
            watch.stop()
            connection.close()
        home.delete_pod("device-4")


class TestEvents:
    @pytest.fixture
    def recorder(self, home: Namespace, server: Connection) -> Iterator[EventRecorder]:
        recorder = EventRecorder(server.api, home.name, (SERVER, "3866ce38-ac95-45ee-82bc-3d347b0d7173"), "fedlearn-device")
        recorder.start()
        yield recorder
        recorder.stop()

    def test_are_found_where_kubectl_looks(self, home: Namespace, recorder: EventRecorder) -> None:
        recorder.record(COMMITTED)
        recorder.record(replace(COMMITTED, name="abandoned", reason="RoundAbandoned", action="Abandon", warning=True))
        (event,) = wait_for(lambda: home.events("RoundCommitted"), "the event")
        assert (event.metadata.name, event.type, event.message) == (COMMITTED.name, "Normal", COMMITTED.note)
        assert (event.involved_object.kind, event.involved_object.name) == ("Pod", SERVER)
        assert (event.related.kind, event.related.name) == ("StatefulSet", "fedlearn-device")
        (event,) = wait_for(lambda: home.events("RoundAbandoned"), "the event")
        assert event.type == "Warning"

    def test_are_told_once_however_often_they_are_recorded(self, home: Namespace, recorder: EventRecorder) -> None:
        for name in ("told", "told", "last"):
            recorder.record(replace(COMMITTED, name=name, reason="ToldTwice"))
        wait_for(lambda: "last" in [event.metadata.name for event in home.events("ToldTwice")], "the last event")
        assert sorted(event.metadata.name for event in home.events("ToldTwice")) == ["last", "told"]


class TestScale:
    @pytest.fixture
    def statefulset(self, home: Namespace) -> str:
        pod = {"containers": [{"name": "main", "image": "nothing", "imagePullPolicy": "Never"}]}
        labels = {**LABELS, "app.kubernetes.io/instance": "scaled"}
        spec = {
            "serviceName": "none",
            "replicas": 1,
            "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        }
        AppsV1Api(home.api).create_namespaced_stateful_set(
            home.name, {"metadata": {"name": "scaled-device", "labels": labels}, "spec": spec}
        )
        return "scaled-device"

    @pytest.fixture
    def operator(self, home: Namespace, tmp_path: Path) -> Iterator[Connection]:
        connection = connected(home, "operator", tmp_path)
        yield connection
        connection.close()

    def test_finds_the_releases_devices_and_changes_their_number(
        self, home: Namespace, operator: Connection, statefulset: str
    ) -> None:
        found = find_statefulset(operator, home.name, "app.kubernetes.io/instance=scaled,app.kubernetes.io/component=device")
        assert found == statefulset
        wait_for(lambda: AppsV1Api(home.api).read_namespaced_stateful_set(found, home.name).status.replicas == 1, "one device")
        assert scale(operator, home.name, found, 3).before == 1
        wait_for(lambda: AppsV1Api(home.api).read_namespaced_stateful_set(found, home.name).status.replicas == 3, "three")
        assert scale(operator, home.name, found, 0).before == 3
        wait_for(lambda: not AppsV1Api(home.api).read_namespaced_stateful_set(found, home.name).status.replicas, "none")

    def test_says_what_is_not_there(self, home: Namespace, operator: Connection) -> None:
        with pytest.raises(Refusal, match='"missing" not found') as refusal:
            scale(operator, home.name, "missing", 3)
        assert refusal.value.code is Code.NOT_FOUND


class TestAnAccountWithoutARole:
    """Each verb of the Roles above is needed: without it the API says which one."""

    @pytest.mark.parametrize("call", [find_statefulset, partial(scale, replicas=3)], ids=["list", "scale"])
    def test_may_not_scale(self, home: Namespace, nobody: Connection, call: Callable[..., object]) -> None:
        with pytest.raises(Refusal) as refusal:
            call(nobody, home.name, "any")
        assert refusal.value.code is Code.CLUSTER_DENIED
        assert f"system:serviceaccount:{home.name}:nobody" in refusal.value.detail

    @pytest.mark.parametrize("verbs", ["list", "watch"])
    def test_does_not_see_pods(self, home: Namespace, tmp_path: Path, verbs: str, told: list[FedlearnError]) -> None:
        home.account(f"only-{verbs}")
        home.allow(f"only-{verbs}", ("", "pods", verbs))
        connection = connected(home, f"only-{verbs}", tmp_path)
        watch = PodWatch(connection.api, home.name, SELECTOR)
        watch.start()
        missing = {"list": "watch", "watch": "list"}[verbs]
        wait_for(lambda: told, "the trouble to be told")
        assert f'cannot {missing} resource "pods"' in told[0].detail
        assert not watch.watching
        watch.stop()
        connection.close()

    @pytest.fixture
    def told(self, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        found: list[Any] = []

        def note(_event: str, **given: Any) -> None:
            found.append(Outage(given["code"], given["detail"]))

        for module in ("pods", "events"):
            monkeypatch.setattr(f"fedlearn.adapters.kubernetes.{module}._log.warning", note)
        return found

    def test_writes_no_events_and_fails_nothing(self, home: Namespace, nobody: Connection, told: list[FedlearnError]) -> None:
        recorder = EventRecorder(nobody.api, home.name, ("pod", "uid"), "fedlearn-device")
        recorder.start()
        recorder.record(replace(COMMITTED, name="denied"))
        recorder.stop()
        assert 'cannot create resource "events"' in told[0].detail

    def test_may_not_review_tokens_and_says_so(self, home: Namespace, nobody: Connection) -> None:
        token = home.token(SERVER, [SERVER])
        with pytest.raises(Outage, match='cannot create resource "tokenreviews"') as outage:
            TokenReviewVerifier(nobody.api, SERVER).verify(token)
        assert outage.value.code is Code.IDENTITY_UNAVAILABLE


def test_an_account_that_may_review_tokens_does(home: Namespace, server: Connection) -> None:
    pod = home.pod("reviewed", account=SERVER)
    token = home.token(SERVER, [SERVER], ("reviewed", pod))
    with home.may_review_tokens(SERVER):
        caller = wait_for(lambda: _verified(server, token), "the ClusterRole to be known")
    assert (caller.pod, caller.pod_uid) == ("reviewed", pod)
    home.delete_pod("reviewed")


def _verified(connection: Connection, token: str) -> Any:
    try:
        return TokenReviewVerifier(connection.api, SERVER).verify(token)
    except Outage:
        return None


def test_a_pods_own_account_is_used_in_a_pod(home: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the files and variables that the kubelet gives a pod."""
    kubeconfig = json.loads(home.kubeconfig(SERVER, tmp_path).read_text())
    there = urlsplit(home.api.configuration.host)
    (tmp_path / "token").write_text(kubeconfig["users"][0]["user"]["token"])
    (tmp_path / "namespace").write_text(home.name)
    monkeypatch.delenv("KUBECONFIG")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", there.hostname or "")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(there.port))
    monkeypatch.setattr("kubernetes.config.incluster_config.SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr("kubernetes.config.incluster_config.SERVICE_CERT_FILENAME", home.api.configuration.ssl_ca_cert)
    monkeypatch.setattr("fedlearn.adapters.kubernetes.connection._NAMESPACE_FILE", tmp_path / "namespace")
    connection = connect()
    watch = PodWatch(connection.api, connection.namespace, SELECTOR)
    watch.start()
    wait_for(lambda: watch.watching, "the pods to be watched")
    watch.stop()
    connection.close()
