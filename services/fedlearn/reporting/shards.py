"""Who holds what, as a picture: a bar for each device, stacked by class."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedlearn.data.holdings import Holdings
from fedlearn.reporting.plots import figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FEW_CLASSES = 10  # as many as a reader tells apart by colour; beyond, neighbours look alike and a scale stands beside
_NAMED_DEVICES = 25
_BARS = 2000
_ONE_COLOUR = "#1f5fbf"


def draw_holdings(holdings: Holdings, path: Path, title: str) -> None:
    """Draw the labels by device to `path` (.png, .svg, .pdf).

    Raises:
        SetupError: `setting_invalid`, `disk_full`.
    """
    devices = len(holdings.devices)
    width = min(14.0, max(5.5, 3.5 + 0.45 * devices))
    made, axes = figure(width, 4.5, title=title, x="device", y="examples")
    places = np.arange(devices)
    colours = _colours(len(holdings.classes))
    below = np.zeros(devices)
    for column, colour in enumerate(colours):
        above = below + holdings.counts[:, column]
        if holdings.counts.size <= _BARS:
            axes.bar(places, above - below, width=0.8 if devices <= _NAMED_DEVICES else 0.9, bottom=below, color=colour)
        else:  # so many bars take long to draw; a stepped area is one shape
            axes.fill_between(places, below, above, step="mid", color=colour, linewidth=0)
        below = above
    axes.set_ylim(bottom=0)
    axes.margins(x=0.01 if devices > _NAMED_DEVICES else 0.05)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    _name_devices(axes, holdings.devices)
    _explain(made, axes, holdings, colours)
    save(made, path)


def _colours(classes: int) -> list[Any]:
    from matplotlib import colormaps  # noqa: PLC0415 - an extra

    if classes <= 1:
        return [_ONE_COLOUR]
    if classes <= _FEW_CLASSES:
        return [colormaps["tab10"](index) for index in range(classes)]
    return [colormaps["turbo"](index / (classes - 1)) for index in range(classes)]


def _name_devices(axes: "Axes", names: tuple[str, ...]) -> None:
    step = 1 if len(names) <= _NAMED_DEVICES else 5 if len(names) <= 60 else 10 if len(names) <= 150 else len(names) // 10
    shown = names[::step]
    long = max(map(len, shown), default=0) * len(shown) > 75
    axes.set_xticks(range(0, len(names), step), shown, rotation=60 if long else 0, ha="right" if long else "center")


def _explain(made: Any, axes: "Axes", holdings: Holdings, colours: list[Any]) -> None:
    """Which colour is which class, the uppermost first, as in the bars."""
    classes = holdings.classes
    if not classes:
        return
    if len(classes) <= _FEW_CLASSES:
        from matplotlib.patches import Patch  # noqa: PLC0415 - an extra

        handles = [Patch(color=colour) for colour in colours]
        labels = [str(label) for label in classes]
        axes.legend(handles[::-1], labels[::-1], title="label", frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        return
    from matplotlib.cm import ScalarMappable  # noqa: PLC0415 - an extra
    from matplotlib.colors import BoundaryNorm, ListedColormap  # noqa: PLC0415

    scale = ScalarMappable(BoundaryNorm(np.arange(len(classes) + 1) - 0.5, len(classes)), ListedColormap(colours))
    bar = made.colorbar(scale, ax=axes, label="label", pad=0.01)
    bar.minorticks_off()
    ticks = range(0, len(classes), max(1, len(classes) // 10))
    bar.set_ticks(list(ticks), labels=[str(classes[tick]) for tick in ticks])
