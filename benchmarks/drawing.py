"""Figures of the benchmarks' page, all drawn alike."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

OURS, THEIRS, PLAIN = "#1f77b4", "#ff7f0e", "#8c8c8c"
"""The colours of fedlearn, of a peer, and of what plain tools give."""
AIM: dict[str, Any] = {"color": "black", "linestyle": "--", "linewidth": 1.3}


@contextmanager
def canvas(
    path: Path, rows: int, columns: int = 1, *, width: float = 8.0, height: float = 1.9, shares: Sequence[float] | None = None
) -> Iterator[Sequence[Any]]:
    """Axes of so many inches each, row by row, saved at the end; `shares` is how high the rows are beside each other."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False, height_ratios=shares)
    yield list(axes.flat)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def bars(axis: Any, values: Mapping[str, float], colors: Sequence[str], xlabel: str, form: str = "{:.3g}") -> None:
    """One below the other, each with its number."""
    drawn = axis.barh(list(values), list(values.values()), color=list(colors))
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # an aim's line ends there
    axis.bar_label(drawn, fmt=form, padding=3, bbox=box, zorder=4)
    axis.set_xlabel(xlabel)
    axis.invert_yaxis()
    axis.margins(x=0.18)
    axis.xaxis.set_major_formatter("{x:,g}")
    axis.spines[["top", "right"]].set_visible(False)


def name_colors(axis: Any, names: Mapping[str, str], aim: str = "") -> None:
    """A legend of bars: what each colour is, and the line of an aim where there is one."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [Patch(color=color, label=name) for name, color in names.items()]
    if aim:
        handles.append(Line2D([], [], label=aim, **AIM))
    axis.legend(handles=handles, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")


def aim_line(axis: Any, value: float, first: float, last: float) -> None:
    """An aim's line across some of the bars, numbered from the top."""
    axis.plot([value, value], [first - 0.45, last + 0.45], **AIM)
