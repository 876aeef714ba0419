"""Things that are timed side by side: they take turns, so that a slow moment of the machine hits them alike."""

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

CORES = len(os.sched_getaffinity(0))


@dataclass(slots=True)
class Contender:
    """One thing that is timed: `action` goes through `size` bytes."""

    name: str
    action: Callable[[], object]
    size: int
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return self.size / statistics.median(self.seconds) / 1e9

    @property
    def cpu_per_gigabyte(self) -> float:
        return statistics.median(self.cpu) / (self.size / 1e9)

    @property
    def by_cpu(self) -> float:
        """GB/s if it had all cores to itself: what a busy machine's clock can't say."""
        return CORES / self.cpu_per_gigabyte

    def share_of(self, other: "Contender") -> float:
        """The median over repetitions of this one's rate by the other's."""
        rates = [(self.size / mine) / (other.size / theirs) for mine, theirs in zip(self.seconds, other.seconds, strict=True)]
        return statistics.median(rates)


def take_turns(contenders: Sequence[Contender], repetitions: int) -> None:
    for contender in contenders:
        contender.action()  # warms up
    for _ in range(repetitions):
        for contender in contenders:
            wall, cpu = time.perf_counter(), time.process_time()
            contender.action()
            contender.seconds.append(time.perf_counter() - wall)
            contender.cpu.append(time.process_time() - cpu)


@contextmanager
def watched(pid: int) -> Iterator[list[float]]:
    """The CPU seconds that a process takes within it, as the only entry of the list once it has ended."""
    seconds: list[float] = []
    before = cpu_seconds(pid)
    yield seconds
    seconds.append(cpu_seconds(pid) - before)


def cpu_seconds(pid: int) -> float:
    spent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, spent)) / os.sysconf("SC_CLK_TCK")
