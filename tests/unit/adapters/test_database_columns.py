"""Times go into text and come back as the same float."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlearn.adapters.database.columns import epoch_seconds, iso_time

times = st.floats(min_value=0.0, max_value=253_402_300_799.0, allow_nan=False)


@given(times)
def test_a_time_comes_back_to_the_last_bit(seconds: float) -> None:
    assert epoch_seconds(iso_time(seconds)) == seconds


@given(times, times)
def test_the_text_sorts_by_time(one: float, other: float) -> None:
    assert (iso_time(one) < iso_time(other)) == (one < other)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        pytest.param(0.0, "1970-01-01T00:00:00+00:00", id="epoch"),
        pytest.param(1_760_000_000.25, "2025-10-09T08:53:20.25+00:00", id="fraction"),
        pytest.param(1_709_164_800, "2024-02-29T00:00:00+00:00", id="leap day, whole number"),
        pytest.param(1e-07, "1970-01-01T00:00:00.0000001+00:00", id="exponent"),
    ],
)
def test_a_person_can_read_the_text(seconds: float, text: str) -> None:
    assert iso_time(seconds) == text


@pytest.mark.parametrize("seconds", [-0.5, math.nan, math.inf, -math.inf])
def test_what_is_no_time_is_not_written(seconds: float) -> None:
    with pytest.raises(ValueError, match="no time since the epoch"):
        iso_time(seconds)
