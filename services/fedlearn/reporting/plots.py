"""What pictures have in common: a light ground, one style, and how they are written."""

from pathlib import Path
from typing import TYPE_CHECKING

from fedlearn.core.errors import Code, SetupError, cannot_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOTS_PER_INCH = 120


def figure(width: float, height: float, *, title: str, x: str, y: str) -> tuple["Figure", "Axes"]:
    """A picture of so many inches with one pair of axes; nothing of it is global.

    Raises:
        SetupError: `setting_invalid` when matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - an extra, and takes half a second
    except ImportError as error:
        raise SetupError(Code.SETTING_INVALID, "A picture needs matplotlib: pip install 'fedlearn[plots]'.") from error
    made = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, facecolor="white", layout="constrained")
    axes = made.add_subplot()
    axes.set_title(title, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_axisbelow(True)
    axes.grid(visible=True, axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return made, axes


def save(made: "Figure", path: Path) -> None:
    """Write a picture; the ending of `path` (.png, .svg, .pdf) says the format.

    Raises:
        SetupError: `setting_invalid` for a place or an ending that can't be used; `disk_full`.
    """
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise SetupError(Code.SETTING_INVALID, f"{path} must end in .png, .svg or .pdf.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        made.savefig(path)
    except OSError as error:
        raise cannot_write(f"The picture {path}", error) from error
