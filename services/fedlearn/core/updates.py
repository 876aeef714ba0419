"""A device's update, and what makes one valid."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fedlearn.core.errors import Code, Refusal
from fedlearn.core.kernels import all_finite

Vector = npt.NDArray[np.float32]


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


def check_claims(update: Update, *, max_examples: int) -> None:
    """Check what an update says of itself against its plan.

    Raises:
        Refusal: `update_examples`, or `update_not_finite` for a metric.
    """
    if not 1 <= update.examples <= max_examples:
        raise Refusal(Code.UPDATE_EXAMPLES, f"{update.examples} examples; the plan allows 1 to {max_examples}.")
    if not 0 <= update.holdout_examples <= max_examples:
        raise Refusal(Code.UPDATE_EXAMPLES, f"{update.holdout_examples} held out; the plan allows 0 to {max_examples}.")
    if not all(np.isfinite(value) for value in update.metrics.values()):
        raise Refusal(Code.UPDATE_NOT_FINITE, "A metric is NaN or infinite.")


def check_finite(values: npt.NDArray[Any]) -> None:
    """Check a delta, or a window of one.

    Raises:
        Refusal: `update_not_finite`.
    """
    if not all_finite(values):
        raise Refusal(Code.UPDATE_NOT_FINITE, "The delta holds NaN or infinity.")
