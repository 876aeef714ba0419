"""What every `Presences` does: one suite over SQLite and PostgreSQL."""

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from fedlearn.adapters.database import DatabasePresences, DatabaseRoundStore
from fedlearn.core.ids import DeviceId
from fedlearn.core.replicas import Presence, Presences

NOW = 1_760_000_000.123


@pytest.fixture
def presences(database_url: str) -> Iterator[Presences]:
    store = DatabaseRoundStore(database_url)
    store.migrate()
    yield DatabasePresences(store.database)
    store.close()


def a_device(name: str, waiting: bool = True, seconds: float = 60.0) -> Presence:
    return Presence(DeviceId(name), '{"dataset": "mnist"}', waiting, seconds, NOW)


def names(presences: Presences, replica: str) -> list[str]:
    return sorted(presence.device for presence in presences.elsewhere(replica))


def test_a_replica_sees_the_devices_of_the_others_as_they_were_put(presences: Presences) -> None:
    presences.put("a", [a_device("one"), a_device("two", waiting=False)])
    found = {presence.device: presence for presence in presences.elsewhere("b")}
    assert {name: replace(presence, seconds=60.0) for name, presence in found.items()} == {
        "one": a_device("one"),
        "two": a_device("two", waiting=False),
    }
    assert all(55 < presence.seconds <= 60 for presence in found.values())
    assert names(presences, "a") == []


def test_a_device_that_goes_to_another_replica_is_there(presences: Presences) -> None:
    presences.put("a", [a_device("one")])
    presences.put("b", [a_device("one")])
    assert names(presences, "a") == ["one"]
    assert names(presences, "b") == []


def test_late_word_that_a_device_waits_no_more_is_nothing_to_the_replica_where_it_waits(presences: Presences) -> None:
    presences.put("a", [a_device("one")])
    presences.put("b", [a_device("one")])
    presences.put("a", [a_device("one", waiting=False)])
    assert [(p.device, p.waiting) for p in presences.elsewhere("a")] == [("one", True)]
    presences.put("b", [a_device("one", waiting=False)])
    presences.put("a", [a_device("one", waiting=False)])
    assert [(p.device, p.waiting) for p in presences.elsewhere("b")] == [("one", False)]


def test_word_that_a_device_has_gone_is_nothing_to_the_replica_where_it_is_now(presences: Presences) -> None:
    presences.put("a", [a_device("one")])
    presences.put("b", [a_device("one")])
    presences.put("a", [], [DeviceId("one")])
    assert names(presences, "a") == ["one"]
    presences.put("b", [], [DeviceId("one")])
    assert names(presences, "a") == []


def test_a_device_whose_time_is_over_is_nowhere(presences: Presences) -> None:
    presences.put("a", [a_device("one", seconds=0.2), a_device("two")])
    time.sleep(0.3)
    assert names(presences, "b") == ["two"]


def test_a_thousand_at_once(presences: Presences) -> None:
    many = [a_device(f"device-{i}") for i in range(1000)]
    presences.put("a", many)
    presences.put("a", [replace(presence, waiting=False) for presence in many], [DeviceId("device-0")])
    found = presences.elsewhere("b")
    assert len(found) == 1000
    assert not any(presence.waiting for presence in found)
