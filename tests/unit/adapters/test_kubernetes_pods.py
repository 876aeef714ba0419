from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fedlearn.adapters.kubernetes import pods as module
from fedlearn.adapters.kubernetes.connection import Connection
from fedlearn.adapters.kubernetes.pods import PodWatch
from fedlearn.core.pods import Pod, PodState
from support.played_api import Answer, PlayedApi, failure

LABELS = "app.kubernetes.io/component=device"
EXPIRED = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version: 7 (99)"}


def pod(name: str, version: int = 1, *, phase: str = "Running", ready: bool = True, deleted: bool = False, **spec: Any) -> Any:
    metadata = {"name": name, "uid": f"uid-of-{name}", "resourceVersion": str(version), "labels": {"beside": "the point"}}
    if deleted:
        metadata["deletionTimestamp"] = "2026-11-24T05:42:51Z"
    conditions = [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "True" if ready else "False"}]
    return {"metadata": metadata, "spec": {"nodeName": "node1", **spec}, "status": {"phase": phase, "conditions": conditions}}


def listed(version: int, *pods: Any) -> Answer:
    return Answer(body={"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": str(version)}, "items": pods})


def event(kind: str, seen: Any) -> Any:
    return {"type": kind, "object": seen}


def bookmark(version: int) -> Any:
    return event("BOOKMARK", {"kind": "Pod", "metadata": {"resourceVersion": str(version)}})


SILENT = Answer(stays=True)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(module, "_LONGEST_PAUSE_SECONDS", 0.01)


Start = Callable[[], PodWatch]


@pytest.fixture
def start(api: PlayedApi, connection: Connection) -> Iterator[Start]:
    """Starts a watch whose changes wake those who wait for the API."""
    started: list[PodWatch] = []

    def changed() -> None:
        with api.changed:
            api.changed.notify_all()

    def start() -> PodWatch:
        watch = PodWatch(connection.api, "fl", LABELS, changed)
        started.append(watch)
        watch.start()
        return watch

    yield start
    for watch in started:
        watch.stop()
        assert not watch._thread.is_alive()


def states(watch: PodWatch) -> dict[str, str]:
    return {name: seen.state.value for name, seen in watch.pods.items()}


class TestWhatIsSeen:
    def test_the_pods_of_the_selector_are_listed_and_then_watched_from_there(self, api: PlayedApi, start: Start) -> None:
        api.answer("GET pods", listed(7, pod("a")))
        api.answer("WATCH pods", SILENT)
        watch = start()
        api.wait_for(lambda: watch.watching)
        assert watch.pods == {"a": Pod("a", "uid-of-a", PodState.READY, "node1")}
        (first,), (second,) = api.of("GET"), api.of("WATCH")
        assert first.path == second.path == "/api/v1/namespaces/fl/pods"
        assert first.query["labelSelector"] == second.query["labelSelector"] == LABELS
        assert second.query["resourceVersion"] == "7"
        assert second.query["allowWatchBookmarks"] == "true"

    @pytest.mark.parametrize(
        ("seen", "state"),
        [
            (pod("a", phase="Pending", ready=False), PodState.PENDING),
            (pod("a", ready=False), PodState.RUNNING),
            (pod("a"), PodState.READY),
            (pod("a", deleted=True), PodState.TERMINATING),
            (pod("a", phase="Failed", deleted=True), PodState.TERMINATING),
            (pod("a", phase="Succeeded", ready=False), PodState.ENDED),
            (pod("a", phase="Failed", ready=False), PodState.ENDED),
            (pod("a", phase="Unknown", ready=False), PodState.UNKNOWN),
            ({"metadata": {"name": "a", "uid": "u"}, "spec": {}, "status": {}}, PodState.PENDING),
        ],
        ids=["pending", "not ready", "ready", "deleted", "deleted and ended", "done", "failed", "lost", "just made"],
    )
    def test_a_pod_is_in_one_of_these_states(self, api: PlayedApi, start: Start, seen: Any, state: PodState) -> None:
        api.answer("GET pods", listed(1, seen))
        api.answer("WATCH pods", SILENT)
        watch = start()
        api.wait_for(lambda: watch.watching)
        assert watch.pods["a"].state is state

    def test_a_pod_without_a_node_has_none(self, api: PlayedApi, start: Start) -> None:
        api.answer("GET pods", listed(1, pod("a", phase="Pending", nodeName=None)))
        api.answer("WATCH pods", SILENT)
        watch = start()
        api.wait_for(lambda: watch.watching)
        assert watch.pods["a"].node is None

    def test_pods_come_change_and_go(self, api: PlayedApi, start: Start) -> None:
        seen: list[dict[str, str]] = []
        api.answer("GET pods", listed(1, pod("a")))
        api.answer(
            "WATCH pods",
            Answer(
                events=[
                    event("ADDED", pod("b", 2, phase="Pending")),
                    event("MODIFIED", pod("b", 3)),
                    event("MODIFIED", pod("a", 4, deleted=True)),
                    event("DELETED", pod("a", 5, deleted=True)),
                ],
                stays=True,
            ),
        )
        watch = start()
        watch._on_change, notify = lambda: (seen.append(states(watch)), notify()), watch._on_change
        api.wait_for(lambda: states(watch) == {"b": "ready"})
        assert seen[-4:] == [
            {"a": "ready", "b": "pending"},
            {"a": "ready", "b": "ready"},
            {"a": "terminating", "b": "ready"},
            {"b": "ready"},
        ]

    def test_a_mapping_that_was_taken_does_not_change(self, api: PlayedApi, start: Start) -> None:
        api.answer("GET pods", listed(1, pod("a")), listed(9, pod("b")))
        api.answer("WATCH pods", failure(410, "Gone"), SILENT)
        watch = start()
        api.wait_for(lambda: "a" in watch.pods)
        taken = watch.pods
        api.wait_for(lambda: "b" in watch.pods)
        assert list(taken) == ["a"]


class TestHowItGoesOn:
    def test_a_watch_that_ends_goes_on_where_it_ended(self, api: PlayedApi, start: Start) -> None:
        api.answer("GET pods", listed(1))
        api.answer("WATCH pods", Answer(events=[event("ADDED", pod("a", 5))]), Answer(events=[bookmark(8)]), SILENT)
        watch = start()
        api.wait_for(lambda: len(api.of("WATCH")) == 3)
        assert [asked.query["resourceVersion"] for asked in api.of("WATCH")] == ["1", "5", "8"]
        assert len(api.of("GET")) == 1
        assert states(watch) == {"a": "ready"}

    @pytest.mark.parametrize(
        "gone",
        [failure(410, "too old resource version"), Answer(events=[event("ERROR", EXPIRED)])],
        ids=["refused at once", "told in the watch"],
    )
    def test_a_version_that_is_too_old_is_listed_again(self, api: PlayedApi, start: Start, gone: Answer) -> None:
        api.answer("GET pods", listed(1, pod("a"), pod("b")), listed(9, pod("b")))
        api.answer("WATCH pods", gone, SILENT)
        watch = start()
        api.wait_for(lambda: len(api.of("WATCH")) == 2)
        assert states(watch) == {"b": "ready"}
        assert api.of("WATCH")[1].query["resourceVersion"] == "9"

    def test_a_cluster_that_is_away_is_asked_until_it_is_back(self, api: PlayedApi, start: Start) -> None:
        down = failure(500, "etcd is away")
        api.answer("GET pods", down, down, down, listed(1, pod("a")))
        api.answer("WATCH pods", SILENT)
        watch = start()
        api.wait_for(lambda: watch.watching)
        assert len(api.of("GET")) == 4

    def test_what_was_seen_last_stays_while_the_cluster_is_away(self, api: PlayedApi, start: Start) -> None:
        api.answer("GET pods", listed(1, pod("a")))
        api.answer("WATCH pods", Answer(events=[event("ADDED", pod("b", 2))]), failure(500, "etcd is away"))
        watch = start()
        api.wait_for(lambda: len(api.of("WATCH")) > 3)
        assert not watch.watching
        assert states(watch) == {"a": "ready", "b": "ready"}
        api.answer("WATCH pods", SILENT)
        api.wait_for(lambda: watch.watching)
        assert len(api.of("GET")) == 1, "it goes on where it was"

    def test_it_pauses_ever_longer_but_not_for_ever(
        self, api: PlayedApi, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pauses: list[float] = []
        monkeypatch.setattr(module.random, "uniform", lambda low, high: high)
        api.answer("GET pods", failure(500, "etcd is away"))
        watch = start()
        watch._stopping.wait, wait = lambda pause: (pauses.append(pause), wait(0.001))[1], watch._stopping.wait  # type: ignore[method-assign]
        api.wait_for(lambda: len(api.of("GET")) > 8)
        longer = pauses[:6]
        assert longer == sorted(longer)
        assert longer[0] < longer[-1]
        assert max(pauses) == 0.01

    def test_trouble_is_told_once_and_its_end_too(self, api: PlayedApi, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
        told: list[str] = []
        monkeypatch.setattr(module._log, "warning", lambda event, **given: told.append(given["detail"]))
        monkeypatch.setattr(module._log, "info", lambda event, **given: told.append(event))
        denied = failure(403, 'pods is forbidden: cannot list resource "pods"')
        api.answer("GET pods", denied, denied, denied, listed(1))
        api.answer("WATCH pods", SILENT)
        watch = start()
        api.wait_for(lambda: watch.watching)
        assert told == [
            'The Kubernetes API refuses to list pods: pods is forbidden: cannot list resource "pods".',
            "the cluster's pods are watched",
        ]

    def test_an_answer_of_another_form_does_not_end_it(self, api: PlayedApi, start: Start) -> None:
        api.answer("GET pods", Answer(body={"kind": "PodList"}), listed(1, pod("a")))
        api.answer("WATCH pods", SILENT)
        watch = start()
        api.wait_for(lambda: watch.watching)
        assert states(watch) == {"a": "ready"}


def test_it_stops_in_the_middle_of_a_silent_watch(api: PlayedApi, start: Start) -> None:
    api.answer("GET pods", listed(1))
    api.answer("WATCH pods", SILENT)
    watch = start()
    api.wait_for(lambda: watch.watching)
    watch.stop()
    assert not watch._thread.is_alive()
