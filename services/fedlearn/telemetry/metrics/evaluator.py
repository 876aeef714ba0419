"""The evaluator's."""

from prometheus_client import Counter, Histogram

from fedlearn.telemetry.metrics.buckets import WORK_SECONDS

SCORING_SECONDS = Histogram(
    "fedlearn_evaluator_scoring_seconds", "Scoring one version on the test set, its download included.", buckets=WORK_SECONDS
)
FAILURES = Counter("fedlearn_evaluator_failures_total", "Attempts to score a version that failed.")
