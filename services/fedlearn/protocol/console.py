"""What the console reads: everything once, then what has changed. Reading is open, the audit log excepted."""

from datetime import datetime
from typing import Annotated

from pydantic import Field

from fedlearn.core.errors import Code
from fedlearn.core.happenings import Kind
from fedlearn.protocol.messages import DeviceName, Figures, Message, RoundNumber, Seconds, TaskName, VersionNumber
from fedlearn.protocol.views import DevicePod, TaskView, VersionView

Labels = Annotated[
    dict[str, int], Field(description="Examples a label; only where the operator shows them.", examples=[{"0": 540, "7": 12}])
]


class TaskLine(TaskView):
    dataset: Annotated[str, Field(examples=["mnist"])]
    parameters: Annotated[int, Field(examples=[199_210])]


class RoundLine(Message):
    """A round in brief."""

    task: TaskName
    round: RoundNumber
    phase: Annotated[str, Field(examples=["reporting"])]
    reason: Code | None
    why: Annotated[str, Field(description="What the reason means.", examples=["Too few devices reported before the deadline."])]
    base_version: VersionNumber
    opened_at: datetime
    seconds: Annotated[Seconds, Field(description="Since it was opened, or from opening to its end.")]
    seconds_left: Annotated[float | None, Field(description="Until its phase ends at the latest; None for an ended round.")]
    phase_seconds: Annotated[dict[str, float], Field(examples=[{"selection": 0.2, "configuration": 0.1}])]
    standings: Annotated[dict[str, int], Field(description="Devices by how they stand.", examples=[{"reported": 5}])]
    version: Annotated[VersionNumber | None, Field(description="What it has committed.")]
    examples: int | None
    metrics: Figures


class Part(Message):
    """How a device stands in a round, and why where it was refused or has dropped out."""

    standing: Annotated[str, Field(examples=["accepted"])]
    code: Code | None = None


class Moves(Message):
    """Devices of one round that stand otherwise than before; `anew` says that these are all of them."""

    task: TaskName
    round: RoundNumber
    anew: bool
    devices: dict[DeviceName, Part]


class Tile(Message):
    """A device as the console shows it."""

    device: DeviceName
    dataset: str | None
    examples: int | None
    runtime: str | None
    last_seen: datetime | None
    pod: DevicePod | None
    labels: Labels | None = None


class EventView(Message):
    """One line of the event log."""

    number: Annotated[int | None, Field(description="None for one that has just happened.")]
    at: datetime
    kind: Kind
    task: TaskName
    round: RoundNumber | None
    code: Code | None
    title: Annotated[str, Field(description="What the code means.", examples=["The update holds NaN or infinity."])]
    count: Annotated[int, Field(description="How many devices it is about.")]
    devices: Annotated[tuple[DeviceName, ...], Field(description="The first of them.")]
    detail: str


class AuditView(Message):
    """What somebody did with the operators' token."""

    number: int
    at: datetime
    actor: Annotated[str, Field(examples=["operator 1f3c9a2e"])]
    action: Annotated[str, Field(examples=["cancel"])]
    task: TaskName | None
    outcome: Annotated[str, Field(examples=["done", "task_state"])]


class Overview(Message):
    """Everything that a console shows at first; `now` is the server's clock."""

    now: datetime
    release: str
    cluster: Annotated[str, Field(examples=["watching"])]
    tasks: tuple[TaskLine, ...]
    rounds: Annotated[tuple[RoundLine, ...], Field(description="The latest of each task that this server drives.")]
    moves: tuple[Moves, ...]
    devices: tuple[Tile, ...]
    events: Annotated[tuple[EventView, ...], Field(description="Newest first.")]


class Changes(Message):
    """What has changed since the last message; whatever is named here replaces what was known of it."""

    now: datetime
    tasks: tuple[TaskLine, ...] = ()
    rounds: tuple[RoundLine, ...] = ()
    moves: tuple[Moves, ...] = ()
    devices: tuple[Tile, ...] = ()
    gone: tuple[DeviceName, ...] = ()
    versions: tuple[VersionView, ...] = ()
    histories: Annotated[tuple[TaskName, ...], Field(description="Tasks whose versions are to be read again.")] = ()
    events: tuple[EventView, ...] = ()


class History(Message):
    """The last rounds and versions of a task, in order."""

    rounds: tuple[RoundLine, ...]
    versions: tuple[VersionView, ...]
