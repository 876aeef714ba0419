"""What a device has not sent yet by `top_k`, on its own volume: for each task and plan one file a round, named by the round.

The file of a round is made from that of the last round that counted, and the one before stays until the next is there: whether
an update has counted is known only afterwards. Files are written beside their place, and moved there when they are whole.
"""

import errno
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from fedlearn.core.errors import Code, Outage
from fedlearn.core.ids import DeviceId, RoundId, TaskId
from fedlearn.core.updates import Vector
from fedlearn.protocol.views import RoundView, VersionView

_MOST_TASKS = 4
_SUFFIX = ".f32"


class Residuals:
    """One device's; a call for one task at a time.

    Args:
        directory: made when it is needed.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def rounds(self, task: TaskId, plan_digest: str) -> list[int]:
        """The rounds that there is a file of, the newest first."""
        return sorted((int(path.stem) for path in self._of(task, plan_digest).glob(f"*{_SUFFIX}")), reverse=True)

    def read(self, round_id: RoundId, plan_digest: str, parameters: int) -> Vector | None:
        """What was kept in that round, float32, shape (parameters,); None if there is no whole file of it."""
        path = self._path(round_id, plan_digest)
        try:
            kept: Vector = np.fromfile(path, "<f4")
        except OSError:
            return None
        return kept.astype(np.float32, copy=False) if kept.shape == (parameters,) else None

    def write(self, round_id: RoundId, plan_digest: str, kept: Vector, *, before: int | None) -> None:
        """Keep `kept` for the rounds after this one, and of the files before only that of round `before`, which it came from.

        Raises:
            Outage: `disk_full`; what was there is still there.
        """
        path = self._path(round_id, plan_digest)
        unfinished = path.with_suffix(".part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with unfinished.open("wb") as file:
                kept.astype("<f4", copy=False).tofile(file)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise Outage(Code.DISK_FULL, "What top_k keeps for later finds no room on this device's volume.") from error
            raise
        for other in self.rounds(round_id.task, plan_digest):
            if other not in (round_id.number, before):
                self._path(RoundId(round_id.task, other), plan_digest).unlink(missing_ok=True)
        self._drop_old_tasks()

    def _drop_old_tasks(self) -> None:
        tasks = sorted(self._directory.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        for old in tasks[_MOST_TASKS:]:
            shutil.rmtree(old, ignore_errors=True)

    def _of(self, task: TaskId, plan_digest: str) -> Path:
        return self._directory / f"{task}-{plan_digest[:16]}"

    def _path(self, round_id: RoundId, plan_digest: str) -> Path:
        return self._of(round_id.task, plan_digest) / f"{round_id.number:08d}{_SUFFIX}"


def last_counted(
    device: DeviceId,
    rounds: Sequence[int],
    version: int,
    *,
    versions: Sequence[VersionView],
    view: Callable[[int], RoundView],
) -> int | None:
    """The newest of `rounds` whose result holds this device's update and is an ancestor of model `version`, or that model.

    What was kept in any other round belongs to a model that nobody goes on from: the round was abandoned, or went on without
    this device, or an operator has rolled it back.

    Args:
        view: gives a round as the server shows it.
    """
    by_number = {found.model.version: found for found in versions}
    ancestors, at = set[int](), by_number.get(version)
    while at is not None and at.model.version not in ancestors:
        ancestors.add(at.model.version)
        at = None if at.parent is None else by_number.get(at.parent)
    made = {found.round for found in versions if found.model.version in ancestors}
    for number in rounds:
        if number in made and any(part.device == device and part.standing == "reported" for part in view(number).participants):
            return number
    return None
