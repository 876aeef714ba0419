import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlearn.core.errors import Code, Refusal
from fedlearn.core.sparsity import split

float32s = st.floats(-1e6, 1e6, width=32)


@given(st.lists(float32s, min_size=1, max_size=50), st.integers(1, 60))
def test_what_is_sent_and_what_is_kept_are_the_delta(values: list[float], keep: int) -> None:
    delta = np.array(values, np.float32)
    kept = delta.copy()
    sent = split(kept, keep)
    # float16 is a prefix of float32, so that the difference is exact unless it is cut at float16's largest number
    inside = np.abs(delta) <= 65504
    np.testing.assert_array_equal((sent.astype(np.float64) + kept)[inside], delta.astype(np.float64)[inside])
    assert np.count_nonzero(sent) <= keep
    assert np.abs(kept[sent == 0]).max(initial=0) <= np.abs(delta).max()
    np.testing.assert_array_equal(sent, sent.astype(np.float16).astype(np.float32))


def test_the_largest_magnitudes_go_and_of_equal_ones_the_first() -> None:
    delta = np.array([1, -3, 0.5, 2, -2, 2, 0], np.float32)
    np.testing.assert_array_equal(split(delta, 3), [0, -3, 0, 2, -2, 0, 0])
    np.testing.assert_array_equal(delta, [1, 0, 0.5, 0, 0, 2, 0])


def test_a_value_beyond_float16_goes_in_parts() -> None:
    kept, arrived = np.array([100_000, 1], np.float32), np.zeros(2)
    for _ in range(3):
        arrived += split(kept, 1)
    np.testing.assert_allclose(arrived, [100_000, 1], rtol=1e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
def test_what_is_not_finite_is_refused_before_it_spoils_what_is_kept(value: float) -> None:
    delta = np.array([value, 1, 2], np.float32)
    before = delta.copy()
    with pytest.raises(Refusal) as refusal:
        split(delta, 1)
    assert refusal.value.code is Code.UPDATE_NOT_FINITE
    np.testing.assert_array_equal(delta, before)


@pytest.mark.parametrize("keep", [1, 5, 20])
def test_what_is_dropped_arrives_later(keep: int) -> None:
    """Of a delta that is the same in every round, everything has been sent after some rounds, up to what is still kept."""
    delta, kept, arrived = (
        np.random.default_rng(3).normal(size=100).astype(np.float32),
        np.zeros(100, np.float32),
        np.zeros(100),
    )
    missing = []
    for round_ in range(1, 401):
        kept += delta
        arrived += split(kept, keep)
        missing.append(float(np.abs(arrived / round_ - delta).max()))
    np.testing.assert_allclose(arrived + kept, 400 * delta.astype(np.float64), atol=0.05)
    assert missing[-1] < 0.05 * np.abs(delta).max() * 20 / keep
    assert missing[-1] < missing[99] / 2


def test_without_feedback_what_is_small_would_never_arrive() -> None:
    delta = np.array([1.0, 0.1], np.float32)
    arrived = sum(split(delta.copy(), 1) for _ in range(100))
    assert arrived[1] == 0
