"""Five devices train the 2NN with a part of a core each, one with a fifth of the others': a round's seconds, what is learned.

Three tasks, one after the other on the same devices: all equally fast; one slow, all the plan's steps for everybody; one slow,
and the server may give it less, for five rounds more. A task's first round builds its model, and is where the server measures
the devices.
"""

import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from deployments import spread
from fedlearn.learning.models import build, get_weights, make_plan
from fedlearn.local.launcher import Launcher
from fedlearn.local.options import RunOptions
from fedlearn.protocol.plans import LocalTraining
from fedlearn.protocol.tensors import encode_model
from fedlearn.protocol.views import Policy

DEVICES, ROUNDS, SLOWER = 5, 10, 5
CORES, PERIOD_MICROSECONDS = 0.15, 100_000
LEAST = 0.1
_LOOK_SECONDS = 1.0  # seldom, since looking takes from the cores that are measured


class Limit:
    """A control group with so many cores for one process, as Kubernetes makes of a CPU limit. It takes root, and Linux."""

    def __init__(self, pid: int, cores: float) -> None:
        root = Path("/sys/fs/cgroup")
        self._version_2 = (root / "cgroup.controllers").exists()
        self._group = (root if self._version_2 else root / "cpu") / f"fedlearn-benchmark-{pid}"
        self._group.mkdir()
        self.set(cores)
        (self._group / "cgroup.procs").write_text(str(pid))

    def set(self, cores: float) -> None:
        quota = round(cores * PERIOD_MICROSECONDS)
        if self._version_2:
            (self._group / "cpu.max").write_text(f"{quota} {PERIOD_MICROSECONDS}")
        else:
            (self._group / "cpu.cfs_period_us").write_text(str(PERIOD_MICROSECONDS))
            (self._group / "cpu.cfs_quota_us").write_text(str(quota))

    def remove(self) -> None:
        """Once its process has ended."""
        self._group.rmdir()


def run(launcher: Launcher, task: str, least: float, rounds: int = ROUNDS) -> None:
    """Run one task to its end, and say what came of it."""
    model = build("2nn", 0)
    plan = make_plan(model, dataset="mnist", training=LocalTraining(min_steps_fraction=least))
    version_0 = encode_model(get_weights(model, plan), plan)
    with launcher.client() as client:
        client.submit(task, plan, version_0, policy=Policy(goal=DEVICES, min_fraction=1.0), rounds=rounds)

        def until(reached: Callable[[], bool]) -> None:
            while not reached():
                launcher.check()
                time.sleep(_LOOK_SECONDS)

        until(lambda: client.task(task).state == "completed")
        until(lambda: all(version.evaluation is not None for version in client.models(task)))
        views, versions = client.rounds(task), client.models(task)
    opened = [round_.opened_at.timestamp() for round_ in views]
    ended = opened[-1] + views[-1].seconds
    seconds = [later - earlier for earlier, later in itertools.pairwise([*opened, ended])]
    scores = [(version.evaluation or {})["accuracy"] for version in versions[1:]]
    print(f"\n{task}")
    print("  seconds a round: " + " ".join(f"{value:.1f}" for value in seconds))
    rest = seconds[2:]
    print(f"  from the third on: {spread(rest)}; all rounds {ended - opened[0]:.1f} s")
    print("  accuracy: " + " ".join(f"{value:.4f}" for value in scores))
    print("  reached after so many seconds: " + " ".join(f"{at - opened[0]:.0f}" for at in [*opened[1:], ended]))


def main() -> None:
    options = RunOptions(devices=DEVICES, processes=DEVICES, server_port=0, aggregator_port=0, storage_port=0)
    limits: list[Limit] = []
    try:
        with tempfile.TemporaryDirectory() as directory, Launcher(options, Path(directory) / "run", lambda _: None) as launcher:
            launcher.boot()
            limits += [Limit(launcher.pid(f"device-{index}"), CORES) for index in range(DEVICES)]
            print(f"{DEVICES} devices with {CORES} of a core each; the slow one has {CORES / SLOWER:.2f}")
            run(launcher, "all-equally-fast", 1.0)
            limits[-1].set(CORES / SLOWER)
            run(launcher, "one-slow-all-steps", 1.0)
            run(launcher, "one-slow-less-to-do", LEAST, ROUNDS + 5)
    finally:
        for limit in limits:
            limit.remove()


if __name__ == "__main__":
    main()
