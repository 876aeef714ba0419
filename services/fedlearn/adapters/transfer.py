"""A device's way to object storage: GET and PUT by signed URLs, without a credential, from a thread."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import urllib3

from fedlearn.core.errors import Code, FedlearnError, Outage, Refusal
from fedlearn.core.ports import UploadGrant
from fedlearn.telemetry.metrics import transfers as metrics
from fedlearn.telemetry.metrics.transfers import Direction

_RETRIES = urllib3.Retry(
    total=12,
    backoff_factor=0.2,
    backoff_max=10,
    backoff_jitter=0.1,
    status_forcelist=(500, 502, 503, 504),
    allowed_methods=None,
    raise_on_status=False,
)
_TIMEOUT = urllib3.Timeout(connect=10, read=120)
# the first also bounds how long a storage may pause while it takes a body: of a large one all would have to be sent again
_LARGE_BYTES, _LARGE_TIMEOUT = 32 << 20, urllib3.Timeout(connect=60, read=300)


@contextmanager
def _observed(direction: Direction) -> Iterator[None]:
    with metrics.SECONDS.labels(direction).time():
        try:
            yield
        except FedlearnError:
            metrics.ERRORS.labels(direction).inc()
            raise


class SignedTransfer:
    """Fetches and stores by signed URLs; one per process, safe for threads. An outage is waited out for about a minute."""

    def __init__(self) -> None:
        self._pool = urllib3.PoolManager(num_pools=4, maxsize=16, retries=_RETRIES, timeout=_TIMEOUT)

    def fetch(self, url: str, *, sha256: str, size_bytes: int) -> bytes:
        """GET an object and check it.

        Raises:
            Refusal: `model_mismatch` when length or digest differ; `forbidden` when the URL is not (or no longer) valid.
            Outage: `storage_unavailable`.
        """
        with _observed(Direction.DOWN):
            response = self._request("GET", url)
            if response.status != 200:
                raise self._refusal(response)
            body = response.data
        metrics.TRANSFERRED_BYTES.labels(Direction.DOWN).inc(len(body))
        if len(body) != size_bytes or hashlib.sha256(body).hexdigest() != sha256:
            raise Refusal(Code.MODEL_MISMATCH, f"The model's {len(body)} bytes do not have the promised length and digest.")
        return body

    def store(self, grant: UploadGrant, body: bytes) -> None:
        """PUT an object once; finding it there already is success, since the URL binds the digest.

        Raises:
            Refusal: `forbidden` when the URL does not allow these bytes now.
            Outage: `storage_unavailable`.
        """
        with _observed(Direction.UP):
            response = self._request("PUT", grant.url, body=body, headers=dict(grant.headers))
            if response.status not in (200, 201, 204, 412):
                raise self._refusal(response)
        metrics.TRANSFERRED_BYTES.labels(Direction.UP).inc(len(body))

    def store_part(self, grant: UploadGrant, body: bytes) -> str:
        """PUT a part of an object; returns the tag by which the storage knows it.

        Raises:
            Refusal, Outage: as `store`.
        """
        with _observed(Direction.UP):
            response = self._request("PUT", grant.url, body=body, headers=dict(grant.headers))
            tag = response.headers.get("ETag")
            if response.status != 200 or tag is None:
                raise self._refusal(response)
        metrics.TRANSFERRED_BYTES.labels(Direction.UP).inc(len(body))
        return tag

    def _request(
        self, method: str, url: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> urllib3.BaseHTTPResponse:
        try:
            timeout = _LARGE_TIMEOUT if len(body or b"") > _LARGE_BYTES else _TIMEOUT
            response = self._pool.request(method, url, body=body, headers=headers, timeout=timeout)
        except urllib3.exceptions.HTTPError as error:
            # never the URL: whoever reads it in a log, or in the word of a drop-out, could use it
            reason = getattr(error, "reason", None) or type(error).__name__
            where = urlsplit(url).netloc
            raise Outage(Code.STORAGE_UNAVAILABLE, f"The object storage at {where} does not answer: {reason}.") from error
        if response.status >= 500:
            raise Outage(Code.STORAGE_UNAVAILABLE, f"The object storage answers {response.status}.")
        return response

    @staticmethod
    def _refusal(response: urllib3.BaseHTTPResponse) -> Refusal:
        if response.status == 404:
            return Refusal(Code.NOT_FOUND, "The object is not there any more.")
        return Refusal(Code.FORBIDDEN, f"The object storage refused the signed URL with {response.status}.")
