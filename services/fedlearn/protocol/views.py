"""What operators and the evaluator say to the server, and what it shows of tasks, rounds, versions and devices."""

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, RootModel

from fedlearn.core.errors import Code
from fedlearn.core.policy import RoundPolicy
from fedlearn.protocol.eligibility import DeviceDemands
from fedlearn.protocol.messages import (
    MAX_DEVICES_A_ROUND,
    DeviceName,
    Digest,
    Figures,
    Label,
    Message,
    Model,
    PlanDocument,
    RoundNumber,
    Seconds,
    Size,
    TaskName,
    Unfit,
    Upload,
    Url,
    VersionNumber,
)


class Policy(Message):
    """What a task demands of its rounds; see `core.policy.RoundPolicy`."""

    goal: Annotated[int, Field(ge=1, le=MAX_DEVICES_A_ROUND, description="How many reports finish a round.")] = 3
    over_selection: Annotated[float, Field(ge=1, le=10, description="Devices selected for each report wanted.")] = 1.3
    min_fraction: Annotated[float, Field(gt=0, le=1, description="Of the goal: fewer abandon the round.")] = 0.8
    selection_timeout_seconds: Annotated[float, Field(gt=0, le=86400)] = 60.0
    reporting_timeout_seconds: Annotated[float, Field(gt=0, le=30 * 86400)] = 600.0
    aggregation_timeout_seconds: Annotated[float, Field(gt=0, le=86400)] = 600.0
    overlap_selection: Annotated[
        bool, Field(description="Whether devices gather for a round while the one before it reports, or only after its commit.")
    ] = True
    demands: DeviceDemands = DeviceDemands()

    @classmethod
    def of(cls, policy: RoundPolicy) -> "Policy":
        return cls.model_validate(asdict(policy))

    def domain(self) -> RoundPolicy:
        return RoundPolicy(**{**self.model_dump(), "demands": self.demands.domain()})


class TaskSubmission(Message):
    task: TaskName
    plan: PlanDocument
    policy: Policy = Policy()
    rounds: Annotated[int | None, Field(ge=1, le=1_000_000, description="Committed rounds that complete the task.")] = None
    target_accuracy: Annotated[float | None, Field(gt=0, le=1, description="Reaching it completes the task.")] = None
    model_size_bytes: Size
    model_sha256: Digest


class TaskAccepted(Message):
    """Upload version 0 there, then start the task."""

    task: TaskName
    plan_digest: Digest
    upload: Upload


class TaskView(Message):
    """A task: what was asked, and how far it is."""

    task: TaskName
    state: Literal["waiting_for_model", "running", "paused", "completed", "failed", "cancelled"]
    plan_digest: Digest
    policy: Policy
    rounds: int | None
    target_accuracy: float | None
    created_at: datetime
    model: Model | None


class ParticipantView(Message):
    device: DeviceName
    standing: Annotated[str, Field(examples=["reported"])]
    code: Code | None


class DevicePart(Message):
    """A device's place in a round that is running."""

    task: TaskName
    round: RoundNumber
    standing: Literal["selected", "accepted", "reported", "refused", "dropped", "released"]


class DevicePod(Message):
    """A device's pod as the cluster sees it."""

    state: Literal["pending", "running", "ready", "terminating", "ended", "unknown"]
    node: Annotated[str | None, Field(description="None until it is scheduled.")]


class DeviceView(Message):
    """A device that has checked in, or the pod of one that has not."""

    device: DeviceName
    waiting: Annotated[bool, Field(description="Whether it waits for work: its check-in is held.")]
    part: Annotated[DevicePart | None, Field(description="None for a device that is in no running round.")]
    dataset: Annotated[str | None, Field(description="What its shard is of; like what follows, None until it checks in.")]
    examples: Annotated[int | None, Field(description="How many examples its shard trains on.")]
    runtime: str | None
    unfit: Annotated[Unfit | None, Field(description="Why it is never selected; None for a device that is fit.")] = None
    last_seen: datetime | None
    pod: Annotated[DevicePod | None, Field(description="None without a cluster, and for a pod that is gone.")]


class FleetView(Message):
    """All devices, and whether their pods are seen: `unavailable` says that `pod` is what was seen last."""

    cluster: Literal["none", "watching", "unavailable"]
    devices: tuple[DeviceView, ...]

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "cluster": "watching",
                    "devices": [
                        {
                            "device": "fedlearn-device-0",
                            "waiting": False,
                            "part": {"task": "mnist-2nn", "round": 4, "standing": "accepted"},
                            "dataset": "mnist",
                            "examples": 5400,
                            "runtime": "Keras 3.15.1 on TensorFlow 2.21.0",
                            "last_seen": "2026-11-24T06:00:21.512000Z",
                            "pod": {"state": "ready", "node": "kind-worker"},
                        },  # none with a None in it: FastAPI leaves those out of the document
                    ],
                }
            ]
        }
    )


class RoundView(Message):
    """A round, running or ended: who took part, how long each phase took, and what came of it."""

    task: TaskName
    round: RoundNumber
    phase: Annotated[str, Field(examples=["committed"])]
    reason: Code | None
    base_version: VersionNumber
    opened_at: datetime
    seconds: Annotated[Seconds, Field(description="Since it was opened, or from opening to its end.")]
    phase_seconds: Annotated[dict[str, float], Field(examples=[{"selection": 0.2, "configuration": 0.1, "reporting": 41.7}])]
    participants: tuple[ParticipantView, ...]
    model: Model | None
    examples: int | None
    metrics: Annotated[Figures, Field(description="Weighted hold-out means of the version it started from.")]


class VersionView(Message):
    """A version of a task's model, with the evaluator's figures once it has scored it."""

    task: TaskName
    model: Model
    round: Annotated[int | None, Field(description="The round that made it; None for version 0, and where it restores one.")]
    created_at: datetime
    evaluation: Figures | None
    parent: Annotated[int | None, Field(description="What the round started from, or which version it restores.")] = None
    contributors: Annotated[int | None, Field(description="How many devices' updates are in it.")] = None
    examples: Annotated[int | None, Field(description="How many examples those were trained on.")] = None
    labels: tuple[Label, ...] = ()


class VersionList(RootModel[list[VersionView]]):
    """All versions of a task's model."""


class RollBack(Message):
    """Which version the caller takes for the task's model; another one refuses the call."""

    current: VersionNumber | None = None


class Download(Message):
    model: Model
    url: Url
    valid_seconds: Seconds


class EvaluationJob(Message):
    """A version that nobody has scored yet."""

    task: TaskName
    plan_digest: Digest
    model: Model
    model_url: Url


class Evaluation(Message):
    """Figures on the test set; none for a version that can't be scored."""

    metrics: Figures
