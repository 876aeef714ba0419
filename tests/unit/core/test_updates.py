import numpy as np
import pytest

from fedlearn.core.errors import Code, Refusal
from fedlearn.core.updates import Update, validate_update

GOOD = np.zeros(10, np.float32)


def with_value(value: float) -> np.ndarray:
    delta = GOOD.copy()
    delta[7] = value
    return delta


@pytest.mark.parametrize(
    ("update", "code"),
    [
        pytest.param(Update(np.zeros(9, np.float32), 1), Code.UPDATE_SHAPE, id="too short"),
        pytest.param(Update(np.zeros((10, 1), np.float32), 1), Code.UPDATE_SHAPE, id="another rank"),
        pytest.param(Update(np.zeros(10, np.float64), 1), Code.UPDATE_DTYPE, id="float64"),
        pytest.param(Update(with_value(np.nan), 1), Code.UPDATE_NOT_FINITE, id="NaN"),
        pytest.param(Update(with_value(np.inf), 1), Code.UPDATE_NOT_FINITE, id="infinity"),
        pytest.param(Update(with_value(-np.inf), 1), Code.UPDATE_NOT_FINITE, id="minus infinity"),
        pytest.param(Update(GOOD, 1, 1, {"loss": np.nan}), Code.UPDATE_NOT_FINITE, id="a metric that is NaN"),
        pytest.param(Update(GOOD, 0), Code.UPDATE_EXAMPLES, id="no example"),
        pytest.param(Update(GOOD, -5), Code.UPDATE_EXAMPLES, id="negative examples"),
        pytest.param(Update(GOOD, 101), Code.UPDATE_EXAMPLES, id="more examples than the plan allows"),
        pytest.param(Update(GOOD, 10**9), Code.UPDATE_EXAMPLES, id="a thousand million examples"),
        pytest.param(Update(GOOD, 1, 101), Code.UPDATE_EXAMPLES, id="more held out than the plan allows"),
    ],
)
def test_what_should_not_be_folded_is_refused_with_its_code(update: Update, code: Code) -> None:
    with pytest.raises(Refusal) as refusal:
        validate_update(update, parameters=10, max_examples=100)
    assert refusal.value.code is code


@pytest.mark.parametrize(
    "delta", [GOOD, with_value(3e38), np.full(10, 1e30, np.float32)], ids=["zeros", "a huge value", "squares that overflow"]
)
def test_what_is_finite_is_accepted(delta: np.ndarray) -> None:
    update = Update(delta, 100, 100, {"loss": 0.5})
    validate_update(update, parameters=10, max_examples=100)
    assert update.delta is delta
