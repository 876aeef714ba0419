"""An object storage in memory, for tests of what stands on one; it keeps the same contract as the real one."""

import hashlib
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedlearn.core.errors import Code, Outage, Refusal
from fedlearn.core.ports import Clock, StoredObject, UploadGrant


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

    def request(self, method: str, url: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
        """What the storage would answer to this request: the HTTP status, and the object's bytes for a GET."""
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
        if method == "PUT" and hashlib.sha256(body).hexdigest() != signed.sha256:
            return 400, b""
        try:
            if method == "PUT":
                return (200 if signed.store.put_once(signed.key, body) else 412), b""
            return 200, signed.store.get(signed.key)
        except Refusal as refusal:
            return (404 if refusal.code is Code.NOT_FOUND else 403), b""


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

    def put(self, key: str, body: bytes | memoryview) -> None:
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
