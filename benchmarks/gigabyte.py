"""A model of a gigabyte through a round with everything that a deployment has: two devices, real storage, real processes.

Devices train by the synthetic learner: a random change of each weight, so that nothing compresses away. Beyond 64 MiB an update
goes up in parts. The memory of each process is the most that it ever had.

    python benchmarks/gigabyte.py [--megabytes 1024] [--codec int8] [--model-encoding float32] [--rounds 1]

With 1,024 MiB it wants about 16 GiB of memory and 12 GiB of disk below --directory.
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from deployments import memory_megabytes, peak_megabytes
from fedlearn.local.launcher import Launcher
from fedlearn.local.options import RunOptions
from fedlearn.protocol.plans import Plan
from fedlearn.protocol.tensors import encode_model, unflatten
from fedlearn.protocol.views import Policy, RoundView
from folding_round import ring_megabytes
from results import Figure, show

PATIENCE_SECONDS = 1800.0


def plan_of(megabytes: int, options: argparse.Namespace) -> Plan:
    dense: dict[str, Any] = {"module": "keras.layers", "class_name": "Dense", "config": {}, "registered_name": None}
    return Plan.model_validate(
        {
            "dataset": "mnist",
            "architecture": {"module": "keras", "class_name": "Sequential", "config": {"layers": [dense]}},
            "update": {"encoding": options.codec},
            "model_encoding": options.model_encoding,
            "weights": [{"shape": [megabytes * (1 << 18)]}],
        }
    )


def version_0(plan: Plan) -> bytes:
    vector = np.random.Generator(np.random.SFC64(0)).random(plan.parameters, np.float32)
    vector -= np.float32(0.5)
    vector *= np.float32(0.1)
    return encode_model(unflatten(vector, plan), plan)


def run(launcher: Launcher, plan: Plan, rounds: int) -> tuple[float, list[RoundView]]:
    """Seconds to submit, and the rounds."""
    patience = {"selection_timeout_seconds": 600, "reporting_timeout_seconds": 1200, "aggregation_timeout_seconds": 1200}
    began = time.monotonic()
    with launcher.client() as client:
        policy = Policy(goal=2, min_fraction=1.0, over_selection=1.0, **patience)
        client.submit("gigabyte", plan, version_0(plan), policy=policy, rounds=rounds)
        submitted = time.monotonic() - began
        while client.task("gigabyte").state == "running":
            if time.monotonic() - began > PATIENCE_SECONDS:
                raise SystemExit(f"no end after {PATIENCE_SECONDS:.0f} s")
            launcher.check()
            time.sleep(1)
        return submitted, client.rounds("gigabyte")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1024, help="MiB of float32 (default 1024)")
    parser.add_argument("--codec", default="int8", choices=["float32", "float16", "int8", "top_k"])
    parser.add_argument("--model-encoding", default="float32", choices=["float32", "float16"])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument(
        "--directory", type=Path, default=None, help="where the storage lies (default: the temporary directory)"
    )
    options = parser.parse_args()
    plan = plan_of(options.megabytes, options)
    started = RunOptions(devices=2, processes=1, learner="synthetic", server_port=0, aggregator_port=0, storage_port=0)
    directory = Path(tempfile.mkdtemp(dir=options.directory))
    try:
        with Launcher(started, directory / "run", lambda _: None) as launcher:
            launcher.boot()
            before = memory_megabytes("VmRSS", launcher.pid("aggregator"))
            submitted, rounds = run(launcher, plan, options.rounds)
            peaks = {name: peak_megabytes(launcher.pid(name)) for name in ("server", "aggregator", "device-0")}
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    print(f"{plan.parameters:,} parameters, {options.codec} up, {options.model_encoding} down.\n")
    last, size = rounds[-1], 4 * plan.parameters / 1e6
    phases = {f"a round of two devices, of that {phase}": seconds for phase, seconds in last.phase_seconds.items()}
    seconds = {"bringing the first model": submitted, "a round of two devices": last.seconds, **phases}
    figures = [Figure(what, value, "s") for what, value in seconds.items()]
    figures.append(
        Figure(
            "the aggregator's peak memory above its start",
            peaks["aggregator"] - before,
            "MB",
            at_most=round(2 * size + ring_megabytes(plan)),
        )
    )
    what = {"aggregator": "the aggregator", "server": "the server", "device-0": "both devices, in one process"}
    figures += [Figure(f"peak memory of {of}, in all", peaks[name], "MB") for name, of in what.items()]
    print(show(figures))
    if any(view.phase != "committed" for view in rounds):
        raise SystemExit("not every round was committed")


if __name__ == "__main__":
    main()
