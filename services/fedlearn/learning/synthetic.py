"""A learner without a framework, for chaos, load and overhead: it changes each weight by a little, from a seed, at once."""

import math

import numpy as np
import numpy.typing as npt

from fedlearn.core.errors import Code, Refusal
from fedlearn.core.learning import Examples, Metrics, Stop, Weights
from fedlearn.protocol.plans import Plan

_SCALE = 1e-3


class SyntheticLearner:
    """A `fedlearn.core.learning.Learner` in numpy: weights + noise, and figures derived from the weights.

    Args:
        plan: only its manifest is read.
        scale: standard deviation of the change of a weight.
        seconds: how long it lets a training last.
    """

    def __init__(self, plan: Plan, *, scale: float = _SCALE, seconds: float = 0.0) -> None:
        self._plan, self._scale, self._seconds = plan, scale, seconds

    def evaluate(self, weights: Weights, examples: Examples) -> Metrics:
        """Figures from 0 to 1 that look like a model's, the same for the same weights; {} for no examples.

        Raises:
            Refusal: `model_mismatch`.
        """
        self._check(weights)
        if not len(examples):
            return {}
        # the mean square moves with every weight, and by little from round to round
        energy = sum(float(np.dot(w.ravel(), w.ravel())) for w in weights) / self._plan.parameters
        accuracy = 0.1 + 0.8 / (1.0 + energy)
        return {"loss": 1.0 - accuracy, **dict.fromkeys(self._plan.metrics, accuracy)}

    def train(
        self,
        weights: Weights,
        examples: Examples,
        seed: int,
        stop: Stop | None = None,
        *,
        steps: int | None = None,  # noqa: ARG002 - the protocol's
    ) -> list[npt.NDArray[np.float32]]:
        """`weights` + a change of each, uniform around 0; the same seed gives the same change, whatever the steps.

        Raises:
            Refusal: `training_failed` without examples, `model_mismatch`.
            Stopped: as soon as `stop` is set.
        """
        (stop or Stop()).wait(self._seconds)
        self._check(weights)
        if not len(examples):
            raise Refusal(Code.TRAINING_FAILED, "There are no examples to train on.")
        rng = np.random.Generator(np.random.SFC64(seed))  # with uniform numbers, a third of the time of a normal PCG64
        width = np.float32(math.sqrt(12) * self._scale)
        return [self._changed(weight, rng, width) for weight in weights]

    @staticmethod
    def _changed(weight: npt.NDArray[np.float32], rng: np.random.Generator, width: np.float32) -> npt.NDArray[np.float32]:
        change = rng.random(weight.shape, dtype=np.float32)
        change -= np.float32(0.5)
        change *= width
        change += weight
        return change

    def _check(self, weights: Weights) -> None:
        if [tuple(weight.shape) for weight in weights] != [spec.shape for spec in self._plan.weights]:
            raise Refusal(Code.MODEL_MISMATCH, "The weights don't have the shapes of the plan's manifest.")
