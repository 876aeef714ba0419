"""The real services with a real cluster's tokens: each caller is a pod, and the cluster is asked who it is and where it stands.

The services run here, each as its own service account; what the pods run does not matter.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from fedlearn.core.errors import Code
from fedlearn.local.identities import AGGREGATOR_AUDIENCE, SERVER_AUDIENCE
from fedlearn.local.storage import LocalStorage
from fedlearn.protocol.messages import Assignment
from fedlearn.protocol.views import DeviceView
from support.namespace import Namespace, own_namespace
from support.trial import Trial
from support.world import HandDevice, World, wait_for

LABELS = {"app.kubernetes.io/component": "device", "app.kubernetes.io/instance": "e2e"}
SERVER, AGGREGATOR, DEVICE = "fedlearn-server", "fedlearn-aggregator", "fedlearn-device"
POD_SECONDS = 120.0
_numbers = itertools.count(1)


class Pods:
    """Mints a pod's tokens as `LocalIssuer` does; a device's pod is made when it is first asked for."""

    def __init__(self, home: Namespace) -> None:
        self.home, self._uids = home, dict[str, str]()

    def mint(self, account: str, pod: str, audience: str, seconds: float) -> str:
        return self.home.token(account, [audience], (pod, self.uid(pod, account)))

    def uid(self, pod: str, account: str = DEVICE) -> str:
        if pod not in self._uids:
            labels = LABELS if account == DEVICE else {}
            self._uids[pod] = self.home.pod(pod, account=account, labels=labels, runs="leaving" in pod)
        return self._uids[pod]

    def replace(self, pod: str) -> None:
        """End a pod, and make another of its name, as a StatefulSet does."""
        self.home.delete_pod(pod)
        del self._uids[pod]
        self.uid(pod)


@pytest.fixture(scope="module")
def home() -> Iterator[Namespace]:
    with own_namespace("services") as home:
        for account in (SERVER, AGGREGATOR, DEVICE, "fedlearn-evaluator", "foreign"):
            home.account(account)
        home.allow(SERVER, ("", "pods", "list watch"), ("events.k8s.io", "events", "create"))
        with home.may_review_tokens(SERVER, AGGREGATOR):
            yield home


@pytest.fixture(scope="module")
def world(home: Namespace, storage: LocalStorage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("world")
    pods = Pods(home)

    def settings(account: str, audience: str) -> dict[str, str]:
        """What the chart gives a service: whom it trusts, and its own tokens."""
        token = directory / f"{account}.token"
        token.write_text(pods.mint(account, f"{account}-0", audience, 600))
        return {
            "FEDLEARN_IDENTITY": json.dumps({"mode": "token_review", "namespace": home.name}),
            "KUBECONFIG": str(home.kubeconfig(account, directory)),
            f"FEDLEARN_{audience.removeprefix('fedlearn-').upper()}_TOKEN_FILE": str(token),
        }

    cluster = {
        "enabled": True,
        "namespace": home.name,
        "device_selector": ",".join(f"{name}={value}" for name, value in LABELS.items()),
        "pod_name": f"{SERVER}-0",
        "pod_uid": pods.uid(f"{SERVER}-0", SERVER),
    }
    world = World.start(
        directory,
        storage,
        aggregator_settings=settings(AGGREGATOR, SERVER_AUDIENCE),
        server_settings={**settings(SERVER, AGGREGATOR_AUDIENCE), "FEDLEARN_CLUSTER": json.dumps(cluster)},
    )
    world.issuer = pods  # type: ignore[assignment] - mints as well
    yield world
    world.stop()


@pytest.fixture
def trial(world: World, request: pytest.FixtureRequest) -> Iterator[Trial]:
    trial = Trial(world, f"t{next(_numbers)}")
    yield trial
    trial.cancel()


@pytest.fixture
def pods(world: World) -> Pods:
    assert isinstance(world.issuer, Pods)
    return world.issuer


def shown(world: World, device: HandDevice) -> DeviceView:
    with world.operator() as operator:
        fleet = operator.devices()
    assert fleet.cluster == "watching"
    return next(view for view in fleet.devices if view.device == device.id)


def wait_for_pod(world: World, device: HandDevice, state: str) -> None:
    def reached() -> bool:
        pod = shown(world, device).pod
        return pod is not None and pod.state == state

    wait_for(reached, f"{device.id} to be shown {state}", POD_SECONDS)


def test_a_round_is_committed_and_told_as_an_event(world: World, home: Namespace, trial: Trial) -> None:
    devices = trial.devices("a", "b")
    trial.submit()
    for device, assignment in zip(devices, trial.assign(*devices), strict=True):
        assert device.accept(assignment).is_success
        trial.bring(device, assignment, trial.update())
    trial.reach(1, "committed")

    def told() -> list[str]:
        notes = {event.message: event for event in home.events("RoundCommitted") if trial.name in event.message}
        assert all(event.involved_object.name == f"{SERVER}-0" for event in notes.values())
        return list(notes)

    (note,) = wait_for(told, "the event")
    assert note.startswith(f"{trial.name} round 1 committed version 1: 2 of 2 devices reported, 20 examples")


def test_an_abandoned_round_is_told_as_a_warning(home: Namespace, trial: Trial) -> None:
    trial.submit(selection_timeout_seconds=0.1)
    trial.reach(1, "abandoned")

    def told() -> list[str]:
        return [event.type for event in home.events("RoundAbandoned") if f"{trial.name} round 1 " in event.message]

    assert wait_for(told, "the event") == ["Warning"]


def test_a_device_is_shown_with_its_pod_and_its_part(world: World, trial: Trial) -> None:
    devices = trial.devices("a", "b")
    trial.submit()
    (assignment, _) = trial.assign(*devices)
    devices[0].accept(assignment)
    view = shown(world, devices[0])
    assert view.part is not None
    assert view.pod is not None
    assert (view.part.task, view.part.standing, bool(view.pod.node)) == (trial.name, "accepted", True)
    assert (view.dataset, view.examples) == (trial.name, 10)


def test_a_pod_that_terminates_is_not_selected(world: World, home: Namespace, trial: Trial) -> None:
    leaving, first, second = trial.devices("leaving", "first", "second")
    wait_for_pod(world, leaving, "ready")
    home.core.delete_namespaced_pod(leaving.pod, home.name)  # it ignores SIGTERM, and so stays for its 30 s of grace
    wait_for_pod(world, leaving, "terminating")
    with ThreadPoolExecutor(3) as threads:
        held = threads.submit(leaving.check_in, 8.0)
        wait_for(lambda: shown(world, leaving).waiting, "it to wait")
        threads.submit(first.assignment)
        wait_for(lambda: _waits(world, first), "the first to wait")
        trial.submit()
        threads.submit(second.assignment)
        round_ = trial.reach(1, "reporting")
        assert {participant.device for participant in round_.participants} == {first.id, second.id}
        assert held.result().json()["kind"] == "come_back"


def _waits(world: World, device: HandDevice) -> bool:
    with world.operator() as operator:
        return any(view.device == device.id and view.waiting for view in operator.devices().devices)


def test_a_pod_of_the_same_name_goes_on_with_the_round_and_the_old_one_is_refused(
    world: World, trial: Trial, pods: Pods
) -> None:
    old, other = trial.devices("a", "b")
    trial.submit()
    first, others = trial.assign(old, other)
    assert old.accept(first).is_success
    pods.replace(old.pod)
    new = trial.device("a")
    again = new.assignment()
    assert (again.task, again.round, again.device) == (first.task, first.round, first.device)
    refused = old.check_in(0.0)  # its token holds: the answer of the review is kept for a minute
    assert (refused.status_code, refused.json()["code"]) == (403, Code.DEVICE_REPLACED)
    assert old.drop_out(first, Code.DEVICE_STOPPING).json()["code"] == Code.DEVICE_REPLACED
    trial.bring(new, again, trial.update())
    trial.bring(other, others, trial.update())
    assert trial.reach(1, "committed").examples == 20


class TestRefused:
    @pytest.fixture
    def assignment(self, trial: Trial) -> Assignment:
        trial.submit()
        return trial.assign(*trial.devices("a", "b"))[0]

    @pytest.fixture
    def call(self, world: World) -> Callable[[str, str], tuple[int, str]]:
        def call(token: str, path: str) -> tuple[int, str]:
            url = f"{world.aggregator_url if 'sealing-key' in path else world.server_url}{path}"
            method, body = (
                ("GET", None) if "sealing-key" in path else ("POST", {"dataset": "d", "examples": 1, "wait_seconds": 0})
            )
            answer = httpx.request(method, url, json=body, headers={"Authorization": f"Bearer {token}"}, trust_env=False)
            return answer.status_code, answer.json().get("code", "")

        return call

    def test_are_all_but_the_devices_own_account_at_both_services(
        self, home: Namespace, pods: Pods, assignment: Assignment, call: Callable[[str, str], tuple[int, str]]
    ) -> None:
        key = f"/v1/rounds/{assignment.task}/{assignment.round}/sealing-key"
        for path, audience, other in (
            ("/v1/checkins", SERVER_AUDIENCE, AGGREGATOR_AUDIENCE),
            (key, AGGREGATOR_AUDIENCE, SERVER_AUDIENCE),
        ):
            good = pods.mint(DEVICE, assignment.device, audience, 600)
            assert call(good, path)[0] == 200
            assert call(pods.mint(DEVICE, assignment.device, other, 600), path) == (401, Code.UNAUTHENTICATED)
            assert call(home.token(DEVICE, [audience]), path) == (401, Code.UNAUTHENTICATED), "bound to no pod"
            assert call(home.token(DEVICE), path) == (401, Code.UNAUTHENTICATED), "for the API server"
            assert call(pods.mint("foreign", "foreign-0", audience, 600), path) == (403, Code.FORBIDDEN)
            assert call(pods.mint(SERVER, f"{SERVER}-0", audience, 600), path) == (403, Code.FORBIDDEN)

    def test_is_an_account_of_the_same_name_in_another_namespace(self, call: Callable[[str, str], tuple[int, str]]) -> None:
        with own_namespace("elsewhere") as elsewhere:
            elsewhere.account(DEVICE)
            token = elsewhere.token(DEVICE, [SERVER_AUDIENCE], ("device-0", elsewhere.pod("device-0", account=DEVICE)))
            assert call(token, "/v1/checkins") == (403, Code.FORBIDDEN)


def test_what_the_services_log_names_no_token(world: World, tmp_path: Path) -> None:
    for role in ("server", "aggregator"):
        text = "".join(path.read_text() for path in world.deployment.directory.glob(f"{role}*.log"))
        assert text
        assert "eyJ" not in text  # what every JSON Web Token begins with
