"""What the server shows of single tasks: the only metrics with a label that an operator names.

The label is bounded: tasks that run have it, and of those that have ended the last ten, since a task's last version is scored
after its end. What an alert watches is of running tasks alone.
"""

from collections import deque
from collections.abc import Mapping
from contextlib import suppress

from prometheus_client import Gauge

ENDED_TASKS = 10

MODEL_VERSION = Gauge("fedlearn_task_model_version", "The version of the task's model that was committed last.", ["task"])
TEST_ACCURACY = Gauge(
    "fedlearn_task_test_accuracy_ratio", "Accuracy of the task's newest scored version on the test set.", ["task"]
)
TEST_LOSS = Gauge("fedlearn_task_test_loss", "Loss of the task's newest scored version on the test set.", ["task"])
SCORED_VERSION = Gauge("fedlearn_task_scored_version", "The version that test accuracy and test loss are of.", ["task"])
FEDERATED_ACCURACY = Gauge(
    "fedlearn_task_federated_accuracy_ratio",
    "Accuracy on the devices' hold-outs, weighted by their examples, of the version that the last committed round began with.",
    ["task"],
)
FEDERATED_LOSS = Gauge("fedlearn_task_federated_loss", "Loss on the devices' hold-outs, as the accuracy.", ["task"])
ROUND = Gauge("fedlearn_task_round", "The number of the task's newest round.", ["task"])
ROUND_DEVICES = Gauge("fedlearn_task_round_devices", "Devices whose updates are in the last committed round.", ["task"])
ROUND_EXAMPLES = Gauge("fedlearn_task_round_examples", "Examples behind the updates of the last committed round.", ["task"])
ABANDONED = Gauge("fedlearn_task_abandoned_rounds", "Rounds abandoned in a row by a running task.", ["task"])
COMMITTED_AT = Gauge(
    "fedlearn_task_commit_timestamp_seconds",
    "When a running task's model was committed last, or when this server took the task up.",
    ["task"],
)
ROUND_TIMEOUT = Gauge(
    "fedlearn_task_round_timeout_seconds",
    "The longest that a round of a running task may take, by its three deadlines.",
    ["task"],
)

_KEPT = (
    MODEL_VERSION, TEST_ACCURACY, TEST_LOSS, SCORED_VERSION, FEDERATED_ACCURACY, FEDERATED_LOSS, ROUND, ROUND_DEVICES,
    ROUND_EXAMPLES,
)  # fmt: skip
_WATCHED = (ABANDONED, COMMITTED_AT, ROUND_TIMEOUT)
_shown: set[str] = set()
_watched: set[str] = set()
_ended: deque[str] = deque()


def begin(task: str, *, version: int, round_timeout_seconds: float, now: float) -> None:
    """A task is driven from now on."""
    if task in _ended:
        _ended.remove(task)
    _shown.add(task)
    _watched.add(task)
    MODEL_VERSION.labels(task).set(version)
    ABANDONED.labels(task).set(0)
    COMMITTED_AT.labels(task).set(now)
    ROUND_TIMEOUT.labels(task).set(round_timeout_seconds)


def rest(task: str) -> None:
    """A task begins no more rounds for now: nothing has to be watched."""
    _watched.discard(task)
    _remove(task, *_WATCHED)


def end(task: str) -> None:
    """A task is driven no more: its figures stay for a while, what is watched goes."""
    rest(task)
    if task in _shown and task not in _ended:
        _ended.append(task)
    while len(_ended) > ENDED_TASKS:
        forgotten = _ended.popleft()
        _shown.discard(forgotten)
        _remove(forgotten, *_KEPT)


def leave(task: str) -> None:
    """Another server drives the task from now on, and shows its figures."""
    _watched.discard(task)
    _shown.discard(task)
    if task in _ended:
        _ended.remove(task)
    _remove(task, *_WATCHED, *_KEPT)


def committed(task: str, *, version: int, devices: int, examples: int, figures: Mapping[str, float], now: float) -> None:
    """A round has been committed; `figures` are the hold-outs' means of the version that it began with."""
    MODEL_VERSION.labels(task).set(version)
    ROUND_DEVICES.labels(task).set(devices)
    ROUND_EXAMPLES.labels(task).set(examples)
    if task in _watched:
        ABANDONED.labels(task).set(0)
        COMMITTED_AT.labels(task).set(now)
    _show(task, figures, FEDERATED_ACCURACY, FEDERATED_LOSS)


def moved(task: str, version: int) -> None:
    """An operator has made another version the task's model."""
    if task in _shown:
        MODEL_VERSION.labels(task).set(version)


def abandoned(task: str) -> None:
    """A round has been abandoned."""
    if task in _watched:
        ABANDONED.labels(task).inc()


def scored(task: str, version: int, figures: Mapping[str, float]) -> None:
    """The evaluator has scored a version. A task that is not shown any more is not shown again."""
    if task not in _shown:
        return
    if figures:  # there are none for a version that could not be scored
        SCORED_VERSION.labels(task).set(version)
        _show(task, figures, TEST_ACCURACY, TEST_LOSS)


def _show(task: str, figures: Mapping[str, float], accuracy: Gauge, loss: Gauge) -> None:
    for name, gauge in (("accuracy", accuracy), ("loss", loss)):
        if name in figures:
            gauge.labels(task).set(figures[name])
        else:  # of a model that has diverged there is no loss: the one before would be another version's
            _remove(task, gauge)


def _remove(task: str, *gauges: Gauge) -> None:
    for gauge in gauges:
        with suppress(KeyError):  # not every task has every figure
            gauge.remove(task)
