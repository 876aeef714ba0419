"""The quick part of `make chaos`: real processes hurt at the moments that matter; every version is checked against a replay."""

import json
import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from fedlearn.core.ids import DeviceId, shard_of
from fedlearn.core.rounds import Phase, Standing
from fedlearn.local.chaos import Arena, chaos_plan
from fedlearn.local.chaos_checks import faults, orphans
from fedlearn.local.chaos_outages import ON_POSTGRESQL, outage
from fedlearn.local.postgres import Postgres
from fedlearn.protocol.aggregations import name_aggregation
from fedlearn.protocol.plans import name_codec

WRONG_CLOCKS = """
import datetime, os, time
off = 3600 if int(os.environ.get("FEDLEARN_FIRST_SHARD", "0")) % 2 else -3600
seconds, nanoseconds, true = time.time, time.time_ns, datetime.datetime
time.time = lambda: seconds() + off
time.time_ns = lambda: nanoseconds() + off * 10**9
class Wrong(true):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(time.time(), tz)
datetime.datetime = Wrong
"""


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    """One deployment for all, whose devices' clocks are an hour behind or ahead; what must be true at the end is asked then."""
    clocks, directory = tmp_path_factory.mktemp("clocks"), tmp_path_factory.mktemp("chaos") / "arena"
    (clocks / "sitecustomize.py").write_text(WRONG_CLOCKS)
    path = os.pathsep.join([str(clocks), *filter(None, [os.environ.get("PYTHONPATH")])])
    with Arena(directory, 3, 3, {"PYTHONPATH": path}) as arena:
        arena.submit(goal=2)
        yield arena
        arena.end()
        assert faults(arena) == []
    assert orphans(directory) == []


def test_devices_whose_clocks_are_an_hour_wrong_take_part(arena: Arena) -> None:
    assert arena.committed(after=0).count(Standing.REPORTED) >= 2
    for index in range(3):
        log = next((arena.directory / "logs").glob(f"device-{index}-*.log"))
        stamp = datetime.fromisoformat(json.loads(log.read_text().splitlines()[0])["time"]).timestamp()
        assert 3000 < abs(stamp - log.stat().st_mtime) < 4200, "the clock is wrong indeed"


def test_whoever_is_killed_the_rounds_go_on(arena: Arena) -> None:
    for name, phase, after in (
        ("server", Phase.REPORTING, 0.2),
        ("aggregator", Phase.REPORTING, 0.3),
        ("server", Phase.CONFIGURATION, 0.0),
        ("aggregator", Phase.AGGREGATION, 0.0),
        ("device-0", Phase.REPORTING, 0.2),
        ("storage", Phase.REPORTING, 0.2),
    ):
        arena.strike(name, phase, after_seconds=after)
    arena.committed(after=arena.current().id.number)


@pytest.mark.parametrize(("kind", "seconds"), [("storage gone", 3.0), ("storage hangs", 3.0), ("database locked", 11.0)])
def test_storage_or_database_may_be_away_for_a_while(arena: Arena, kind: str, seconds: float) -> None:
    """The database for longer than a write waits for its lock."""
    away = outage(arena, kind, Phase.REPORTING, seconds)
    ended = arena.wait(lambda: arena.round(away.round).phase.ended and arena.round(away.round), "the round")
    assert (ended.phase, ended.reason) == (Phase.COMMITTED, None)


def test_postgresql_may_be_away_for_a_while(tmp_path: Path, own_postgres: Postgres) -> None:
    """Stopped and started, and hanging with all its connections open: the same round commits."""
    with Arena(tmp_path / "arena", devices=3, seed=3, postgres=own_postgres) as arena:
        arena.submit(goal=2)
        for kind in ON_POSTGRESQL:
            arena.committed(after=arena.current().id.number)
            away = outage(arena, kind, Phase.REPORTING, 3.0)
            ended = arena.wait(lambda number=away.round: arena.round(number).phase.ended and arena.round(number), "the round")
            assert (ended.phase, ended.reason) == (Phase.COMMITTED, None), kind
        arena.end()
        assert faults(arena) == []
    assert orphans(tmp_path / "arena") == []


def test_of_two_aggregators_that_share_rounds_either_may_be_killed(tmp_path: Path) -> None:
    with Arena(tmp_path / "arena", devices=6, seed=3, aggregators=2) as arena:
        arena.submit(goal=6)  # all of them: one alone is number 0's, and might be the surplus
        first = arena.committed(after=0)
        shards = {shard_of(device, 2) for device in first.devices(Standing.REPORTED)}
        for name, phase, after in (
            ("aggregator-1", Phase.REPORTING, 0.3),
            ("aggregator-1", Phase.AGGREGATION, 0.0),
            ("aggregator", Phase.AGGREGATION, 0.0),
        ):
            arena.strike(name, phase, after_seconds=after)
        last = arena.committed(after=arena.current().id.number)
        assert shards | {shard_of(device, 2) for device in last.devices(Standing.REPORTED)} == {0, 1}
        arena.end()
        assert faults(arena) == []
    assert orphans(tmp_path / "arena") == []


def test_moments_and_what_is_kept_for_later_go_on_whoever_is_killed(tmp_path: Path) -> None:
    """FedYogi's moments and top_k's residuals: those who keep them from round to round are killed in the middle of one."""
    plan = chaos_plan(name_aggregation("fedyogi"), name_codec("top_k", 0.05))
    with Arena(tmp_path / "arena", devices=3, seed=3, plan=plan) as arena:
        arena.submit(goal=2)
        for name, phase, after in (
            ("aggregator", Phase.AGGREGATION, 0.0),
            ("device-0", Phase.REPORTING, 0.45),
            ("aggregator", Phase.REPORTING, 0.5),
            ("server", Phase.AGGREGATION, 0.0),
        ):
            arena.strike(name, phase, after_seconds=after)
        arena.committed(after=arena.current().id.number)
        arena.end()
        assert faults(arena) == []
    assert orphans(tmp_path / "arena") == []


def test_whoever_is_asked_to_stop_hands_over_and_a_device_says_so_at_once(arena: Arena) -> None:
    for name in ("server", "aggregator"):
        kill = arena.strike(name, Phase.REPORTING, gently=True)
        ended = arena.wait(lambda number=kill.round: arena.round(number).phase.ended and arena.round(number), "the round")
        assert kill.phase is not Phase.REPORTING or ended.phase is Phase.COMMITTED, f"{name} has lost a round by stopping"

    def said_so() -> bool:
        kill = arena.strike("device-1", Phase.REPORTING, after_seconds=0.1, gently=True)
        stopped = arena.round(kill.round).participants.get(DeviceId("device-1/0"))
        return stopped is not None and stopped.code == "device_stopping"

    assert any(said_so() for _ in range(3)), "it was at work in none of three rounds, or has not said so"
    arena.committed(after=arena.current().id.number)
