"""Memory against the number of updates, ours and Flower's: what a process takes that aggregates so many of the CNN's size.

Flower's strategies are given a round's updates all at once, as records in memory, so its process holds them while
`aggregate_arrayrecords` adds them. Ours is what an aggregator is: it fetches sealed updates from a real object storage, four at
a time, opens, checks and folds each as it comes, and keeps none. Neither does anything else; what is shown is each process's
peak above what it had before the first update. What whole rounds take stands under "Beside Flower".

    python benchmarks/memory.py [--flower .venv-flower] [--updates 10 100 300 1000] [--out docs/images/memory.png]
"""

import argparse
import tempfile
from pathlib import Path

from deployments import cnn_plan
from drawing import OURS, PLAIN, THEIRS, canvas
from flower_programs import Flower
from folding_round import peak_of, ring_megabytes
from results import Figure, show, table

SIZE = 4 * cnn_plan().parameters / 1e6
"""MB of an update."""
_TICKS = (30, 100, 300, 1000, 3000, 10_000)
_ROOM = 1.5
"""Flower is asked for no more updates than fit so many times into what memory is free."""


def free_megabytes() -> float:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) / 1000


def draw(theirs: dict[int, float], ours: dict[int, float], path: Path) -> None:
    with canvas(path, 1, width=6.4, height=4.0) as (axis,):
        counts = list(ours)
        axis.plot(counts, [SIZE * count for count in counts], color=PLAIN, linestyle="--", label="the updates themselves")
        axis.plot(list(theirs), list(theirs.values()), color=THEIRS, marker="o", label="Flower")
        axis.plot(counts, list(ours.values()), color=OURS, marker="o", label="ours, from storage")
        for of, color, shift, side in ((theirs, THEIRS, (-7, 4), "right"), (ours, OURS, (0, -17), "center")):
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
            style = {"textcoords": "offset points", "ha": side, "color": color, "bbox": box}
            for count, megabytes in of.items():
                axis.annotate(f"{megabytes:,.0f}", (count, megabytes), shift, **style)
        axis.set(xscale="log", yscale="log", xlabel="updates of 6.65 MB", ylabel="peak memory above the start, MB")
        axis.set_xticks(counts, [f"{count:,}" for count in counts])
        axis.set_yticks(_TICKS, [f"{tick:,}" for tick in _TICKS])
        axis.minorticks_off()
        axis.margins(x=0.08, y=0.12)
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, loc="upper left")
        axis.spines[["top", "right"]].set_visible(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flower", type=Path, default=Path(".venv-flower"), help="an environment with flwr[simulation]")
    parser.add_argument("--updates", type=int, nargs="+", default=[10, 100, 300, 1000])
    parser.add_argument("--out", type=Path, help="a picture of both")
    given = parser.parse_args()
    theirs, ours, rows = dict[int, float](), dict[int, float](), list[list[str]]()
    with tempfile.TemporaryDirectory() as directory:
        flower = Flower(given.flower, Path(directory))
        print(f"{flower.versions()}.\n")
        for count in sorted(given.updates):
            ours[count] = peak_of(count, cnn_plan())
            cells = ["not tried: too little memory is free", ""]
            if _ROOM * SIZE * count < free_megabytes():
                theirs[count] = flower.sum(count, turns=1).megabytes
                cells = [f"{theirs[count]:,.0f} MB", f"{theirs[count] / ours[count]:,.1f} ×"]
            rows.append([f"{count:,}", f"{SIZE * count:,.0f} MB", f"{ours[count]:,.0f} MB", *cells])
    print(table(["updates", "they are", "ours", "Flower's", "Flower's by ours"], rows))
    most = round(2 * SIZE + ring_megabytes(cnn_plan()))
    print(
        show([Figure("ours, the most of all: twice the model, and a ring of buffers", max(ours.values()), "MB", at_most=most)])
    )
    if given.out:
        draw(theirs, ours, given.out)


if __name__ == "__main__":
    main()
