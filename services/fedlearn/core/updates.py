"""A device's update, and what makes one valid."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fedlearn.core.errors import Code, Refusal
from fedlearn.core.kernels import all_finite

Vector = npt.NDArray[np.float32]

_LARGEST = float(np.finfo(np.float32).max)  # of a metric: no sum of what many devices held out overflows float64


@dataclass(frozen=True, slots=True)
class Update:
    """A device's delta (local weights - global weights) as one flat vector in the manifest's order.

    Args:
        delta: float32, shape (parameters,).
        examples: how many examples it was trained on; its weight in the mean.
        holdout_examples: how many examples `metrics` are means over.
        metrics: the base model's means on the device's hold-out.
    """

    delta: Vector
    examples: int
    holdout_examples: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)


def check_claims(update: Update, *, max_examples: int, figures: Collection[str]) -> None:
    """Check what an update says of itself against its plan.

    Args:
        figures: the names of the metrics that the plan has devices report.

    Raises:
        Refusal: `update_examples`; `update_not_finite` for a metric that float32 can't hold; `update_too_large` for one of
            another name, or devices could give a result more metrics than it may have.
    """
    if not 1 <= update.examples <= max_examples:
        raise Refusal(Code.UPDATE_EXAMPLES, f"{update.examples} examples; the plan allows 1 to {max_examples}.")
    if not 0 <= update.holdout_examples <= max_examples:
        raise Refusal(Code.UPDATE_EXAMPLES, f"{update.holdout_examples} held out; the plan allows 0 to {max_examples}.")
    if not all(abs(value) <= _LARGEST for value in update.metrics.values()):
        raise Refusal(Code.UPDATE_NOT_FINITE, "A metric is NaN, infinite or too large for float32.")
    if not update.metrics.keys() <= set(figures):
        raise Refusal(Code.UPDATE_TOO_LARGE, f"A metric is none that the plan has devices report: {', '.join(figures)}.")


def check_finite(values: npt.NDArray[Any]) -> None:
    """Check a delta, or a window of one.

    Raises:
        Refusal: `update_not_finite`.
    """
    if not all_finite(values):
        raise Refusal(Code.UPDATE_NOT_FINITE, "The delta holds NaN or infinity.")
