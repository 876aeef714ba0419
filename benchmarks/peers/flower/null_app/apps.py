"""A ServerApp that notes when each round ends and how much memory it had, and a ClientApp that returns what it gets.

It runs in Flower's environment, deployed or simulated; NULL_CLIENTS, NULL_ROUNDS and NULL_OUT say how many and where to.
"""

import json
import os
import resource
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

SHAPES = [(5, 5, 1, 32), (32,), (5, 5, 32, 64), (64,), (3136, 512), (512,), (512, 10), (10,)]

server = ServerApp()
client = ClientApp()


@server.main()
def main(grid: Grid, _context: Context) -> None:
    """FedAvg over all clients; as JSON the ends of the rounds, after the start as the first, and the process's peak memory."""
    clients, rounds = int(os.environ["NULL_CLIENTS"]), int(os.environ["NULL_ROUNDS"])
    rng = np.random.default_rng(0)
    model = ArrayRecord([rng.normal(0, 0.05, shape).astype(np.float32) for shape in SHAPES])
    ends: list[float] = []
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
    strategy.start(
        grid=grid,
        initial_arrays=model,
        num_rounds=rounds,
        evaluate_fn=lambda _round, _arrays: ends.append(time.time()),
    )
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    found = Path(os.environ["NULL_OUT"])
    found.with_suffix(".part").write_text(json.dumps({"ends": ends, "megabytes": megabytes}))
    found.with_suffix(".part").replace(found)


@client.train()
def train(message: Message, _context: Context) -> Message:
    """The model as it came, as if made from one example."""
    content = RecordDict({"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1.0})})
    return Message(content=content, reply_to=message)
