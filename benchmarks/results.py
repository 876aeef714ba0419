"""Figures as the benchmarks print them: a table in Markdown, each beside what it aims at."""

from collections.abc import Sequence
from typing import NamedTuple


class Figure(NamedTuple):
    """One measured thing; `at_least` or `at_most` is its aim, where it has one.

    Args:
        by_cpu: the same by the CPU time that it took, as if all cores had been free for it: on a busy machine the clock
            measures the others.
    """

    what: str
    value: float
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    by_cpu: float | None = None

    @property
    def aim(self) -> str:
        if self.at_least is not None:
            return f"at least {self.at_least:g} {self.unit}"
        return f"at most {self.at_most:g} {self.unit}" if self.at_most is not None else ""

    @property
    def missed(self) -> bool:
        return (self.at_least is not None and self.value < self.at_least) or (
            self.at_most is not None and self.value > self.at_most
        )


def show(figures: Sequence[Figure]) -> str:
    rows = [
        f"| {figure.what} | {_number(figure.value, figure.unit)} | {_number(figure.by_cpu, figure.unit)} "
        f"| {figure.aim}{' **(missed)**' if figure.missed else ''} |"
        for figure in figures
    ]
    return "\n".join(["| | by the clock | by CPU time | aim |", "|---|---|---|---|", *rows, ""])


def _number(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:,.3g} {unit}"
