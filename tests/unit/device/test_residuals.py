import errno
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlearn.core.errors import Code, Outage
from fedlearn.core.ids import DeviceId, RoundId, TaskId
from fedlearn.device.residuals import Residuals, last_counted
from fedlearn.protocol.messages import Model
from fedlearn.protocol.views import ParticipantView, RoundView, VersionView

TASK, PLAN = TaskId("t"), "ab" * 32
DEVICE = DeviceId("pod-0")


def kept(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=10).astype(np.float32)


def round_(number: int, task: str = TASK) -> RoundId:
    return RoundId(TaskId(task), number)


@pytest.fixture
def residuals(tmp_path: Path) -> Residuals:
    return Residuals(tmp_path / "state")


def test_what_is_kept_comes_back_in_another_process(residuals: Residuals, tmp_path: Path) -> None:
    residuals.write(round_(3), PLAN, kept(3), before=None)
    again = Residuals(tmp_path / "state")
    assert again.rounds(TASK, PLAN) == [3]
    found = again.read(round_(3), PLAN, 10)
    assert found is not None
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, kept(3))


def test_the_round_that_it_came_from_is_kept_beside_and_no_other(residuals: Residuals) -> None:
    residuals.write(round_(1), PLAN, kept(1), before=None)
    residuals.write(round_(2), PLAN, kept(2), before=1)
    residuals.write(round_(3), PLAN, kept(3), before=1)  # round 2 did not count
    assert residuals.rounds(TASK, PLAN) == [3, 1]
    residuals.write(round_(4), PLAN, kept(4), before=3)
    assert residuals.rounds(TASK, PLAN) == [4, 3]


def test_another_task_or_plan_has_files_of_its_own(residuals: Residuals) -> None:
    residuals.write(round_(1), PLAN, kept(1), before=None)
    residuals.write(round_(1, "other"), PLAN, kept(2), before=None)
    assert residuals.rounds(TASK, "cd" * 32) == []
    np.testing.assert_array_equal(residuals.read(round_(1), PLAN, 10), kept(1))  # type: ignore[arg-type]


def test_tasks_that_were_not_worked_at_for_long_are_dropped(residuals: Residuals) -> None:
    for number in range(6):
        residuals.write(round_(1, f"task-{number}"), PLAN, kept(1), before=None)
    assert sum(bool(residuals.rounds(TaskId(f"task-{number}"), PLAN)) for number in range(6)) == 4


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"", lambda b: b + b"1234"], ids=["cut", "empty", "longer"])
def test_a_file_that_is_not_whole_is_no_file(residuals: Residuals, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    residuals.write(round_(1), PLAN, kept(1), before=None)
    (path,) = tmp_path.glob("state/*/*.f32")
    path.write_bytes(damage(path.read_bytes()))
    assert residuals.read(round_(1), PLAN, 10) is None
    assert residuals.read(round_(2), PLAN, 10) is None


def test_a_crash_in_the_middle_of_writing_leaves_what_was_there(residuals: Residuals, monkeypatch: pytest.MonkeyPatch) -> None:
    residuals.write(round_(1), PLAN, kept(1), before=None)

    def killed(_self: Path, _target: Any) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            residuals.write(round_(2), PLAN, kept(2), before=1)
    assert residuals.rounds(TASK, PLAN) == [1]
    np.testing.assert_array_equal(residuals.read(round_(1), PLAN, 10), kept(1))  # type: ignore[arg-type]
    residuals.write(round_(2), PLAN, kept(2), before=1)
    assert residuals.rounds(TASK, PLAN) == [2, 1]


def test_a_full_disk_is_told_and_leaves_what_was_there(residuals: Residuals, monkeypatch: pytest.MonkeyPatch) -> None:
    residuals.write(round_(1), PLAN, kept(1), before=None)

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(Outage) as outage:
        residuals.write(round_(2), PLAN, kept(2), before=1)
    assert outage.value.code is Code.DISK_FULL
    assert residuals.rounds(TASK, PLAN) == [1]


# --- which round's counts


def version(number: int, made_by: int | None, parent: int | None) -> VersionView:
    model = Model(version=number, key="k", sha256="0" * 64, size_bytes=1)
    return VersionView(task=TASK, model=model, round=made_by, created_at=datetime.now(UTC), evaluation=None, parent=parent)


def view(number: int, **standing: str) -> RoundView:
    return RoundView(
        task=TASK, round=number, phase="committed", reason=None, base_version=0, opened_at=datetime.now(UTC), seconds=1,
        phase_seconds={}, model=None, examples=None, metrics={},
        participants=tuple(ParticipantView(device=d.replace("_", "-"), standing=s, code=None) for d, s in standing.items()),
    )  # fmt: skip


VERSIONS = [version(0, None, None), version(1, 1, 0), version(2, 3, 1), version(3, 4, 2), version(4, None, 1), version(5, 6, 4)]
"""Round 2 was abandoned; version 4 rolls back to version 1, and round 6 goes on from there."""
REPORTED = {number: view(number, pod_0="reported") for number in range(1, 7)}


@pytest.mark.parametrize(
    ("rounds", "at", "expected"),
    [
        pytest.param([], 3, None, id="no file"),
        pytest.param([4, 3], 3, 4, id="the last round"),
        pytest.param([3, 1], 3, 3, id="a round before the last, in which it had no part"),
        pytest.param([2, 1], 2, 1, id="the last was abandoned"),
        pytest.param([4, 3], 5, None, id="both were rolled back"),
        pytest.param([4, 1], 4, 1, id="the last was rolled back"),
        pytest.param([6, 1], 5, 6, id="after a rollback"),
    ],
)
def test_what_was_kept_goes_on_where_the_model_does(rounds: list[int], at: int, expected: int | None) -> None:
    assert last_counted(DEVICE, rounds, at, versions=VERSIONS, view=REPORTED.__getitem__) == expected


@pytest.mark.parametrize("standing", ["released", "dropped", "refused", "accepted"])
def test_an_update_that_did_not_count_has_not_happened(standing: str) -> None:
    views = {**REPORTED, 4: view(4, pod_0=standing, pod_1="reported")}
    assert last_counted(DEVICE, [4, 3], 3, versions=VERSIONS, view=views.__getitem__) == 3
