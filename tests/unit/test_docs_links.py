"""What the documents point to is there: files, headings, and the modules and directories that they name."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
_LINK = re.compile(r"\]\((?!https?:)(?P<path>[^)#\s]*)(?:#(?P<heading>[^)\s]+))?\)")
_NAMED = re.compile(r"`(?P<path>[a-z_]+/(?:[\w.-]+/)*(?:[\w-]+\.(?:py|md|svg|toml|yaml))?)`")
_MADE_BY_A_RUN = {"runs/"}


def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for link in _LINK.finditer(page.read_text()):
        target = page.parent / link["path"] if link["path"] else page
        if not target.exists() or (link["heading"] and link["heading"] not in headings(target)):
            broken.append(link[0])
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_and_directory_that_is_named_is_there(page: Path) -> None:
    named = {match["path"] for match in _NAMED.finditer(page.read_text())} - _MADE_BY_A_RUN
    assert not sorted(
        path for path in named if not any((base / path).exists() for base in (ROOT, ROOT / "services" / "fedlearn"))
    )
