"""docs/errors.md documents every code, with the catalogue's status."""

import re
from pathlib import Path

import pytest

from fedlearn.core.errors import Code
from fedlearn.protocol.problems import CATALOGUE

PAGE = Path(__file__).parents[3] / "docs" / "errors.md"
_ROW = re.compile(r"^\| `(?P<code>\w+)` \| (?P<status>\d+) \| (?P<happened>.*) \| (?P<do>.*) \|$")


def rows() -> list[re.Match[str]]:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    matches = [_ROW.match(line) for line in lines]
    assert all(matches), [line for line, match in zip(lines, matches, strict=True) if match is None]
    return [match for match in matches if match is not None]


def test_the_page_has_one_row_for_every_code_and_none_besides() -> None:
    assert sorted(row["code"] for row in rows()) == sorted(Code)


@pytest.mark.parametrize("row", rows(), ids=lambda row: row["code"])
def test_a_row_has_the_catalogues_status_and_says_what_to_do(row: re.Match[str]) -> None:
    assert int(row["status"]) == CATALOGUE[Code(row["code"])].status
    assert row["happened"].endswith(".")
    assert row["do"].endswith(".")
