"""`core.ports.RoundStore` on SQLAlchemy Core: synchronous, and safe to call from many threads and many processes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy

from sqlalchemy import Connection, select, update

from fedlearn.adapters.database.engine import Database, insert_new
from fedlearn.adapters.database.leadership import begin_epoch, check_epoch, read_leader
from fedlearn.adapters.database.logs import (
    insert_audit,
    insert_happenings,
    load_audit,
    load_happenings,
    load_summaries,
)
from fedlearn.adapters.database.migrations import upgrade
from fedlearn.adapters.database.rounds import insert_round, load_round, load_rounds, replace_round
from fedlearn.adapters.database.rows import read_task, read_version, task_values, version_values
from fedlearn.adapters.database.signals import TASK, VERSIONS, announce
from fedlearn.adapters.database.tables import model_versions, plans, rounds, signing_keys, tasks
from fedlearn.adapters.database.versions import (
    load_version,
    load_versions,
    put_label,
    query_version,
    restore_version,
    take_label,
    unknown_version,
)
from fedlearn.core.errors import Code, Refusal
from fedlearn.core.happenings import AuditEntry, Happening
from fedlearn.core.ids import RoundId, TaskId
from fedlearn.core.ports import ModelVersion, RoundSummary, Task
from fedlearn.core.replicas import Leader
from fedlearn.core.rounds import Phase, Round

_ENDED = ("completed", "failed", "cancelled")

_TASKS = select(
    tasks, model_versions.c.version, model_versions.c.key, model_versions.c.sha256, model_versions.c.size_bytes
).outerjoin_from(
    tasks, model_versions, (model_versions.c.task == tasks.c.id) & (model_versions.c.version == tasks.c.model_version)
)


class DatabaseRoundStore:
    """The server's durable state in SQLite or PostgreSQL. Each method says in `RoundStore` what it does and raises.

    Args:
        url: `sqlite:///path` or `postgresql+psycopg://user:password@host/name`.

    Raises:
        SetupError: `setting_invalid` for a URL of another kind.
    """

    def __init__(self, url: str) -> None:
        self._database = Database(url)
        self._epoch: int | None = None

    @property
    def database(self) -> Database:
        """For what else stands on it: the leader's lock, signals, presences, a backup."""
        return self._database

    def migrate(self) -> None:
        """Bring the tables to this version's form; safe when several replicas start at once.

        Raises:
            Outage: `database_unavailable`.
            SetupError: `setting_invalid` when a newer version has migrated the database further.
        """
        upgrade(self._database)

    def close(self) -> None:
        """Give back all connections; a later call opens new ones."""
        self._database.close()

    def ready(self) -> None:
        with self._database.reading() as connection:
            connection.execute(select(tasks.c.id).limit(1)).all()

    # --- tasks and plans

    def add_task(self, task: Task, plan: bytes) -> None:
        with self._writing(TASK + task.id) as connection:
            insert_new(connection, plans, {"digest": task.plan_digest, "body": plan})
            if not insert_new(connection, tasks, task_values(task)):
                raise Refusal(Code.TASK_EXISTS, f"There is a task {task.id} already; choose another name.")

    def task(self, task: TaskId) -> Task:
        with self._database.reading() as connection:
            return _task(connection, task)

    def tasks(self) -> Sequence[Task]:
        with self._database.reading() as connection:
            found = [read_task(row) for row in connection.execute(_TASKS).mappings()]
        return sorted(found, key=lambda task: (task.created_at, task.id))

    def plan(self, digest: str) -> bytes:
        with self._database.reading() as connection:
            body: bytes | None = connection.execute(select(plans.c.body).where(plans.c.digest == digest)).scalar_one_or_none()
        if body is None:
            raise Refusal(Code.NOT_FOUND, f"There is no plan with the digest {digest}.")
        return body

    def start_task(self, task: TaskId, now: float) -> Task:
        with self._writing(TASK + task, VERSIONS) as connection:
            found = _task(connection, task, lock=True)
            if found.state in _ENDED:
                raise Refusal(Code.TASK_STATE, f"Task {task} is {found.state}; submit a new one.")
            if found.state == "waiting_for_model":
                insert_new(connection, model_versions, version_values(task, found.upload, None, now))
                change = update(tasks).where(tasks.c.id == task)
                connection.execute(change.values(state="running", model_version=found.upload.version))
            return _task(connection, task)

    def end_task(self, task: TaskId, state: str) -> None:
        if state not in _ENDED:
            raise Refusal(Code.TASK_STATE, f"A task does not end as {state!r}, but as one of {', '.join(_ENDED)}.")
        with self._writing(TASK + task) as connection:
            if _task(connection, task, lock=True).state not in _ENDED:
                connection.execute(update(tasks).where(tasks.c.id == task).values(state=state))

    def pause_task(self, task: TaskId, paused: bool) -> Task:
        before, after = ("running", "paused") if paused else ("paused", "running")
        with self._writing(TASK + task) as connection:
            found = _task(connection, task, lock=True)
            if found.state not in (before, after):
                raise Refusal(
                    Code.TASK_STATE, f"Task {task} is {found.state}: it can't be {'paused' if paused else 'resumed'}."
                )
            connection.execute(update(tasks).where(tasks.c.id == task).values(state=after))
            return _task(connection, task)

    # --- rounds

    def add_round(self, round_: Round) -> None:
        with self._writing(TASK + round_.id.task) as connection:
            _task(connection, round_.id.task)
            insert_round(connection, round_)

    def save_round(self, round_: Round, previous: Round, happenings: Sequence[Happening] = ()) -> None:
        with self._writing(TASK + round_.id.task) as connection:
            replace_round(connection, round_, previous)
            insert_happenings(connection, happenings)

    def commit(self, round_: Round, previous: Round, now: float, happenings: Sequence[Happening] = ()) -> None:
        if round_.phase is not Phase.COMMITTED or round_.aggregate is None:
            raise ValueError(
                f"round {round_.id} is in {round_.phase}: only a committed round with its aggregate moves the model"
            )
        task, model = round_.id.task, round_.aggregate.model
        with self._writing(TASK + task, VERSIONS) as connection:
            replace_round(connection, round_, previous)
            new = version_values(task, model, round_.id.number, now, parent=round_.base.version, made=round_.aggregate)
            if _task(connection, task, lock=True).model != round_.base or not insert_new(connection, model_versions, new):
                raise Refusal(
                    Code.BASE_SUPERSEDED,
                    f"Task {task} has moved on from version {round_.base.version}, round {round_.id}'s base.",
                )
            connection.execute(update(tasks).where(tasks.c.id == task).values(model_version=model.version))
            insert_happenings(connection, happenings)

    def round(self, round_id: RoundId) -> Round:
        with self._database.reading() as connection:
            found = load_round(connection, round_id)
        if found is None:
            raise Refusal(Code.ROUND_UNKNOWN, f"There is no round {round_id}.")
        return found

    def rounds(self, task: TaskId) -> Sequence[Round]:
        with self._database.reading() as connection:
            return load_rounds(connection, task)

    def latest_round(self, task: TaskId) -> Round | None:
        with self._database.reading() as connection:
            newest = select(rounds.c.number).where(rounds.c.task == task).order_by(rounds.c.number.desc()).limit(1)
            number = connection.execute(newest).scalar_one_or_none()
            return None if number is None else load_round(connection, RoundId(task, number))

    def round_summaries(self, task: TaskId, limit: int) -> Sequence[RoundSummary]:
        with self._database.reading() as connection:
            return load_summaries(connection, task, limit)

    # --- model versions

    def versions(self, task: TaskId) -> Sequence[ModelVersion]:
        with self._database.reading() as connection:
            return load_versions(connection, task)

    def version(self, task: TaskId, version: int) -> ModelVersion:
        with self._database.reading() as connection:
            return load_version(connection, task, version)

    def roll_back(self, task: TaskId, version: int, current: int, now: float) -> ModelVersion:
        with self._writing(TASK + task, VERSIONS) as connection:
            restore_version(connection, _task(connection, task, lock=True), version, current, now)
            model = _task(connection, task).model
            assert model is not None
            return load_version(connection, task, model.version)

    def pin(self, task: TaskId, version: int, label: str) -> ModelVersion:
        with self._writing(TASK + task) as connection:
            put_label(connection, task, version, label)
            return load_version(connection, task, version)

    def unpin(self, task: TaskId, label: str) -> None:
        with self._writing(TASK + task) as connection:
            take_label(connection, task, label)

    def unevaluated(self) -> Sequence[ModelVersion]:
        query = (
            select(model_versions)
            .join(tasks, tasks.c.id == model_versions.c.task)
            .where(model_versions.c.evaluation.is_(None), tasks.c.state != "cancelled")
        )
        with self._database.reading() as connection:
            found = [read_version(row) for row in connection.execute(query).mappings()]
        return sorted(found, key=lambda version: (version.created_at, version.task, version.ref.version))

    def evaluate(self, task: TaskId, version: int, metrics: Mapping[str, float]) -> None:
        unscored = update(model_versions).where(
            model_versions.c.task == task, model_versions.c.version == version, model_versions.c.evaluation.is_(None)
        )
        with self._writing(VERSIONS) as connection:
            scored = connection.execute(unscored.values(evaluation=dict(metrics))).rowcount == 1
            if not scored and connection.execute(query_version(task, version)).one_or_none() is None:
                raise unknown_version(task, version)

    # --- replicas

    def take_lead(self, holder: str, address: str) -> int:
        with self._database.writing() as connection:
            return begin_epoch(connection, holder, address)

    def leader(self) -> Leader | None:
        with self._database.reading() as connection:
            return read_leader(connection)

    def fenced(self, epoch: int) -> "DatabaseRoundStore":
        fenced = copy(self)
        fenced._epoch = epoch
        return fenced

    @contextmanager
    def _writing(self, *signals: str) -> Iterator[Connection]:
        """A transaction behind the fence, of which the replicas are told."""
        with self._database.writing() as connection:
            if self._epoch is not None:
                check_epoch(connection, self._epoch, *signals)
            else:
                announce(connection, *signals)
            yield connection

    # --- logs

    def log(self, happenings: Sequence[Happening]) -> None:
        with self._writing() as connection:
            insert_happenings(connection, happenings)

    def happenings(self, limit: int, before: int | None = None) -> Sequence[tuple[int, Happening]]:
        with self._database.reading() as connection:
            return load_happenings(connection, limit, before)

    def audit(self, entry: AuditEntry) -> None:
        with self._writing() as connection:
            insert_audit(connection, entry)

    def audit_entries(self, limit: int, before: int | None = None) -> Sequence[tuple[int, AuditEntry]]:
        with self._database.reading() as connection:
            return load_audit(connection, limit, before)

    # --- keys

    def signing_key(self, make: Callable[[], tuple[str, bytes]], now: float) -> tuple[str, bytes]:
        current = select(signing_keys.c.kid, signing_keys.c.private_key).order_by(signing_keys.c.generation.desc()).limit(1)
        with self._database.reading() as connection:
            row = connection.execute(current).one_or_none()
        if row is None:
            kid, private_key = make()
            with self._writing() as connection:
                first = {"generation": 1, "kid": kid, "private_key": private_key, "created_at": now}
                insert_new(connection, signing_keys, first)  # another replica's may be there by now; that one counts
                row = connection.execute(current).one()
        return row.kid, row.private_key


def _task(connection: Connection, task: TaskId, *, lock: bool = False) -> Task:
    """The task; with `lock`, nobody else changes its state or its pointer until the transaction ends."""
    if lock:  # by itself, so that the query sees what the lock's last holder has done to the versions too
        connection.execute(select(tasks.c.id).where(tasks.c.id == task).with_for_update(key_share=True))
    row = connection.execute(_TASKS.where(tasks.c.id == task)).mappings().one_or_none()
    if row is None:
        raise Refusal(Code.TASK_UNKNOWN, f"There is no task {task}.")
    return read_task(row)
