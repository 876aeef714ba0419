"""Every test that docs/faults.md names is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMED = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (ROOT / "docs" / "faults.md").read_text())


def test_every_test_that_the_page_names_exists() -> None:
    assert len(NAMED) > 20
    missing = [
        (file, test)
        for file, test in NAMED
        if not (ROOT / file).exists() or (test and not re.search(rf"def {test}\(", (ROOT / file).read_text()))
    ]
    assert missing == []
