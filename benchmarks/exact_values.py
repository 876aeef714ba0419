"""int8 with and without its exact values, beside float32, on two models: the 2NN, and one with statistics of unscaled inputs.

`examples/breast_cancer.py` begins with a BatchNormalization of measurements that differ by orders of magnitude: "small" is
three clinics of 60 patients and 4 rounds, "whole" is the example as it is, five clinics and 15 rounds. The 2NN learns MNIST on
ten devices with 400 examples each, IID, for 20 rounds of one epoch at batch 10. Devices train with the real learner, and
updates are sealed and opened as plans say; the network is left out. Of each seed all codecs begin with the same weights, and
devices train and divide with the same seeds. "Flat" is a plan of int8 in which nothing is exact.

    python benchmarks/exact_values.py [--seeds 3]
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import numpy as np

import breast_cancer
import fedlearn
from fedlearn.core.aggregation import WeightedSum
from fedlearn.core.ids import RoundId, TaskId
from fedlearn.core.learning import Examples
from fedlearn.core.updates import Update
from fedlearn.data.datasets import fetch
from fedlearn.data.partitioners import make_partitioner
from fedlearn.data.shards import as_examples, cut
from fedlearn.learning.compiled import prepare
from fedlearn.learning.models import build, get_weights, make_plan, use_one_core
from fedlearn.learning.training import KerasLearner
from fedlearn.protocol.envelope import UpdateContext, open_update, seal
from fedlearn.protocol.plans import Plan, UpdateFormat, exact_ranges
from fedlearn.protocol.sealing import SealingKey
from fedlearn.protocol.tensors import decode_vector, flatten, unflatten
from results import Figure, show, table

CODECS = ("float32", "int8, flat", "int8")
MOST_POINTS_LOST = 0.5
"""By the default codec: no more than the seed alone changes."""
KEY = SealingKey.generate(RoundId(TaskId("exact"), 1))


class Problem(NamedTuple):
    name: str
    plan: Plan
    first: np.ndarray
    shards: list[Examples]
    test: Examples
    rounds: int


class Ended(NamedTuple):
    """How one run ended."""

    accuracy: float
    bytes_up: float


def clinics(seed: int, devices: int, most: int | None, rounds: int, name: str) -> Problem:
    prepared = prepare(dataclasses.replace(breast_cancer.task(), rounds=rounds))
    everyone, tested = breast_cancer.table(), breast_cancer.TESTED
    mine = fedlearn.Examples(
        everyone.features[tested : tested + devices * (most or len(everyone))],
        everyone.labels[tested : tested + devices * (most or len(everyone))],
    )
    divided = make_partitioner("dirichlet", devices, alpha=1.0, min_partition_size=5)
    shards = [shard.train for shard in cut(mine, divided, np.random.default_rng(seed), holdout_fraction=0.2)]
    first = decode_vector(prepared.version_0, prepared.plan)
    test = as_examples(breast_cancer.test())
    return Problem(name, prepared.plan, first, [as_examples(shard) for shard in shards], test, rounds)


def digits(seed: int) -> Problem:
    data, devices, examples = fetch("mnist"), 10, 400
    train, test = as_examples(data.train), as_examples(data.test)
    model = build("2nn", seed)
    plan = make_plan(model, dataset="mnist")
    order = np.random.default_rng(seed).permutation(len(train))[: devices * examples]
    shards = [Examples(train.features[part], train.labels[part]) for part in np.array_split(order, devices)]
    return Problem("2NN on MNIST", plan, flatten(get_weights(model, plan)), shards, test, 20)


def with_codec(plan: Plan, codec: str) -> Plan:
    exact = exact_ranges(plan.weights) if codec == "int8" else ()
    update = UpdateFormat(encoding="float32" if codec == "float32" else "int8", exact=exact)
    return plan.model_copy(update={"update": update})


def run(problem: Problem, learner: KerasLearner, codec: str, seed: int) -> Ended:
    plan, vector = with_codec(problem.plan, codec), problem.first.astype(np.float32)
    up: list[int] = []
    for number in range(1, problem.rounds + 1):
        total, weights = WeightedSum(plan.parameters), unflatten(vector, plan)
        for index, shard in enumerate(problem.shards):
            own_seed = 1_000_000 * seed + 1000 * number + index
            delta = flatten(learner.train(weights, shard, own_seed)) - vector
            context = UpdateContext("exact", number, f"device-{index}", plan.digest, "0" * 64)
            rng = np.random.Generator(np.random.SFC64([own_seed, 1]))
            update = Update(delta, examples=len(shard))
            body = seal(update, key=KEY.public, context=context, format=plan.update, rng=rng)
            up.append(len(body))
            total.fold(open_update(body, key=KEY, context=context, plan=plan))
        vector = (vector + total.mean()).astype(np.float32)
    metrics: dict[str, Any] = dict(learner.evaluate(unflatten(vector, plan), problem.test))
    return Ended(100 * metrics["accuracy"], float(np.mean(up)))


def problems(seed: int) -> Iterator[Problem]:
    yield clinics(seed, 3, 60, 4, "breast cancer, small")
    yield clinics(seed, 5, None, 15, "breast cancer, whole")
    yield digits(seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    use_one_core()
    found: dict[str, dict[str, list[Ended]]] = {}
    for seed in range(given.seeds):
        for problem in problems(seed):
            learner = KerasLearner(problem.plan)
            of = found.setdefault(problem.name, {codec: [] for codec in CODECS})
            for codec in CODECS:
                of[codec].append(run(problem, learner, codec, seed))
    cells, figures = list[list[str]](), list[Figure]()
    for name, of in found.items():
        cells.append([name, *(", ".join(f"{one.accuracy:.2f}" for one in of[codec]) for codec in CODECS)])
        cells.append(
            [
                f"{name}, an update's size",
                *(f"{np.mean([one.bytes_up for one in of[codec]]) / 1000:.1f} kB" for codec in CODECS),
            ]
        )
        gain = float(np.mean([one.accuracy - other.accuracy for one, other in zip(of["int8"], of["float32"], strict=True)]))
        figures.append(Figure(f"{name}: int8, its accuracy less float32's", gain, "points", at_least=-MOST_POINTS_LOST))
    print(table(("accuracy on the test set, %, of each seed", *CODECS), cells))
    print(show(figures))


if __name__ == "__main__":
    main()
