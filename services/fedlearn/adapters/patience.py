"""What an object storage's answers are: which pass, and are waited out, and which are refusals.

An outage is waited out by one loop here, and boto3's own retries are off: they count attempts, while a storage that restarts
needs seconds.
"""

import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn, TypeVar

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    MetadataRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.exceptions import ConnectionError as NotConnected

from fedlearn.core.errors import Code, Outage, Refusal
from fedlearn.telemetry.metrics import storage as metrics
from fedlearn.telemetry.metrics.storage import Fault, Operation

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

Result = TypeVar("Result")

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.05, 2.0
_OUTAGES = (HTTPClientError, NotConnected, IncompleteReadError, CredentialRetrievalError, MetadataRetrievalError)
# what S3 and STS say with a status below 500 of what passes; IDPCommunicationError: STS did not reach who vouches for a token
_BUSY = frozenset(
    {
        "SlowDown",
        "RequestTimeout",
        "Throttling",
        "ThrottlingException",
        "ConditionalRequestConflict",
        "IDPCommunicationError",
    }
)


class Patient:
    """Calls on one bucket.

    Args:
        client: whose connections are closed when somebody else than the storage answers.
        seconds: how long an outage is waited out before a call raises `storage_unavailable`.
    """

    def __init__(self, bucket: str, client: "S3Client", seconds: float) -> None:
        self._bucket, self._client, self._patience = bucket, client, seconds

    def call(self, name: Operation, key: str, operation: Callable[[], Result]) -> Result:
        """Call `operation`, again and again while the storage does not answer, until the patience has run out.

        Args:
            key: what errors name.

        Raises:
            Refusal: as `refuse`.
            Outage: `storage_unavailable`.
        """
        with metrics.SECONDS.labels(name).time():
            return self._insist(name, key, operation)

    def _insist(self, name: Operation, key: str, operation: Callable[[], Result]) -> Result:
        deadline, pause = time.monotonic() + self._patience, _FIRST_PAUSE_SECONDS
        while True:
            try:
                return operation()
            except (ClientError, BotoCoreError) as error:
                if not _passes(error):
                    self.refuse(name, key, error)
                metrics.ERRORS.labels(name, Fault.OUTAGE).inc()
                left = deadline - time.monotonic()
                if left <= 0:
                    detail = f"The object storage has not answered for {self._patience:g} s: {error}"
                    raise Outage(Code.STORAGE_UNAVAILABLE, detail) from error
            time.sleep(min(left, pause * random.uniform(0.5, 1.0)))  # noqa: S311 - spreads retries, protects nothing
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def refuse(self, name: Operation, key: str, error: ClientError | BotoCoreError) -> NoReturn:
        """Raise what an answer means that is not waited out.

        Raises:
            Refusal: `not_found`, `storage_denied`, `bad_request`.
            Outage: `storage_unavailable` where there is no bucket, or for an answer that passes.
        """
        where = f"{self._bucket}/{key}"
        if _passes(error):
            metrics.ERRORS.labels(name, Fault.OUTAGE).inc()
            raise Outage(Code.STORAGE_UNAVAILABLE, f"The call on {where} can't be made now: {error}") from error
        if isinstance(error, ClientError) and status(error) == 404:
            if error.response["Error"].get("Code") == "NoSuchKey":
                raise Refusal(Code.NOT_FOUND, f"There is no object {where}.") from error
            # NoSuchBucket, or nothing of S3: a storage that is being set up, or somebody who took the connection before it
            # was there. It is waited for, as one that does not answer, and connected to anew
            self._client.close()
            metrics.ERRORS.labels(name, Fault.OUTAGE).inc()
            raise Outage(Code.STORAGE_UNAVAILABLE, f"The object storage has no bucket {self._bucket} (yet).") from error
        if isinstance(error, NoCredentialsError | PartialCredentialsError):
            metrics.ERRORS.labels(name, Fault.DENIED).inc()
            raise Refusal(Code.STORAGE_DENIED, "There is no credential for the object storage: set one.") from error
        if isinstance(error, ClientError) and status(error) in (401, 403):
            metrics.ERRORS.labels(name, Fault.DENIED).inc()
            raise Refusal(Code.STORAGE_DENIED, f"This credential does not allow the call on {where}: {error}") from error
        metrics.ERRORS.labels(name, Fault.OTHER).inc()
        raise Refusal(Code.BAD_REQUEST, f"The object storage does not take the call on {where}: {error}") from error


def status(error: ClientError) -> int:
    """The HTTP status that a storage has answered with."""
    return error.response["ResponseMetadata"]["HTTPStatusCode"]


def _passes(error: ClientError | BotoCoreError) -> bool:
    """Whether the same call may succeed later."""
    if isinstance(error, ClientError):
        code = status(error)
        return code >= 500 or code == 429 or error.response["Error"].get("Code") in _BUSY
    return isinstance(error, _OUTAGES)
