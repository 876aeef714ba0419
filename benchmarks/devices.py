"""1,000 devices with the numpy learner in four processes, and 200 that train by Keras in two: a round of all, time and memory.

Real server, aggregator and storage; the model is the 2NN (199,210 parameters, updates in int8). MNIST is divided among them;
with Keras they train one local epoch at batch 10, and compile before it. All devices are wanted in each of three rounds, one
after the other; what is timed is from the opening of the second to that of the third.

Memory is the proportional set size of all device processes, the most that was seen until their end. What one more device
takes, with its own examples, is by the difference to a fifth as many devices in the same processes that hold as many examples
each: of 200 each has 300, which are 0.9 MB of float32, of 1,000 it has 60. Two runs' peaks differ by a hundredth anyway: what
is less than that can't be told.

The updates bucket is listed twice a second. However many devices a round has, it may hold no more than twice `save_every`
updates, and two partial sums in float64; that is no aim where all of a round's updates are fewer.

    python benchmarks/devices.py [--part numpy|keras ...] [--devices N] [--rounds 3]
"""

import argparse
import statistics
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from deployments import peak_megabytes, seconds_from_round_to_round
from fedlearn.config import AggregatorSettings
from fedlearn.data.datasets import fetch
from fedlearn.data.partitioners import make_partitioner
from fedlearn.data.shards import cut, write_shard
from fedlearn.local.launcher import Launcher
from fedlearn.local.options import RunOptions
from fedlearn.local.run import submission
from fedlearn.local.seaweed import UPDATES
from results import Figure, show
from turns import cpu_seconds

PARTS: dict[str, tuple[Literal["synthetic", "keras"], int, int]] = {"numpy": ("synthetic", 1000, 4), "keras": ("keras", 200, 2)}
"""The learner, how many devices, and in how many processes."""
SAVE_EVERY: int = AggregatorSettings.model_fields["save_every"].default
PARAMETERS = 199_210  # of the 2NN
_TOLD = 0.01
"""Of all memory: a smaller difference may be chance."""
_LOOK_SECONDS, _PATIENCE_SECONDS = 0.5, 600.0


class Fleet(NamedTuple):
    """What one run showed.

    Args:
        seconds: from round to round.
        megabytes: the most of all device processes together.
        cpu: seconds of the device processes, all rounds.
        stored: the most megabytes that the updates bucket was seen to hold.
        update: those of the largest update in it.
    """

    seconds: float
    rounds: int
    megabytes: float
    cpu: float
    server: float
    aggregator: float
    stored: float
    update: float


def pss_megabytes(pid: int) -> float:
    """The proportional set size: what is shared counts in parts."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(next(line for line in rollup.splitlines() if line.startswith("Pss:")).split()[1]) / 1000


def write_shards(devices: int, among: int, directory: Path) -> Path:
    """MNIST divided `among` devices, of which the first `devices` are written."""
    divided = cut(fetch("mnist").train, make_partitioner("iid", among), np.random.default_rng(0))
    for index, shard in enumerate(islice(divided, devices)):
        write_shard(directory / f"{index:05}", shard)
    return directory


def run(learner: Literal["synthetic", "keras"], shards: Path, devices: int, processes: int, rounds: int) -> Fleet:
    options = RunOptions(
        shards=shards,
        devices=devices,
        processes=processes,
        learner=learner,
        rounds=rounds,
        server_port=0,
        aggregator_port=0,
        storage_port=0,
    )
    with tempfile.TemporaryDirectory() as directory, Launcher(options, Path(directory) / "run", lambda _: None) as launcher:
        launcher.boot()
        pids = [launcher.pid(f"device-{number}") for number in range(processes)]
        task, most, before = f"fleet-{devices}", 0.0, sum(map(cpu_seconds, pids))
        bucket, stored, update = launcher.storage.store("aggregator", UPDATES), 0.0, 0.0
        all_of_them = ["--over-selection", "1.0", "--min-fraction", "1.0", "--selection-timeout-seconds", "300"]
        launcher.run_learner("submit", [*submission(options, task, launcher), *all_of_them])
        until = time.monotonic() + _PATIENCE_SECONDS
        with launcher.client() as client:
            while True:
                most = max(most, sum(map(pss_megabytes, pids)))
                sizes = {found.key: found.size_bytes / 1e6 for found in bucket.list("")}
                stored = max(stored, sum(sizes.values()))
                update = max([update, *(size for key, size in sizes.items() if "/updates/" in key)])
                if client.task(task).state != "running":
                    break
                if time.monotonic() > until:
                    raise TimeoutError(f"{rounds} rounds of {devices} devices have not ended.")
                launcher.check()
                time.sleep(_LOOK_SECONDS)
            views = client.rounds(task)
        reported = [sum(part.standing == "reported" for part in view.participants) for view in views]
        if any(view.phase != "committed" for view in views) or set(reported) != {devices}:
            raise SystemExit(f"not all devices were in each round: {[view.phase for view in views]}, {reported}")
        seconds = statistics.median(seconds_from_round_to_round(views) or [views[-1].seconds])
        peaks = peak_megabytes(launcher.pid("server")), peak_megabytes(launcher.pid("aggregator"))
        return Fleet(seconds, len(views), most, sum(map(cpu_seconds, pids)) - before, *peaks, stored, update)


def figures(part: str, devices: int | None, rounds: int) -> list[Figure]:
    learner, usual, processes = PARTS[part]
    count = devices or usual
    fewer = max(processes, count // 5)
    with tempfile.TemporaryDirectory() as directory:
        few, whole = (
            run(learner, write_shards(number, count, Path(directory) / str(number)), number, processes, rounds)
            for number in (fewer, count)
        )
    most_stored = 2 * (SAVE_EVERY * whole.update + 8 * PARAMETERS / 1e6)
    more, least = whole.megabytes - few.megabytes, _TOLD * whole.megabytes
    told = "memory that one more device takes" if more > least else "memory that one more device takes: less than can be told"
    all_updates = count * whole.update
    return [
        Figure(f"a round of {count:,} devices in {processes} processes, {part}", whole.seconds, "s"),
        Figure("that round's time, for each of its devices", 1000 * whole.seconds / count, "ms"),
        Figure("CPU of the device processes, for each device and round", 1000 * whole.cpu / count / whole.rounds, "ms"),
        Figure(f"memory of the device processes, together, {count:,} devices", whole.megabytes, "MB"),
        Figure(f"memory of the device processes, for each of {count:,} devices", whole.megabytes / count, "MB"),
        Figure(f"memory of the device processes, together, {fewer} devices", few.megabytes, "MB"),
        Figure(told, max(more, least) / (count - fewer), "MB"),
        Figure(f"the server's peak memory, {count:,} devices", whole.server, "MB"),
        Figure(f"the aggregator's peak memory, {count:,} devices", whole.aggregator, "MB"),
        Figure(f"the aggregator's peak memory, {fewer} devices", few.aggregator, "MB"),
        Figure("all updates of a round", all_updates, "MB"),
        held_at_most(whole.stored, round(most_stored), all_updates),
    ]


def held_at_most(stored: float, most: float, all_updates: float) -> Figure:
    """What the bucket held; a bound above all that could ever lie there is no aim, since nothing can miss it."""
    return Figure("the updates bucket held at most", stored, "MB", at_most=most if all_updates > most else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--devices", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    for part in given.part or PARTS:
        print(show(figures(part, given.devices, given.rounds)), flush=True)


if __name__ == "__main__":
    main()
