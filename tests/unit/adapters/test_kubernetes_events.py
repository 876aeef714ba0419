import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from fedlearn.adapters.kubernetes import events as module
from fedlearn.adapters.kubernetes.connection import Connection
from fedlearn.adapters.kubernetes.events import EventRecorder, Happening
from support.played_api import Answer, PlayedApi, failure

COMMITTED = Happening(
    name="fedlearn-device.mnist-2nn.4.18f",
    reason="RoundCommitted",
    action="Commit",
    note="mnist-2nn round 4 committed version 4.",
    at=1_800_000_000.25,
)
MADE = Answer(
    201, {"kind": "Event", "apiVersion": "events.k8s.io/v1", "metadata": {}, "eventTime": "2027-01-15T08:00:00.250000Z"}
)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSES_SECONDS", (0.001, 0.001))


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    told: list[str] = []
    monkeypatch.setattr(module._log, "warning", lambda event, **given: told.append(given["detail"]))
    return told


Make = Callable[..., EventRecorder]


@pytest.fixture
def make(connection: Connection) -> Iterator[Make]:
    made: list[EventRecorder] = []

    def make(**given: Any) -> EventRecorder:
        recorder = EventRecorder(connection.api, "fl", ("fedlearn-server-7d9-x", "3866ce38"), "fedlearn-device", **given)
        made.append(recorder)
        recorder.start()
        return recorder

    yield make
    for recorder in made:
        recorder.stop()
        assert not recorder._thread.is_alive()


def notes(api: PlayedApi) -> list[str]:
    return [asked.body["note"] for asked in api.of("POST")]


class TestAnEvent:
    def test_says_what_happened_to_which_pod(self, api: PlayedApi, make: Make) -> None:
        api.answer("POST events", MADE)
        make().record(COMMITTED)
        api.wait_for(lambda: api.asked)
        (asked,) = api.asked
        assert asked.path == "/apis/events.k8s.io/v1/namespaces/fl/events"
        assert asked.body == {
            "metadata": {"name": "fedlearn-device.mnist-2nn.4.18f", "namespace": "fl"},
            "eventTime": asked.body["eventTime"],
            "reportingController": "fedlearn.server",
            "reportingInstance": "fedlearn-server-7d9-x",
            "action": "Commit",
            "reason": "RoundCommitted",
            "note": "mnist-2nn round 4 committed version 4.",
            "type": "Normal",
            "regarding": {
                "apiVersion": "v1",
                "kind": "Pod",
                "namespace": "fl",
                "name": "fedlearn-server-7d9-x",
                "uid": "3866ce38",
            },
            "related": {"apiVersion": "apps/v1", "kind": "StatefulSet", "namespace": "fl", "name": "fedlearn-device"},
        }

    @pytest.mark.parametrize("at", [1_800_000_000.25, 1_800_000_000.0], ids=["a fraction", "a whole second"])
    def test_has_a_time_with_a_fraction_as_the_api_demands(self, api: PlayedApi, make: Make, at: float) -> None:
        api.answer("POST events", MADE)
        make().record(replace(COMMITTED, at=at))
        api.wait_for(lambda: api.asked)
        assert api.asked[0].body["eventTime"].startswith("2027-01-15T08:00:00.")

    def test_is_a_warning_when_it_is_no_good_news(self, api: PlayedApi, make: Make) -> None:
        api.answer("POST events", MADE)
        make().record(replace(COMMITTED, warning=True))
        api.wait_for(lambda: api.asked)
        assert api.asked[0].body["type"] == "Warning"

    def test_is_cut_to_what_the_api_takes(self, api: PlayedApi, make: Make) -> None:
        api.answer("POST events", MADE)
        make().record(replace(COMMITTED, note="n" * 2000))
        api.wait_for(lambda: api.asked)
        assert notes(api) == ["n" * 1024]


class TestTrouble:
    def test_an_event_that_is_there_already_is_well(self, api: PlayedApi, make: Make, warnings: list[str]) -> None:
        api.answer("POST events", failure(409, "already exists"), MADE)
        recorder = make()
        recorder.record(COMMITTED)
        recorder.record(replace(COMMITTED, name="next"))
        api.wait_for(lambda: len(api.asked) == 2)
        assert [asked.body["metadata"]["name"] for asked in api.asked] == [COMMITTED.name, "next"]
        assert not warnings

    def test_an_outage_is_waited_out(self, api: PlayedApi, make: Make, warnings: list[str]) -> None:
        api.answer("POST events", failure(500, "etcd is away"), failure(500, "etcd is away"), MADE)
        make().record(COMMITTED)
        api.wait_for(lambda: len(api.asked) == 3)
        assert not warnings

    def test_what_cannot_be_written_is_let_go_and_told_once(self, api: PlayedApi, make: Make, warnings: list[str]) -> None:
        api.answer("POST events", failure(403, "events is forbidden"))
        recorder = make()
        for number in range(3):
            recorder.record(replace(COMMITTED, name=f"round-{number}"))
        api.wait_for(lambda: len(api.asked) == 3)
        recorder.stop()
        assert warnings == ["The Kubernetes API refuses to create an event: events is forbidden."]

    def test_a_new_trouble_after_a_good_time_is_told_again(self, api: PlayedApi, make: Make, warnings: list[str]) -> None:
        denied = failure(403, "events is forbidden")
        api.answer("POST events", denied, MADE, denied)
        recorder = make()
        for number in range(3):
            recorder.record(replace(COMMITTED, name=f"round-{number}"))
        api.wait_for(lambda: len(api.asked) == 3)
        recorder.stop()
        assert len(warnings) == 2

    def test_nobody_waits_for_a_cluster_that_hangs(self, api: PlayedApi, connection: Connection) -> None:
        api.answer("POST events", Answer(stays=True))
        recorder = EventRecorder(connection.api, "fl", ("server", "uid"), "fedlearn-device")
        recorder.start()
        began = time.monotonic()
        for number in range(1000):
            recorder.record(replace(COMMITTED, name=f"round-{number}"))
        assert time.monotonic() - began < 1
        api.wait_for(lambda: api.asked)
        recorder.stop()
        assert time.monotonic() - began < 5
        api.end.set()
        recorder._thread.join(10)
        assert not recorder._thread.is_alive()
        assert len(api.asked) == 1, "what was late is let go"

    def test_what_waits_is_written_before_the_end(self, api: PlayedApi, make: Make) -> None:
        api.answer("POST events", MADE)
        recorder = make()
        for number in range(20):
            recorder.record(replace(COMMITTED, name=f"round-{number}"))
        recorder.stop()
        assert len(api.asked) == 20


class TestALotOfNews:
    def test_a_burst_is_written_and_then_one_in_two_seconds_that_counts_the_others(self, api: PlayedApi, make: Make) -> None:
        now = [0.0]
        api.answer("POST events", MADE)
        recorder = make(clock=lambda: now[0])
        for number in range(60):
            recorder.record(replace(COMMITTED, name=f"round-{number}", note=f"Round {number}."))
        now[0] += 2.0
        recorder.record(replace(COMMITTED, name="next", note="Next."))
        recorder.record(replace(COMMITTED, name="left-out", note="Left out."))
        now[0] += 4.0
        recorder.record(replace(COMMITTED, name="last", note="Last."))
        recorder.stop()
        assert notes(api)[:50] == [f"Round {number}." for number in range(50)]
        assert notes(api)[50:] == ["Next. (Before it, 10 others were not told.)", "Last. (Before it, 1 others were not told.)"]

    def test_after_a_quiet_time_no_more_than_a_burst_is_written(self, api: PlayedApi, make: Make) -> None:
        now = [0.0]
        api.answer("POST events", MADE)
        recorder = make(clock=lambda: now[0])
        now[0] += 10_000.0
        for number in range(70):
            recorder.record(replace(COMMITTED, name=f"round-{number}"))
        recorder.stop()
        assert len(api.asked) == 50
