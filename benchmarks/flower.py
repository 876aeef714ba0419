"""Flower beside ours on this machine, in one run: the sum of the same updates in memory, and rounds without training.

Flower's clients return a model of the CNN's size untouched, deployed (a SuperLink and a SuperNode for each client, plain HTTP)
and simulated (Ray). Ours are deployed in both comparisons, over real object storage, and send random changes, so that nothing
compresses away. Flower lives in an environment of its own, `.venv-flower`, which `make bench` sets up.

    python benchmarks/flower.py [--flower .venv-flower] [--part sum|deployed|simulated ...] [--json FILE]
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

import numpy as np

from deployments import CNN_SHAPES, random_vector, seconds_from_round_to_round, synthetic
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
ROUNDS = 10
_LONGEST_SECONDS = 900.0


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
        return statistics.median(json.loads(printed))

    def simulate(self, clients: int, rounds: int) -> list[float]:
        """The seconds of each round on the simulation engine, the first left out."""
        out = self._directory / f"simulated-{clients}.json"
        with (self._directory / f"simulated-{clients}.log").open("w") as log:
            environ = self._environ | _asked(clients, rounds, out)
            command = [self.bin / "python", APP / "simulate.py"]
            subprocess.run(command, env=environ, check=True, stdout=log, stderr=log, timeout=_LONGEST_SECONDS)
        return _rounds(out)

    def deploy(self, clients: int, rounds: int) -> list[float]:
        """The seconds of each round of a SuperLink with as many SuperNodes, the first left out."""
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


def _asked(clients: int, rounds: int, out: Path) -> dict[str, str]:
    return {"NULL_CLIENTS": str(clients), "NULL_ROUNDS": str(rounds), "NULL_OUT": str(out)}


def _rounds(out: Path) -> list[float]:
    start_and_ends = json.loads(out.read_text())
    return [later - earlier for earlier, later in pairwise(start_and_ends[1:])]


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


def sums(flower: Flower) -> list[Figure]:
    updates = [
        Update(random_vector(PARAMETERS, seed), examples=1 + seed, holdout_examples=0, metrics={}) for seed in range(UPDATES)
    ]
    size = sum(update.delta.nbytes for update in updates) / 1e9
    theirs, ours = list[float](), list[float]()
    with ThreadPoolExecutor(CORES) as threads:
        for _ in range(3):
            theirs.append(size / flower.sum_seconds())
            ours.append(size / statistics.median(_sum_seconds(updates, threads) for _ in range(TURNS)))
    ratio = statistics.median(our / their for our, their in zip(ours, theirs, strict=True))
    return [
        Figure(f"{UPDATES} updates in memory, Flower", statistics.median(theirs), "GB/s"),
        Figure("ours, float64", statistics.median(ours), "GB/s"),
        Figure("ours by Flower's", ratio, "×", at_least=3),
    ]


def _sum_seconds(updates: Sequence[Update], threads: ThreadPoolExecutor) -> float:
    began = time.perf_counter()
    WeightedSum(PARAMETERS).fold_all(updates, threads, CORES)
    return time.perf_counter() - began


def deployed(flower: Flower) -> list[Figure]:
    theirs = flower.deploy(DEPLOYED_CLIENTS, DEPLOYED_ROUNDS)
    ours = our_rounds(DEPLOYED_CLIENTS, processes=DEPLOYED_CLIENTS, codec="float32")
    return [
        Figure(f"a round of {DEPLOYED_CLIENTS} clients, Flower deployed", statistics.median(theirs), "s"),
        Figure("ours, each device a process, float32", statistics.median(ours), "s"),
        Figure("Flower's by ours", statistics.median(theirs) / statistics.median(ours), "×", at_least=10),
    ]


def simulated(flower: Flower) -> list[Figure]:
    figures = []
    for clients, rounds in SIMULATED.items():
        theirs = statistics.median(flower.simulate(clients, rounds))
        figures.append(Figure(f"a round of {clients} clients, Flower simulated", theirs, "s"))
        for codec, most in (("int8", 1.0), ("float32", None)):
            ours = statistics.median(our_rounds(clients, processes=2, codec=codec))
            figures += [
                Figure(f"ours, deployed in two device processes, {codec}", ours, "s"),
                Figure("ours by Flower's", ours / theirs, "×", at_most=most),
            ]
    return figures


def our_rounds(devices: int, processes: int, codec: str) -> list[float]:
    with synthetic(devices, processes) as deployment:
        return seconds_from_round_to_round(deployment.run(f"beside-flower-{codec}", devices, ROUNDS, codec=codec))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flower", type=Path, default=Path(".venv-flower"), help="an environment with flwr[simulation]")
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    figures = list[Figure]()
    with tempfile.TemporaryDirectory() as directory:
        flower = Flower(asked.flower, Path(directory))
        for part in asked.part or PARTS:
            figures += {"sum": sums, "deployed": deployed, "simulated": simulated}[part](flower)
    print(show(figures))
    if asked.json:
        asked.json.write_text(json.dumps([figure._asdict() for figure in figures], indent=2) + "\n")


if __name__ == "__main__":
    main()
