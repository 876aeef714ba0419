"""The server's: rounds, and the fleet. What concerns one task is in `tasks`."""

from collections.abc import Mapping

from prometheus_client import Counter, Gauge, Histogram

from fedlearn.core.errors import Code
from fedlearn.core.pods import PodState
from fedlearn.core.rounds import Phase, Standing
from fedlearn.telemetry.metrics.buckets import WORK_SECONDS

LEADER = Gauge("fedlearn_server_leader", "1 for the server that drives the rounds; always 1 with SQLite.")
ROUNDS = Counter("fedlearn_rounds_ended_total", "Rounds that have ended, by outcome and reason.", ["outcome", "reason"])
PHASE_SECONDS = Histogram("fedlearn_round_phase_seconds", "How long rounds stayed in a phase.", ["phase"], buckets=WORK_SECONDS)
PARTICIPANTS = Counter(
    "fedlearn_round_participants_total", "Selected devices, by how they stood at the round's end.", ["standing"]
)
DROPOUTS = Counter(
    "fedlearn_round_dropouts_total",
    "Devices that told that they drop out: by how far they had come (selected, or accepted and at work) and why.",
    ["standing", "reason"],
)
DEVICES_WAITING = Gauge("fedlearn_devices_waiting", "Check-ins that the server holds now, until it has work for them.")
DEVICES = Gauge(
    "fedlearn_fleet_devices",
    "Devices heard of in the last day, by what they do now: each in one state, a round's part before waiting.",
    ["state"],
)
PODS = Gauge("fedlearn_fleet_pods", "Pods of devices, by their state in the cluster; all 0 without a cluster.", ["state"])

DEVICE_STATES = ("waiting", "selected", "working", "away")
ABANDON_REASONS = (
    Code.TOO_FEW_DEVICES, Code.TOO_FEW_REPORTS, Code.COHORT_TOO_SMALL, Code.AGGREGATOR_KEY_LOST, Code.AGGREGATOR_UNREACHABLE,
    Code.AGGREGATION_TIMEOUT, Code.TOO_FEW_FOR_RULE, Code.TOO_MANY_FOR_RULE, Code.PARTIAL_SUM_DAMAGED,
    Code.TASK_CANCELLED, Code.BASE_SUPERSEDED, Code.STORAGE_DENIED, Code.FORBIDDEN, Code.INTERNAL,
)  # fmt: skip
DROPOUT_REASONS = (
    Code.TRAINING_FAILED, Code.DEVICE_STOPPING, Code.PLAN_INVALID, Code.MODEL_MISMATCH, Code.SEALING_KEY_UNTRUSTED,
    Code.UPDATE_LATE, Code.NOT_ELIGIBLE, Code.SHARD_INVALID, Code.FORBIDDEN, Code.STORAGE_UNAVAILABLE,
    Code.AGGREGATOR_UNREACHABLE, Code.INTERNAL,
)  # fmt: skip
OTHER = "other"

ROUNDS.labels(Phase.COMMITTED, "")
for _code in (*ABANDON_REASONS, OTHER):
    ROUNDS.labels(Phase.ABANDONED, _code)
for _phase in Phase:
    if not _phase.ended:
        PHASE_SECONDS.labels(_phase)
for _standing in Standing:
    PARTICIPANTS.labels(_standing)
for _standing in (Standing.SELECTED, Standing.ACCEPTED):
    for _reason in (*DROPOUT_REASONS, OTHER):
        DROPOUTS.labels(_standing, _reason)
for _state in DEVICE_STATES:
    DEVICES.labels(_state)
for _pod in PodState:
    PODS.labels(_pod)


def count_round(phase: Phase, reason: Code | None) -> None:
    """A round has ended in this phase."""
    ROUNDS.labels(phase, "" if reason is None else reason if reason in ABANDON_REASONS else OTHER).inc()


def count_dropout(standing: Standing, code: Code | None) -> None:
    """A device that stood so has dropped out. Devices may give any code; those that none of ours gives are counted together."""
    DROPOUTS.labels(standing, code if code in DROPOUT_REASONS else OTHER).inc()


def show_fleet(devices: Mapping[str, int], pods: Mapping[PodState, int]) -> None:
    """How many there are of each state, of those in `DEVICE_STATES`."""
    for state in DEVICE_STATES:
        DEVICES.labels(state).set(devices.get(state, 0))
    for pod in PodState:
        PODS.labels(pod).set(pods.get(pod, 0))
