"""Flower's own sum of updates in memory: `python aggregate.py UPDATES TURNS [--plain] [--mean FILE]`, in its environment.

It prints as JSON each turn's seconds, and the peak memory in MB above what the process had before the first update. With
`--plain` the updates are plain arrays and the sum is `flwr.server.strategy.aggregate`, without it they are ArrayRecords, which
hold their arrays as bytes, and the sum is what Flower's strategies call.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from flwr.server.strategy.aggregate import aggregate
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from null_app.apps import SHAPES

Arrays = list[np.ndarray]


def update(number: int) -> Arrays:
    """The same values as those of update `number` in benchmarks/flower.py."""
    sizes = [int(np.prod(shape)) for shape in SHAPES]
    vector = np.random.default_rng(number).normal(0, 0.05, sum(sizes)).astype(np.float32)
    pieces = np.split(vector, np.cumsum(sizes)[:-1])
    return [piece.reshape(shape).copy() for piece, shape in zip(pieces, SHAPES, strict=True)]


def of_plain(updates: int) -> Callable[[], Arrays]:
    results = [(update(number), 1 + number) for number in range(updates)]
    return lambda: aggregate(results)


def of_records(updates: int) -> Callable[[], Arrays]:
    records = [
        RecordDict({"arrays": ArrayRecord(update(number)), "metrics": MetricRecord({"num-examples": float(1 + number)})})
        for number in range(updates)
    ]
    return lambda: aggregate_arrayrecords(records, "num-examples")  # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("updates", type=int)
    parser.add_argument("turns", type=int)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--mean", type=Path, help="where the last turn's result goes, as one vector")
    given = parser.parse_args()
    status = Path("/proc/self/status").read_text()
    before = int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])
    add, seconds, found = (of_plain if given.plain else of_records)(given.updates), [], None
    for _ in range(given.turns):
        began = time.perf_counter()
        found = add()
        seconds.append(time.perf_counter() - began)
    megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000
    if given.mean is not None and found is not None:
        arrays = found if given.plain else found.to_numpy_ndarrays()
        np.save(given.mean, np.concatenate([array.reshape(-1) for array in arrays]))
    print(json.dumps({"seconds": seconds, "megabytes": megabytes}))


if __name__ == "__main__":
    main()
