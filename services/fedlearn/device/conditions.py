"""How this device is at the moment: what its owner's file says, and the memory that is free."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

from fedlearn.core.eligibility import Conditions
from fedlearn.telemetry.logs import log

_log = log(__name__)
_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")
_MEMORY_SECONDS = 0.5  # all devices of a process ask for it, each once a second


class Probe:
    """Reads the conditions at each call; of the free memory what was read within half a second.

    Args:
        file: a JSON object with `idle`, `charging`, `unmetered`, kept current by whoever watches the machine; what it omits
            is true. None for a machine that is always all three. While the file can't be read, the device is none of them.
    """

    def __init__(
        self,
        file: Path | None,
        *,
        meminfo: Path = _MEMINFO,
        cgroup: Path = _CGROUP,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file, self._meminfo, self._cgroup, self._clock = file, meminfo, cgroup, clock
        self._free: int | None = None
        self._free_until = -math.inf
        self._told = False

    def __call__(self) -> Conditions:
        if self._clock() >= self._free_until:
            self._free, self._free_until = free_memory_bytes(self._meminfo, self._cgroup), self._clock() + _MEMORY_SECONDS
        free = self._free
        if self._file is None:
            return Conditions(free_memory_bytes=free)
        try:
            said = json.loads(self._file.read_text())
            idle, charging, unmetered = (said.get(name, True) is True for name in ("idle", "charging", "unmetered"))
        except (OSError, ValueError, AttributeError) as error:
            if not self._told:
                _log.warning(
                    "the conditions can't be read: not eligible until they can", file=str(self._file), reason=str(error)
                )
            self._told = True
            return Conditions(idle=False, charging=False, unmetered=False, free_memory_bytes=free)
        self._told = False
        return Conditions(idle=idle, charging=charging, unmetered=unmetered, free_memory_bytes=free)


def free_memory_bytes(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int | None:
    """What this process may still take: the machine's available memory, or what its cgroup has left; None if nobody says."""
    found = []
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        found.append(1024 * int(lines["MemAvailable"].split()[0]))
    except (OSError, KeyError, ValueError):
        pass
    try:
        limit, used = ((cgroup / name).read_text().strip() for name in ("memory.max", "memory.current"))
        if limit != "max":
            found.append(max(0, int(limit) - int(used)))
    except (OSError, ValueError):
        pass
    return min(found) if found else None
