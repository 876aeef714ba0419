"""Flower beside ours on this machine, in one run: the sum of the same updates in memory, and rounds without training.

The sum is of updates with the same values and numbers of examples on both sides, and the two results are compared. What is
timed of Flower is `aggregate_arrayrecords`, which its strategies call; its ArrayRecords hold arrays as bytes, and it reads them
while it adds. Ours starts from plain float32 arrays, as opened updates are. So the sum that Flower has for plain arrays
(`flwr.server.strategy.aggregate`) is timed as well.

In the rounds Flower's clients return a model of the CNN's size untouched, deployed (a SuperLink, and a SuperNode for each
client, plain HTTP) and simulated (Ray). Flower's and ours take turns. Ours are deployed in both comparisons, over real object
storage, and send random changes, so that nothing compresses away. Memory is the peak of the process that aggregates: Flower's
ServerApp (deployed, and simulated, where it is the process that starts Ray), and our aggregator. Flower lives in an
environment of its own, `.venv-flower`, which `make bench` sets up.

    python benchmarks/flower.py [--flower .venv-flower] [--part sum|deployed|simulated ...] [--out docs/images/flower.png]
"""

import argparse
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
from turns import CORES

PARTS = ("sum", "deployed", "simulated")
PARAMETERS = sum(int(np.prod(shape)) for shape in CNN_SHAPES)
UPDATES, SUM_TURNS, REPETITIONS = 100, 3, 5
DEPLOYED_CLIENTS, DEPLOYED_TURNS = 10, 2
DEPLOYED_ROUNDS, OUR_ROUNDS = 3, 10  # in each turn; a round of Flower's takes 14 s
SIMULATED = {10: 30, 100: 6}  # clients: rounds, of Flower's and of ours
SIMULATED_TURNS = 3
CODECS = ("int8", "float32")
SAME = 1e-6
"""Means of updates whose values are about 0.05 differ by less; Flower adds in float32, we in float64."""
RAY = "Ray hands updates on in this machine's memory; ours are sealed, and go through a real storage on the same two cores"


class Beside:
    """What was measured so far: figures for the table, and what the picture shows."""

    def __init__(self, flower: Flower, directory: Path) -> None:
        self._flower, self._directory = flower, directory
        self.figures = list[Figure]()
        self.seconds, self.megabytes = dict[str, float](), dict[str, float]()

    def sum(self) -> None:
        updates = [
            Update(random_vector(PARAMETERS, seed), examples=1 + seed, holdout_examples=0, metrics={})
            for seed in range(UPDATES)
        ]
        size = sum(update.delta.nbytes for update in updates) / 1e9
        theirs, plain, ours, mean = list[float](), list[float](), list[float](), self._directory / "mean.npy"
        with ThreadPoolExecutor(CORES) as threads:
            for _ in range(SUM_TURNS):
                theirs.append(size / self._flower.sum(UPDATES, REPETITIONS, mean=mean).seconds)
                plain.append(size / self._flower.sum(UPDATES, REPETITIONS, plain=True).seconds)
                ours.append(size / statistics.median(_sum_seconds(updates, threads) for _ in range(REPETITIONS)))
            total = WeightedSum(PARAMETERS)
            total.fold_all(updates, threads, CORES)
        difference = float(np.abs(np.load(mean) - total.mean()).max())

        def faster(than: list[float]) -> float:
            return statistics.median(our / their for our, their in zip(ours, than, strict=True))

        self.figures += [
            Figure(f"{UPDATES} updates in memory, Flower, ArrayRecords", statistics.median(theirs), "GB/s"),
            Figure("Flower, plain arrays", statistics.median(plain), "GB/s"),
            Figure("ours, plain arrays, in float64", statistics.median(ours), "GB/s"),
            Figure("how fast it is, ours by Flower's of ArrayRecords", faster(theirs), "×", at_least=3),
            Figure("how fast it is, ours by Flower's of plain arrays", faster(plain), "×", at_least=3),
            Figure("the largest difference between Flower's mean and ours", difference, "", at_most=SAME),
        ]

    def deployed(self) -> None:
        clients, theirs, ours = DEPLOYED_CLIENTS, list[Rounds](), list[Rounds]()
        for _ in range(DEPLOYED_TURNS):
            theirs.append(self._flower.deploy(clients, DEPLOYED_ROUNDS))
            ours.append(our_rounds(clients, processes=clients, codec="float32", rounds=OUR_ROUNDS))
        flower, middle = _middle(theirs), _middle(ours)
        self._note(f"Flower deployed, {clients} clients", flower)
        self._note(f"ours, {clients} devices in {clients} processes", middle)
        self.figures += [
            Figure(f"a round of {clients} clients, Flower deployed", flower.seconds, "s"),
            Figure("ours, each device a process, float32", middle.seconds, "s"),
            Figure("how long it takes deployed, Flower's by ours", 1 / _ratio(ours, theirs), "×", at_least=10),
            Figure("memory of Flower's ServerApp", flower.megabytes, "MB"),
            Figure("memory of our aggregator", middle.megabytes, "MB"),
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
                self._note(f"ours, {clients} devices in 2 processes, {codec}", middle)
                self.figures += [
                    Figure(f"ours, {clients} devices deployed in two processes, {codec}", middle.seconds, "s"),
                    Figure(
                        f"how long {clients} clients take, {codec}, ours by Flower's simulated",
                        _ratio(taken, theirs),
                        "×",
                        at_most=1.0 if codec == "int8" else None,
                        why=RAY,
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


def _ratio(ours: Sequence[Rounds], theirs: Sequence[Rounds]) -> float:
    """The median over turns of our seconds by theirs."""
    return statistics.median(our.seconds / their.seconds for our, their in zip(ours, theirs, strict=True))


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
        flower = Flower(asked.flower, Path(directory))
        beside = Beside(flower, Path(directory))
        print(f"{flower.versions()}.\n", flush=True)
        for part in asked.part or PARTS:
            shown = len(beside.figures)
            {"sum": beside.sum, "deployed": beside.deployed, "simulated": beside.simulated}[part]()
            print(show(beside.figures[shown:]), flush=True)
    if asked.out and beside.seconds:
        beside.draw(asked.out)


if __name__ == "__main__":
    main()
