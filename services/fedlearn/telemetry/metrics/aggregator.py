"""The aggregator's: what became of the updates, and what they cost."""

from prometheus_client import Counter, Histogram

from fedlearn.core.errors import Code
from fedlearn.telemetry.metrics.buckets import WORK_SECONDS

UPDATES = Counter(
    "fedlearn_updates_total",
    "Updates, by what became of them: folded, or the code of the refusal, which may be the object storage's.",
    ["result"],
)
UPDATES_RECEIVED = Counter("fedlearn_updates_received_total", "Updates read from object storage, whatever became of them.")
UPDATE_BYTES = Counter("fedlearn_updates_received_bytes_total", "Bytes of updates read from object storage.")
FETCH_SECONDS = Histogram("fedlearn_update_fetch_seconds", "Reading one update from object storage.", buckets=WORK_SECONDS)
OPEN_SECONDS = Histogram("fedlearn_update_open_seconds", "Unsealing, decoding and checking one update.", buckets=WORK_SECONDS)
FOLD_SECONDS = Histogram(
    "fedlearn_update_fold_seconds", "Adding one update to the sum, the wait for its turn included.", buckets=WORK_SECONDS
)
PUBLISH_SECONDS = Histogram(
    "fedlearn_model_publish_seconds", "From the close of a round to its model's publication.", buckets=WORK_SECONDS
)

_OTHERS = (Code.NOT_FOUND, Code.STORAGE_DENIED, Code.BAD_REQUEST, Code.INTERNAL)  # of the storage, and what nobody foresaw
UPDATE_REFUSALS = (*(code for code in Code if code.startswith("update_")), *_OTHERS)

for _result in ("folded", *UPDATE_REFUSALS):
    UPDATES.labels(_result)
