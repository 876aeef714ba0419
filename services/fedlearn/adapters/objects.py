"""Object storage by the S3 protocol; `patience` knows which of its answers pass."""

import base64
import hashlib
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from botocore.exceptions import BotoCoreError, ClientError

from fedlearn.adapters.direct import Direct
from fedlearn.adapters.patience import Patient, status
from fedlearn.adapters.s3 import S3Settings, s3_client
from fedlearn.adapters.signing import UrlSigner
from fedlearn.adapters.sources import Arriving, Held
from fedlearn.config import StorageSettings
from fedlearn.core.errors import Code, FedlearnError, Outage, Refusal
from fedlearn.core.ports import Part, Source, StoredObject, UploadGrant
from fedlearn.protocol.parts import PART_BYTES, SINGLE_BYTES
from fedlearn.telemetry.metrics import storage as metrics
from fedlearn.telemetry.metrics.storage import Operation

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import (
        CompletedMultipartUploadTypeDef,
        CompletedPartTypeDef,
        DeleteTypeDef,
        GetObjectRequestTypeDef,
        ListMultipartUploadsRequestTypeDef,
        ListObjectsV2RequestTypeDef,
        PutObjectRequestTypeDef,
    )

_SIGNED_SECONDS = 300  # of a URL that is used at once; clocks may differ a little
_KEYS_PER_DELETE = 1000  # S3's own limit


class S3ObjectStore:
    """One bucket; see `core.ports.ObjectStore` for what each method promises. Safe for threads.

    Args:
        patience_seconds: how long an outage is waited out before a call raises `storage_unavailable`.
    """

    def __init__(self, bucket: str, settings: S3Settings, *, patience_seconds: float = 60.0) -> None:
        self._bucket = bucket
        self._client = s3_client(replace(settings, public_endpoint_url=None))
        self._patient = Patient(bucket, self._client, patience_seconds)
        # AWS' own endpoints may lie behind a proxy, and differ from bucket to bucket: boto3 knows about that
        self._direct = Direct(settings.endpoint_url) if settings.endpoint_url is not None else None
        self._own = UrlSigner(bucket, replace(settings, public_endpoint_url=None))
        public = settings.public_endpoint_url or settings.endpoint_url
        self._public = UrlSigner(bucket, replace(settings, endpoint_url=public, public_endpoint_url=None))

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        if length == 0:
            return b""
        request: GetObjectRequestTypeDef = {"Bucket": self._bucket, "Key": key}
        if start or length is not None:
            request["Range"] = f"bytes={start}-{start + length - 1 if length is not None else ''}"

        def read() -> bytes:
            try:
                return self._client.get_object(**request)["Body"].read()
            except ClientError as error:
                if status(error) == 416:  # the object ends before `start`
                    return b""
                raise

        body = self._patient.call(Operation.GET, key, read)
        metrics.READ_BYTES.inc(len(body))
        return body

    def get_into(self, key: str, out: memoryview, *, start: int = 0) -> int:
        if not len(out):
            return 0
        if self._direct is not None:
            with metrics.SECONDS.labels(Operation.GET).time():
                url = self._sign(self._own, "GET", key, _SIGNED_SECONDS)
                count = self._direct.read_into(url, out, start)
            if count is not None:
                metrics.READ_BYTES.inc(count)
                return count
        body = self.get(key, start=start, length=len(out))
        out[: len(body)] = body
        return len(body)

    @contextmanager
    def reading(self, key: str) -> Iterator[Source]:
        began, incoming = time.perf_counter(), None
        if self._direct is not None:
            incoming = self._direct.open(self._sign(self._own, "GET", key, _SIGNED_SECONDS))
        if incoming is None:
            body = self.get(key)
            yield Held(body, time.perf_counter() - began)
            return
        source = Arriving(incoming, partial(self._rest_into, key), time.perf_counter() - began)
        try:
            yield source
        finally:
            source.close()
            metrics.SECONDS.labels(Operation.GET).observe(source.seconds)
            metrics.READ_BYTES.inc(source.arrived)

    def put(self, key: str, body: bytes | memoryview, *, sha256: str | None = None) -> None:
        if len(body) > SINGLE_BYTES:
            self._put_in_parts(key, memoryview(body))
            return
        if sha256 is not None and self._write(Operation.PUT, key, body, _bound(len(body), sha256)):
            return
        whole = bytes(body)  # copies a memoryview, which boto3 does not take; a file would cost more, in pieces of 16 KiB
        request: PutObjectRequestTypeDef = {"Bucket": self._bucket, "Key": key, "Body": whole}
        if sha256 is not None:
            request["ChecksumSHA256"] = _checksum(sha256)
        self._patient.call(Operation.PUT, key, lambda: self._client.put_object(**request))
        metrics.WRITTEN_BYTES.inc(len(whole))

    def put_once(self, key: str, body: bytes) -> bool:
        writer = uuid.uuid4().hex
        headers = {**_bound(len(body), hashlib.sha256(body).hexdigest()), "If-None-Match": "*", "x-amz-meta-writer": writer}
        if self._write(Operation.PUT_ONCE, key, body, headers):
            return True
        attempts = 0 if self._direct is None else 1

        def write() -> bool:
            nonlocal attempts
            attempts += 1
            try:
                self._client.put_object(Bucket=self._bucket, Key=key, Body=body, IfNoneMatch="*", Metadata={"writer": writer})
            except ClientError as error:
                if status(error) != 412:
                    raise
                # the answer to an earlier attempt may have been lost although it had written the object
                return attempts > 1 and self._writer(key) == writer
            return True

        written = self._patient.call(Operation.PUT_ONCE, key, write)
        metrics.WRITTEN_BYTES.inc(len(body) if written else 0)
        return written

    def size(self, key: str) -> int | None:
        def look() -> int | None:
            try:
                return self._client.head_object(Bucket=self._bucket, Key=key)["ContentLength"]
            except ClientError as error:
                if status(error) == 404:
                    return None
                raise

        return self._patient.call(Operation.SIZE, key, look)

    def list(self, prefix: str) -> Sequence[StoredObject]:
        request: ListObjectsV2RequestTypeDef = {"Bucket": self._bucket, "Prefix": prefix}
        found: list[StoredObject] = []
        while True:
            page = self._patient.call(Operation.LIST, prefix, lambda: self._client.list_objects_v2(**request))
            found += (StoredObject(entry["Key"], entry["Size"]) for entry in page.get("Contents", ()))
            if not page["IsTruncated"]:
                # SeaweedFS lists what lies below `a/` before `a-b`, S3 the other way round
                return sorted(found, key=lambda stored: stored.key.encode())
            request["ContinuationToken"] = page["NextContinuationToken"]

    def delete(self, keys: Sequence[str]) -> None:
        for first in range(0, len(keys), _KEYS_PER_DELETE):
            self._delete(keys[first : first + _KEYS_PER_DELETE])

    def sign_get(self, key: str, *, seconds: int) -> str:
        return self._sign(self._public, "GET", key, seconds)

    def sign_put(self, key: str, *, size_bytes: int, sha256: str, seconds: int) -> UploadGrant:
        headers = {**_bound(size_bytes, sha256), "If-None-Match": "*"}
        return UploadGrant(self._sign(self._public, "PUT", key, seconds, headers=headers), headers)

    def _write(self, name: Operation, key: str, body: bytes | memoryview, headers: Mapping[str, str]) -> bool:
        """Whether the object was written the short way, by a URL that is signed for these headers; it may be even if not."""
        if self._direct is None:
            return False
        with metrics.SECONDS.labels(name).time():
            url = self._sign(self._own, "PUT", key, _SIGNED_SECONDS, headers=headers)
            written = self._direct.write(url, headers, body)
        metrics.WRITTEN_BYTES.inc(len(body) if written else 0)
        return written

    def _rest_into(self, key: str, out: memoryview, start: int) -> None:
        if self.get_into(key, out, start=start) != len(out):
            raise Outage(Code.STORAGE_UNAVAILABLE, f"{self._bucket}/{key} ends before all that it had has come.")

    def _put_in_parts(self, key: str, body: memoryview) -> None:
        """As one piece it would have to be sent anew, all of it, whenever the storage pauses for longer than a timeout."""
        upload_id = self.begin_parts(key)
        try:
            parts: list[Part] = []
            for start in range(0, len(body), PART_BYTES):
                part, number = bytes(body[start : start + PART_BYTES]), len(parts) + 1
                sha256 = hashlib.sha256(part).hexdigest()
                send = partial(self._client.upload_part, Bucket=self._bucket, Key=key, UploadId=upload_id, PartNumber=number)
                sent = self._patient.call(Operation.PARTS, key, partial(send, Body=part, ChecksumSHA256=_checksum(sha256)))
                parts.append(Part(len(part), sha256, sent["ETag"]))
            self._patient.call(Operation.PARTS, key, partial(self._complete, key, upload_id, parts))
        except BaseException:
            with suppress(FedlearnError):
                self._abort(key, upload_id)
            raise

    def _complete(self, key: str, upload_id: str, parts: Sequence[Part]) -> None:
        whole: CompletedMultipartUploadTypeDef = {"Parts": _described(parts)}
        try:
            self._client.complete_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload_id, MultipartUpload=whole)
        except ClientError as error:
            # the answer to an earlier attempt may have been lost although it had made them one
            if error.response["Error"].get("Code") != "NoSuchUpload" or not self._has(key, parts):
                raise

    def begin_parts(self, key: str) -> str:
        def begin() -> str:
            return self._client.create_multipart_upload(Bucket=self._bucket, Key=key, ChecksumAlgorithm="SHA256")["UploadId"]

        return self._patient.call(Operation.PARTS, key, begin)

    def sign_parts(self, key: str, upload_id: str, parts: Sequence[Part], *, seconds: int) -> Sequence[UploadGrant]:
        grants: list[UploadGrant] = []
        for number, part in enumerate(parts, start=1):
            headers, params = _bound(part.size_bytes, part.sha256), {"uploadId": upload_id, "partNumber": str(number)}
            grants.append(UploadGrant(self._sign(self._public, "PUT", key, seconds, headers=headers, params=params), headers))
        return grants

    def join_parts(self, key: str, upload_id: str, parts: Sequence[Part]) -> bool:
        whole: CompletedMultipartUploadTypeDef = {"Parts": _described(parts)}

        def join() -> bool:
            try:
                self._client.complete_multipart_upload(
                    Bucket=self._bucket, Key=key, UploadId=upload_id, MultipartUpload=whole, IfNoneMatch="*"
                )
            except ClientError as error:
                code = error.response["Error"].get("Code")
                if code == "PreconditionFailed" or (code == "NoSuchUpload" and self._has(key, parts)):
                    return self._has(key, parts)  # it may be an earlier attempt's, whose answer was lost
                if code in ("NoSuchUpload", "InvalidPart", "InvalidPartOrder", "EntityTooSmall", "InvalidRequest", "BadDigest"):
                    raise Refusal(Code.UPDATE_MISSING, f"The parts of {key} do not make it up: {code}.") from error
                raise
            return True

        return self._patient.call(Operation.PARTS, key, join)

    def drop_parts(self, prefix: str) -> None:
        request: ListMultipartUploadsRequestTypeDef = {"Bucket": self._bucket, "Prefix": prefix}
        while True:
            page = self._patient.call(Operation.PARTS, prefix, lambda: self._client.list_multipart_uploads(**request))
            for upload in page.get("Uploads", ()):
                self._abort(upload["Key"], upload["UploadId"])
            if not page.get("IsTruncated"):
                return
            request["KeyMarker"], request["UploadIdMarker"] = page["NextKeyMarker"], page["NextUploadIdMarker"]

    def make(self) -> None:
        """Make the bucket, unless it is there; takes an administrator's credential."""

        def create() -> None:
            try:
                self._client.create_bucket(Bucket=self._bucket)
            except ClientError as error:
                if status(error) != 409:
                    raise

        self._patient.call(Operation.MAKE, "", create)

    def _has(self, key: str, parts: Sequence[Part]) -> bool:
        """Whether the object is what these parts make up, by its checksum of checksums."""
        try:
            found = self._client.head_object(Bucket=self._bucket, Key=key, ChecksumMode="ENABLED")
        except ClientError as error:
            if status(error) == 404:
                return False
            raise
        joined = hashlib.sha256(b"".join(bytes.fromhex(part.sha256) for part in parts))
        return found.get("ChecksumSHA256") == f"{base64.b64encode(joined.digest()).decode()}-{len(parts)}"

    def _abort(self, key: str, upload_id: str) -> None:
        def abort() -> None:
            try:
                self._client.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload_id)
            except ClientError as error:
                if status(error) != 404:
                    raise

        self._patient.call(Operation.PARTS, key, abort)

    def _sign(
        self,
        signer: UrlSigner,
        method: Literal["GET", "PUT"],
        key: str,
        seconds: int,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> str:
        """A URL; an outage of who renews the credential is not waited out, since an event loop may be asking."""
        try:
            return signer.sign(method, key, seconds, headers=headers, params=params)
        except (ClientError, BotoCoreError) as error:
            self._patient.refuse(Operation.SIGN, key, error)

    def _writer(self, key: str) -> str | None:
        return self._client.head_object(Bucket=self._bucket, Key=key)["Metadata"].get("writer")

    def _delete(self, keys: Sequence[str]) -> None:
        def delete() -> None:
            doomed: DeleteTypeDef = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
            answer = self._client.delete_objects(Bucket=self._bucket, Delete=doomed)
            for fault in answer.get("Errors", ()):
                status = 403 if fault.get("Code") == "AccessDenied" else 500
                details: Any = {"Error": fault, "ResponseMetadata": {"HTTPStatusCode": status}}
                raise ClientError(details, "DeleteObjects")

        self._patient.call(Operation.DELETE, keys[0], delete)


def object_store(settings: StorageSettings, bucket: str) -> S3ObjectStore:
    """A bucket as a service's settings name it."""
    return S3ObjectStore(
        bucket,
        S3Settings(
            endpoint_url=settings.endpoint_url,
            region=settings.region,
            access_key=settings.access_key,
            secret_key=settings.secret_key.get_secret_value() if settings.secret_key else None,
            public_endpoint_url=settings.public_endpoint_url,
        ),
    )


def _bound(size_bytes: int, sha256: str) -> dict[str, str]:
    """What a signed URL of an upload is bound to, as it has to be sent."""
    return {"Content-Length": str(size_bytes), "x-amz-checksum-sha256": _checksum(sha256)}


def _described(parts: Sequence[Part]) -> list["CompletedPartTypeDef"]:
    return [
        {"PartNumber": number, "ETag": part.tag, "ChecksumSHA256": _checksum(part.sha256)}
        for number, part in enumerate(parts, start=1)
    ]


def _checksum(sha256: str) -> str:
    """A digest as S3 writes it."""
    return base64.b64encode(bytes.fromhex(sha256)).decode()
