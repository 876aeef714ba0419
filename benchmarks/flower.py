"""Flower beside ours on this machine, in one run: the sum of the same updates in memory, and rounds without training.

The sum is of updates with the same values and numbers of examples on both sides, and the two results are compared. What is
timed of Flower is `aggregate_arrayrecords`, which its strategies call; its ArrayRecords hold arrays as bytes, and it reads them
while it adds. Ours starts from plain float32 arrays, as opened updates are. So the sum that Flower has for plain arrays
(`flwr.server.strategy.aggregate`) is timed as well. All of them end with the mean. Flower's functions run as they are, in one
thread of numpy; ours adds by a compiled loop on all cores, so it is timed on one core too.

In the rounds Flower's clients return a model of the CNN's size untouched, deployed (a SuperLink, and a SuperNode for each
client, plain HTTP) and simulated (Ray). Flower's and ours take turns. Ours are deployed in both comparisons, over real object
storage, and send random changes, so that nothing compresses away. Memory is the peak of the process that aggregates: Flower's
ServerApp (deployed, and simulated, where it is the process that starts Ray), and our aggregator. Flower lives in an
environment of its own, `.venv-flower`, which `make bench` sets up. In brackets are the least and the most of the turns.

What Flower waits for when it is deployed: it starts a process for each client's task, which took 2.8 CPU seconds each when it
was looked at (Flower 1.41), so that ten of them keep two cores busy for 14 s. Flower simulated keeps its processes, and Ray
hands updates on in memory, in float32. Ours are compared with that twice: in int8, the default, where about one byte a weight
goes up for Flower's four (the model comes down in float32 on both sides), and in float32.

    python benchmarks/flower.py [--flower .venv-flower] [--part sum|deployed|simulated ...] [--out docs/images/flower.png]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from deployments import CNN_SHAPES, peak_megabytes, random_vector, seconds_from_round_to_round, synthetic
from drawing import OURS, THEIRS, bars, canvas, name_colors
from fedlearn.core.aggregation import WeightedSum
from fedlearn.core.updates import Update
from flower_programs import Flower, Rounds
from results import Figure, show
from turns import CORES

PARTS = ("sum", "deployed", "simulated")
PARAMETERS = sum(int(np.prod(shape)) for shape in CNN_SHAPES)
UPDATES, SUM_TURNS, REPETITIONS = 100, 3, 5
DEPLOYED_CLIENTS, DEPLOYED_TURNS = 10, 3
DEPLOYED_ROUNDS, OUR_ROUNDS = 3, 10  # in each turn; a round of Flower's takes 14 to 17 s
SIMULATED = {10: 30, 100: 10}  # clients: rounds, of Flower's and of ours
SIMULATED_TURNS = 3
CODECS = ("int8", "float32")
SAME = 1e-6
"""Means of updates whose values are about 0.05 differ by less; Flower adds in float32, we in float64."""
DEPLOYED, SIMULATED_BESIDE = "deployed, each client a process", "Flower simulated, ours deployed in two processes"
RAY = "Ray hands updates on in this machine's memory; ours are sealed, and go through a real storage on the same two cores"


class Beside:
    """What was measured so far: figures for the table, and what the picture shows."""

    def __init__(self, flower: Flower, directory: Path) -> None:
        self._flower, self._directory = flower, directory
        self.figures = list[Figure]()
        self._seconds: dict[str, dict[str, float]] = {panel: {} for panel in (DEPLOYED, SIMULATED_BESIDE)}
        self._megabytes = dict[str, float]()

    def sum(self) -> None:
        updates = [
            Update(random_vector(PARAMETERS, seed), examples=1 + seed, holdout_examples=0, metrics={})
            for seed in range(UPDATES)
        ]
        size = sum(update.delta.nbytes for update in updates) / 1e9
        theirs, plain, mean = list[float](), list[float](), self._directory / "mean.npy"
        ours, on_one = list[float](), list[float]()
        with ThreadPoolExecutor(CORES) as threads:
            for _ in range(SUM_TURNS):
                theirs.append(size / self._flower.sum(UPDATES, REPETITIONS, mean=mean).seconds)
                plain.append(size / self._flower.sum(UPDATES, REPETITIONS, plain=True).seconds)
                ours.append(size / statistics.median(_sum_seconds(updates, threads) for _ in range(REPETITIONS)))
                on_one.append(size / statistics.median(_sum_seconds(updates, None) for _ in range(REPETITIONS)))
            total = WeightedSum(PARAMETERS)
            total.fold_all(updates, threads, CORES)
        difference = float(np.abs(np.load(mean) - total.mean()).max())

        def rate(what: str, turns: list[float]) -> Figure:
            return Figure(what, statistics.median(turns), "GB/s", between=(min(turns), max(turns)))

        def faster(than: list[float], mine: list[float] = ours) -> float:
            return statistics.median(our / their for our, their in zip(mine, than, strict=True))

        cores, means = f"{CORES} cores" if CORES > 1 else "one core", f"mean of {UPDATES} updates in memory"
        self.figures += [
            rate(f"{means}, Flower, ArrayRecords, one core", theirs),
            rate(f"{means}, Flower, plain arrays, one core", plain),
            rate(f"{means}, ours, plain arrays, in float64, {cores}", ours),
            rate(f"{means}, ours, plain arrays, in float64, one thread", on_one),
            Figure(f"how fast ours is on {cores}, by Flower's of ArrayRecords", faster(theirs), "×", at_least=3),
            Figure(f"how fast ours is on {cores}, by Flower's of plain arrays", faster(plain), "×", at_least=3),
            Figure("how fast ours is in one thread, by Flower's of plain arrays", faster(plain, on_one), "×"),
            Figure("the largest difference between Flower's mean and ours", difference, "", at_most=SAME),
        ]

    def deployed(self) -> None:
        clients, theirs, ours = DEPLOYED_CLIENTS, list[Rounds](), list[Rounds]()
        for _ in range(DEPLOYED_TURNS):
            theirs.append(self._flower.deploy(clients, DEPLOYED_ROUNDS))
            ours.append(our_rounds(clients, processes=clients, codec="float32", rounds=OUR_ROUNDS))
        flower, middle = _middle(theirs), _middle(ours)
        self._note(DEPLOYED, f"Flower deployed, {clients} clients, float32", flower)
        self._note(DEPLOYED, f"ours, {clients} devices in {clients} processes, float32", middle)
        self.figures += [
            _seconds(f"a round of {clients} clients, Flower deployed, float32", theirs),
            _seconds(f"a round of {clients} devices, ours, each a process, float32", ours),
            Figure(
                f"seconds of a round of {clients}, Flower deployed by ours (both float32)",
                1 / _ratio(ours, theirs),
                "×",
                at_least=10,
            ),
            Figure(f"memory of Flower's ServerApp, {clients} clients, deployed", flower.megabytes, "MB"),
            Figure(f"memory of our aggregator, {clients} devices, each a process", middle.megabytes, "MB"),
        ]

    def simulated(self) -> None:
        for clients, rounds in SIMULATED.items():
            theirs, ours = list[Rounds](), {codec: list[Rounds]() for codec in CODECS}
            for _ in range(SIMULATED_TURNS):
                theirs.append(self._flower.simulate(clients, rounds))
                for codec, taken in ours.items():
                    taken.append(our_rounds(clients, processes=2, codec=codec, rounds=rounds))
            flower = _middle(theirs)
            self._note(SIMULATED_BESIDE, f"Flower simulated, {clients} clients, float32", flower)
            self.figures += [
                _seconds(f"a round of {clients} clients, Flower simulated, float32", theirs),
                Figure(f"memory of Flower's ServerApp, {clients} clients, simulated", flower.megabytes, "MB"),
            ]
            for codec, taken in ours.items():
                middle, by_theirs = _middle(taken), _ratio(taken, theirs)
                self._note(SIMULATED_BESIDE, f"ours, {clients} devices in 2 processes, {codec}", middle)
                compared = f"seconds of a round of {clients}, ours ({codec}) by Flower simulated (float32)"
                sent = f"{codec} (Flower sends float32)" if codec != "float32" else codec
                self.figures += [
                    _seconds(f"a round of {clients} devices in two processes, ours, {sent}", taken),
                    Figure(compared, by_theirs, "×", at_most=1.0, why=RAY)
                    if codec == "int8"
                    else Figure(compared, by_theirs, "×", slower_above=1.0, why=RAY),
                    Figure(f"memory of our aggregator, {clients} devices in two processes, {codec}", middle.megabytes, "MB"),
                ]

    def _note(self, panel: str, name: str, rounds: Rounds) -> None:
        self._seconds[panel][name], self._megabytes[name] = rounds

    def draw(self, path: Path) -> None:
        """Deployed and simulated apart: beside the seconds of the one those of the other could not be told."""
        panels = {title: values for title, values in self._seconds.items() if values}
        heights = [1.1 + 0.28 * len(values) for values in (*panels.values(), self._megabytes)]
        if not panels:
            return
        with canvas(path, len(heights), height=sum(heights) / len(heights), shares=heights) as (*of_seconds, of_memory):
            for axis, (title, values) in zip(of_seconds, panels.items(), strict=True):
                bars(axis, values, _colors(values), "seconds a round, without training")
                axis.set_title(title)
            bars(of_memory, self._megabytes, _colors(self._megabytes), "MB at most of the process that aggregates", "{:,.0f}")
            of_memory.set_title("peak memory")
            name_colors(of_seconds[0], {"Flower": THEIRS, "fedlearn": OURS})


def _colors(names: Iterable[str]) -> list[str]:
    return [THEIRS if name.startswith("Flower") else OURS for name in names]


def _seconds(what: str, turns: Sequence[Rounds]) -> Figure:
    seconds = [turn.seconds for turn in turns]
    return Figure(what, statistics.median(seconds), "s", between=(min(seconds), max(seconds)))


def _middle(turns: Sequence[Rounds]) -> Rounds:
    """The medians of several turns."""
    seconds, megabytes = zip(*turns, strict=True)
    return Rounds(statistics.median(seconds), statistics.median(megabytes))


def _ratio(ours: Sequence[Rounds], theirs: Sequence[Rounds]) -> float:
    """The median over turns of our seconds by theirs."""
    return statistics.median(our.seconds / their.seconds for our, their in zip(ours, theirs, strict=True))


def _sum_seconds(updates: Sequence[Update], threads: ThreadPoolExecutor | None) -> float:
    """To the mean, as Flower's go; without threads in this one."""
    began = time.perf_counter()
    total = WeightedSum(PARAMETERS)
    total.fold_all(updates, threads, CORES)
    total.mean()
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
    if asked.out:
        beside.draw(asked.out)


if __name__ == "__main__":
    main()
