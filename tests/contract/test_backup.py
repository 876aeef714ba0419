"""A backup gives back what there was, in whichever kind of database, or changes nothing."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import text

from fedlearn.adapters.backup import back_up, restore
from fedlearn.adapters.database import DatabaseRoundStore
from fedlearn.adapters.database.migrations import configuration
from fedlearn.adapters.memory import MemoryObjectStore
from fedlearn.core.errors import Code, FedlearnError, Outage, Refusal, SetupError
from fedlearn.core.happenings import AuditEntry, Happening, Kind
from fedlearn.core.ids import DeviceId, RoundId, TaskId
from fedlearn.core.policy import RoundPolicy
from fedlearn.core.ports import Task
from fedlearn.core.rounds import (
    Aggregate,
    Aggregated,
    CohortSelected,
    ModelRef,
    Phase,
    RoundOpened,
    UpdatesCounted,
    advance,
    start,
)
from fedlearn.local.postgres import Postgres

NOW = 1_760_000_000.123
MNIST = TaskId("mnist")
DEVICES = tuple(DeviceId(f"device-{i}") for i in range(3))
POLICY = RoundPolicy(goal=3)
Make = Callable[[str], DatabaseRoundStore]


def ref(version: int) -> ModelRef:
    body = f"model {version}".encode()
    return ModelRef(version, f"mnist/models/{version}", hashlib.sha256(body).hexdigest(), len(body))


@pytest.fixture
def make(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Make]:
    """A store on a new database of a kind, without tables."""
    made: list[DatabaseRoundStore] = []

    def make(kind: str) -> DatabaseRoundStore:
        if kind == "sqlite":
            url = f"sqlite:///{tmp_path / f'{len(made)}.db'}"
        else:
            server: Postgres = request.getfixturevalue("postgres")
            url = server.new_database()
        made.append(DatabaseRoundStore(url))
        return made[-1]

    yield make
    for store in made:
        store.close()


def fill(store: DatabaseRoundStore, models: MemoryObjectStore) -> None:
    """A task with one committed round, one that runs, and everything else that is kept."""
    store.migrate()
    store.signing_key(lambda: ("kid", b"\x00private\xff"), NOW)
    store.add_task(Task(MNIST, "waiting_for_model", "d1", POLICY, 10, NOW, upload=ref(0), target_accuracy=0.97), b'{"plan": 1}')
    store.start_task(MNIST, NOW)
    for version in (0, 1):
        models.put(ref(version).key, f"model {version}".encode())
    models.put("mnist/states/ab", b"momentum")
    round_ = start(RoundId(MNIST, 1), POLICY, ref(0), NOW)
    store.add_round(round_)
    new = Aggregate(ref(1), frozenset(DEVICES), examples=30, metrics={"loss": float("nan")})
    after = round_
    for event in (
        CohortSelected(list(DEVICES)), RoundOpened(), UpdatesCounted(frozenset(DEVICES), {}), Aggregated(new),
    ):  # fmt: skip
        after, _ = advance(after, event, NOW + 0.1)
    assert after.phase is Phase.COMMITTED
    store.commit(after, round_, NOW, [Happening(Kind.TASK_CHANGED, NOW, MNIST, detail="It moved.")])
    store.pin(MNIST, 1, "best")
    store.evaluate(MNIST, 0, {"accuracy": 0.1})
    store.audit(AuditEntry(NOW, "operator", "start", MNIST, "done"))
    store.add_round(start(RoundId(MNIST, 2), POLICY, ref(1), NOW + 2))


def everything(store: DatabaseRoundStore) -> str:
    """As text, since no NaN equals another."""
    key = store.signing_key(lambda: ("", b""), NOW)
    logs = store.happenings(100), store.audit_entries(100)
    return repr((store.tasks(), store.plan("d1"), store.rounds(MNIST), store.versions(MNIST), key, logs))


def backup_of(store: DatabaseRoundStore, models: MemoryObjectStore) -> bytes:
    out = io.BytesIO()
    back_up(store.database, models, out)
    return out.getvalue()


@pytest.fixture
def models() -> MemoryObjectStore:
    return MemoryObjectStore()


@pytest.mark.parametrize("there", ["sqlite", "postgresql"])
@pytest.mark.parametrize("here", ["sqlite", "postgresql"])
def test_everything_comes_back_in_either_kind_of_database(make: Make, models: MemoryObjectStore, here: str, there: str) -> None:
    before, after, elsewhere = make(here), make(there), MemoryObjectStore()
    fill(before, models)
    contents = restore(after.database, elsewhere, io.BytesIO(backup_of(before, models)), overwrite=False)
    assert everything(after) == everything(before)
    assert elsewhere.bucket.objects == models.bucket.objects
    assert (contents.objects, contents.object_bytes) == (3, 22)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_restored_system_goes_on(make: Make, models: MemoryObjectStore, kind: str) -> None:
    before, after = make(kind), make(kind)
    fill(before, models)
    restore(after.database, MemoryObjectStore(), io.BytesIO(backup_of(before, models)), overwrite=False)
    after.migrate()
    running = after.latest_round(MNIST)
    assert running is not None
    chosen, _ = advance(running, CohortSelected(list(DEVICES)), NOW + 3)
    after.save_round(chosen, running, [Happening(Kind.TASK_CHANGED, NOW, MNIST, detail="It goes on.")])
    after.audit(AuditEntry(NOW, "operator", "pause", MNIST, "done"))
    assert [number for number, _ in after.happenings(2)] == [2, 1]
    assert [number for number, _ in after.audit_entries(2)] == [2, 1]


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_database_that_holds_tasks_is_left_alone_unless_told(make: Make, models: MemoryObjectStore, kind: str) -> None:
    before, after, elsewhere = make(kind), make(kind), MemoryObjectStore()
    fill(before, models)
    backup = backup_of(before, models)
    after.migrate()
    after.add_task(Task(TaskId("other"), "waiting_for_model", "d2", POLICY, 1, NOW, upload=ref(0)), b"{}")
    with pytest.raises(Refusal) as caught:
        restore(after.database, elsewhere, io.BytesIO(backup), overwrite=False)
    assert caught.value.code is Code.BACKUP_REFUSED
    assert [task.id for task in after.tasks()] == ["other"]
    assert not elsewhere.bucket.objects
    restore(after.database, elsewhere, io.BytesIO(backup), overwrite=True)
    assert everything(after) == everything(before)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_who_led_before_does_not_write_to_what_was_restored(make: Make, models: MemoryObjectStore, kind: str) -> None:
    store = make(kind)
    fill(store, models)
    leader = store.fenced(store.take_lead("a", "http://a"))
    restore(store.database, models, io.BytesIO(backup_of(store, models)), overwrite=True)
    with pytest.raises(Refusal) as caught:
        leader.end_task(MNIST, "failed")
    assert caught.value.code is Code.NOT_LEADER
    assert store.take_lead("b", "") == 3


@pytest.mark.parametrize("revision", ["0001", "0002", "0003"])
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_backup_of_an_earlier_release_is_brought_forward(
    make: Make, models: MemoryObjectStore, kind: str, revision: str
) -> None:
    before, after = make(kind), make(kind)
    with before.database.writing() as connection:
        command.upgrade(configuration(connection), revision)
        connection.execute(text("INSERT INTO plans (digest, body) VALUES ('d', :body)"), {"body": b"x"})
    restore(after.database, models, io.BytesIO(backup_of(before, models)), overwrite=False)
    assert after.plan("d") == b"x"
    after.migrate()
    assert after.tasks() == []


def damaged(backup: bytes, name: str, body: bytes | None) -> bytes:
    """The backup with another body of one entry, or without it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(backup)) as old, tarfile.open(fileobj=out, mode="w") as new:
        for entry in old:
            content = old.extractfile(entry)
            assert content is not None
            given = content.read() if entry.name != name else body
            if given is not None:
                entry.size = len(given)
                new.addfile(entry, io.BytesIO(given))
    return out.getvalue()


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], Code]] = {
    "cut off": (lambda b: b[: len(b) // 2], Code.BACKUP_REFUSED),
    "of another kind": (lambda _b: b"PK\x03\x04 not a tar", Code.BACKUP_REFUSED),
    "empty": (lambda _b: b"", Code.BACKUP_REFUSED),
    "without its end": (lambda b: damaged(b, "complete.json", None), Code.BACKUP_REFUSED),
    "without a model": (lambda b: damaged(b, "models/mnist/models/1", None), Code.BACKUP_REFUSED),
    "with another model": (lambda b: damaged(b, "models/mnist/models/1", b"model 2"), Code.MODEL_MISMATCH),
    "without a table": (lambda b: damaged(b, "tables/rounds.jsonl", None), Code.BACKUP_REFUSED),
}


@pytest.mark.parametrize(("damage", "code"), DAMAGES.values(), ids=DAMAGES)
def test_what_is_no_whole_backup_changes_nothing_in_the_database(
    make: Make, models: MemoryObjectStore, damage: Callable[[bytes], bytes], code: Code
) -> None:
    before, after = make("sqlite"), make("sqlite")
    fill(before, models)
    after.migrate()
    with pytest.raises(Refusal) as caught:
        restore(after.database, MemoryObjectStore(), io.BytesIO(damage(backup_of(before, models))), overwrite=True)
    assert caught.value.code is code
    assert after.tasks() == []


def test_a_backup_of_a_newer_release_is_refused(make: Make, models: MemoryObjectStore) -> None:
    before, after = make("sqlite"), make("sqlite")
    fill(before, models)
    tables = ["plans", "tasks", "model_versions", "model_labels", "rounds", "participants", "signing_keys", "events", "audit"]
    newer = json.dumps({"format": 1, "release": "9", "revision": "9999", "tables": tables}).encode()
    with pytest.raises(SetupError, match="newer fedlearn"):
        restore(after.database, models, io.BytesIO(damaged(backup_of(before, models), "manifest.json", newer)), overwrite=False)
    with pytest.raises(Outage):
        after.ready()  # not even tables were made


@pytest.mark.parametrize(
    ("body", "code"), [(None, Code.MODEL_MISSING), (b"other", Code.MODEL_MISMATCH)], ids=["is missing", "is damaged"]
)
def test_no_backup_is_made_of_a_system_where_a_model(
    make: Make, models: MemoryObjectStore, body: bytes | None, code: Code
) -> None:
    store = make("sqlite")
    fill(store, models)
    models.delete([ref(1).key])
    if body is not None:
        models.put(ref(1).key, body)
    with pytest.raises(FedlearnError) as caught:
        backup_of(store, models)
    assert caught.value.code is code
