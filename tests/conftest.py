"""What tests of several kinds stand on."""

from collections.abc import Iterator

import pytest

from fedlearn.local.storage import LocalStorage


@pytest.fixture(scope="session")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStorage]:
    """The embedded object storage, started once; keep to keys of your own, and leave it running."""
    with LocalStorage(tmp_path_factory.mktemp("storage")) as storage:
        yield storage
