"""All metrics of fedlearn, declared in one place: `fedlearn_<noun>_<what>_<unit>`.

Label values are enums and exist from the start, so that a rate over them is never absent. No label grows without bound.
"""

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, Counter, Gauge, Histogram, generate_latest

from fedlearn import __version__
from fedlearn.core.errors import Code
from fedlearn.core.rounds import Phase, Standing

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

BUILD = Gauge("fedlearn_build_info", "1, with the version as a label.", ["version"])
BUILD.labels(__version__).set(1)

# the server's
ROUNDS = Counter("fedlearn_rounds_ended_total", "Rounds that have ended, by outcome and reason.", ["outcome", "reason"])
PHASE_SECONDS = Histogram("fedlearn_round_phase_seconds", "How long rounds stayed in a phase.", ["phase"], buckets=_SECONDS)
PARTICIPANTS = Counter("fedlearn_round_participants_total", "Selected devices, by how they stood at the end.", ["standing"])
DEVICES_WAITING = Gauge("fedlearn_devices_waiting", "Devices that wait at the server for work.")
MODEL_VERSION = Gauge("fedlearn_model_version", "The version that was committed last.")
TEST_ACCURACY = Gauge("fedlearn_model_test_accuracy_ratio", "Accuracy of the version that was scored last, on the test set.")
TEST_LOSS = Gauge("fedlearn_model_test_loss", "Loss of the version that was scored last, on the test set.")

# the aggregator's
UPDATES = Counter("fedlearn_updates_total", "Updates, by what became of them: folded, or the code of the refusal.", ["result"])
UPDATE_BYTES = Counter("fedlearn_updates_received_bytes_total", "Bytes of updates read from object storage.")
FETCH_SECONDS = Histogram("fedlearn_update_fetch_seconds", "Reading one update from object storage.", buckets=_SECONDS)
FOLD_SECONDS = Histogram("fedlearn_update_fold_seconds", "Opening, checking and folding one update.", buckets=_SECONDS)
PUBLISH_SECONDS = Histogram("fedlearn_model_publish_seconds", "From the close to the model's publication.", buckets=_SECONDS)

# the device's
TRAINING_SECONDS = Histogram("fedlearn_device_training_seconds", "Local training of one round.", buckets=_SECONDS)
TRAINED_EXAMPLES = Counter("fedlearn_device_trained_examples_total", "Examples trained on, counted once an epoch.")
UPLOADED_BYTES = Counter("fedlearn_device_uploaded_bytes_total", "Bytes of sealed updates sent to object storage.")

_ABANDON_REASONS = (
    Code.TOO_FEW_DEVICES, Code.TOO_FEW_REPORTS, Code.COHORT_TOO_SMALL, Code.AGGREGATOR_KEY_LOST, Code.AGGREGATOR_UNREACHABLE,
    Code.AGGREGATION_TIMEOUT, Code.TASK_CANCELLED, Code.BASE_SUPERSEDED, Code.STORAGE_DENIED, Code.INTERNAL,
)  # fmt: skip
UPDATE_REFUSALS = tuple(code for code in Code if code.startswith("update_"))

ROUNDS.labels(Phase.COMMITTED, "")
for _code in _ABANDON_REASONS:
    ROUNDS.labels(Phase.ABANDONED, _code)
for _phase in Phase:
    if not _phase.ended:
        PHASE_SECONDS.labels(_phase)
for _standing in Standing:
    PARTICIPANTS.labels(_standing)
for _result in ("folded", *UPDATE_REFUSALS):
    UPDATES.labels(_result)


def render() -> tuple[bytes, str]:
    """The body and the content type of `/metrics`."""
    return generate_latest(REGISTRY), CONTENT_TYPE_LATEST
