"""Writes charts/fedlearn/dashboards/ from `support.dashboards`: `python tests/support/write_dashboards.py`."""

import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
DIRECTORY = TESTS.parent / "charts" / "fedlearn" / "dashboards"


def written() -> dict[str, str]:
    """Each dashboard's JSON by its file's name."""
    from grafana_foundation_sdk.cog.encoder import JSONEncoder

    from support.dashboards import DASHBOARDS

    encoder = JSONEncoder(sort_keys=True, indent=2)
    return {f"{name}.json": encoder.encode(make().build()) + "\n" for name, make in DASHBOARDS.items()}


if __name__ == "__main__":
    sys.path.insert(0, str(TESTS))
    DIRECTORY.mkdir(exist_ok=True)
    for name, text in written().items():
        (DIRECTORY / name).write_text(text)
