"""Flower's own programs, in an environment of their own: its sum in memory, its simulation, and a SuperLink with SuperNodes."""

import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from fedlearn.local.ports import free_port

APP = Path(__file__).parent / "peers" / "flower"
_LONGEST_SECONDS = 900.0


class Rounds(NamedTuple):
    """The seconds of a round, the median without the first, and the peak memory of the process that aggregates, in MB."""

    seconds: float
    megabytes: float


class Sum(NamedTuple):
    """The seconds of a sum, the median of its turns, and the peak memory above what the process had before, in MB."""

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

    def versions(self) -> str:
        """Flower's own, and of the Ray that it simulates with."""
        ask = 'import importlib.metadata as m; print(f\'Flower {m.version("flwr")} and Ray {m.version("ray")}\')'
        return subprocess.run([self.bin / "python", "-c", ask], check=True, capture_output=True, text=True).stdout.strip()

    def sum(self, updates: int, turns: int, *, plain: bool = False, mean: Path | None = None) -> Sum:
        """Of so many updates, by one process.

        Args:
            plain: as plain arrays, not as Flower's records.
            mean: a file for the result, as numpy writes a vector.
        """
        command = [str(self.bin / "python"), str(APP / "aggregate.py"), str(updates), str(turns)]
        command += [*(["--plain"] if plain else []), *(["--mean", str(mean)] if mean else [])]
        printed = subprocess.run(command, env=self._environ, check=True, stdout=subprocess.PIPE, text=True).stdout
        found = json.loads(printed)
        return Sum(statistics.median(found["seconds"]), found["megabytes"])

    def simulate(self, clients: int, rounds: int) -> Rounds:
        """On the simulation engine."""
        out = self._directory / f"simulated-{clients}.json"
        out.unlink(missing_ok=True)  # an earlier turn's
        with (self._directory / f"simulated-{clients}.log").open("w") as log:
            environ = self._environ | _asked(clients, rounds, out)
            command = [self.bin / "python", APP / "simulate.py"]
            subprocess.run(command, env=environ, check=True, stdout=log, stderr=log, timeout=_LONGEST_SECONDS)
        return _rounds(out)

    def deploy(self, clients: int, rounds: int) -> Rounds:
        """A SuperLink with as many SuperNodes."""
        out, port = self._directory / "deployed.json", free_port()
        out.unlink(missing_ok=True)  # an earlier turn's
        link = f"127.0.0.1:{port}"
        connection = f'[superlink]\ndefault = "bench"\n[superlink.bench]\naddress = "{link}"\ninsecure = true\n'
        (self._home / "config.toml").write_text(connection)
        with ExitStack() as running:
            at = ["--insecure", "--host", "127.0.0.1"]
            environ = self._environ | _asked(clients, rounds, out)
            running.enter_context(self._program("superlink", environ, "flower-superlink", *at, "--port", str(port)))
            _wait_for(port)
            for number in range(clients):
                node = ["flower-supernode", *at, "--superlink", link, "--port", str(free_port())]
                running.enter_context(self._program(f"supernode-{number}", environ, *node))
            app = self._directory / "app"
            shutil.copytree(APP, app, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
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


def _rounds(out: Path) -> Rounds:
    found = json.loads(out.read_text())
    start_and_ends = found["ends"]
    return Rounds(statistics.median(later - earlier for earlier, later in pairwise(start_and_ends[1:])), found["megabytes"])


def _wait_for(port: int) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise TimeoutError("Flower's SuperLink does not listen.")
