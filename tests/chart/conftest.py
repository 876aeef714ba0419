from pathlib import Path

import pytest

from support.chart import VALUES_FILES, Rendered, render, values


def _name(path: Path) -> str:
    return path.name.removesuffix("-values.yaml")


@pytest.fixture(scope="session", params=[_name(path) for path in VALUES_FILES])
def every(request: pytest.FixtureRequest) -> Rendered:
    """The chart with each values file in turn."""
    return render(values(request.param))


@pytest.fixture(scope="session")
def default() -> Rendered:
    return render()
