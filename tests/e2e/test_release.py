"""The life of one release: installed, scaled, hurt, upgraded, uninstalled and installed again, while its rounds go on.

The tests share it, and come in this order.
"""

import time
from datetime import UTC, datetime

import pytest
from helm_python import HelmError

from fedlearn.protocol.views import RoundView
from support.release import Release
from support.world import wait_for

# rounds of several seconds, so that there is a middle of a round; short waits for devices that do not come
VALUES = {"task": {"epochs": 8, "rounds": 1000, "selectionTimeoutSeconds": 5}}
DEADLINE_SECONDS = 300


@pytest.fixture(scope="module")
def release(bare: Release, figures: dict[str, float]) -> Release:
    began = time.monotonic()
    bare.install(VALUES)
    figures["helm install returns, the task being submitted"] = time.monotonic() - began
    bare.wait_for_versions(1)
    figures["helm install to the first committed round"] = time.monotonic() - began
    return bare


def reporting(view: RoundView) -> bool:
    """Whether devices are at work on the round."""
    return view.phase == "reporting" and sum(p.standing == "accepted" for p in view.participants) >= 2


def test_rounds_commit_by_themselves(release: Release) -> None:
    versions = release.wait_for_versions(3)
    assert [view.model.version for view in versions[:3]] == [1, 2, 3]
    for component, number in {"server": 1, "aggregator": 1, "storage": 1, "evaluator": 1, "device": 3}.items():
        release.wait_until_ready(component, number)


def test_versions_are_scored_and_get_better(release: Release) -> None:
    def scored() -> list[float]:
        return [view.evaluation["accuracy"] for view in release.versions()[:3] if view.evaluation]

    accuracies = wait_for(lambda: scored() if len(scored()) == 3 else None, "three scores", 120)
    assert accuracies[2] > accuracies[0] > 0.8


def test_helm_test_finds_a_committed_round(release: Release) -> None:
    assert "committed" in release.test()


def test_the_cluster_tells_the_story(release: Release) -> None:
    told = [event for event in release.events() if event.reason == "RoundCommitted"]
    assert told
    assert "mnist-2nn" in told[0].message


def test_the_fleet_is_shown_as_the_cluster_sees_it(release: Release) -> None:
    fleet = release.fleet()
    assert fleet.cluster == "watching"
    assert {d.device: d.pod.state for d in fleet.devices if d.pod} == {f"fedlearn-device-{i}": "ready" for i in range(3)}


class TestScaling:
    def test_newcomers_join_a_later_round(self, release: Release, figures: dict[str, float]) -> None:
        release.wait_for_round(reporting, "a round in the middle")
        began = time.monotonic()
        release.scale_devices(6)
        newcomers = {f"fedlearn-device-{ordinal}" for ordinal in (3, 4, 5)}
        release.wait_for_round(
            lambda view: any(p.device in newcomers and p.standing == "reported" for p in view.participants),
            "a report of a newcomer",
        )
        figures["kubectl scale 3 to 6, to the first report of a newcomer"] = time.monotonic() - began
        release.wait_until_ready("device", 6)

    def test_on_the_way_down_nobody_waits_for_those_who_leave(self, release: Release, figures: dict[str, float]) -> None:
        leaving = {f"fedlearn-device-{ordinal}" for ordinal in (2, 3, 4, 5)}
        caught = release.wait_for_round(
            lambda view: reporting(view) and any(p.device in leaving and p.standing == "accepted" for p in view.participants),
            "a round with one that will leave",
        )
        began = time.monotonic()
        release.scale_devices(2)
        ended = release.wait_for_round(
            lambda view: view.round == caught.round and view.phase in ("committed", "abandoned"), "its end"
        )
        figures["kubectl scale 6 to 2 in the middle of a round, to the round's end"] = time.monotonic() - began
        dropped = {p.device: p.code for p in ended.participants if p.standing == "dropped"}
        assert dropped
        assert dropped.keys() <= leaving
        assert set(dropped.values()) == {"device_stopping"}
        assert ended.seconds < DEADLINE_SECONDS / 2

    def test_those_who_stay_go_on(self, release: Release) -> None:
        release.wait_until_ready("device", 2)
        release.next_version()
        newest = release.rounds()[-2]
        assert {p.device for p in newest.participants if p.standing == "reported"} <= {"fedlearn-device-0", "fedlearn-device-1"}

    def test_who_comes_back_finds_its_shard(self, release: Release) -> None:
        claims = release.claims()
        release.scale_devices(3)
        release.wait_until_ready("device", 3)
        assert release.claims() == claims
        said = release.cluster.core.read_namespaced_pod_log("fedlearn-device-2", release.namespace, container="shard")
        assert "which stays" in said


def test_a_drain_takes_a_few_devices_at_a_time_and_no_round(release: Release) -> None:
    """`kubectl drain` evicts pods; of a fleet of three the budget lets one go, and the round goes on without it."""
    caught = release.wait_for_round(lambda view: reporting(view) and view.seconds < 2, "a round that has just begun")
    assert release.evict("fedlearn-device-0")
    assert not release.evict("fedlearn-device-1")
    ended = release.wait_for_round(lambda view: view.round == caught.round and view.phase == "committed", "its commit")
    assert ended.seconds < DEADLINE_SECONDS / 2
    release.wait_until_ready("device", 3)


class TestDeath:
    @pytest.mark.parametrize("component", ["server", "aggregator", "storage", "device"])
    def test_of_a_pod_costs_no_round(self, release: Release, component: str, figures: dict[str, float]) -> None:
        caught = release.wait_for_round(lambda view: reporting(view) and view.seconds < 2, "a round that has just begun")
        before = [view.model for view in release.versions()]
        release.delete_pod(component)
        began = time.monotonic()
        ended = release.wait_for_round(
            lambda view: view.round == caught.round and view.phase in ("committed", "abandoned"), "its end"
        )
        figures[f"deleting the {component}'s pod in the middle of a round, to the round's commit"] = time.monotonic() - began
        assert ended.phase == "committed"
        release.wait_until_ready(component, 3 if component == "device" else 1)
        figures[f"deleting the {component}'s pod, to its successor's readiness"] = time.monotonic() - began
        release.next_version()
        after = [view.model for view in release.versions()]
        assert after[: len(before)] == before
        assert [model.version for model in after] == list(range(1, len(after) + 1))


class TestUpgrade:
    def test_keeps_secrets_claims_and_versions(self, release: Release, figures: dict[str, float]) -> None:
        kept = release.secrets(), release.claims()
        before, began = release.versions(), time.monotonic()
        release.upgrade({**VALUES, "logLevel": "DEBUG", "server": {"maxCheckinSeconds": 20}})
        release.next_version()
        figures["helm upgrade with changed settings, to the next committed round"] = time.monotonic() - began
        assert (release.secrets(), release.claims()) == kept
        assert [view.model for view in release.versions()][: len(before)] == [view.model for view in before]
        for component, number in {"server": 1, "aggregator": 1, "evaluator": 1, "device": 3}.items():
            release.wait_until_ready(component, number)

    def test_without_a_change_restarts_nothing(self, release: Release) -> None:
        started = {pod.metadata.name: pod.metadata.uid for pod in release.pods()}
        release.upgrade({**VALUES, "logLevel": "DEBUG", "server": {"maxCheckinSeconds": 20}})
        assert {pod.metadata.name: pod.metadata.uid for pod in release.pods()} == started

    def test_that_would_change_a_running_task_fails_and_says_so(self, release: Release) -> None:
        with pytest.raises(HelmError):
            release.upgrade({"task": {**VALUES["task"], "learningRate": 0.2}})
        (pod,) = release.hook_pods("task")
        said = release.cluster.core.read_namespaced_pod_log(pod.metadata.name, release.namespace)
        assert "There is a task mnist-2nn already, with another plan: choose another name." in said
        release.next_version()


class TestUninstalling:
    def test_says_what_it_leaves(self, release: Release) -> None:
        claims = release.claims()
        said = release.uninstall()
        assert "PersistentVolumeClaim" in said
        assert "fedlearn-server" in said
        assert release.claims() == claims
        assert {"fedlearn-server", "data-fedlearn-storage-0", "data-fedlearn-device-0"} <= claims.keys()

    def test_an_install_of_the_same_name_goes_on(self, release: Release) -> None:
        before = datetime.now(UTC)
        release.install(VALUES)
        assert release.wait_for_versions(1)[0].created_at < before  # they were never gone
        release.next_version()
