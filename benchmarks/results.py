"""Figures as the benchmarks print them: a table in Markdown, each beside what it aims at."""

from collections.abc import Sequence
from typing import NamedTuple


class Figure(NamedTuple):
    """One measured thing; `at_least` or `at_most` is its aim, where it has one."""

    what: str
    value: float
    unit: str
    at_least: float | None = None
    at_most: float | None = None

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
        f"| {figure.what} | {figure.value:,.3g} {figure.unit} | {figure.aim}{' **(missed)**' if figure.missed else ''} |"
        for figure in figures
    ]
    return "\n".join(["| | measured | aim |", "|---|---|---|", *rows, ""])
