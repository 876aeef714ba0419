from pathlib import Path

import pytest

from fedlearn.core.eligibility import Conditions
from fedlearn.device.conditions import Probe, free_memory_bytes

NOTHING = Path("/nonexistent")


def probe(file: Path | None) -> Probe:
    return Probe(file, meminfo=NOTHING, cgroup=NOTHING)


def test_a_machine_without_a_file_is_always_idle_charging_and_unmetered() -> None:
    assert probe(None)() == Conditions(idle=True, charging=True, unmetered=True)


def test_the_file_is_read_anew_each_time(tmp_path: Path) -> None:
    file = tmp_path / "conditions.json"
    conditions = probe(file)
    file.write_text('{"idle": false}')
    assert conditions() == Conditions(idle=False)
    file.write_text('{"idle": true, "unmetered": false}')
    assert conditions() == Conditions(unmetered=False)


def test_the_free_memory_is_read_anew_every_half_second(tmp_path: Path) -> None:
    meminfo, now = tmp_path / "meminfo", [0.0]
    conditions = Probe(None, meminfo=meminfo, cgroup=NOTHING, clock=lambda: now[0])
    found = []
    for now[0], free in ((0.0, 4), (0.4, 3), (0.6, 2)):
        meminfo.write_text(f"MemAvailable: {free} kB\n")
        found.append(conditions().free_memory_bytes)
    assert found == [4096, 4096, 2048]


@pytest.mark.parametrize("text", [None, "", "{", "[]", "3"])
def test_while_nobody_says_how_the_device_is_it_is_not_eligible(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "conditions.json"
    if text is not None:
        file.write_text(text)
    assert probe(file)() == Conditions(idle=False, charging=False, unmetered=False)


def test_free_memory_is_what_the_machine_and_the_cgroup_leave(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  9000 kB\nMemAvailable:    3000 kB\n")
    assert free_memory_bytes(meminfo, tmp_path) == 3_072_000
    (tmp_path / "memory.max").write_text("2000000\n")
    (tmp_path / "memory.current").write_text("500000\n")
    assert free_memory_bytes(meminfo, tmp_path) == 1_500_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory_bytes(meminfo, tmp_path) == 3_072_000
    assert free_memory_bytes(NOTHING, NOTHING) is None
