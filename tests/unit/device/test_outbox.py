import contextlib
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlearn.core.errors import Code, Outage, Refusal
from fedlearn.core.ids import DeviceId, RoundId, TaskId
from fedlearn.core.updates import Update
from fedlearn.device import outbox
from fedlearn.device.outbox import Outbox
from fedlearn.device.residuals import Residuals
from fedlearn.protocol.envelope import UpdateContext, digest_of, open_update
from fedlearn.protocol.messages import Assignment, Model
from fedlearn.protocol.plans import Plan
from fedlearn.protocol.sealing import SealingKey
from fedlearn.protocol.views import ParticipantView, RoundView, VersionView
from support.world import small_plan

TASK, DEVICE, DIGEST = TaskId("t"), DeviceId("pod-0/2"), "0" * 64
KEY = SealingKey.generate(RoundId(TASK, 1))


class Server:
    """What a device sees of rounds that all are committed one after the other, but for those of `lost`."""

    def __init__(self) -> None:
        self.lost: set[int] = set()
        self.rounds = 0
        self.asked = 0
        self.fails: list[Exception] = []

    @property
    def version(self) -> int:
        return len([number for number in range(1, self.rounds + 1) if number not in self.lost])

    async def versions(self, task: TaskId) -> list[VersionView]:
        self.asked += 1
        if self.fails:
            raise self.fails.pop(0)
        made = [None, *(number for number in range(1, self.rounds + 1) if number not in self.lost)]
        return [
            VersionView(task=task, model=model(number), round=by, created_at=datetime.now(UTC), evaluation=None,
                        parent=None if number == 0 else number - 1)
            for number, by in enumerate(made)
        ]  # fmt: skip

    async def round(self, round_id: RoundId) -> RoundView:
        part = ParticipantView(device=DEVICE, standing="reported", code=None)
        return RoundView(
            task=TASK, round=round_id.number, phase="committed", reason=None, base_version=0, opened_at=datetime.now(UTC),
            seconds=1, phase_seconds={}, participants=(part,), model=None, examples=None, metrics={},
        )  # fmt: skip


def model(version: int) -> Model:
    return Model(version=version, key="k", sha256=DIGEST, size_bytes=1)


class Device:
    """A device's outbox, and what the aggregator makes of its parcels."""

    def __init__(self, directory: Path, plan: Plan) -> None:
        self.server, self.plan, self.directory = Server(), plan, directory
        self.restart()

    def restart(self) -> None:
        played: Any = self.server
        self.outbox = Outbox(played, Residuals(self.directory / "state"))

    def kept(self) -> dict[str, bytes]:
        """The files that it goes on from."""
        return {path.name: path.read_bytes() for path in self.directory.glob("state/*/*.f32")}

    async def send(self, delta: np.ndarray, *, counts: bool = True, seed: int = 5) -> np.ndarray:
        """What arrives of a delta in the next round."""
        number = self.server.rounds + 1
        assignment = Assignment(
            task=TASK, round=number, device=DEVICE, plan_digest=self.plan.digest, model=model(self.server.version),
            model_url="", seconds_left=60, ticket="",
        )  # fmt: skip
        before, update = await self.outbox.round_before(assignment, self.plan), Update(delta.copy(), examples=10)
        parcel = self.outbox.pack(update, KEY.public, assignment, self.plan, seed=seed, before=before)
        assert parcel.digest == digest_of(parcel.body)
        self.server.rounds = number
        if not counts:
            self.server.lost.add(number)
        context = UpdateContext(TASK, number, DEVICE, self.plan.digest, DIGEST)
        return open_update(parcel.body, key=KEY, context=context, plan=self.plan).delta


def delta_of(plan: Plan, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.01, plan.parameters).astype(np.float32)


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path, small_plan(update={"encoding": "top_k", "keep_fraction": 0.05}))


async def test_top_k_sends_its_share_and_what_is_dropped_arrives_in_later_rounds(device: Device) -> None:
    delta, rounds = delta_of(device.plan), 100
    sent = [await device.send(delta) for _ in range(rounds)]
    assert all(np.count_nonzero(values) <= round(0.05 * device.plan.parameters) for values in sent)
    mean = np.mean(sent, axis=0, dtype=np.float64)
    off = np.linalg.norm(mean - delta) / np.linalg.norm(delta)
    first = np.linalg.norm(sent[0] - delta) / np.linalg.norm(delta)
    assert off < 0.2
    assert first > 0.8


async def test_it_goes_on_in_another_process_with_what_it_had(device: Device, tmp_path: Path) -> None:
    other = Device(tmp_path / "other", device.plan)
    for number in range(4):
        delta = delta_of(device.plan, number)
        np.testing.assert_array_equal(await device.send(delta), await other.send(delta))
        other.restart()


async def test_a_round_that_came_to_nothing_has_kept_and_sent_nothing(device: Device, tmp_path: Path) -> None:
    other = Device(tmp_path / "other", device.plan)
    for number in range(4):
        delta = delta_of(device.plan, number)
        await other.send(delta_of(device.plan, 100 + number), counts=False)
        np.testing.assert_array_equal(await device.send(delta), await other.send(delta))


async def test_the_same_round_again_after_a_crash_sends_the_same(device: Device) -> None:
    await device.send(delta_of(device.plan, 1))
    first = await device.send(delta_of(device.plan, 2))
    device.server.rounds -= 1  # the device has died, and is assigned to the same round once more
    device.restart()
    np.testing.assert_array_equal(await device.send(delta_of(device.plan, 2)), first)


class Killed(BaseException):
    """What SIGKILL does to a process, as far as its files can tell."""


@pytest.mark.parametrize(
    ("call", "after"),
    [
        pytest.param("fsync", False, id="while it writes"),
        pytest.param("replace", False, id="before what it wrote is in its place"),
        pytest.param("replace", True, id="when it is in its place"),
        pytest.param("unlink", False, id="before the file that is older is gone"),
        pytest.param("unlink", True, id="when that is gone"),
        pytest.param("seal", False, id="before the seal"),
        pytest.param("seal", True, id="before the upload"),
    ],
)
@pytest.mark.parametrize("round_", [1, 2, 4], ids="round {}".format)
async def test_a_device_that_is_killed_before_its_upload_goes_on_as_if_it_had_not_been(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, round_: int, *, after: bool
) -> None:
    other = Device(tmp_path / "other", device.plan)
    place, died = {"fsync": os, "replace": Path, "unlink": Path, "seal": outbox}[call], False

    def dying(*arguments: Any, **named: Any) -> Any:
        nonlocal died
        died = True
        if after:
            call_it(*arguments, **named)
        raise Killed

    call_it = getattr(place, call)
    for number in range(1, 7):
        delta = delta_of(device.plan, number)
        if number == round_:
            with monkeypatch.context() as patched, contextlib.suppress(Killed):
                patched.setattr(place, call, dying)
                await other.send(delta)
            assert died or (call == "unlink" and round_ < 3), "there is nothing older at first"
            other.server.rounds = number - 1
            other.restart()
        np.testing.assert_array_equal(await other.send(delta), await device.send(delta))
        assert other.kept() == device.kept()


async def test_an_outage_of_the_server_is_waited_out(device: Device) -> None:
    await device.send(delta_of(device.plan))
    assert device.server.asked == 0, "without a file there is nothing to ask for"
    device.server.fails = [Outage(Code.SERVER_UNREACHABLE, "It does not answer.")]
    await device.send(delta_of(device.plan))
    assert device.server.asked == 2


async def test_a_delta_that_is_not_finite_spoils_nothing_that_is_kept(device: Device) -> None:
    await device.send(delta_of(device.plan))
    bad = delta_of(device.plan)
    bad[3] = np.nan
    with pytest.raises(Refusal) as refusal:
        await device.send(bad)
    assert refusal.value.code is Code.UPDATE_NOT_FINITE
    assert np.isfinite(await device.send(delta_of(device.plan))).all()


async def test_int8_rounds_by_the_seed_of_the_round(tmp_path: Path) -> None:
    device = Device(tmp_path, small_plan(update={"encoding": "int8"}))
    delta = delta_of(device.plan)
    one, same, other = [await device.send(delta, seed=seed) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    assert np.abs(one - delta).max() <= np.abs(delta).max() / 127 * 1.001
    assert not (tmp_path / "state").exists()
