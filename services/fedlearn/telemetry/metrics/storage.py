"""Object storage as those see it who have a credential: server and aggregator."""

from enum import StrEnum

from prometheus_client import Counter, Histogram

from fedlearn.telemetry.metrics.buckets import CALL_SECONDS


class Operation(StrEnum):
    GET = "get"
    PUT = "put"
    PUT_ONCE = "put_once"
    SIZE = "size"
    LIST = "list"
    DELETE = "delete"
    SIGN = "sign"
    PARTS = "parts"
    """To begin, join, list or drop an upload in parts."""
    MAKE = "make"


class Fault(StrEnum):
    """Why a call went wrong. That an object is not there is an answer, not a fault."""

    OUTAGE = "outage"
    """An attempt without an answer; it is repeated."""
    DENIED = "denied"
    OTHER = "other"


SECONDS = Histogram(
    "fedlearn_storage_request_seconds",
    "Calls to object storage until they succeed or are given up, with all their repetitions.",
    ["operation"],
    buckets=CALL_SECONDS,
)
ERRORS = Counter(
    "fedlearn_storage_errors_total",
    "Attempts at object storage that went wrong, by operation and reason.",
    ["operation", "reason"],
)
READ_BYTES = Counter("fedlearn_storage_read_bytes_total", "Bytes read from object storage.")
WRITTEN_BYTES = Counter("fedlearn_storage_written_bytes_total", "Bytes written to object storage.")

for _operation in Operation:
    SECONDS.labels(_operation)
    for _fault in Fault:
        ERRORS.labels(_operation, _fault)
