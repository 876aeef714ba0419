"""Flower's own sum of updates that lie in memory: prints each turn's seconds and the peak memory, in Flower's environment."""

import json
import resource
import sys
import time

import numpy as np
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from null_app.apps import SHAPES

if __name__ == "__main__":
    updates, turns = int(sys.argv[1]), int(sys.argv[2])
    rng = np.random.default_rng(0)
    records = [
        RecordDict(
            {
                "arrays": ArrayRecord([rng.normal(0, 0.05, shape).astype(np.float32) for shape in SHAPES]),
                "metrics": MetricRecord({"num-examples": float(1 + number)}),
            }
        )
        for number in range(updates)
    ]
    seconds = []
    for _ in range(turns):
        began = time.perf_counter()
        aggregate_arrayrecords(records, "num-examples")
        seconds.append(time.perf_counter() - began)
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    print(json.dumps({"seconds": seconds, "megabytes": megabytes}))
