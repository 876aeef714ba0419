"""The server's database."""

from enum import StrEnum

from prometheus_client import Counter, Histogram

from fedlearn.telemetry.metrics.buckets import CALL_SECONDS


class Operation(StrEnum):
    READ = "read"
    WRITE = "write"


SECONDS = Histogram(
    "fedlearn_database_transaction_seconds",
    "Transactions, the wait for a connection or a lock and the commit included.",
    ["operation"],
    buckets=CALL_SECONDS,
)
ERRORS = Counter("fedlearn_database_errors_total", "Transactions that the database did not answer.", ["operation"])

for _operation in Operation:
    SECONDS.labels(_operation)
    ERRORS.labels(_operation)
