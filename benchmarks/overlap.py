"""From a round's commit to the assignment of the next one's cohort, with overlapping selection and without, in one run.

Real processes: four devices that train for `SECONDS`, and a task that wants five and is content with four after `SECONDS` of
selection. Then the same with a goal of three, for which enough devices wait at the commit already.

    python benchmarks/overlap.py [--rounds 6]
"""

import argparse
import statistics
import tempfile
from itertools import pairwise
from pathlib import Path

from deployments import random_vector
from fedlearn.adapters.operator import OperatorClient
from fedlearn.core.ids import TaskId
from fedlearn.core.rounds import Phase, Round
from fedlearn.local.chaos import Arena
from fedlearn.protocol.tensors import encode_model, unflatten
from fedlearn.protocol.views import Policy

DEVICES, SECONDS, PATIENCE_SECONDS = 4, 3.0, 600.0


class Stage(Arena):
    """An arena in which nobody is killed."""

    def gaps(self, name: str, rounds: int, policy: Policy) -> list[float]:
        """Let a task run to its end: the seconds from each commit to the next assignment."""
        task = TaskId(name)
        model = encode_model(unflatten(random_vector(self.plan.parameters, 0), self.plan), self.plan)
        with self.operator() as operator:
            operator.submit(name, self.plan, model, policy=policy, rounds=rounds)
        self.wait(lambda: self.store.task(task).state == "completed", f"task {name}", PATIENCE_SECONDS)
        made = self.store.rounds(task)
        if any(round_.phase is not Phase.COMMITTED for round_ in made):
            raise RuntimeError(f"Not every round of task {name} is committed.")
        return [assigned_at(later) - earlier.phase_since for earlier, later in pairwise(made)]

    def operator(self) -> OperatorClient:
        return self._client()


def assigned_at(round_: Round) -> float:
    """When a committed round began to report (UTC seconds)."""
    return round_.opened_at + round_.phase_seconds[Phase.SELECTION] + round_.phase_seconds[Phase.CONFIGURATION]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    rounds = parser.parse_args().rounds
    training = {"FEDLEARN_SYNTHETIC_SECONDS": str(SECONDS)}
    with tempfile.TemporaryDirectory() as directory, Stage(Path(directory) / "arena", DEVICES, 0, training) as stage:
        print("goal  overlap   commit to assignment: median, worst")
        for goal in (DEVICES + 1, DEVICES - 1):
            medians = []
            for overlap in (False, True):
                policy = Policy(goal=goal, min_fraction=0.8, selection_timeout_seconds=SECONDS, overlap_selection=overlap)
                gaps = stage.gaps(f"goal-{goal}-{'with' if overlap else 'without'}", rounds, policy)
                medians.append(statistics.median(gaps))
                print(f"{goal:4}  {'yes' if overlap else 'no':7}  {medians[-1]:8.3f} s  {max(gaps):8.3f} s", flush=True)
            print(f"{goal:4}  without / with: {medians[0] / medians[1]:.1f}")


if __name__ == "__main__":
    main()
