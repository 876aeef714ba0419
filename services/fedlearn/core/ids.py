"""Names of tasks, devices and rounds, and the one place that says what a valid name is."""

import hashlib
import re
from dataclasses import dataclass
from typing import NewType

from fedlearn.core.errors import Code, Refusal

DeviceId = NewType("DeviceId", str)
"""`pod`, or `pod/slot` where one process hosts several devices."""

TaskId = NewType("TaskId", str)

_TASK = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_POD = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_DIGEST = re.compile(r"[0-9a-f]{64}")
MAX_SLOTS = 4096
MAX_AGGREGATORS = 64


def task_id(text: str) -> TaskId:
    """Check a task's name: 1 to 63 of a-z, 0-9 and '-', as a DNS label.

    Raises:
        Refusal: `bad_request`.
    """
    if not _TASK.fullmatch(text):
        raise Refusal(Code.BAD_REQUEST, f"{text!r} is no name for a task: use 1 to 63 of a-z, 0-9 and '-'.")
    return TaskId(text)


def device_id(pod: str, slot: int | None = None) -> DeviceId:
    """Make the id of the device that `pod` hosts, in its `slot` if it hosts several.

    Raises:
        Refusal: `bad_request` for a pod's name that is no DNS subdomain or a slot out of range.
    """
    if not _POD.fullmatch(pod):
        raise Refusal(Code.BAD_REQUEST, f"{pod!r} is no name for a pod.")
    if slot is None:
        return DeviceId(pod)
    if not 0 <= slot < MAX_SLOTS:
        raise Refusal(Code.BAD_REQUEST, f"The slot is {slot}; it must be from 0 to {MAX_SLOTS - 1}.")
    return DeviceId(f"{pod}/{slot}")


def shard_of(device: DeviceId, aggregators: int) -> int:
    """Which of a round's aggregators, counted from 0, takes this device's update; whoever asks gets the same answer."""
    return int.from_bytes(hashlib.sha256(device.encode()).digest()[:8]) % aggregators


def is_digest(text: str) -> bool:
    """Whether `text` is a SHA-256 in lower-case hexadecimal."""
    return _DIGEST.fullmatch(text) is not None


@dataclass(frozen=True, order=True, slots=True)
class RoundId:
    """One round of one task; rounds count from 1, abandoned ones included."""

    task: TaskId
    number: int

    def __str__(self) -> str:
        return f"{self.task}/{self.number}"
