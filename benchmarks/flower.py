"""Flower beside ours on this machine, in one run: the sum of the same updates in memory, and rounds without training.

Flower's clients return a model of the CNN's size untouched, deployed (a SuperLink and a SuperNode for each client, plain HTTP)
and simulated (Ray), in turns with ours. Ours are deployed in both comparisons, over real object storage, and send random
changes, so that nothing compresses away. Memory is the peak of the process that aggregates: Flower's ServerApp (deployed, and
simulated, where it is the process that starts Ray), and our aggregator. Flower lives in an environment of its own,
`.venv-flower`, which `make bench` sets up.

    python benchmarks/flower.py [--flower .venv-flower] [--part sum|deployed|simulated ...] [--out docs/images/flower.png]
"""

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deployments import CNN_SHAPES, peak_megabytes, random_vector, seconds_from_round_to_round, synthetic
from drawing import OURS, THEIRS, bars, canvas
from fedlearn.core.aggregation import WeightedSum
from fedlearn.core.updates import Update
from results import Figure, show

CORES = len(os.sched_getaffinity(0))
PARTS = ("sum", "deployed", "simulated")
APP = Path(__file__).parent / "peers" / "flower"
PARAMETERS = sum(int(np.prod(shape)) for shape in CNN_SHAPES)
UPDATES, TURNS = 100, 5
DEPLOYED_CLIENTS, DEPLOYED_ROUNDS = 10, 5
SIMULATED = {10: 10, 100: 5}
SIMULATED_TURNS = 3
CODECS = ("int8", "float32")
ROUNDS = 10
_LONGEST_SECONDS = 900.0


class Rounds(NamedTuple):
    """The seconds of a round, the median without the first, and the peak memory of the process that aggregates, in MB."""

    seconds: float
    megabytes: float


class Flower:
    """Flower's programs, and a directory for what they write."""

    def __init__(self, environment: Path, directory: Path) -> None:
        self.bin, self._directory = environment.resolve() / "bin", directory
        home = directory / "flwr"
        home.mkdir()
        self._environ = os.environ | {
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(APP),
        }
        self._home = home

    def sum_seconds(self) -> float:
        """The median of one process's turns."""
        command = [self.bin / "python", APP / "aggregate.py", str(UPDATES), str(TURNS)]
        printed = subprocess.run(command, env=self._environ, check=True, capture_output=True, text=True).stdout
        return statistics.median(json.loads(printed)["seconds"])

    def simulate(self, clients: int, rounds: int) -> "Rounds":
        """On the simulation engine."""
        out = self._directory / f"simulated-{clients}.json"
        with (self._directory / f"simulated-{clients}.log").open("w") as log:
            environ = self._environ | _asked(clients, rounds, out)
            command = [self.bin / "python", APP / "simulate.py"]
            subprocess.run(command, env=environ, check=True, stdout=log, stderr=log, timeout=_LONGEST_SECONDS)
        return _rounds(out)

    def deploy(self, clients: int, rounds: int) -> "Rounds":
        """A SuperLink with as many SuperNodes."""
        out, port = self._directory / "deployed.json", _free_port()
        link = f"127.0.0.1:{port}"
        connection = f'[superlink]\ndefault = "bench"\n[superlink.bench]\naddress = "{link}"\ninsecure = true\n'
        (self._home / "config.toml").write_text(connection)
        with ExitStack() as running:
            at = ["--insecure", "--host", "127.0.0.1"]
            environ = self._environ | _asked(clients, rounds, out)
            running.enter_context(self._program("superlink", environ, "flower-superlink", *at, "--port", str(port)))
            _wait_for(port)
            for number in range(clients):
                node = ["flower-supernode", *at, "--superlink", link, "--port", str(_free_port())]
                running.enter_context(self._program(f"supernode-{number}", environ, *node))
            app = self._directory / "app"
            shutil.copytree(APP, app, ignore=shutil.ignore_patterns("__pycache__"))
            subprocess.run([self.bin / "flwr", "run", app, "bench"], env=environ, check=True, capture_output=True, timeout=120)
            until = time.monotonic() + _LONGEST_SECONDS
            while not out.exists():
                if time.monotonic() > until:
                    raise TimeoutError("Flower's rounds have not ended.")
                time.sleep(0.5)
        return _rounds(out)

    @contextmanager
    def _program(self, name: str, environ: dict[str, str], *command: str) -> Iterator[None]:
        with (self._directory / f"{name}.log").open("w") as log:
            process = subprocess.Popen(command, env=environ, stdout=log, stderr=log, start_new_session=True)
            try:
                yield
            finally:
                os.killpg(process.pid, signal.SIGTERM)
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)


def _middle(turns: Sequence[Rounds]) -> Rounds:
    """The medians of several turns."""
    seconds, megabytes = zip(*turns, strict=True)
    return Rounds(statistics.median(seconds), statistics.median(megabytes))


def _asked(clients: int, rounds: int, out: Path) -> dict[str, str]:
    return {"NULL_CLIENTS": str(clients), "NULL_ROUNDS": str(rounds), "NULL_OUT": str(out)}


def _rounds(out: Path) -> Rounds:
    found = json.loads(out.read_text())
    start_and_ends = found["ends"]
    return Rounds(statistics.median(later - earlier for earlier, later in pairwise(start_and_ends[1:])), found["megabytes"])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise TimeoutError("Flower's SuperLink does not listen.")


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
                theirs.append(size / self._flower.sum_seconds())
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
        ours = our_rounds(clients, processes=clients, codec="float32")
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
                    taken.append(our_rounds(clients, processes=2, codec=codec))
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


def _sum_seconds(updates: Sequence[Update], threads: ThreadPoolExecutor) -> float:
    began = time.perf_counter()
    WeightedSum(PARAMETERS).fold_all(updates, threads, CORES)
    return time.perf_counter() - began


def our_rounds(devices: int, processes: int, codec: str) -> Rounds:
    with synthetic(devices, processes) as deployment:
        views = deployment.run(f"beside-flower-{codec}", devices, ROUNDS, codec=codec)
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
