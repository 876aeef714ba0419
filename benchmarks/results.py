"""Figures as the benchmarks print them: a table in Markdown, each beside what it aims at."""

import math
from collections.abc import Sequence
from typing import NamedTuple

MISSED, SLOWER, NO_AIM = "(missed)", "(slower)", "none"
"""What marks a row for the page's list of where we are not ahead, and what stands for an aim where there is none."""


class Figure(NamedTuple):
    """One measured thing; `at_least` or `at_most` is its aim, where it has one.

    Args:
        value: infinite for what was not reached at all.
        by_cpu: the same by the CPU time that it took, as if all cores had been free for it: on a busy machine the clock
            measures the others.
        why: the reason of a miss, or of being slower; shown only if it is one.
        slower_above: for what is compared with a peer and has no aim: where the two are level. Above it the figure is marked.
        between: the least and the most of what it is the median of.
    """

    what: str
    value: float
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    by_cpu: float | None = None
    why: str = ""
    slower_above: float | None = None
    between: tuple[float, float] | None = None

    @property
    def aim(self) -> str:
        if self.at_least is not None:
            return f"at least {self.at_least:g} {self.unit}".strip()
        return f"at most {self.at_most:g} {self.unit}".strip() if self.at_most is not None else ""

    @property
    def missed(self) -> bool:
        return (self.at_least is not None and self.value < self.at_least) or (
            self.at_most is not None and self.value > self.at_most
        )

    @property
    def slower(self) -> bool:
        return self.slower_above is not None and self.value > self.slower_above


def show(figures: Sequence[Figure]) -> str:
    """A table with the columns that any of the figures has something for."""
    by_cpu, aims = any(figure.by_cpu is not None for figure in figures), any(_beside(figure) for figure in figures)
    headings = ["", *(["by the clock", "by CPU time"] if by_cpu else ["measured"]), *(["aim"] if aims else [])]
    rows = []
    for figure in figures:
        values = [_measured(figure), *([_number(figure.by_cpu, figure.unit)] if by_cpu else [])]
        rows.append([figure.what, *values, *([_beside(figure)] if aims else [])])
    return table(headings, rows)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown, with an empty line after it."""
    lines = [f"| {' | '.join(cells)} |" for cells in (headings, *rows)]
    return "\n".join([lines[0], "|---" * len(headings) + "|", *lines[1:], ""])


def _beside(figure: Figure) -> str:
    because = f": {figure.why}" if figure.why else ""
    if figure.missed:
        return f"{figure.aim} **{MISSED}**{because}"
    return f"{NO_AIM} **{SLOWER}**{because}" if figure.slower else figure.aim


def _measured(figure: Figure) -> str:
    shown = _number(figure.value, figure.unit)
    if figure.between is None or figure.between[0] == figure.between[1]:
        return shown
    return f"{shown} ({' to '.join(_number(value, '') for value in figure.between)})"


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    if math.isinf(value):
        return "not reached"
    return (f"{value:,.0f} {unit}" if abs(value) >= 1000 else f"{value:,.3g} {unit}").strip()
