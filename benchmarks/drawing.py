"""Figures of the benchmarks' page, all drawn alike."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

OURS, THEIRS, LIMIT = "#1f77b4", "#ff7f0e", "#8c8c8c"


@contextmanager
def canvas(path: Path, columns: int, width: float = 5.0, height: float = 3.8) -> Iterator[Sequence[Any]]:
    """Axes side by side, saved at the end."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, columns, figsize=(width * columns, height), squeeze=False)
    yield axes[0]
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def bars(axis: Any, values: Mapping[str, float], colors: Sequence[str], xlabel: str, form: str = "%.3g") -> None:
    """One below the other, each with its number."""
    drawn = axis.barh(list(values), list(values.values()), color=list(colors))
    axis.bar_label(drawn, fmt=form, padding=3)
    axis.set_xlabel(xlabel)
    axis.invert_yaxis()
    axis.margins(x=0.18)
    axis.spines[["top", "right"]].set_visible(False)
