"""The aggregation engine beside what plain tools reach here, all measured in one run: what it aims at, and what it reaches.

Rows that are compared take turns within each repetition, so that a slow moment of the machine hits them alike; figures are
medians, ratios are medians of each repetition's ratio. numpy's max is no upper bound of what memory gives: a
compiled loop may read faster, and ours does where it adds several updates at once. Bare GETs are those of Python's own HTTP
client, into memory that is there already: nothing plainer reads in Python. Beside them stand those of boto3, by which most
programs read, and ours, which cost less than either. The storage runs on the same cores, and takes as much of them as who
reads; so both are measured once more with a core each, as if the storage were on a machine of its own. Updates are random, so
that nothing compresses away, and of the CNN's size (1,663,370 float32) where no other is named; but of 100 updates the robust
rules combine 671,088 each, 256 MiB in all.

    python benchmarks/folding.py [--repetitions N] [--updates N] [--part memory|robust|storage|peak ...]
        [--peaks 10 100 1000] [--out docs/images/folding.png]
"""

import argparse
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # as the aggregator has it

import numpy as np

from deployments import CNN_SHAPES, cnn_plan
from drawing import OURS, PLAIN, aim_line, bars, canvas, name_colors
from fedlearn.aggregator.gathering import combine
from fedlearn.core.aggregation import WeightedSum
from fedlearn.core.robust import GeometricMedian, Median, MultiKrum, NormBound, Rows, Rule, TrimmedMean
from fedlearn.core.updates import Update
from fedlearn.protocol.plans import Plan
from folding_round import peak_of, ring_megabytes, robust_megabytes
from from_storage import BY_BOTO3, FOLDS, GETS, LEAST_OF_BARE, OUR_GETS, from_storage
from results import Figure, show
from turns import CORES, Contender, take_turns

PARAMETERS = sum(int(np.prod(shape)) for shape in CNN_SHAPES)
MEDIUM, LARGE = 15_000_000, 1 << 25  # parameters: 60 and 134 MB
SMALL, MANY = 199_210, 10_000  # the 2NN's parameters, and so many updates: of the CNN's size they would take 67 GB
PARTS = ("memory", "robust", "storage", "peak")
READS, NUMPY = f"memory, read by {CORES} cores (numpy's max)", "numpy `acc += n * delta`, float32, one core"
BY_EIGHTS = "fold decoded updates by eights in one thread, as beside fetching"
FOLD, ONE_BY_ONE = "fold decoded updates, float64", "fold decoded updates one by one, as they come"
PLAIN_TOOLS = (READS, NUMPY, GETS, BY_BOTO3)
IN_MEMORY, FROM_STORAGE = (READS, NUMPY, FOLD, ONE_BY_ONE), (GETS, BY_BOTO3, OUR_GETS, FOLDS)
LEAST_OF_READS, LEAST_ROBUST = 50.0, 1.0
"""The aims: % of the memory's reads by numpy's max, and GB/s."""
ROBUST_DRAWN = 32  # updates


def in_memory(updates: Sequence[Update], repetitions: int) -> list[Figure]:
    size = sum(update.delta.nbytes for update in updates)
    with ThreadPoolExecutor(CORES) as threads:
        total, groups = WeightedSum(PARAMETERS), [updates[start : start + 8] for start in range(0, len(updates), 8)]

        def plain() -> None:
            acc, one = np.zeros(PARAMETERS, np.float32), np.empty(PARAMETERS, np.float32)
            for update in updates:
                np.multiply(update.delta, np.float32(update.examples), out=one)
                acc += one

        def read() -> None:
            list(threads.map(lambda update: update.delta.max(), updates))

        def one_by_one() -> None:
            for update in updates:
                total.fold_all([update], threads, CORES)

        def by_eights() -> None:
            for eight in groups:
                total.fold_all(eight)

        reads = Contender("read", read, size)
        folds = Contender("fold", lambda: total.fold_all(updates, threads, CORES), size)
        one = Contender("fold one by one", one_by_one, size)
        eights = Contender("fold by eights", by_eights, size)
        numpy = Contender("numpy in float32", plain, size)
        take_turns((reads, folds, one, eights, numpy), repetitions)
    return [
        Figure(READS, reads.rate, "GB/s", by_cpu=reads.by_cpu),
        Figure(NUMPY, numpy.rate, "GB/s", by_cpu=numpy.by_cpu / CORES),
        Figure(FOLD, folds.rate, "GB/s", by_cpu=folds.by_cpu),
        Figure(
            f"{FOLD}, of what numpy's max reads",
            100 * folds.share_of(reads),
            "%",
            at_least=LEAST_OF_READS,
            by_cpu=100 * folds.by_cpu / reads.by_cpu,
        ),
        Figure(ONE_BY_ONE, one.rate, "GB/s", by_cpu=one.by_cpu),
        Figure(BY_EIGHTS, eights.rate, "GB/s", by_cpu=eights.by_cpu / CORES),
        Figure("CPU to fold decoded updates, float64", folds.cpu_per_gigabyte, "s/GB"),
    ]


class MemoryBlocks:
    """Decoded updates in memory, as `gathering.combine` takes them from storage."""

    def __init__(self, deltas: np.ndarray, window: int) -> None:
        self.updates, self.parameters = deltas.shape
        self._deltas, self._window = deltas, window
        self._rows = np.empty((self.updates, window), np.float32)

    def of(self, chosen: Sequence[int]) -> Iterator[tuple[slice, Rows]]:
        for start in range(0, self.parameters, self._window):
            part = slice(start, min(start + self._window, self.parameters))
            rows = self._rows[: len(chosen), : part.stop - part.start]
            for row, update in zip(rows, chosen, strict=True):
                row[:] = self._deltas[update, part]
            yield part, rows  # a copy, as rules may overwrite it


RULES: dict[str, Callable[[int], Rule]] = {
    "median": lambda _: Median(),
    "trimmed mean, 20 %": lambda _: TrimmedMean(0.2),
    "multi-Krum, 20 %": lambda count: MultiKrum(count // 5),
    "geometric median": lambda _: GeometricMedian(),
    "norm bounding": lambda _: NormBound(),
}


def robust(counts: Sequence[int], repetitions: int) -> list[Figure]:
    figures = []
    for count in counts:
        window = min(1 << 18, (128 << 20) // (4 * count))
        parameters = min(PARAMETERS, (256 << 20) // (4 * count))
        deltas = np.random.default_rng(count).normal(0, 0.05, (count, parameters)).astype(np.float32)
        blocks, examples = MemoryBlocks(deltas, window), np.full(count, 600.0)
        contenders = [
            Contender(name, partial(combine, make(count), blocks, examples), deltas.nbytes) for name, make in RULES.items()
        ]
        take_turns(contenders, repetitions)
        figures += [
            Figure(f"{contender.name}, {count} updates", contender.rate, "GB/s", at_least=LEAST_ROBUST, by_cpu=contender.by_cpu)
            for contender in contenders
        ]
    return figures


def peaks(counts: Sequence[int]) -> list[Figure]:
    """Peak memory of a process that folds so many updates, above what it has before the first."""
    cnn, small, medium, large = cnn_plan(), plan_of(SMALL), plan_of(MEDIUM), plan_of(LARGE)
    rounds = [
        *((f"{count:,} updates", cnn, count, False) for count in counts),
        *((f"the 2NN ({4 * SMALL / 1e6:.1f} MB), {count:,} updates", small, count, False) for count in (counts[0], MANY)),
        (f"{counts[0]} updates, and the next model published", cnn, counts[0], True),
        (f"a model of {4 * MEDIUM / 1e6:.0f} MB, 10 updates, and the next one published", medium, 10, True),
        (f"a model of {4 * LARGE / 1e6:.0f} MB, 3 updates", large, 3, False),
        (f"a model of {4 * LARGE / 1e6:.0f} MB, 3 updates, and the next one published", large, 3, True),
    ]
    figures = [
        peak_within(2 * 4 * plan.parameters / 1e6 + ring_megabytes(plan), what, count, plan, publish=publish)
        for what, plan, count, publish in rounds
    ]
    adam, size = plan_of(LARGE, strategy="fedadam"), 4 * LARGE / 1e6
    state = 2 * size  # two moments, beside the sum
    most = 2 * size + ring_megabytes(adam) + state
    figures.append(peak_within(most, f"a model of {size:.0f} MB, 3 updates, published by FedAdam", 3, adam, publish=True))
    for name, rule in (("median", {"name": "median"}), ("multi-Krum", {"name": "multi_krum", "byzantine": 2})):
        for count in (10, 1000):
            plan = plan_of(SMALL, update={"encoding": "float32", "window_elements": 1 << 15}, rule=rule)
            what = f"the 2NN, {name} of {count:,} updates, published"
            figures.append(peak_within(robust_megabytes(plan, count), what, count, plan, publish=True))
    return figures


def plan_of(parameters: int, *, update: dict[str, object] | None = None, **aggregation: object) -> Plan:
    """The CNN's plan with a model of one vector."""
    other = {"weights": [{"shape": [parameters]}], "aggregation": aggregation}
    return Plan.model_validate({**cnn_plan().model_dump(mode="json"), **other, **({"update": update} if update else {})})


def peak_within(most: float, what: str, count: int, plan: Plan, *, publish: bool) -> Figure:
    return Figure(f"peak memory above the start, {what}", peak_of(count, plan, publish=publish), "MB", at_most=round(most))


def draw(figures: Sequence[Figure], path: Path) -> None:
    """What goes through, in memory and from storage, beside what plain tools reach; each aim across the bars that it is for."""
    rates = {figure.what: figure.value for figure in figures if figure.unit == "GB/s"}
    rules = tuple(f"{rule}, {ROBUST_DRAWN} updates" for rule in RULES)
    panels = {
        "in memory": (IN_MEMORY, (FOLD, FOLD), LEAST_OF_READS / 100 * rates.get(READS, math.nan)),
        "from storage": (FROM_STORAGE, (FOLDS, FOLDS), LEAST_OF_BARE / 100 * rates.get(GETS, math.nan)),
        f"robust rules, in memory, {ROBUST_DRAWN} updates": (rules, (rules[0], rules[-1]), LEAST_ROBUST),
    }
    aims = (f"aim: {LEAST_OF_READS:g} % of the reads", f"aim: {LEAST_OF_BARE:g} % of bare GETs", f"aim: {LEAST_ROBUST:g} GB/s")
    with canvas(path, len(panels), width=9.5, height=2.2) as axes:
        for axis, (title, (names, (first, last), aim)), said in zip(axes, panels.items(), aims, strict=True):
            chosen = {of: rates[of] for of in names if of in rates}
            bars(axis, chosen, [PLAIN if of in PLAIN_TOOLS else OURS for of in chosen], "GB/s of float32")
            axis.set_title(title)
            if chosen:
                aim_line(axis, aim, names.index(first), names.index(last))
            plain = {"plain tools": PLAIN} if any(of in PLAIN_TOOLS for of in names) else {}
            name_colors(axis, {**plain, "fedlearn": OURS}, said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--peaks", type=int, nargs="*", default=[10, 100, 1000])
    parser.add_argument("--out", type=Path, help="a picture of the rates beside those of plain tools")
    given = parser.parse_args()
    figures: list[Figure] = []
    for part in given.part or PARTS:
        if part == "memory":
            rng = np.random.default_rng(0)
            updates = [
                Update(rng.normal(0, 0.05, PARAMETERS).astype(np.float32), 600 + number) for number in range(given.updates)
            ]
            found = in_memory(updates, given.repetitions)
            del updates
        elif part == "robust":
            found = robust((10, 32, 100), given.repetitions)
        elif part == "storage":
            found = from_storage(given.updates, 9 * given.repetitions)
        else:
            found = peaks(given.peaks)
        print(show(found), flush=True)
        figures += found
    if given.out:
        draw(figures, given.out)


if __name__ == "__main__":
    main()
