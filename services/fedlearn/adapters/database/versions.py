"""Model versions in the database: their lineage and labels. Each function works within its caller's transaction."""

from collections import defaultdict
from collections.abc import Sequence

from sqlalchemy import Connection, Select, delete, func, select, update

from fedlearn.adapters.database.engine import insert_new
from fedlearn.adapters.database.rows import read_ref, read_version, version_values
from fedlearn.adapters.database.tables import model_labels, model_versions, tasks
from fedlearn.core.errors import Code, Refusal
from fedlearn.core.ids import TaskId
from fedlearn.core.ports import ModelVersion, Task
from fedlearn.core.rounds import ModelRef


def query_version(task: TaskId, version: int) -> Select[tuple[object, ...]]:
    return select(model_versions).where(model_versions.c.task == task, model_versions.c.version == version)


def load_versions(connection: Connection, task: TaskId) -> Sequence[ModelVersion]:
    """All versions of the task in order."""
    labels = defaultdict[int, list[str]](list)
    wanted = select(model_labels.c.version, model_labels.c.label).where(model_labels.c.task == task)
    for version, label in connection.execute(wanted.order_by(model_labels.c.label)):
        labels[version].append(label)
    query = select(model_versions).where(model_versions.c.task == task).order_by(model_versions.c.version)
    return [read_version(row, labels.get(row["version"], ())) for row in connection.execute(query).mappings()]


def load_version(connection: Connection, task: TaskId, version: int) -> ModelVersion:
    """Raises:
    Refusal: `model_unknown`.
    """
    row = connection.execute(query_version(task, version)).mappings().one_or_none()
    if row is None:
        raise unknown_version(task, version)
    wanted = select(model_labels.c.label).where(model_labels.c.task == task, model_labels.c.version == version)
    return read_version(row, connection.execute(wanted.order_by(model_labels.c.label)).scalars())


def restore_version(connection: Connection, task: Task, version: int, current: int, now: float) -> None:
    """Add a version with the bytes of an earlier one, and let the task (which the caller has locked) point to it.

    Raises:
        Refusal: `base_superseded`, `model_unknown`.
    """
    if task.model is None or task.model.version != current:
        stands = "no model" if task.model is None else f"version {task.model.version}"
        raise Refusal(Code.BASE_SUPERSEDED, f"Task {task.id} is at {stands} by now, not at version {current}: look again.")
    chosen = connection.execute(query_version(task.id, version)).mappings().one_or_none()
    if chosen is None:
        raise unknown_version(task.id, version)
    newest = select(func.max(model_versions.c.version)).where(model_versions.c.task == task.id)
    source = read_ref(chosen)
    ref = ModelRef(connection.execute(newest).scalar_one() + 1, source.key, source.sha256, source.size_bytes)
    restored = {**version_values(task.id, ref, None, now, parent=version), "evaluation": chosen["evaluation"]}
    if not insert_new(connection, model_versions, restored):
        raise Refusal(Code.BASE_SUPERSEDED, f"Task {task.id} has moved on: look again.")
    connection.execute(update(tasks).where(tasks.c.id == task.id).values(model_version=ref.version))


def put_label(connection: Connection, task: TaskId, version: int, label: str) -> None:
    """Let the label stand at this version, and at no other of the task.

    Raises:
        Refusal: `model_unknown`.
    """
    if connection.execute(query_version(task, version)).one_or_none() is None:
        raise unknown_version(task, version)
    if not insert_new(connection, model_labels, {"task": task, "label": label, "version": version}):
        moved = update(model_labels).where(model_labels.c.task == task, model_labels.c.label == label)
        connection.execute(moved.values(version=version))


def take_label(connection: Connection, task: TaskId, label: str) -> None:
    connection.execute(delete(model_labels).where(model_labels.c.task == task, model_labels.c.label == label))


def unknown_version(task: TaskId, version: int) -> Refusal:
    return Refusal(Code.MODEL_UNKNOWN, f"Task {task} has no model version {version}.")
