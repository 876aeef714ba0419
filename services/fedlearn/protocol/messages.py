"""The messages of the three services, under `/v1`.

Durations are seconds and never wall-clock deadlines, since devices' clocks are wrong; sizes are bytes; digests are SHA-256 in
hexadecimal; stored times are UTC, ISO 8601.
"""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel, model_validator

from fedlearn.core.errors import Code
from fedlearn.core.ids import MAX_AGGREGATORS
from fedlearn.core.rounds import ModelRef
from fedlearn.protocol.eligibility import DeviceConditions, DeviceDemands

Digest = Annotated[
    str, Field(pattern=r"^[0-9a-f]{64}$", examples=["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"])
]
TaskName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", examples=["mnist-2nn"])]
RoundNumber = Annotated[int, Field(ge=1, le=2**31, examples=[1])]
DeviceName = Annotated[str, Field(min_length=1, max_length=260, examples=["fedlearn-device-0", "fedlearn-device-0/3"])]
Slot = Annotated[int | None, Field(ge=0, lt=4096, description="Which of the devices of this process; none if it is one.")]
Size = Annotated[int, Field(ge=1, le=2**40, description="bytes", examples=[797_256])]
VersionNumber = Annotated[int, Field(ge=0, le=2**31, examples=[3])]
Label = Annotated[str, Field(pattern=r"^[a-z]([a-z0-9._-]{0,61}[a-z0-9])?$", examples=["production"])]
Url = Annotated[str, Field(examples=["http://storage:8333/fedlearn-models/mnist-2nn/models/0?X-Amz-Signature=…"])]
Key = Annotated[str, Field(min_length=1, max_length=1024, examples=["mnist-2nn/models/00000003-9f86….safetensors"])]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Figures = Annotated[dict[str, Finite], Field(max_length=100, examples=[{"accuracy": 0.93, "loss": 0.25}])]
Seconds = Annotated[float, Field(ge=0, examples=[42.5])]
Failure = Annotated[Code, Field(examples=[Code.TRAINING_FAILED])]
PLAN_EXAMPLE: dict[str, Any] = {
    "plan_version": 1,
    "dataset": "mnist",
    "architecture": {"module": "keras", "class_name": "Sequential", "config": {"name": "softmax", "layers": []}},
    "weights": [{"shape": [784, 10]}, {"shape": [10]}],
}
PlanDocument = Annotated[dict[str, Any], Field(description="See `protocol.plans.Plan`.", examples=[PLAN_EXAMPLE])]
MAX_DEVICES_A_ROUND = 100_000


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def timestamp(seconds: float) -> datetime:
    """A stored time (seconds since the epoch) as it is shown: UTC."""
    return datetime.fromtimestamp(seconds, UTC)


class Model(Message):
    """One version of a task's global model."""

    version: VersionNumber
    key: Key
    sha256: Digest
    size_bytes: Size

    @classmethod
    def of(cls, ref: ModelRef) -> "Model":
        return cls(version=ref.version, key=ref.key, sha256=ref.sha256, size_bytes=ref.size_bytes)

    def ref(self) -> ModelRef:
        return ModelRef(self.version, self.key, self.sha256, self.size_bytes)


# --- device and server


class RoundName(Message):
    task: TaskName
    round: RoundNumber


class Speed(Message):
    """How long a device's training took in its last round; evaluation and transfers are not in it."""

    task: TaskName
    round: RoundNumber
    plan_digest: Digest
    steps: Annotated[int, Field(ge=1, le=2**40, examples=[540])]
    seconds: Annotated[float, Field(gt=0, le=30 * 86400, examples=[1.25])]


class Unfit(Message):
    """Why a device can't take part in any round, in a sentence of its own."""

    code: Annotated[Code, Field(examples=[Code.SHARD_INVALID])]
    detail: Annotated[str, Field(max_length=1000, examples=["The shard's file /data/0/train.npz cannot be used: …"])]


class CheckIn(Message):
    """A device offers itself, and is answered when there is work or `wait_seconds` are over.

    One that is `unfit` offers nothing: it is answered at once, and never selected.
    """

    slot: Slot = None
    dataset: Annotated[str, Field(min_length=1, max_length=200, examples=["mnist"])]
    examples: Annotated[
        int,
        Field(ge=0, le=100_000_000, description="How many examples its shard trains on; 0 if it is unfit.", examples=[5400]),
    ]
    holdout_examples: Annotated[int, Field(ge=0, le=100_000_000)] = 0
    runtime: Annotated[str, Field(max_length=200, examples=["Keras 3.15.1 on TensorFlow 2.21.0"])] = ""
    conditions: DeviceConditions = DeviceConditions()
    labels: Annotated[
        dict[str, Annotated[int, Field(ge=0)]] | None,
        Field(max_length=1000, description="Examples a label; None unless the device's operator lets it say so."),
    ] = None
    uploaded: Annotated[RoundName | None, Field(description="Where its last update went: not assigned again.")] = None
    speed: Speed | None = None
    unfit: Unfit | None = None
    wait_seconds: Annotated[float, Field(ge=0, le=300)] = 30.0

    @model_validator(mode="after")
    def _examples_of_the_fit(self) -> "CheckIn":
        if self.unfit is None and self.examples == 0:
            raise ValueError("a device that is not unfit has at least one example")
        return self


class Assignment(Message):
    """A device's part in a round, given again at each check-in until it has reported, dropped out or been released."""

    kind: Literal["assignment"] = "assignment"
    task: TaskName
    round: RoundNumber
    device: DeviceName
    plan_digest: Digest
    model: Model
    model_url: Url
    demands: Annotated[DeviceDemands, Field(description="A device that stops meeting them drops out: `not_eligible`.")] = (
        DeviceDemands()
    )
    seconds_left: Annotated[Seconds, Field(description="Until the round's reporting deadline, counted from this answer.")]
    local_steps: Annotated[
        int | None, Field(ge=1, description="After how many steps it may stop; None, or more than all: all of the plan's.")
    ] = None
    aggregator: Annotated[
        int, Field(ge=0, lt=MAX_AGGREGATORS, description="To which of the aggregators that it is configured with it reports.")
    ] = 0
    ticket: Annotated[
        str, Field(description="What the aggregator wants to see beside the device's own token.", examples=["eyJ0eXAi…"])
    ]


class ComeBack(Message):
    """No work now (pace steering)."""

    kind: Literal["come_back"] = "come_back"
    after_seconds: Seconds


class CheckInAnswer(RootModel[Annotated[Assignment | ComeBack, Field(discriminator="kind")]]):
    """What a check-in is answered with."""


class Acceptance(Message):
    """The device has its assignment and starts."""

    slot: Slot = None


class Wanted(Message):
    """Whether a device's report is still wanted; answered as soon as it is not, or after `wait_seconds`."""

    slot: Slot = None
    wait_seconds: Annotated[float, Field(ge=0, le=300)] = 0.0


class DropOut(Message):
    """The device will not report in this round."""

    slot: Slot = None
    code: Failure
    detail: Annotated[str, Field(max_length=1000)] = ""


# --- device and aggregator


UpdateDigest = Annotated[Digest, Field(description="What the update is known by: SHA-256 of its envelope's header.")]


class ReadyUpdate(Message):
    """An update of so many bytes is ready: where may it go?"""

    slot: Slot = None
    size_bytes: Size
    digest: UpdateDigest


class UploadRequest(ReadyUpdate):
    """In one piece."""

    sha256: Annotated[Digest, Field(description="Of all its bytes: the URL takes no others.")]


class Upload(Message):
    """A pre-signed PUT: these headers and no other bytes, once."""

    url: Url
    headers: Annotated[dict[str, str], Field(examples=[{"Content-Length": "797256", "If-None-Match": "*"}])]
    valid_seconds: Seconds


class UploadDone(Message):
    """A hint that an update lies in storage; what counts is sealed inside it."""

    slot: Slot = None
    digest: UpdateDigest


# --- server and aggregator


class RoundOpening(Message):
    """What the aggregator needs to know of a round; it keeps it in the round's descriptor."""

    plan: PlanDocument
    base: Model
    reporting_seconds: Annotated[float, Field(gt=0, le=30 * 86400, examples=[600])]
    aggregators: Annotated[int, Field(ge=1, le=MAX_AGGREGATORS, description="How many aggregators share the round.")] = 1


class RoundOpen(Message):
    task: TaskName
    round: RoundNumber
    kid: Annotated[str, Field(description="The round's sealing key.", examples=["9f86d081884c7d659a2feaa0c55ad015"])]
    state: Literal["open", "closing", "published"]
    served: Annotated[Model | None, Field(description="What devices begin with: the base itself, or its copy in float16.")] = (
        None
    )


class UpdatesReport(Message):
    """Whose updates are folded and whose were refused, up to now; it holds all of the round, so it may be repeated."""

    reported: Annotated[tuple[DeviceName, ...], Field(max_length=MAX_DEVICES_A_ROUND)]
    refused: Annotated[
        dict[DeviceName, Code], Field(max_length=MAX_DEVICES_A_ROUND, examples=[{"fedlearn-device-1": "update_not_finite"}])
    ]


class RoundResult(Message):
    """A published model, and weighted means over its contributors; never one device's figures."""

    model: Model
    contributors: Annotated[tuple[DeviceName, ...], Field(max_length=MAX_DEVICES_A_ROUND)]
    examples: Annotated[int, Field(ge=1, examples=[54_000])]
    metrics: Figures


class RoundFailure(Message):
    code: Failure
    detail: Annotated[str, Field(max_length=1000)] = ""


class ModelUploadRequest(Message):
    """The server asks for a place for version 0 of a task, on behalf of the operator who submits it."""

    task: TaskName
    minimum: Annotated[
        int, Field(ge=1, le=MAX_DEVICES_A_ROUND, examples=[3], description="With how few reports its rounds may close.")
    ]
    mixed: Annotated[
        int,
        Field(ge=1, le=MAX_DEVICES_A_ROUND, examples=[3], description="How many of so few its rule mixes in a result."),
    ]
    size_bytes: Size
    sha256: Digest


class ModelUpload(Upload):
    key: Key


class JsonWebKeys(Message):
    keys: Annotated[
        list[dict[str, str]], Field(examples=[[{"kty": "OKP", "crv": "Ed25519", "kid": "f00d…", "use": "sig", "x": "11qY…"}]])
    ]
