"""A learner without a framework, for chaos, load and overhead: it moves each weight by a little, from a seed, at once."""

import math

import numpy as np

from fedlearn.core.errors import Code, Refusal
from fedlearn.core.learning import Examples, Metrics, Stop, Weights
from fedlearn.core.updates import Vector
from fedlearn.protocol.plans import Plan

_SCALE = 1e-3
_PIECE = 1 << 18
_LOOKED_AT = 1 << 12  # weights of each tensor, for figures that nobody needs


class SyntheticLearner:
    """A `fedlearn.core.learning.Learner` in numpy: noise for a delta, and figures derived from the weights.

    Args:
        plan: only its manifest is read.
        scale: standard deviation of the change of a weight.
        seconds: how long it lets a training last.
    """

    def __init__(self, plan: Plan, *, scale: float = _SCALE, seconds: float = 0.0) -> None:
        self._plan, self._seconds = plan, seconds
        # where each piece begins in this is drawn anew, since to draw all its numbers would take longer than all else
        noise = np.random.Generator(np.random.SFC64(0)).random(2 * _PIECE, dtype=np.float32)
        self._noise = (noise - np.float32(0.5)) * np.float32(math.sqrt(12) * scale)

    def evaluate(self, weights: Weights, examples: Examples) -> Metrics:
        """Figures from 0 to 1 that look like a model's, the same for the same weights; {} for no examples.

        Raises:
            Refusal: `model_mismatch`.
        """
        self._check(weights)
        if not len(examples):
            return {}
        # a mean square moves by little from round to round
        few = [weight.reshape(-1)[:_LOOKED_AT] for weight in weights]
        energy = sum(float(np.dot(values, values)) for values in few) / sum(map(len, few))
        accuracy = 0.1 + 0.8 / (1.0 + energy)
        return {"loss": 1.0 - accuracy, **dict.fromkeys(self._plan.metrics, accuracy)}

    def learn(
        self,
        weights: Weights,
        examples: Examples,
        seed: int,
        stop: Stop | None = None,
        *,
        steps: int | None = None,  # noqa: ARG002 - the protocol's
    ) -> Vector:
        """A delta, uniform around 0; the same seed gives the same, whatever the steps.

        Raises:
            Refusal: `training_failed` without examples, `model_mismatch`.
            Stopped: as soon as `stop` is set.
        """
        (stop or Stop()).wait(self._seconds)
        self._check(weights)
        if not len(examples):
            raise Refusal(Code.TRAINING_FAILED, "There are no examples to train on.")
        rng = np.random.Generator(np.random.SFC64(seed))
        delta: Vector = np.empty(self._plan.parameters, np.float32)
        for start in range(0, len(delta), _PIECE):
            piece, first = delta[start : start + _PIECE], rng.integers(_PIECE)
            piece[:] = self._noise[first : first + len(piece)]
        return delta

    def _check(self, weights: Weights) -> None:
        if [tuple(weight.shape) for weight in weights] != [spec.shape for spec in self._plan.weights]:
            raise Refusal(Code.MODEL_MISMATCH, "The weights don't have the shapes of the plan's manifest.")
