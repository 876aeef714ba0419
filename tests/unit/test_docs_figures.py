"""The figures that README.md takes from docs/benchmarks.md are those of the last `make bench`."""

import json
import re
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
MEASURED = json.loads((ROOT / "benchmarks" / "measured.json").read_text())
README = " ".join((ROOT / "README.md").read_text().split())


class Figure(NamedTuple):
    """One number: where README has it, which row of which benchmark it is, and how many decimals README gives."""

    said: str
    benchmark: str
    row: str
    decimals: int = 0


FIGURES = {
    "rounds to 97 %, IID": Figure(r"in round ([\d,.]+) \(IID\)", "mcmahan", r"IID, median[^|]*"),
    "rounds to 97 %, non-IID": Figure(r"and ([\d,.]+) \(non-IID", "mcmahan", r"non-IID [^|]*, median[^|]*"),
    "the paper's, IID": Figure(r"McMahan et al. 2017 took ([\d,.]+) and", "mcmahan", r"IID, median[^|]*\|[^|]*\| at most"),
    "the paper's, non-IID": Figure(
        r"McMahan et al. 2017 took [\d,.]+ and ([\d,.]+);", "mcmahan", r"non-IID [^|]*, median[^|]*\|[^|]*\| at most"
    ),
    "a round by its bytes": Figure(
        r"takes ([\d,.]+) times as long as moving the same bytes alone", "round_overhead", r"a whole round by [^|]*", 1
    ),
    "Flower deployed": Figure(
        r"Flower, deployed, ([\d,.]+) times as long as ours",
        "flower",
        r"seconds of a round of 10, Flower deployed by ours[^|]*",
    ),
    "Flower simulated, 10": Figure(
        r"is ([\d,.]+) times as fast as our float32 rounds with 10 clients",
        "flower",
        r"seconds of a round of 10, ours \(float32\) by Flower[^|]*",
    ),
    "Flower simulated, 100": Figure(
        r"and ([\d,.]+) times with 100\b", "flower", r"seconds of a round of 100, ours \(float32\) by Flower[^|]*"
    ),
}


@pytest.mark.parametrize("figure", FIGURES.values(), ids=FIGURES.keys())
def test_the_readme_has_what_was_measured(figure: Figure) -> None:
    row = re.search(rf"^\|\s*{figure.row}[\s|]*(?P<number>[\d,.]+)", MEASURED[figure.benchmark]["printed"], re.MULTILINE)
    assert row, f"benchmarks/{figure.benchmark}.py prints no row {figure.row!r} any more: name here the one that it is now"
    wanted = f"{float(row['number'].replace(',', '')):,.{figure.decimals}f}"
    said = re.search(figure.said, README)
    assert said, f"README.md has no sentence {figure.said!r} any more: change it here too; the figure is {wanted}"
    assert said[1] == wanted, f"README.md says '{said[0]}': write {wanted} there, as benchmarks/measured.json has it"
