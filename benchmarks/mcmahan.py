"""Rounds until the 2NN reaches a test accuracy on MNIST, as in McMahan et al. 2017, tables 1 and 2, with the real system.

100 devices hold 600 examples each, and a round takes the updates of ten of them (K = 100, C = 0.1), which train one local epoch
at batch 10. IID is a random division; non-IID is the paper's pathological one, `--partitioner shard` of `fedlearn run`: the
examples are sorted by label and cut into 200 shards of 300, and each device has two of them, mostly of two digits.
Server, aggregator, storage and device processes are those of `fedlearn run`; the count is of the first committed round whose
model reaches the target on the 10,000 test examples. The paper tuned its learning rate for each row; here one is given for all.
Each seed begins with nothing. What it took is counted from the task's submission, when all processes have been started, to the
evaluation at the target; every round's model is evaluated meanwhile.

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
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple

from drawing import PLAIN, THEIRS, canvas
from fedlearn.local.launcher import Launcher
from fedlearn.local.options import RunOptions
from fedlearn.local.run import submission
from results import Figure, show, table

DEVICES, COHORT, EXAMPLES = 100, 10, 600
Division = Literal["iid", "shard"]
DIVISIONS: tuple[Division, ...] = ("iid", "shard")
NAMES = {
    "iid": "IID",
    "shard": "non-IID (`--partitioner shard`, two shards sorted by label a device: McMahan's pathological split)",
}
TITLES = {
    "iid": "IID",
    "shard": "non-IID (--partitioner shard, two shards sorted by label\na device: McMahan's pathological split)",
}
PAPER = {"iid": 87, "shard": 664}
MOST_ROUNDS = {"iid": 200, "shard": 1500}
_SEED_COLORS = ("#1f77b4", "#2ca02c", "#9467bd", "#17becf")
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


def attempt(division: Division, seed: int, given: argparse.Namespace, book: Book) -> Outcome:
    earlier = book.read(seed)
    if earlier is not None and earlier.ended:
        return earlier
    before = earlier.seconds if earlier else 0.0
    most_rounds = given.most_rounds or MOST_ROUNDS[division]
    options = RunOptions(
        devices=DEVICES,
        partitioner=division,
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


def rows(outcomes: list[Outcome]) -> list[list[str]]:
    shown = []
    for outcome in outcomes:
        found = f"round {outcome.reached}"
        if outcome.reached is None:
            found = f"not within {outcome.rounds} rounds ({100 * outcome.best:.2f} %)"
        shown.append([f"seed {outcome.seed}", found, f"{outcome.seconds:.0f} s"])
    return shown


def median(division: str, outcomes: list[Outcome], target: float) -> Figure:
    """The paper's figure is the aim, where the target is the paper's."""
    reached = [outcome.reached if outcome.reached is not None else math.inf for outcome in outcomes]
    most = PAPER[division] if target == 0.97 else None
    return Figure(
        f"{NAMES[division]}, median of {len(outcomes)} seeds; the aim is the paper's",
        statistics.median(reached),
        "rounds",
        at_most=most,
        between=(min(reached), max(reached)),
    )


def draw(found: dict[str, list[Outcome]], target: float, path: Path) -> None:
    with canvas(path, 1, len(found), width=5.4, height=4.0) as axes:
        for axis, (division, outcomes) in zip(axes, found.items(), strict=True):
            for outcome, color in zip(outcomes, cycle(_SEED_COLORS), strict=False):
                rounds, percent = range(1, outcome.rounds + 1), [100 * value for value in outcome.accuracies]
                axis.plot(rounds, percent, color=color, label=f"seed {outcome.seed}", linewidth=1.1)
            axis.axhline(100 * target, color=PLAIN, linewidth=1, label=f"the target, {100 * target:g} %")
            if target == 0.97:
                axis.axvline(PAPER[division], color=THEIRS, linestyle="--", label=f"the paper's {PAPER[division]} rounds")
            axis.set(xlabel="round", ylabel="accuracy on the test set, %", ylim=(85, 98.5))
            axis.set_title(TITLES[division], fontsize="medium")
            axis.grid(alpha=0.3)
            axis.legend(frameon=False, loc="lower center")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--division", choices=DIVISIONS, action="append")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--target", type=float, default=0.97)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--most-rounds", type=int, help="default: 200 IID, 1,500 non-IID")
    parser.add_argument("--most-seconds", type=float, default=3600.0, help="of each seed")
    parser.add_argument("--keep", type=Path, help="a directory for each seed's outcome, and for what is not finished")
    parser.add_argument("--show", action="store_true", help="only what --keep holds")
    parser.add_argument("--out", type=Path, help="a picture of the accuracies")
    given = parser.parse_args()
    fixed = f"{DEVICES} devices, {COHORT} a round, E = 1, B = 10, learning rate {given.learning_rate:g}"
    print(f"2NN, {fixed}; to {100 * given.target:g} %.\n")
    found = dict[str, list[Outcome]]()
    with ExitStack() as kept:
        keep = given.keep or Path(kept.enter_context(TemporaryDirectory()))
        for division in given.division or DIVISIONS:
            book = Book(keep, division)
            if given.show:
                outcomes = [outcome for seed in given.seeds if (outcome := book.read(seed))]
            else:
                outcomes = [attempt(division, seed, given, book) for seed in given.seeds]
            if outcomes:
                found[division] = outcomes
                print(table((NAMES[division], "first at the target", "took, from its submission"), rows(outcomes)), flush=True)
    if found:
        print(show([median(division, outcomes, given.target) for division, outcomes in found.items()]))
    if given.out and found:
        draw(found, given.target, given.out)


if __name__ == "__main__":
    main()
