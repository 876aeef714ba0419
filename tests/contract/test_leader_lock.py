"""What every `LeaderLock` does: one suite over PostgreSQL's advisory lock and Kubernetes' Lease."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fedlearn.adapters.database import AdvisoryLock
from fedlearn.adapters.database.engine import Database
from fedlearn.adapters.kubernetes.connection import connect
from fedlearn.adapters.kubernetes.lease import LeaseLock
from fedlearn.core.errors import Code, Outage
from fedlearn.core.replicas import LeaderLock
from fedlearn.local.postgres import Postgres
from support.leases import LeaseApi
from support.namespace import own_namespace
from support.played_api import connected, played

LEASE_SECONDS = 1
Make = Callable[[str], LeaderLock]


def advisory_locks(server: Postgres, kept: ExitStack) -> Make:
    url = server.new_database()

    def make(_holder: str) -> LeaderLock:
        database = Database(url)
        kept.callback(database.close)
        lock = AdvisoryLock(database, LEASE_SECONDS)
        kept.callback(lock.release)
        return lock

    return make


def leases(directory: Path, kept: ExitStack) -> Make:
    api = kept.enter_context(played(LeaseApi(directory)))

    def make(holder: str) -> LeaderLock:
        connection = kept.enter_context(connected(api))
        return LeaseLock(connection.api, "fl", "fedlearn-server", holder, lease_seconds=LEASE_SECONDS)

    return make


def leases_in_a_cluster(directory: Path, kept: ExitStack) -> Make:
    """With no more rights than the chart gives."""
    home = kept.enter_context(own_namespace("lease"))
    home.account("fedlearn-server")
    home.allow("fedlearn-server", ("coordination.k8s.io", "leases", "create get update"))
    kubeconfig = home.kubeconfig("fedlearn-server", directory)

    def make(holder: str) -> LeaderLock:
        connection = connect(kubeconfig)
        kept.callback(connection.close)
        return LeaseLock(connection.api, home.name, "fedlearn-server", holder, lease_seconds=LEASE_SECONDS)

    return make


@pytest.fixture(params=["advisory", "lease", "lease in a cluster"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    with ExitStack() as kept:
        if request.param == "advisory":
            yield advisory_locks(request.getfixturevalue("postgres"), kept)
        elif request.param == "lease":
            yield leases(tmp_path, kept)
        else:
            yield leases_in_a_cluster(tmp_path, kept)


def held_within(lock: LeaderLock, seconds: float) -> float:
    """After how many seconds it is held."""
    start = time.monotonic()
    while not lock.hold():
        assert time.monotonic() - start < seconds
        time.sleep(0.02)
    return time.monotonic() - start


def test_of_two_only_one_holds_it_for_as_long_as_it_goes_on(make: Make) -> None:
    a, b = make("a"), make("b")
    assert a.hold()
    for _ in range(15):
        time.sleep(LEASE_SECONDS / 5)
        assert a.hold()
        assert not b.hold()


def test_who_lets_go_is_followed_at_once(make: Make) -> None:
    a, b = make("a"), make("b")
    assert a.hold()
    assert not b.hold()
    a.release()
    # PostgreSQL lets go when it has read that the session ends, and nobody waits for that
    assert held_within(b, 5) < 0.5 * LEASE_SECONDS
    assert not a.hold()


def test_who_is_silent_loses_it_and_learns_so(make: Make) -> None:
    a, b = make("a"), make("b")
    assert a.hold()
    assert not b.hold()
    assert 0.5 * LEASE_SECONDS < held_within(b, 5) < 2 * LEASE_SECONDS
    assert not a.hold()
    assert b.hold()


def test_who_was_silent_takes_it_again_when_nobody_else_has(make: Make) -> None:
    a = make("a")
    assert a.hold()
    time.sleep(1.5 * LEASE_SECONDS)
    assert a.hold()


def test_to_let_go_of_what_one_does_not_hold_changes_nothing(make: Make) -> None:
    a, b = make("a"), make("b")
    assert a.hold()
    b.release()
    assert not b.hold()
    assert a.hold()


def test_a_database_that_is_away_is_an_outage_and_then_anybody_may_have_it(own_postgres: Postgres) -> None:
    with ExitStack() as kept:
        make = advisory_locks(own_postgres, kept)
        a, b = make("a"), make("b")
        assert a.hold()
        own_postgres.stop()
        for lock in (a, b):
            with pytest.raises(Outage) as caught:
                lock.hold()
            assert caught.value.code is Code.DATABASE_UNAVAILABLE
        own_postgres.start()
        assert b.hold()
        assert not a.hold()


def test_a_cluster_that_is_away_is_an_outage_and_the_lease_stays(tmp_path: Path) -> None:
    with ExitStack() as kept:
        api = kept.enter_context(played(LeaseApi(tmp_path)))
        a, b = (
            LeaseLock(kept.enter_context(connected(api)).api, "fl", "fedlearn-server", holder, lease_seconds=8)
            for holder in ("a", "b")
        )
        assert a.hold()
        api.available = False
        with pytest.raises(Outage) as caught:
            a.hold()
        assert caught.value.code is Code.CLUSTER_UNAVAILABLE
        a.release()  # raises nothing
        api.available = True
        assert not b.hold()
        assert a.hold()
        assert api.leases["fedlearn-server"]["spec"]["holderIdentity"] == "a"
