"""Flower beside ours on this machine, in one run: the sum of the same updates in memory, and rounds without training.

Flower's clients return a model of the CNN's size untouched, deployed (a SuperLink and a SuperNode for each client, plain HTTP)
and simulated (Ray), in turns with ours. Ours are deployed in both comparisons, over real object storage, and send random
changes, so that nothing compresses away. Memory is the peak of the process that aggregates: Flower's ServerApp (deployed, and
simulated, where it is the process that starts Ray), and our aggregator. Flower lives in an environment of its own,
`.venv-flower`, which `make bench` sets up.

    python benchmarks/flower.py [--flower .venv-flower] [--part sum|deployed|simulated ...] [--out docs/images/flower.png]
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from deployments import CNN_SHAPES, peak_megabytes, random_vector, seconds_from_round_to_round, synthetic
from drawing import OURS, THEIRS, bars, canvas
from fedlearn.core.aggregation import WeightedSum
from fedlearn.core.updates import Update
from flower_programs import Flower, Rounds
from results import Figure, show

CORES = len(os.sched_getaffinity(0))
PARTS = ("sum", "deployed", "simulated")
PARAMETERS = sum(int(np.prod(shape)) for shape in CNN_SHAPES)
UPDATES, TURNS = 100, 5
DEPLOYED_CLIENTS, DEPLOYED_ROUNDS = 10, 5
SIMULATED = {10: 30, 100: 6}  # clients: rounds, of Flower's and of ours
SIMULATED_TURNS = 3
CODECS = ("int8", "float32")
ROUNDS = 10


class Beside:
    """What was measured so far: figures for the table, and what the picture shows."""

    def __init__(self, flower: Flower) -> None:
        self._flower = flower
        self.figures = list[Figure]()
        self.seconds, self.megabytes = dict[str, float](), dict[str, float]()

    def sum(self) -> None:
        updates = [
            Update(random_vector(PARAMETERS, seed), examples=1 + seed, holdout_examples=0, metrics={})
            for seed in range(UPDATES)
        ]
        size = sum(update.delta.nbytes for update in updates) / 1e9
        theirs, ours = list[float](), list[float]()
        with ThreadPoolExecutor(CORES) as threads:
            for _ in range(3):
                theirs.append(size / self._flower.sum_seconds(UPDATES, TURNS))
                ours.append(size / statistics.median(_sum_seconds(updates, threads) for _ in range(TURNS)))
        ratio = statistics.median(our / their for our, their in zip(ours, theirs, strict=True))
        self.figures += [
            Figure(f"{UPDATES} updates in memory, Flower", statistics.median(theirs), "GB/s"),
            Figure("ours, float64", statistics.median(ours), "GB/s"),
            Figure("how fast it is, ours by Flower's", ratio, "×", at_least=3),
        ]

    def deployed(self) -> None:
        clients = DEPLOYED_CLIENTS
        theirs = self._flower.deploy(clients, DEPLOYED_ROUNDS)
        ours = our_rounds(clients, processes=clients, codec="float32", rounds=ROUNDS)
        self._note(f"Flower deployed, {clients} clients", theirs)
        self._note(f"ours, {clients} devices in {clients} processes", ours)
        self.figures += [
            Figure(f"a round of {clients} clients, Flower deployed", theirs.seconds, "s"),
            Figure("ours, each device a process, float32", ours.seconds, "s"),
            Figure("how long it takes deployed, Flower's by ours", theirs.seconds / ours.seconds, "×", at_least=10),
            Figure("memory of Flower's ServerApp", theirs.megabytes, "MB"),
            Figure("memory of our aggregator", ours.megabytes, "MB"),
        ]

    def simulated(self) -> None:
        for clients, rounds in SIMULATED.items():
            theirs, ours = list[Rounds](), {codec: list[Rounds]() for codec in CODECS}
            for _ in range(SIMULATED_TURNS):
                theirs.append(self._flower.simulate(clients, rounds))
                for codec, taken in ours.items():
                    taken.append(our_rounds(clients, processes=2, codec=codec, rounds=rounds))
            flower = _middle(theirs)
            self._note(f"Flower simulated, {clients} clients", flower)
            self.figures += [
                Figure(f"a round of {clients} clients, Flower simulated", flower.seconds, "s"),
                Figure("memory of Flower's ServerApp", flower.megabytes, "MB"),
            ]
            for codec, taken in ours.items():
                middle = _middle(taken)
                ratio = statistics.median(our.seconds / their.seconds for our, their in zip(taken, theirs, strict=True))
                self._note(f"ours, {clients} devices in 2 processes, {codec}", middle)
                self.figures += [
                    Figure(f"ours, {clients} devices deployed in two processes, {codec}", middle.seconds, "s"),
                    Figure(
                        f"how long {clients} clients take, {codec}, ours by Flower's simulated",
                        ratio,
                        "×",
                        at_most=1.0 if codec == "int8" else None,
                    ),
                    Figure("memory of our aggregator", middle.megabytes, "MB"),
                ]

    def _note(self, name: str, rounds: Rounds) -> None:
        self.seconds[name], self.megabytes[name] = rounds

    def draw(self, path: Path) -> None:
        colors = [THEIRS if name.startswith("Flower") else OURS for name in self.seconds]
        with canvas(path, 2, height=1.0 + 0.26 * len(colors)) as (seconds, megabytes):
            bars(seconds, self.seconds, colors, "seconds a round, without training")
            bars(megabytes, self.megabytes, colors, "peak memory of the process that aggregates, MB", "%.0f")


def _middle(turns: Sequence[Rounds]) -> Rounds:
    """The medians of several turns."""
    seconds, megabytes = zip(*turns, strict=True)
    return Rounds(statistics.median(seconds), statistics.median(megabytes))


def _sum_seconds(updates: Sequence[Update], threads: ThreadPoolExecutor) -> float:
    began = time.perf_counter()
    WeightedSum(PARAMETERS).fold_all(updates, threads, CORES)
    return time.perf_counter() - began


def our_rounds(devices: int, processes: int, codec: str, rounds: int) -> Rounds:
    with synthetic(devices, processes) as deployment:
        views = deployment.run(f"beside-flower-{codec}", devices, rounds, codec=codec)
        seconds = statistics.median(seconds_from_round_to_round(views))
        return Rounds(seconds, peak_megabytes(deployment.pid("aggregator")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flower", type=Path, default=Path(".venv-flower"), help="an environment with flwr[simulation]")
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--out", type=Path, help="a picture of seconds and memory")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        beside = Beside(Flower(asked.flower, Path(directory)))
        for part in asked.part or PARTS:
            shown = len(beside.figures)
            {"sum": beside.sum, "deployed": beside.deployed, "simulated": beside.simulated}[part]()
            print(show(beside.figures[shown:]), flush=True)
    if asked.out and beside.seconds:
        beside.draw(asked.out)


if __name__ == "__main__":
    main()
