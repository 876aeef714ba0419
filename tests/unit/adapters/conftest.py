from collections.abc import Iterator
from pathlib import Path

import pytest

from fedlearn.adapters.kubernetes.connection import Connection
from support.played_api import PlayedApi, connected, played_api


@pytest.fixture
def api(tmp_path: Path) -> Iterator[PlayedApi]:
    with played_api(tmp_path) as api:
        yield api


@pytest.fixture
def connection(api: PlayedApi) -> Iterator[Connection]:
    with connected(api) as connection:
        yield connection
