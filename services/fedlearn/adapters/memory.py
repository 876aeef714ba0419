"""An object storage in memory, for tests of what stands on one; it keeps the same contract as the real one."""

import hashlib
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from fedlearn.adapters.sources import Held
from fedlearn.core.errors import Code, Outage, Refusal
from fedlearn.core.ports import Clock, Part, Source, StoredObject, UploadGrant


@dataclass(frozen=True, slots=True)
class _Signed:
    """What one signed URL allows; `size_bytes` and `sha256` are those of the only body that it takes."""

    store: "MemoryObjectStore"
    method: str
    key: str
    expires_at: float
    headers: Mapping[str, str]
    size_bytes: int = 0
    sha256: str = ""
    upload_id: str = ""
    part: int = 0


def _tag(body: bytes) -> str:
    return f'"{hashlib.sha256(body).hexdigest()[:32]}"'


def _is_made_of(whole: bytes, parts: Sequence[Part]) -> bool:
    start = 0
    for part in parts:
        if hashlib.sha256(whole[start : start + part.size_bytes]).hexdigest() != part.sha256:
            return False
        start += part.size_bytes
    return start == len(whole)


class MemoryBucket:
    """What a bucket holds, and the place that its signed URLs lead to. Safe for threads.

    Args:
        clock: says when signed URLs expire.
    """

    def __init__(self, clock: Clock = time.time) -> None:
        self.available = True
        """Set to False for an outage."""
        self.clock = clock
        self.lock = threading.RLock()
        self.objects: dict[str, bytes] = {}
        self.signed: dict[str, _Signed] = {}
        self.uploads: dict[str, tuple[str, dict[int, bytes]]] = {}

    def request(self, method: str, url: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
        """What the storage would answer to this request: the HTTP status, and the object's bytes for a GET, or a part's tag."""
        if not self.available:
            return 503, b""
        signed = self.signed.get(url)
        given = {name.lower(): value for name, value in (headers or {}).items()}
        if (
            signed is None
            or signed.method != method
            or self.clock() > signed.expires_at
            or any(given.get(name.lower()) != value for name, value in signed.headers.items())
            or (method == "PUT" and len(body) != signed.size_bytes)
        ):
            return 403, b""
        try:
            if method == "PUT":
                return self._put(signed, body)
            return 200, signed.store.get(signed.key)
        except Refusal as refusal:
            return (404 if refusal.code is Code.NOT_FOUND else 403), b""

    def _put(self, signed: _Signed, body: bytes) -> tuple[int, bytes]:
        if hashlib.sha256(body).hexdigest() != signed.sha256:
            return 400, b""
        if not signed.part:
            return (200 if signed.store.put_once(signed.key, body) else 412), b""
        with self.lock:
            if signed.upload_id not in self.uploads:
                return 404, b""
            self.uploads[signed.upload_id][1][signed.part] = body
        return 200, _tag(body).encode()


class MemoryObjectStore:
    """One bucket as one role sees it; see `core.ports.ObjectStore` for what each method promises.

    Args:
        bucket: share it among several roles' stores; a new one by default.
        may_read, may_write: what the role is allowed to do.
    """

    def __init__(self, bucket: MemoryBucket | None = None, *, may_read: bool = True, may_write: bool = True) -> None:
        self.bucket = bucket or MemoryBucket()
        self._may_read, self._may_write = may_read, may_write

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        body = self._read().get(key)
        if body is None:
            raise Refusal(Code.NOT_FOUND, f"There is no object {key}.")
        return body[start : None if length is None else start + length]

    def get_into(self, key: str, out: memoryview, *, start: int = 0) -> int:
        body = self.get(key, start=start, length=len(out))
        out[: len(body)] = body
        return len(body)

    @contextmanager
    def reading(self, key: str) -> Iterator[Source]:
        yield Held(self.get(key))

    def put(self, key: str, body: bytes | memoryview, *, sha256: str | None = None) -> None:  # noqa: ARG002 - the port's
        objects = self._write()
        with self.bucket.lock:
            objects[key] = bytes(body)

    def put_once(self, key: str, body: bytes) -> bool:
        objects = self._write()
        with self.bucket.lock:
            free = key not in objects
            if free:
                objects[key] = body
        return free

    def size(self, key: str) -> int | None:
        body = self._read().get(key)
        return None if body is None else len(body)

    def list(self, prefix: str) -> Sequence[StoredObject]:
        objects = self._read()
        with self.bucket.lock:
            found = [StoredObject(key, len(body)) for key, body in objects.items() if key.startswith(prefix)]
        return sorted(found, key=lambda stored: stored.key.encode())

    def delete(self, keys: Sequence[str]) -> None:
        objects = self._write()
        with self.bucket.lock:
            for key in keys:
                objects.pop(key, None)

    def sign_get(self, key: str, *, seconds: int) -> str:
        return self._sign(_Signed(self, "GET", key, self.bucket.clock() + seconds, {}))

    def sign_put(self, key: str, *, size_bytes: int, sha256: str, seconds: int) -> UploadGrant:
        headers = {"Content-Length": str(size_bytes), "x-amz-checksum-sha256": sha256, "If-None-Match": "*"}
        signed = _Signed(self, "PUT", key, self.bucket.clock() + seconds, headers, size_bytes, sha256)
        return UploadGrant(self._sign(signed), headers)

    def begin_parts(self, key: str) -> str:
        self._write()
        upload_id = secrets.token_hex(16)
        self.bucket.uploads[upload_id] = (key, {})
        return upload_id

    def sign_parts(self, key: str, upload_id: str, parts: Sequence[Part], *, seconds: int) -> Sequence[UploadGrant]:
        grants: list[UploadGrant] = []
        for number, part in enumerate(parts, start=1):
            headers = {"Content-Length": str(part.size_bytes), "x-amz-checksum-sha256": part.sha256}
            until = self.bucket.clock() + seconds
            signed = _Signed(self, "PUT", key, until, headers, part.size_bytes, part.sha256, upload_id, number)
            grants.append(UploadGrant(self._sign(signed), headers))
        return grants

    def join_parts(self, key: str, upload_id: str, parts: Sequence[Part]) -> bool:
        objects = self._write()
        with self.bucket.lock:
            if key in objects:
                return _is_made_of(objects[key], parts)
            of, come = self.bucket.uploads.get(upload_id, ("", {}))
            bodies = [come.get(number, b"") for number in range(1, len(parts) + 1)]
            whole = b"".join(bodies)
            tags = [part.tag for part in parts]
            if of != key or [_tag(body) for body in bodies] != tags or not _is_made_of(whole, parts):
                raise Refusal(Code.UPDATE_MISSING, f"The parts of {key} do not make it up.")
            objects[key] = whole
            del self.bucket.uploads[upload_id]
        return True

    def drop_parts(self, prefix: str) -> None:
        self._write()
        with self.bucket.lock:
            for upload_id in [found for found, (key, _) in self.bucket.uploads.items() if key.startswith(prefix)]:
                del self.bucket.uploads[upload_id]

    def _sign(self, signed: _Signed) -> str:
        url = f"memory://{secrets.token_hex(16)}/{signed.key}"
        self.bucket.signed[url] = signed
        return url

    def _read(self) -> dict[str, bytes]:
        return self._objects(self._may_read)

    def _write(self) -> dict[str, bytes]:
        return self._objects(self._may_write)

    def _objects(self, allowed: bool) -> dict[str, bytes]:
        if not self.bucket.available:
            raise Outage(Code.STORAGE_UNAVAILABLE, "The object storage does not answer.")
        if not allowed:
            raise Refusal(Code.STORAGE_DENIED, "This role may not do that.")
        return self.bucket.objects
