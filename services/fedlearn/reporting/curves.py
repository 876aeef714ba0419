"""Accuracy and loss by round, as a picture."""

# ruff: noqa: PLC0415 - matplotlib is an extra, and takes half a second to import

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedlearn.core.errors import Code, SetupError, cannot_write
from fedlearn.reporting.history import RoundFigures

_COLORS, _ABANDONED = ("#1f5fbf", "#e08a2e"), "#999999"
_Points = list[tuple[int, float]]


def is_available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw_curves(rounds: Sequence[RoundFigures], path: Path, title: str) -> None:
    """Draw a task's rounds to `path`; its ending (.png, .svg, .pdf) says the format.

    The hold-out figure of a round is of the version that it started from, so it is drawn at the round before.

    Raises:
        SetupError: `setting_invalid` when matplotlib is missing or `path` is of no use; `disk_full`.
    """
    if not is_available():
        raise SetupError(Code.SETTING_INVALID, "Curves need matplotlib: install fedlearn[plots].")
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(8, 6), layout="constrained")
    accuracy, loss = figure.subplots(2, 1, sharex=True)
    holdouts = [(number - 1, value) for number, value in _points(rounds, "federated_accuracy")]
    _draw(accuracy, "accuracy", {"test set": _points(rounds, "accuracy"), "devices' hold-outs": holdouts})
    _draw(loss, "loss", {"test set": _points(rounds, "loss")})
    abandoned = [round_.round for round_ in rounds if round_.outcome == "abandoned"]
    for number in abandoned:
        accuracy.axvline(number, color=_ABANDONED, linestyle=":")
        loss.axvline(number, color=_ABANDONED, linestyle=":")
    accuracy.set_title(title, loc="left")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))
    loss.set_xlabel("round (dotted: abandoned)" if abandoned else "round")
    loss.xaxis.set_major_locator(MaxNLocator(integer=True))
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise cannot_write(f"The picture {path}", error) from error
    except ValueError as error:
        raise SetupError(Code.SETTING_INVALID, f"{path} must end in .png, .svg or .pdf.") from error


def _draw(axes: Any, name: str, series: Mapping[str, _Points]) -> None:
    drawn = {label: points for label, points in series.items() if points}
    for (label, points), color in zip(drawn.items(), _COLORS, strict=False):
        numbers, values = zip(*points, strict=True)
        axes.plot(numbers, values, marker="o", markersize=3, label=label, color=color)
    axes.set_ylabel(name)
    axes.grid(visible=True, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if drawn:
        axes.legend(frameon=False)


def _points(rounds: Sequence[RoundFigures], name: str) -> _Points:
    return [(round_.round, value) for round_ in rounds if (value := getattr(round_, name)) is not None]
