"""Rounds until the 2NN reaches a test accuracy on MNIST, as in McMahan et al. 2017, tables 1 and 2, with the real system.

100 devices hold 600 examples each, and a round takes the updates of ten of them (K = 100, C = 0.1), which train one local epoch
at batch 10. IID is a random division; "pathological" gives each device two shards of 300 of the examples sorted by label.
Server, aggregator, storage and device processes are those of `fedlearn run`; the count is of the first committed round whose
model reaches the target on the 10,000 test examples. The paper tuned its learning rate for each row; here one is given for all.
Each seed begins with nothing.

    python benchmarks/mcmahan.py [--division iid ...] [--seeds 0 1 2] [--target 0.97] [--most-rounds N] [--most-seconds N]
        [--keep DIRECTORY] [--show] [--out docs/images/mcmahan.png]

A seed that does not get there within its rounds or its seconds is shown as "not within", with the accuracy that it has reached.
With `--keep`, which `make bench` does without, each seed has a file there, and a run that was cut off goes on where it was,
with its server and its storage. `--show` prints what lies there and measures nothing.
"""

import argparse
import json
import math
import shutil
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple

from drawing import LIMIT, THEIRS, canvas
from fedlearn.local.launcher import Launcher
from fedlearn.local.options import RunOptions
from fedlearn.local.run import submission
from results import Figure, show, table

DEVICES, COHORT, EXAMPLES = 100, 10, 600
PAPER = {"iid": 87, "pathological": 664}
MOST_ROUNDS = {"iid": 200, "pathological": 1500}
PARTITIONERS: dict[str, Literal["iid", "shard"]] = {"iid": "iid", "pathological": "shard"}
_LOOK_SECONDS = 2.0
_FLOAT32 = 1e-6  # 9,700 of 10,000 are 0.96999997 in float32


class Outcome(NamedTuple):
    """What one seed came to: its first round at the target, None if it was not reached; and the accuracy after each round."""

    seed: int
    reached: int | None
    accuracies: list[float]
    seconds: float
    ended: bool

    @property
    def rounds(self) -> int:
        return len(self.accuracies)

    @property
    def best(self) -> float:
        return max(self.accuracies, default=0.0)


class Book:
    """The seeds of one division, a file for each."""

    def __init__(self, directory: Path, division: str) -> None:
        self._directory, self._division = directory, division
        directory.mkdir(parents=True, exist_ok=True)

    def path(self, seed: int) -> Path:
        return self._directory / f"{self._division}-{seed}.json"

    def run_of(self, seed: int) -> Path:
        return self._directory / f"{self._division}-{seed}"

    def read(self, seed: int) -> Outcome | None:
        path = self.path(seed)
        return Outcome(**json.loads(path.read_text())) if path.exists() else None

    def write(self, outcome: Outcome) -> None:
        part = self.path(outcome.seed).with_suffix(".part")
        part.write_text(json.dumps(outcome._asdict()) + "\n")
        part.replace(self.path(outcome.seed))
        if outcome.ended:
            shutil.rmtree(self.run_of(outcome.seed), ignore_errors=True)


def attempt(division: str, seed: int, given: argparse.Namespace, book: Book) -> Outcome:
    earlier = book.read(seed)
    if earlier is not None and earlier.ended:
        return earlier
    before = earlier.seconds if earlier else 0.0
    most_rounds = given.most_rounds or MOST_ROUNDS[division]
    options = RunOptions(
        devices=DEVICES,
        partitioner=PARTITIONERS[division],
        rounds=most_rounds,
        learning_rate=given.learning_rate,
        seed=seed,
        target_accuracy=given.target,
        server_port=0,
        aggregator_port=0,
        storage_port=0,
    )
    task = f"mcmahan-{division}-{seed}"
    with Launcher(options, book.run_of(seed), lambda _: None) as launcher:
        launcher.boot()
        with launcher.client() as client:
            if all(view.task != task for view in client.tasks()):
                cohort = options.model_copy(update={"devices": COHORT})
                launcher.run_learner("submit", [*submission(cohort, task, launcher), "--over-selection", "1.0"])
            began = time.monotonic()
            while True:
                launcher.check()
                seconds = before + time.monotonic() - began
                running = client.task(task).state == "running"
                versions = client.models(task)
                late = seconds > given.most_seconds
                ended = late or (not running and all(version.evaluation is not None for version in versions))
                scores = {view.model.version: view.evaluation["accuracy"] for view in versions if view.evaluation}
                accuracies = [scores[number] for number in sorted(scores) if number]  # version 0 is before the first round
                reached = min(
                    (number for number, accuracy in scores.items() if accuracy > given.target - _FLOAT32), default=None
                )
                outcome = Outcome(seed, reached, accuracies, seconds, ended)
                if ended:
                    rounds = client.rounds(task)
                    break
                book.write(outcome)
                time.sleep(_LOOK_SECONDS)
    assert all(len(round_.participants) == COHORT for round_ in rounds if round_.phase == "committed")
    book.write(outcome)
    return outcome


def rows(division: str, outcomes: list[Outcome]) -> list[list[str]]:
    shown = []
    for outcome in outcomes:
        found = f"round {outcome.reached}"
        if outcome.reached is None:
            found = f"not within {outcome.rounds} rounds ({100 * outcome.best:.2f} %)"
        shown.append([f"{division}, seed {outcome.seed}", found, f"{outcome.seconds:.0f} s"])
    return shown


def median(division: str, outcomes: list[Outcome], target: float) -> Figure:
    """The paper's figure is the aim, where the target is the paper's."""
    reached = [outcome.reached if outcome.reached is not None else math.inf for outcome in outcomes]
    most = PAPER[division] if target == 0.97 else None
    return Figure(
        f"{division}, median of {len(outcomes)}; the aim is the paper's", statistics.median(reached), "rounds", at_most=most
    )


def draw(found: dict[str, list[Outcome]], target: float, path: Path) -> None:
    with canvas(path, 1, len(found), width=5.0, height=3.8) as axes:
        for axis, (division, outcomes) in zip(axes, found.items(), strict=True):
            for outcome in outcomes:
                rounds = range(1, outcome.rounds + 1)
                axis.plot(rounds, [100 * value for value in outcome.accuracies], label=f"seed {outcome.seed}", linewidth=1.1)
            axis.axhline(100 * target, color=LIMIT, linewidth=1)
            if target == 0.97:
                axis.axvline(PAPER[division], color=THEIRS, linestyle="--", label=f"the paper's {PAPER[division]}")
            axis.set(title=division, xlabel="round", ylabel="accuracy on the test set, %", ylim=(85, 98.5))
            axis.grid(alpha=0.3)
            axis.legend(frameon=False, loc="lower center")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--division", choices=PAPER, action="append")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--target", type=float, default=0.97)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--most-rounds", type=int, help="default: 200 IID, 1,500 pathological")
    parser.add_argument("--most-seconds", type=float, default=3600.0, help="of each seed")
    parser.add_argument("--keep", type=Path, help="a directory for each seed's outcome, and for what is not finished")
    parser.add_argument("--show", action="store_true", help="only what --keep holds")
    parser.add_argument("--out", type=Path, help="a picture of the accuracies")
    given = parser.parse_args()
    fixed = f"{DEVICES} devices, {COHORT} a round, E = 1, B = 10, learning rate {given.learning_rate:g}"
    print(f"2NN, {fixed}; to {given.target:.0%}.\n")
    found = dict[str, list[Outcome]]()
    with ExitStack() as kept:
        keep = given.keep or Path(kept.enter_context(TemporaryDirectory()))
        for division in given.division or PAPER:
            book = Book(keep, division)
            if given.show:
                outcomes = [outcome for seed in given.seeds if (outcome := book.read(seed))]
            else:
                outcomes = [attempt(division, seed, given, book) for seed in given.seeds]
            if outcomes:
                found[division] = outcomes
                print(table(("", "first at the target", "took"), rows(division, outcomes)), flush=True)
    if found:
        print(show([median(division, outcomes, given.target) for division, outcomes in found.items()]))
    if given.out and found:
        draw(found, given.target, given.out)


if __name__ == "__main__":
    main()
