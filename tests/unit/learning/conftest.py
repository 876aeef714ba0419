import pytest

from fedlearn.learning.runtime import use_one_core


@pytest.fixture(scope="session", autouse=True)
def one_core() -> None:
    """As every process that trains does."""
    use_one_core()
