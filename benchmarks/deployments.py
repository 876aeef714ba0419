"""A deployment with synthetic devices and a plan of the CNN's size, for benchmarks of the system without training."""

import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedlearn.core.learning import Examples, Shard
from fedlearn.data.shards import write_shard
from fedlearn.local.launcher import Launcher
from fedlearn.local.options import RunOptions
from fedlearn.protocol.plans import Plan
from fedlearn.protocol.tensors import encode_model, unflatten
from fedlearn.protocol.views import Policy, RoundView

CNN_SHAPES = [(5, 5, 1, 32), (32,), (5, 5, 32, 64), (64,), (3136, 512), (512,), (512, 10), (10,)]
"""The weights of McMahan's CNN: 1,663,370 float32."""


_DATASET = "noise"  # not one that has a test set, so that no evaluator scores what nobody has trained
_EXAMPLES, _HOLDOUT = 100, 10


def cnn_plan(codec: str = "float32") -> Plan:
    dense: dict[str, Any] = {"module": "keras.layers", "class_name": "Dense", "config": {}, "registered_name": None}
    architecture = {"module": "keras", "class_name": "Sequential", "config": {"layers": [dense]}}
    return Plan.model_validate(
        {
            "dataset": _DATASET,
            "architecture": architecture,
            "update": {"encoding": codec},
            "weights": [{"shape": shape} for shape in CNN_SHAPES],
        }
    )


def random_vector(parameters: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.05, parameters).astype(np.float32)


_LOOK_SECONDS = 1.0  # seldom, since looking takes from the cores that are measured


@dataclass(frozen=True)
class Deployment:
    launcher: Launcher

    def run(self, task: str, devices: int, rounds: int, codec: str = "float32") -> list[RoundView]:
        """Run a task of random updates to its end, and return its rounds."""
        plan = cnn_plan(codec)
        with self.launcher.client() as client:
            model = encode_model(unflatten(random_vector(plan.parameters, 0), plan), plan)
            client.submit(task, plan, model, policy=Policy(goal=devices, min_fraction=1.0), rounds=rounds)
            while client.task(task).state == "running":
                self.launcher.check()
                time.sleep(_LOOK_SECONDS)
            return client.rounds(task)

    def pid(self, name: str) -> int:
        return self.launcher.pid(name)


@contextmanager
def synthetic(devices: int, processes: int) -> Iterator[Deployment]:
    """`devices` synthetic devices in so many processes, with everything that a run has but an evaluator."""
    with tempfile.TemporaryDirectory() as directory:
        shards = Path(directory) / "shards"
        for number in range(devices):
            write_shard(shards / f"{number:04}", Shard(_blank(_EXAMPLES), _blank(_HOLDOUT)))
        options = RunOptions(
            dataset=_DATASET,
            shards=shards,
            devices=devices,
            processes=processes,
            learner="synthetic",
            server_port=0,
            aggregator_port=0,
            storage_port=0,
        )
        with Launcher(options, Path(directory) / "run", lambda _: None) as launcher:
            launcher.boot()
            yield Deployment(launcher)


def _blank(examples: int) -> Examples:
    return Examples(np.zeros((examples, 28, 28), np.uint8), np.zeros(examples, np.uint8))


def peak_megabytes(pid: int) -> float:
    """The most memory that a process has had."""
    return memory_megabytes("VmHWM", pid)


def memory_megabytes(what: str, pid: int | str = "self") -> float:
    """Linux' VmRSS (now) or VmHWM (the most so far) of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(what)).split()[1]) / 1000


def seconds_from_round_to_round(rounds: list[RoundView]) -> list[float]:
    """From the opening of each round to that of the next, the first (which warms up) left out."""
    opened = [round_.opened_at.timestamp() for round_ in rounds]
    return [later - earlier for earlier, later in itertools.pairwise(opened[1:])]


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} s (from {min(values):.3f} to {max(values):.3f}, n = {len(values)})"
