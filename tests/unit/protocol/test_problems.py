import pytest

from fedlearn.core.errors import Code, Outage, Refusal
from fedlearn.protocol.problems import CATALOGUE, error_of, problem_of


def test_every_code_is_in_the_catalogue() -> None:
    assert set(CATALOGUE) == set(Code)


@pytest.mark.parametrize("code", list(Code))
def test_every_entry_is_a_failure_with_a_sentence(code: Code) -> None:
    entry = CATALOGUE[code]
    assert 400 <= entry.status < 600
    assert entry.title.endswith(".")


@pytest.mark.parametrize("code", list(Code))
def test_an_error_comes_back_from_its_problem(code: Code) -> None:
    status = CATALOGUE[code].status
    passes = status >= 500 or status == 429  # who asks too often may ask again
    error = (Outage if passes else Refusal)(code, "What happened.")
    returned = error_of(problem_of(error))
    assert (type(returned), returned.code, returned.detail) == (type(error), code, "What happened.")
