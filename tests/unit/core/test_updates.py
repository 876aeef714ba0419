import numpy as np
import pytest

from fedlearn.core.errors import Code, Refusal
from fedlearn.core.updates import Update, check_claims, check_finite

GOOD = np.zeros(10, np.float32)


def with_value(value: float) -> np.ndarray:
    delta = GOOD.copy()
    delta[7] = value
    return delta


@pytest.mark.parametrize(
    ("update", "code"),
    [
        pytest.param(Update(GOOD, 1, 1, {"loss": np.nan}), Code.UPDATE_NOT_FINITE, id="a metric that is NaN"),
        pytest.param(Update(GOOD, 1, 1, {"loss": -np.inf}), Code.UPDATE_NOT_FINITE, id="a metric that is infinite"),
        pytest.param(Update(GOOD, 1, 1, {"loss": -1e39}), Code.UPDATE_NOT_FINITE, id="a metric beyond float32"),
        pytest.param(Update(GOOD, 1, 1, {"loss": 1.0, "mine": 1.0}), Code.UPDATE_TOO_LARGE, id="a metric of its own"),
        pytest.param(Update(GOOD, 0), Code.UPDATE_EXAMPLES, id="no example"),
        pytest.param(Update(GOOD, -5), Code.UPDATE_EXAMPLES, id="negative examples"),
        pytest.param(Update(GOOD, 101), Code.UPDATE_EXAMPLES, id="more examples than the plan allows"),
        pytest.param(Update(GOOD, 10**9), Code.UPDATE_EXAMPLES, id="a thousand million examples"),
        pytest.param(Update(GOOD, 1, 101), Code.UPDATE_EXAMPLES, id="more held out than the plan allows"),
    ],
)
def test_what_an_update_may_not_say_is_refused_with_its_code(update: Update, code: Code) -> None:
    with pytest.raises(Refusal) as refusal:
        check_claims(update, max_examples=100, figures=("loss", "accuracy"))
    assert refusal.value.code is code


@pytest.mark.parametrize("loss", [0.5, -float(np.finfo(np.float32).max)])
def test_what_it_may_say_is_accepted(loss: float) -> None:
    check_claims(Update(GOOD, 100, 100, {"loss": loss}), max_examples=100, figures=("loss", "accuracy"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_delta_that_is_not_finite_is_refused(value: float, dtype: type) -> None:
    with pytest.raises(Refusal) as refusal:
        check_finite(with_value(value).astype(dtype))
    assert refusal.value.code is Code.UPDATE_NOT_FINITE


@pytest.mark.parametrize(
    "delta", [GOOD, with_value(3e38), np.full(10, 1e30, np.float32)], ids=["zeros", "a huge value", "squares that overflow"]
)
def test_what_is_finite_is_accepted(delta: np.ndarray) -> None:
    before = delta.copy()
    check_finite(delta)
    np.testing.assert_array_equal(delta, before)
