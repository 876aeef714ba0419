"""A device process's, over all devices that it hosts. Its memory is `process_resident_memory_bytes`."""

from prometheus_client import Counter, Histogram

from fedlearn.telemetry.metrics.buckets import WORK_SECONDS

SESSION_SHAPES = (
    "-v[]+^",  # all went well
    "-v[]+#",  # the upload was refused
    "-v[]+!",  # the upload failed
    "-v[]!",  # no sealing, or no word with the aggregator
    "-v[!",  # training failed
    "-v!",  # no sealing key
    "-!",  # no plan or no model
)
OTHER = "other"

TRAINING_SECONDS = Histogram("fedlearn_device_training_seconds", "Local training of one round.", buckets=WORK_SECONDS)
TRAINED_EXAMPLES = Counter("fedlearn_device_trained_examples_total", "Examples trained on, counted once an epoch.")
TRAINED_EPOCHS = Counter("fedlearn_device_trained_epochs_total", "Epochs of local training.")
SESSIONS = Counter(
    "fedlearn_device_sessions_total",
    "Rounds that devices were assigned to, by their shape: - checked in, v model fetched, [ training began, ] it ended, "
    "+ upload began, ^ it was taken, # it was refused, ! something failed or there was no time left.",
    ["shape"],
)

for _shape in (*SESSION_SHAPES, OTHER):
    SESSIONS.labels(_shape)


def count_session(shape: str) -> None:
    """A session has ended; a shape that is none of `SESSION_SHAPES` is counted with the others."""
    SESSIONS.labels(shape if shape in SESSION_SHAPES else OTHER).inc()
