"""Objects that come in parts, as `core.ports.ObjectStore` promises: SeaweedFS through boto3, and the store in memory."""

import hashlib
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pytest
import urllib3

from fedlearn.adapters.memory import MemoryBucket, MemoryObjectStore
from fedlearn.core.errors import Code, Refusal
from fedlearn.core.ports import ObjectStore, Part, UploadGrant
from fedlearn.local.seaweed import UPDATES, Role
from fedlearn.local.storage import LocalStorage

BODIES = (b"a" * (5 << 20), b"b" * (5 << 20), b"the last may be short")


def part(body: bytes, tag: str = "") -> Part:
    return Part(len(body), hashlib.sha256(body).hexdigest(), tag)


PARTS = [part(body) for body in BODIES]


@dataclass(frozen=True)
class Subject:
    """One implementation.

    Args:
        put: sends a PUT as anybody may, and tells status and tag.
    """

    store: ObjectStore
    denied: ObjectStore
    put: Callable[[UploadGrant, bytes, Mapping[str, str]], tuple[int, str]]
    prefix: str

    @property
    def key(self) -> str:
        return f"{self.prefix}object"

    def send(self, grants: Sequence[UploadGrant], bodies: Sequence[bytes] = BODIES) -> list[Part]:
        sent = []
        for grant, body in zip(grants, bodies, strict=True):
            status, tag = self.put(grant, body, {})
            assert status == 200
            sent.append(part(body, tag))
        return sent

    def upload(self) -> tuple[str, list[Part]]:
        upload_id = self.store.begin_parts(self.key)
        return upload_id, self.send(self.store.sign_parts(self.key, upload_id, PARTS, seconds=60))


@pytest.fixture(params=["s3", "memory"])
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    if request.param == "memory":
        bucket = MemoryBucket()

        def put_there(grant: UploadGrant, body: bytes, headers: Mapping[str, str]) -> tuple[int, str]:
            status, tag = bucket.request("PUT", grant.url, body, {**grant.headers, **headers})
            return status, tag.decode()

        denied = MemoryObjectStore(bucket, may_read=False, may_write=False)
        yield Subject(MemoryObjectStore(bucket), denied, put_there, "t/")
        return
    storage: LocalStorage = request.getfixturevalue("storage")
    with urllib3.PoolManager() as pool:

        def put(grant: UploadGrant, body: bytes, headers: Mapping[str, str]) -> tuple[int, str]:
            answer = pool.request("PUT", grant.url, body=body, headers={**grant.headers, **headers}, retries=False)
            return answer.status, answer.headers.get("ETag", "")

        store, server = storage.store(Role.AGGREGATOR, UPDATES), storage.store(Role.SERVER, UPDATES)
        yield Subject(store, server, put, f"{uuid.uuid4()}/")


def test_parts_make_one_object_that_is_not_seen_before(subject: Subject) -> None:
    upload_id, sent = subject.upload()
    assert subject.store.size(subject.key) is None
    assert subject.store.list(subject.prefix) == []
    assert subject.store.join_parts(subject.key, upload_id, sent)
    assert subject.store.get(subject.key) == b"".join(BODIES)


def test_parts_come_in_any_order_and_as_often_as_it_takes(subject: Subject) -> None:
    upload_id = subject.store.begin_parts(subject.key)
    grants = subject.store.sign_parts(subject.key, upload_id, PARTS, seconds=60)
    subject.send(list(reversed(grants)), list(reversed(BODIES)))
    sent = subject.send(subject.store.sign_parts(subject.key, upload_id, PARTS, seconds=60))
    assert subject.store.join_parts(subject.key, upload_id, sent)
    assert subject.store.get(subject.key) == b"".join(BODIES)


def test_a_parts_url_takes_no_other_bytes(subject: Subject) -> None:
    upload_id = subject.store.begin_parts(subject.key)
    first, second, last = subject.store.sign_parts(subject.key, upload_id, PARTS, seconds=60)
    assert subject.put(first, BODIES[1], {})[0] in (400, 403)
    assert subject.put(last, BODIES[2][:-1], {"Content-Length": str(len(BODIES[2]) - 1)})[0] == 403
    assert subject.put(first, BODIES[1], second.headers)[0] == 403
    assert subject.put(replace(last, url=first.url), BODIES[2], {})[0] == 403
    with pytest.raises(Refusal):
        subject.store.join_parts(subject.key, upload_id, [part(BODIES[0], "x")])
    assert subject.store.size(subject.key) is None


def test_to_join_again_is_success_and_keeps_the_object(subject: Subject) -> None:
    upload_id, sent = subject.upload()
    assert subject.store.join_parts(subject.key, upload_id, sent)
    assert subject.store.join_parts(subject.key, upload_id, sent)
    assert subject.store.get(subject.key) == b"".join(BODIES)


def test_an_object_that_is_there_stays_as_it_is(subject: Subject) -> None:
    upload_id, sent = subject.upload()
    subject.store.put(subject.key, b"the first")
    assert not subject.store.join_parts(subject.key, upload_id, sent)
    assert subject.store.get(subject.key) == b"the first"


def test_the_same_parts_by_another_upload_are_the_same_object(subject: Subject) -> None:
    first, second = subject.upload(), subject.upload()
    assert subject.store.join_parts(subject.key, *first)
    assert subject.store.join_parts(subject.key, *second)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda sent: [*sent[:2], replace(sent[2], tag='"0"')], id="another tag"),
        pytest.param(lambda sent: [*sent, replace(sent[2])], id="one more"),
    ],
)
def test_parts_that_are_not_there_are_refused(subject: Subject, change: Callable[[list[Part]], list[Part]]) -> None:
    upload_id, sent = subject.upload()
    with pytest.raises(Refusal) as refusal:
        subject.store.join_parts(subject.key, upload_id, change(sent))
    assert refusal.value.code is Code.UPDATE_MISSING
    assert subject.store.size(subject.key) is None


def test_an_upload_is_of_one_key(subject: Subject) -> None:
    upload_id, sent = subject.upload()
    for key, of in ((f"{subject.prefix}other", upload_id), (subject.key, "0" * 40)):
        with pytest.raises(Refusal) as refusal:
            subject.store.join_parts(key, of, sent)
        assert refusal.value.code is Code.UPDATE_MISSING


def test_uploads_that_never_ended_are_dropped_by_their_prefix(subject: Subject) -> None:
    upload_id, sent = subject.upload()
    other = f"{subject.prefix}other/object"
    other_id = subject.store.begin_parts(other)
    subject.store.drop_parts(f"{subject.prefix}object")
    with pytest.raises(Refusal):
        subject.store.join_parts(subject.key, upload_id, sent)
    (grant, *_) = subject.store.sign_parts(subject.key, upload_id, PARTS, seconds=60)
    assert subject.put(grant, BODIES[0], {})[0] == 404
    (grant,) = subject.store.sign_parts(other, other_id, PARTS[:1], seconds=60)
    assert subject.put(grant, BODIES[0], {})[0] == 200
    subject.store.drop_parts(subject.prefix)
    assert subject.put(grant, BODIES[0], {})[0] == 404


def test_who_may_not_write_begins_nothing(subject: Subject) -> None:
    with pytest.raises(Refusal) as refusal:
        subject.denied.begin_parts(subject.key)
    assert refusal.value.code is Code.STORAGE_DENIED
