"""What the domain asks of the outside. `tests/contract/` runs one suite over every implementation of each."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from fedlearn.core.errors import Code
from fedlearn.core.happenings import AuditEntry, Happening
from fedlearn.core.ids import RoundId, TaskId
from fedlearn.core.policy import RoundPolicy
from fedlearn.core.replicas import Leader
from fedlearn.core.rounds import ModelRef, Phase, Round, Standing

Clock = Callable[[], float]
"""Seconds since the epoch, UTC."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    key: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class UploadGrant:
    """A signed URL for one PUT, and the headers that must go with it to the letter."""

    url: str
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a large object, as it is to be or as it lies in storage.

    Args:
        tag: what the storage has answered its PUT with; "" before.
    """

    size_bytes: int
    sha256: str
    tag: str = ""


class Source(Protocol):
    """An object's bytes as they come, from its first."""

    @property
    def size(self) -> int:
        """How many they are in all."""
        ...

    @property
    def seconds(self) -> float:
        """How long they have been waited for until now."""
        ...

    def fill(self, out: memoryview) -> None:
        """Write the next `len(out)` bytes to `out`.

        Raises:
            Outage: `storage_unavailable`.
        """
        ...


class ObjectStore(Protocol):
    """One bucket of an S3-compatible storage, seen with one role's credential.

    Every method raises `Outage` (`storage_unavailable`) when the storage does not answer within its retries, and `Refusal`
    (`storage_denied`) when the credential does not allow the call.
    """

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """The object's bytes, or `length` of them from `start`.

        Raises:
            Refusal: `not_found`.
        """
        ...

    def get_into(self, key: str, out: memoryview, *, start: int = 0) -> int:
        """Write the object's bytes from `start` on to `out`, as many as it has and `out` holds, and return how many.

        Raises:
            Refusal: `not_found`. What `out` then holds is undefined.
        """
        ...

    def reading(self, key: str) -> AbstractContextManager[Source]:
        """The object's bytes, piece by piece; what is not asked for is not waited for.

        Raises:
            Refusal: `not_found`.
        """
        ...

    def put(self, key: str, body: bytes | memoryview, *, sha256: str | None = None) -> None:
        """Write the object, whole or not at all; an object of that key is replaced.

        Args:
            sha256: of the body, where the caller has made it already.
        """
        ...

    def put_once(self, key: str, body: bytes) -> bool:
        """Write the object unless the key is taken; whether it was written. Of concurrent writers exactly one is told True."""
        ...

    def size(self, key: str) -> int | None:
        """The object's length in bytes, None if there is none."""
        ...

    def list(self, prefix: str) -> Sequence[StoredObject]:
        """All objects whose key starts with `prefix`, in order of key."""
        ...

    def delete(self, keys: Sequence[str]) -> None:
        """Delete the objects; keys that do not exist are no error."""
        ...

    def sign_get(self, key: str, *, seconds: int) -> str:
        """A URL by which anyone may GET this object, and nothing else, for `seconds`. Signing sends nothing."""
        ...

    def sign_put(self, key: str, *, size_bytes: int, sha256: str, seconds: int) -> UploadGrant:
        """A grant to PUT exactly these bytes once under this key within `seconds`. Signing sends nothing."""
        ...

    def begin_parts(self, key: str) -> str:
        """Begin an object that comes in parts, and return the id of this upload. No object is seen before `join_parts`."""
        ...

    def sign_parts(self, key: str, upload_id: str, parts: Sequence[Part], *, seconds: int) -> Sequence[UploadGrant]:
        """For each part a grant to PUT exactly its bytes within `seconds`, as often as it takes. All but the last have 5 MiB or
        more. Signing sends nothing.
        """
        ...

    def join_parts(self, key: str, upload_id: str, parts: Sequence[Part]) -> bool:
        """Make the object of its parts, unless the key is taken; whether it is these parts' now. May be repeated.

        Raises:
            Refusal: `update_missing` when a part is not there as described, or nobody knows the upload.
        """
        ...

    def drop_parts(self, prefix: str) -> None:
        """End all uploads in parts whose key starts with `prefix`, and delete what has come of them."""
        ...


ALIVE_STATES = frozenset({"running", "paused"})
"""The states of a task that may still have rounds."""


@dataclass(frozen=True, slots=True)
class Task:
    """A task as the server keeps it. `state` is one of `waiting_for_model`, `running`, `paused`, `completed`,
    `failed`, `cancelled`; a paused task ends its round and starts no other.

    Args:
        plan_digest: SHA-256 of the plan's canonical JSON.
        rounds: how many committed rounds complete the task; None for no end.
        model: the current version, None until version 0 has arrived. Only `RoundStore.commit` and
            `roll_back` move it.
        upload: version 0 as the submitter promised it.
    """

    id: TaskId
    state: str
    plan_digest: str
    policy: RoundPolicy
    rounds: int | None
    created_at: float
    upload: ModelRef
    model: ModelRef | None = None
    target_accuracy: float | None = None


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One published version; `round` is None for version 0, and for one that restores an earlier one.

    Args:
        parent: the version that the round started from, or whose bytes this one restores; None for version 0.
        contributors: how many devices' updates the round put into it, and how many examples they were trained on.
        labels: names that an operator has pinned to it.
        evaluation: the evaluator's means on the test set (`accuracy`, `loss`, ...), None until it has scored the version.
    """

    task: TaskId
    ref: ModelRef
    round: int | None
    created_at: float
    evaluation: Mapping[str, float] | None = None
    parent: int | None = None
    contributors: int | None = None
    examples: int | None = None
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RoundSummary:
    """A round without the names of its devices: how many of them stand how."""

    id: RoundId
    phase: Phase
    reason: Code | None
    base_version: int
    opened_at: float
    phase_since: float
    phase_seconds: Mapping[Phase, float]
    standings: Mapping[Standing, int]
    version: int | None = None
    examples: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


class RoundStore(Protocol):
    """The server's durable state: tasks, plans, rounds, versions, keys. Every write is one transaction.

    Every method raises `Outage` (`database_unavailable`) when the database does not answer.
    """

    def add_task(self, task: Task, plan: bytes) -> None:
        """Store a new task and its plan (by its digest).

        Raises:
            Refusal: `task_exists`.
        """
        ...

    def task(self, task: TaskId) -> Task:
        """Raises:
        Refusal: `task_unknown`.
        """
        ...

    def tasks(self) -> Sequence[Task]:
        """All tasks, oldest first."""
        ...

    def plan(self, digest: str) -> bytes:
        """Raises:
        Refusal: `not_found`.
        """
        ...

    def start_task(self, task: TaskId, now: float) -> Task:
        """Version 0 has arrived: make it the task's model and the task `running`; nothing changes if it runs already.

        Raises:
            Refusal: `task_unknown`, `task_state` for a task that has ended.
        """
        ...

    def end_task(self, task: TaskId, state: str) -> None:
        """Set the state of a task that has not ended to `completed`, `failed` or `cancelled`; else nothing changes."""
        ...

    def pause_task(self, task: TaskId, paused: bool) -> Task:
        """Make a running task `paused`, or a paused one `running`; nothing changes if it is so already.

        Raises:
            Refusal: `task_unknown`, `task_state` for a task that waits for its model or has ended.
        """
        ...

    def add_round(self, round_: Round) -> None:
        """Store a new round.

        Raises:
            Refusal: `round_conflict` when the task has this round already.
        """
        ...

    def save_round(self, round_: Round, previous: Round, happenings: Sequence[Happening] = ()) -> None:
        """Replace `previous` by `round_`, by compare-and-set, and log what has happened with it, or neither.

        Raises:
            Refusal: `round_conflict` when the stored round is no longer `previous`.
        """
        ...

    def commit(self, round_: Round, previous: Round, now: float, happenings: Sequence[Happening] = ()) -> None:
        """Save a COMMITTED round and move the task's model from `round_.base` to its aggregate's, or neither.

        Raises:
            Refusal: `base_superseded` when the task's model is no longer `round_.base`; `round_conflict` as above.
        """
        ...

    def round(self, round_id: RoundId) -> Round:
        """Raises:
        Refusal: `round_unknown`.
        """
        ...

    def rounds(self, task: TaskId) -> Sequence[Round]:
        """All rounds of a task in order of number."""
        ...

    def latest_round(self, task: TaskId) -> Round | None: ...

    def round_summaries(self, task: TaskId, limit: int) -> Sequence[RoundSummary]:
        """The last `limit` rounds of a task in order of number."""
        ...

    def versions(self, task: TaskId) -> Sequence[ModelVersion]:
        """All versions of a task in order."""
        ...

    def version(self, task: TaskId, version: int) -> ModelVersion:
        """Raises:
        Refusal: `model_unknown`.
        """
        ...

    def roll_back(self, task: TaskId, version: int, current: int, now: float) -> ModelVersion:
        """Make a new version of an earlier one's bytes, and move the task's model from version `current` to it, or neither.

        Nothing is overwritten: the new version has the next number, the chosen one as its parent, and its figures.

        Raises:
            Refusal: `task_unknown`, `model_unknown`; `base_superseded` when the task's model is not version `current`.
        """
        ...

    def pin(self, task: TaskId, version: int, label: str) -> ModelVersion:
        """Give a version a label, which leaves the version that had it.

        Raises:
            Refusal: `model_unknown`.
        """
        ...

    def unpin(self, task: TaskId, label: str) -> None:
        """Remove a label; one that is not there is no error."""
        ...

    def unevaluated(self) -> Sequence[ModelVersion]:
        """The versions that no evaluator has scored, oldest first, of tasks that were not cancelled."""
        ...

    def evaluate(self, task: TaskId, version: int, metrics: Mapping[str, float]) -> None:
        """Keep the evaluator's figures; of two the first stays.

        Raises:
            Refusal: `model_unknown`.
        """
        ...

    def log(self, happenings: Sequence[Happening]) -> None:
        """Add to the event log, which keeps its newest entries and drops the others."""
        ...

    def happenings(self, limit: int, before: int | None = None) -> Sequence[tuple[int, Happening]]:
        """The newest entries of the event log with their numbers, newest first; only those below `before` if it is given."""
        ...

    def audit(self, entry: AuditEntry) -> None:
        """Add to the audit log, which keeps its newest entries and drops the others."""
        ...

    def audit_entries(self, limit: int, before: int | None = None) -> Sequence[tuple[int, AuditEntry]]:
        """The newest entries of the audit log with their numbers, newest first, as `happenings`."""
        ...

    def signing_key(self, make: Callable[[], tuple[str, bytes]], now: float) -> tuple[str, bytes]:
        """The current ticket-signing key as (kid, private key in PEM); the first caller's `make()` is kept for all."""
        ...

    # --- several replicas on one database

    def take_lead(self, holder: str, address: str) -> int:
        """Begin the next epoch: from now on no store that is fenced by an earlier one writes. Returns the new epoch."""
        ...

    def leader(self) -> Leader | None:
        """The replica whose epoch it is; None before the first."""
        ...

    def fenced(self, epoch: int) -> "RoundStore":
        """The same store, but none of its writes happens once another epoch has begun: it raises `Refusal` (`not_leader`)."""
        ...

    def ready(self) -> None:
        """Raises `Outage` if the database cannot be used now."""
        ...
