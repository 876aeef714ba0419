"""Object storage as those see it who have a signed URL: devices and the evaluator."""

from enum import StrEnum

from prometheus_client import Counter, Histogram

from fedlearn.telemetry.metrics.buckets import CALL_SECONDS


class Direction(StrEnum):
    DOWN = "down"
    UP = "up"


SECONDS = Histogram(
    "fedlearn_transfer_seconds",
    "Fetching a model or storing an update by a signed URL, with all repetitions.",
    ["direction"],
    buckets=CALL_SECONDS,
)
TRANSFERRED_BYTES = Counter(
    "fedlearn_transfer_bytes_total", "Bytes of models fetched (down) and of sealed updates stored (up).", ["direction"]
)
ERRORS = Counter("fedlearn_transfer_errors_total", "Transfers that were given up.", ["direction"])

for _direction in Direction:
    SECONDS.labels(_direction)
    TRANSFERRED_BYTES.labels(_direction)
    ERRORS.labels(_direction)
