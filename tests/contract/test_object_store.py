"""The contract of `core.ports.ObjectStore`, held by SeaweedFS through boto3 and by the store in memory."""

import hashlib
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import urllib3

from fedlearn.adapters.memory import MemoryBucket, MemoryObjectStore
from fedlearn.adapters.objects import S3ObjectStore
from fedlearn.adapters.s3 import S3Settings
from fedlearn.core.errors import Code, Outage, Refusal
from fedlearn.core.ports import ObjectStore, UploadGrant
from fedlearn.local.seaweed import UPDATES, Role
from fedlearn.local.storage import LocalStorage

BODY = bytes(range(256))


def read_in_pieces(store: ObjectStore, key: str, *lengths: int) -> bytes:
    with store.reading(key) as source:
        pieces = [bytearray(length) for length in lengths]
        for piece in pieces:
            source.fill(memoryview(piece))
    return b"".join(pieces)


CALLS: Mapping[str, Callable[[ObjectStore, str], Any]] = {
    "get": lambda store, key: store.get(key),
    "get of a range": lambda store, key: store.get(key, start=1, length=1),
    "get_into": lambda store, key: store.get_into(key, memoryview(bytearray(4))),
    "reading": lambda store, key: read_in_pieces(store, key, len(BODY)),
    "put": lambda store, key: store.put(key, b"forged"),
    "put with its digest": lambda store, key: store.put(key, b"forged", sha256=hashlib.sha256(b"forged").hexdigest()),
    "put_once": lambda store, key: store.put_once(key, b"forged"),
    "put_once of a new key": lambda store, key: store.put_once(key + "-new", b"forged"),
    "size": lambda store, key: store.size(key),
    "list": lambda store, key: store.list(key),
    "delete": lambda store, key: store.delete([key]),
}
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())


@dataclass(frozen=True)
class Subject:
    """One implementation: a store, the same bucket as a role sees it that may nothing, and one that does not answer.

    Args:
        request: sends method, URL, body and headers as anybody may, and tells status and body of the answer.
        prefix: keys below it are this test's own.
    """

    store: ObjectStore
    denied: ObjectStore
    unreachable: ObjectStore
    request: Callable[[str, str, bytes, Mapping[str, str]], tuple[int, bytes]]
    prefix: str

    def key(self, name: str = "object") -> str:
        return self.prefix + name

    def get(self, url: str) -> tuple[int, bytes]:
        return self.request("GET", url, b"", {})

    def put(self, grant: UploadGrant, body: bytes, **headers: str) -> int:
        return self.request("PUT", grant.url, body, {**grant.headers, **headers})[0]

    def grant(self, body: bytes, name: str = "object", seconds: int = 60) -> UploadGrant:
        sha256 = hashlib.sha256(body).hexdigest()
        return self.store.sign_put(self.key(name), size_bytes=len(body), sha256=sha256, seconds=seconds)


def over_memory() -> Subject:
    bucket, broken = MemoryBucket(), MemoryBucket()
    broken.available = False

    def request(method: str, url: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        return bucket.request(method, url, body, headers)

    denied = MemoryObjectStore(bucket, may_read=False, may_write=False)
    return Subject(MemoryObjectStore(bucket), denied, MemoryObjectStore(broken), request, "")


def over_s3(storage: LocalStorage, pool: urllib3.PoolManager) -> Subject:
    def request(method: str, url: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        answer = pool.request(method, url, body=body or None, headers=dict(headers), retries=False)
        return answer.status, answer.data

    nobody = S3Settings("http://127.0.0.1:1", access_key="a", secret_key="s")
    return Subject(
        storage.store(Role.AGGREGATOR, UPDATES),
        storage.store(Role.SERVER, UPDATES),
        S3ObjectStore(UPDATES, nobody, patience_seconds=0.2),
        request,
        f"{uuid.uuid4()}/",
    )


@pytest.fixture(params=["s3", "memory"])
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    if request.param == "memory":
        yield over_memory()
        return
    with urllib3.PoolManager() as pool:
        yield over_s3(request.getfixturevalue("storage"), pool)


# --- reading and writing


@pytest.mark.parametrize(
    ("start", "length", "expected"),
    [
        pytest.param(0, None, BODY, id="the whole"),
        pytest.param(0, 10, BODY[:10], id="the beginning"),
        pytest.param(100, 10, BODY[100:110], id="the middle"),
        pytest.param(100, None, BODY[100:], id="from the middle on"),
        pytest.param(250, 100, BODY[250:], id="over the end"),
        pytest.param(256, 1, b"", id="at the end"),
        pytest.param(1000, None, b"", id="behind the end"),
        pytest.param(5, 0, b"", id="nothing"),
    ],
)
def test_get_gives_the_range_that_it_is_asked_for(subject: Subject, start: int, length: int | None, expected: bytes) -> None:
    subject.store.put(subject.key(), BODY)
    assert subject.store.get(subject.key(), start=start, length=length) == expected


def test_an_object_of_several_chunks_comes_back_whole_and_in_ranges(subject: Subject) -> None:
    body = BODY * 25_000  # 6.4 MB; SeaweedFS cuts at 2 MiB
    subject.store.put(subject.key(), body)
    assert subject.store.get(subject.key()) == body
    assert subject.store.get(subject.key(), start=4_194_000, length=1000) == body[4_194_000:4_195_000]


def test_a_large_object_replaces_another_one_as_a_whole(subject: Subject) -> None:
    body = BODY * ((64 << 20) // 256 + 1)  # beyond what goes in one piece
    subject.store.put(subject.key(), BODY)
    subject.store.put(subject.key(), memoryview(body))
    assert subject.store.size(subject.key()) == len(body)
    assert hashlib.sha256(subject.store.get(subject.key())).digest() == hashlib.sha256(body).digest()


def test_an_empty_object_is_an_object(subject: Subject) -> None:
    subject.store.put(subject.key(), b"")
    assert subject.store.get(subject.key()) == b""
    assert subject.store.get(subject.key(), length=10) == b""
    assert subject.store.size(subject.key()) == 0


def test_put_replaces(subject: Subject) -> None:
    subject.store.put(subject.key(), b"first")
    subject.store.put(subject.key(), b"second")
    assert subject.store.get(subject.key()) == b"second"


@pytest.mark.parametrize("body", [b"", BODY, BODY * 25_000], ids=["empty", "small", "of several chunks"])
def test_put_of_what_was_digested_before_writes_the_same(subject: Subject, body: bytes) -> None:
    subject.store.put(subject.key(), b"first")
    subject.store.put(subject.key(), memoryview(body), sha256=hashlib.sha256(body).hexdigest())
    assert subject.store.get(subject.key()) == body


def test_put_takes_a_view_and_is_not_changed_by_what_happens_to_it_later(subject: Subject) -> None:
    buffer = bytearray(BODY)
    subject.store.put(subject.key(), memoryview(buffer)[10:20])
    buffer[:] = bytes(256)
    assert subject.store.get(subject.key()) == BODY[10:20]


def test_size_is_in_bytes_and_none_without_an_object(subject: Subject) -> None:
    assert subject.store.size(subject.key()) is None
    subject.store.put(subject.key(), BODY)
    assert subject.store.size(subject.key()) == 256


@pytest.mark.parametrize(("start", "length"), [(0, None), (3, 4)], ids=["whole", "a range"])
def test_get_of_what_is_not_there_is_refused(subject: Subject, start: int, length: int | None) -> None:
    with pytest.raises(Refusal) as refusal:
        subject.store.get(subject.key(), start=start, length=length)
    assert refusal.value.code is Code.NOT_FOUND


@pytest.mark.parametrize(
    ("start", "room", "expected"),
    [(0, 256, BODY), (0, 300, BODY), (0, 10, BODY[:10]), (250, 10, BODY[250:]), (256, 4, b""), (300, 4, b""), (0, 0, b"")],
    ids=["whole", "more room", "less room", "its end", "from its end", "beyond its end", "no room"],
)
def test_get_into_writes_what_there_is_and_what_fits(subject: Subject, start: int, room: int, expected: bytes) -> None:
    subject.store.put(subject.key(), BODY)
    out = bytearray(b"x" * room)
    assert subject.store.get_into(subject.key(), memoryview(out), start=start) == len(expected)
    assert out == expected + b"x" * (room - len(expected))


def test_get_into_of_what_is_not_there_is_refused(subject: Subject) -> None:
    with pytest.raises(Refusal) as refusal:
        subject.store.get_into(subject.key(), memoryview(bytearray(4)))
    assert refusal.value.code is Code.NOT_FOUND


def test_get_into_reads_many_objects_of_several_chunks_at_once(subject: Subject) -> None:
    bodies = {subject.key(f"large-{n}"): bytes([n]) * (9 << 20) for n in range(6)}
    for key, body in bodies.items():
        subject.store.put(key, body)

    def read(key: str) -> bool:
        out = bytearray(9 << 20)
        return subject.store.get_into(key, memoryview(out)) == len(out) and out == bodies[key]

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(read, bodies))


def test_an_object_is_read_piece_by_piece(subject: Subject) -> None:
    subject.store.put(subject.key(), BODY)
    with subject.store.reading(subject.key()) as source:
        assert source.size == len(BODY)
    assert read_in_pieces(subject.store, subject.key(), 1, 0, 100, 155) == BODY


def test_reading_may_end_early_and_others_read_on(subject: Subject) -> None:
    bodies = {subject.key(f"large-{n}"): bytes([n]) * (9 << 20) for n in range(6)}
    for key, body in bodies.items():
        subject.store.put(key, body)

    def read(key: str) -> bool:
        start, piece = read_in_pieces(subject.store, key, 10), 3 << 20
        return read_in_pieces(subject.store, key, piece, piece, piece) == bodies[key] and start == bodies[key][:10]

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(read, bodies))


def test_no_more_is_read_than_there_is(subject: Subject) -> None:
    subject.store.put(subject.key(), BODY)
    with pytest.raises(Outage) as outage:
        read_in_pieces(subject.store, subject.key(), 200, 57)
    assert outage.value.code is Code.STORAGE_UNAVAILABLE


def test_reading_what_is_not_there_is_refused(subject: Subject) -> None:
    with pytest.raises(Refusal) as refusal:
        read_in_pieces(subject.store, subject.key(), 1)
    assert refusal.value.code is Code.NOT_FOUND


# --- writing once


def test_put_once_leaves_what_is_there(subject: Subject) -> None:
    assert subject.store.put_once(subject.key(), BODY)
    assert not subject.store.put_once(subject.key(), BODY)
    assert not subject.store.put_once(subject.key(), b"other")
    assert subject.store.get(subject.key()) == BODY


def test_put_once_after_a_put_leaves_what_is_there(subject: Subject) -> None:
    subject.store.put(subject.key(), b"first")
    assert not subject.store.put_once(subject.key(), b"second")
    assert subject.store.get(subject.key()) == b"first"


def test_of_concurrent_writers_exactly_one_is_told_that_it_wrote(subject: Subject) -> None:
    writers, keys = 3, [subject.key(f"closed-{n}.json") for n in range(10)]  # with more, SeaweedFS makes some wait for seconds
    together = threading.Barrier(writers)

    def write(writer: int) -> list[bool]:
        told = []
        for key in keys:
            together.wait(timeout=30)
            told.append(subject.store.put_once(key, b"%d" % writer))
        return told

    with ThreadPoolExecutor(writers) as pool:
        told = list(pool.map(write, range(writers)))
    for number, key in enumerate(keys):
        winners = [writer for writer in range(writers) if told[writer][number]]
        assert len(winners) == 1
        assert subject.store.get(key) == b"%d" % winners[0]


def test_a_deleted_key_can_be_written_once_again(subject: Subject) -> None:
    assert subject.store.put_once(subject.key(), b"first")
    subject.store.delete([subject.key()])
    assert subject.store.put_once(subject.key(), b"second")
    assert subject.store.get(subject.key()) == b"second"


# --- listing and deleting


def test_list_is_in_order_of_key_whatever_the_slashes(subject: Subject) -> None:
    # SeaweedFS has directories: no key may be a directory of another's
    names = ["a/b", "a-b", "a.b", "a0", "ab/1", "b/10/x", "b/2/x", "b/2-/x", "é", "z~"]
    for name in names:
        subject.store.put(subject.key(name), name.encode())
    listed = subject.store.list(subject.prefix)
    assert [stored.key for stored in listed] == sorted((subject.key(name) for name in names), key=str.encode)
    assert [stored.size_bytes for stored in listed] == [
        len(stored.key.removeprefix(subject.prefix).encode()) for stored in listed
    ]


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        pytest.param("1/", ["1/x", "1/y/z"], id="a directory"),
        pytest.param("1", ["1/x", "1/y/z", "10/x", "1x"], id="part of a name"),
        pytest.param("1/y/z", ["1/y/z"], id="a whole key"),
        pytest.param("2", [], id="nothing"),
    ],
)
def test_list_gives_what_starts_with_the_prefix_and_nothing_else(subject: Subject, prefix: str, expected: list[str]) -> None:
    for name in ("0/x", "1/x", "1/y/z", "10/x", "1x", "3"):
        subject.store.put(subject.key(name), b"")
    listed = [stored.key for stored in subject.store.list(subject.key(prefix))]
    assert listed == [subject.key(name) for name in expected]


def test_more_than_one_page_of_keys_is_listed_and_deleted_whole(subject: Subject) -> None:
    keys = [subject.key(f"{number // 100}/{number}") for number in range(1050)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: subject.store.put(key, b""), keys))
    assert [stored.key for stored in subject.store.list(subject.prefix)] == sorted(keys)
    subject.store.delete(keys)
    assert subject.store.list(subject.prefix) == []


def test_delete_takes_what_is_there_and_does_not_mind_the_rest(subject: Subject) -> None:
    for name in ("1", "2", "3"):
        subject.store.put(subject.key(name), BODY)
    subject.store.delete([subject.key("1"), subject.key("missing"), subject.key("no/such/directory"), subject.key("3")])
    assert [stored.key for stored in subject.store.list(subject.prefix)] == [subject.key("2")]
    subject.store.delete([])


# --- what does not work


@each_call
def test_a_call_that_the_credential_does_not_allow_is_refused_and_changes_nothing(
    subject: Subject, call: Callable[[ObjectStore, str], Any]
) -> None:
    subject.store.put(subject.key(), BODY)
    with pytest.raises(Refusal) as refusal:
        call(subject.denied, subject.key())
    assert refusal.value.code is Code.STORAGE_DENIED
    assert subject.store.get(subject.key()) == BODY
    assert [stored.key for stored in subject.store.list(subject.prefix)] == [subject.key()]


@each_call
def test_a_storage_that_does_not_answer_is_an_outage(subject: Subject, call: Callable[[ObjectStore, str], Any]) -> None:
    with pytest.raises(Outage) as outage:
        call(subject.unreachable, "object")
    assert outage.value.code is Code.STORAGE_UNAVAILABLE


def test_signing_sends_nothing(subject: Subject) -> None:
    assert subject.unreachable.sign_get("object", seconds=60)
    assert subject.unreachable.sign_put("object", size_bytes=1, sha256="0" * 64, seconds=60).url


# --- signed URLs


def test_a_signed_url_gets_its_object_and_nothing_else(subject: Subject) -> None:
    subject.store.put(subject.key("mine"), BODY)
    subject.store.put(subject.key("other"), b"secret")
    url = subject.store.sign_get(subject.key("mine"), seconds=60)
    assert subject.get(url) == (200, BODY)
    assert subject.get(url.replace("mine", "other"))[0] == 403
    assert subject.request("PUT", url, b"forged", {})[0] == 403
    assert subject.request("DELETE", url, b"", {})[0] == 403
    assert subject.get(url) == (200, BODY)


def test_a_signed_url_of_nothing_finds_nothing(subject: Subject) -> None:
    assert subject.get(subject.store.sign_get(subject.key(), seconds=60))[0] == 404


def test_a_grant_stores_its_bytes_once(subject: Subject) -> None:
    grant = subject.grant(BODY)
    assert subject.put(grant, BODY) == 200
    assert subject.put(grant, BODY) == 412
    assert subject.store.get(subject.key()) == BODY


def test_a_grant_does_not_replace_what_another_grant_stored(subject: Subject) -> None:
    first, second = subject.grant(BODY), subject.grant(b"second")
    assert subject.put(first, BODY) == 200
    assert subject.put(second, b"second") == 412
    assert subject.store.get(subject.key()) == BODY


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        pytest.param(BODY[::-1], {}, 400, id="other bytes"),
        pytest.param(BODY[:-1], {"Content-Length": "255"}, 403, id="fewer bytes"),
        pytest.param(BODY + b"x", {"Content-Length": "257"}, 403, id="more bytes"),
        pytest.param(BODY, {"x-amz-checksum-sha256": "x" * 43 + "="}, 403, id="another digest"),
        pytest.param(BODY, {"If-None-Match": '"0"'}, 403, id="another condition"),
    ],
)
def test_a_grant_takes_nothing_but_what_it_was_signed_for(
    subject: Subject, body: bytes, headers: Mapping[str, str], status: int
) -> None:
    assert subject.put(subject.grant(BODY), body, **headers) == status
    assert subject.store.size(subject.key()) is None


def test_a_grant_is_for_one_key(subject: Subject) -> None:
    grant = subject.grant(BODY, "mine")
    assert subject.put(UploadGrant(grant.url.replace("mine", "other"), grant.headers), BODY) == 403
    assert subject.store.list(subject.prefix) == []


def test_a_grant_does_not_read(subject: Subject) -> None:
    grant = subject.grant(BODY)
    assert subject.put(grant, BODY) == 200
    assert subject.get(grant.url)[0] == 403
    others = {name: value for name, value in grant.headers.items() if name != "Content-Length"}  # it would wait for a body
    assert subject.request("GET", grant.url, b"", others)[0] == 403


def test_what_a_role_signs_beyond_its_rights_is_refused_by_the_storage(subject: Subject) -> None:
    subject.store.put(subject.key("there"), BODY)
    digest = hashlib.sha256(BODY).hexdigest()
    assert subject.get(subject.denied.sign_get(subject.key("there"), seconds=60))[0] == 403
    assert subject.put(subject.denied.sign_put(subject.key("new"), size_bytes=256, sha256=digest, seconds=60), BODY) == 403
    assert [stored.key for stored in subject.store.list(subject.prefix)] == [subject.key("there")]
