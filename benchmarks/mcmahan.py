"""Rounds until the 2NN reaches a test accuracy on MNIST, as in McMahan et al. 2017, tables 1 and 2, with the real system.

100 devices hold 600 examples each, and a round takes the updates of ten of them (K = 100, C = 0.1), which train one local epoch
at batch 10. IID is a random division; "pathological" gives each device two shards of 300 of the examples sorted by label.
Server, aggregator, storage and device processes are those of `fedlearn run`; the count is of the first committed round whose
model reaches the target on the 10,000 test examples. The paper tuned its learning rate for each row; here it is given.

    python benchmarks/mcmahan.py [--division iid ...] [--seeds 0 1 2] [--target 0.97] [--most-rounds N] [--most-seconds N]

A seed that does not get there within its rounds or its seconds is shown as "not within", with the accuracy that it has reached.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Literal, NamedTuple

from fedlearn.local.launcher import Launcher
from fedlearn.local.options import RunOptions
from fedlearn.local.run import submission

DEVICES, COHORT, EXAMPLES = 100, 10, 600
PAPER = {"iid": 87, "pathological": 664}
MOST_ROUNDS = {"iid": 200, "pathological": 1500}
PARTITIONERS: dict[str, Literal["iid", "shard"]] = {"iid": "iid", "pathological": "shard"}
_LOOK_SECONDS = 1.0


class Outcome(NamedTuple):
    """What one seed came to: its first round at the target, None if it was not reached; and the best accuracy so far."""

    seed: int
    reached: int | None
    rounds: int
    best: float
    seconds: float


def attempt(division: str, seed: int, given: argparse.Namespace) -> Outcome:
    target, most_rounds = given.target, given.most_rounds or MOST_ROUNDS[division]
    options = RunOptions(
        devices=DEVICES,
        partitioner=PARTITIONERS[division],
        rounds=most_rounds,
        learning_rate=given.learning_rate,
        seed=seed,
        target_accuracy=target,
        server_port=0,
        aggregator_port=0,
        storage_port=0,
    )
    with tempfile.TemporaryDirectory() as directory, Launcher(options, Path(directory) / "run", lambda _: None) as launcher:
        launcher.boot()
        task = f"mcmahan-{division}-{seed}"
        cohort = options.model_copy(update={"devices": COHORT})
        launcher.run_learner("submit", [*submission(cohort, task, launcher), "--over-selection", "1.0"])
        began = time.monotonic()
        with launcher.client() as client:

            def over() -> bool:
                scored = all(version.evaluation is not None for version in client.models(task))
                return client.task(task).state != "running" and scored

            while not over() and time.monotonic() - began < given.most_seconds:
                launcher.check()
                time.sleep(_LOOK_SECONDS)
            seconds = time.monotonic() - began
            versions, rounds = client.models(task), client.rounds(task)
    scores = {view.model.version: view.evaluation["accuracy"] for view in versions if view.evaluation and view.model.version}
    reached = min((number for number, accuracy in scores.items() if accuracy >= target), default=None)
    assert all(len(round_.participants) == COHORT for round_ in rounds if round_.phase == "committed")
    return Outcome(seed, reached, max(scores, default=0), max(scores.values(), default=0.0), seconds)


def show(division: str, outcomes: list[Outcome], target: float) -> None:
    for outcome in outcomes:
        found = f"round {outcome.reached}"
        if outcome.reached is None:
            found = f"not within {outcome.rounds} rounds ({100 * outcome.best:.2f} %)"
        print(f"| {division}, seed {outcome.seed} | {found} | {outcome.seconds:.0f} s |")
    if all(outcome.reached for outcome in outcomes):
        median = f"round {statistics.median(outcome.reached or 0 for outcome in outcomes):g}"
    else:
        median = "not all seeds got there"
    beside = f"; the paper: {PAPER[division]}" if target == 0.97 else ""
    print(f"| **{division}, median of {len(outcomes)}** | **{median}**{beside} | |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--division", choices=PAPER, action="append")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--target", type=float, default=0.97)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--most-rounds", type=int, help="default: 200 IID, 1,500 pathological")
    parser.add_argument("--most-seconds", type=float, default=3600.0, help="of each seed")
    given = parser.parse_args()
    fixed = f"{DEVICES} devices, {COHORT} a round, E = 1, B = 10, learning rate {given.learning_rate:g}"
    print(f"2NN, {fixed}; to {given.target:.0%}.\n")
    print("| | first at the target | took |\n|---|---|---|")
    for division in given.division or PAPER:
        outcomes = [attempt(division, seed, given) for seed in given.seeds]
        show(division, outcomes, given.target)


if __name__ == "__main__":
    main()
