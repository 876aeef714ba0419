"""One device's local epoch: Keras `fit` beside the compiled loop, in one run, on one core; and a round of ten devices on two.

Each of the three trains the same examples from the same weights in turn, so that what else the machine does hits all alike; if
it does much, believe the CPU seconds. "First" is an epoch with all that comes before it: build, trace, compile. The round is
ten devices of 6,000 examples in two processes that were forked after the import, as the launcher does it. Keras is given what
fedlearn gives itself, one thread and oneDNN, so that only the loop differs.

    python benchmarks/local_training.py [--repeats 7] [--models 2nn cnn] [--no-round]

What was found when the loop was chosen stands in docs/decisions/0003-compiled-training-loop.md.
"""

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from fedlearn.core.learning import Examples
from fedlearn.data.datasets import fetch
from fedlearn.data.shards import as_examples
from fedlearn.learning.models import build, framework, get_weights, make_plan, model_of, set_weights, use_one_core
from fedlearn.learning.runtime import keras
from fedlearn.learning.training import KerasLearner
from fedlearn.protocol.plans import LocalTraining, Plan
from results import Figure, show, table

BATCH_SIZE, LEARNING_RATE = 10, 0.1
EXAMPLES = {"2nn": 6000, "cnn": 1200}
DEVICES, PROCESSES, ROUNDS = 10, 2, 5

Epoch = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="epochs of each kind that are timed (default 7)")
    parser.add_argument("--models", nargs="+", choices=list(EXAMPLES), default=list(EXAMPLES))
    parser.add_argument("--no-round", action="store_true", help="leave out the round of ten devices")
    options = parser.parse_args()
    data = as_examples(fetch("mnist").train)
    if not options.no_round:
        seconds = time_rounds(data)  # first: a process forks before it computes, or never
        print(
            f"A round of {DEVICES} devices × 6,000 examples, 2NN, {PROCESSES} processes: median {median(seconds[1:]):.2f} s "
            f"of {len(seconds) - 1}, the first with compiling {seconds[0]:.2f} s.\n"
        )
    use_one_core()
    cells, figures = list[list[str]](), list[Figure]()
    for name in options.models:
        found = compare(name, data, options.repeats)
        cells += found.rows
        figures += found.figures
    headings = ("examples", "by", "median s", "min s", "CPU s", "CPU ms a step", "first s", "× fit", "× fit (CPU)")
    print(f"One local epoch, batches of {BATCH_SIZE}, one core; {framework()}:\n")
    print(table(headings, cells))
    print(show(figures))


class Compared(NamedTuple):
    """A row for each of the three, and how much faster ours is than the other two."""

    rows: list[list[str]]
    figures: list[Figure]


def compare(name: str, data: Examples, repeats: int) -> Compared:
    count = EXAMPLES[name]
    examples = Examples(data.features[:count], data.labels[:count])
    model = build(name, 0)
    plan = make_plan(model, dataset="mnist", training=LocalTraining(learning_rate=LEARNING_RATE, batch_size=BATCH_SIZE))
    weights = get_weights(model, plan)
    makers: dict[str, Callable[[], Epoch]] = {
        "fit": lambda: fit(plan, weights, examples, 1),
        "fit, 60 steps a call": lambda: fit(plan, weights, examples, 60),
        "fedlearn": lambda: ours(plan, weights, examples),
    }
    epochs, firsts = {}, {}
    for by, make in makers.items():
        began = time.perf_counter()
        epochs[by] = make()
        epochs[by]()
        firsts[by] = time.perf_counter() - began
    walls: dict[str, list[float]] = {by: [] for by in makers}
    cpus: dict[str, list[float]] = {by: [] for by in makers}
    for _ in range(repeats):
        for by, epoch in epochs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            epoch()
            walls[by].append(time.perf_counter() - wall)
            cpus[by].append(time.process_time() - cpu)
    rows = []
    for by in makers:
        faster = [_faster(took["fit"], took[by]) for took in (walls, cpus)]
        cpu = median(cpus[by])
        figures = (median(walls[by]), min(walls[by]), cpu, 1000 * cpu / (count / BATCH_SIZE), firsts[by])
        rows.append([f"{name}, {count:,}", by, *(f"{f:.3f}" for f in figures), *(f"{f:.1f}" for f in faster)])
    beside = [
        Figure(
            f"{name}: how fast a local epoch is, ours by Keras' {theirs}",
            _faster(walls[theirs], walls["fedlearn"]),
            "×",
            at_least=1.0,
            by_cpu=_faster(cpus[theirs], cpus["fedlearn"]),
        )
        for theirs in makers
        if theirs != "fedlearn"
    ]
    return Compared(rows, beside)


def _faster(theirs: list[float], ours: list[float]) -> float:
    """The median over turns."""
    return median(their / our for their, our in zip(theirs, ours, strict=True))


def fit(plan: Plan, weights: list[Any], examples: Examples, steps_per_execution: int) -> Epoch:
    model = model_of(plan)
    model.compile(keras.optimizers.SGD(LEARNING_RATE), plan.loss, steps_per_execution=steps_per_execution)

    def epoch() -> None:
        set_weights(model, plan, weights)
        model.fit(examples.features, examples.labels, batch_size=BATCH_SIZE, verbose=0)

    return epoch


def ours(plan: Plan, weights: list[Any], examples: Examples) -> Epoch:
    learner = KerasLearner(plan)
    return lambda: learner.train(weights, examples, 0)


def time_rounds(data: Examples) -> list[float]:
    """Seconds of each round, from the first word to a process until the last one's answer; the first includes compiling."""
    parts = np.array_split(np.random.default_rng(0).permutation(len(data)), DEVICES)
    context = multiprocessing.get_context("fork")
    ends: list[Connection] = []
    for index in range(PROCESSES):
        mine, theirs = context.Pipe()
        slots = [Examples(data.features[part], data.labels[part]) for part in parts[index::PROCESSES]]
        context.Process(target=host, args=(theirs, slots), daemon=True).start()
        ends.append(mine)
    seconds = []
    for end in ends:
        end.recv()
    for number in range(1 + ROUNDS):
        began = time.perf_counter()
        for end in ends:
            end.send(number)
        for end in ends:
            end.recv()
        seconds.append(time.perf_counter() - began)
    for end in ends:
        end.send(None)
    return seconds


def host(connection: Connection, slots: list[Examples]) -> None:
    """A process that hosts several devices."""
    use_one_core()
    model = build("2nn", 0)
    plan = make_plan(model, dataset="mnist", training=LocalTraining(learning_rate=LEARNING_RATE, batch_size=BATCH_SIZE))
    weights = get_weights(model, plan)
    connection.send(os.getpid())
    learner = None
    while (number := connection.recv()) is not None:
        learner = learner or KerasLearner(plan)
        for slot in slots:
            learner.train(weights, slot, number)
        connection.send(number)


if __name__ == "__main__":
    main()
