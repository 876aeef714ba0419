"""The Keras learner: a whole local training as one compiled loop, built once for a plan.

Why the loop looks as it does, and what was measured beside it, stands in `docs/decisions/0003-compiled-training-loop.md`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedlearn.core.errors import Code, Refusal
from fedlearn.core.learning import Examples, Metrics, Stop, Weights
from fedlearn.core.updates import Vector
from fedlearn.learning.models import model_of, plan_weights
from fedlearn.learning.objectives import class_count, feature_spec, label_spec, loss_function, metric_function
from fedlearn.learning.optimizers import rule_of
from fedlearn.learning.runtime import tf
from fedlearn.protocol.plans import Plan
from fedlearn.protocol.tensors import difference


@dataclass(frozen=True, slots=True)
class _State:
    """Where Keras' variables come from: `weights[i]` of the manifest, a generator's `streams[i]`, or a constant."""

    weight: int | None = None
    stream: int | None = None
    constant: Any = None

    def value(self, weights: Sequence[Any], streams: Any) -> Any:
        if self.weight is not None:
            return weights[self.weight]
        return self.constant if self.stream is None else streams[self.stream]


class KerasLearner:
    """A `fedlearn.core.learning.Learner` for any Keras model with one input and one output.

    Local training is the plan's optimizer as Keras does it, from its initial state: epochs over a fresh permutation each, the
    last batch of an epoch as small as it comes. Moving statistics are weights like all others; generators of dropout and noise
    start from the seed of the call. With the plan's `proximal_mu` the loss has FedProx's term (Li et al. 2020, equation 2).

    Args:
        plan: what to build and compile.

    Raises:
        Refusal: `plan_invalid` when Keras cannot build it, or loss, metrics and model don't fit together.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._model = model_of(plan)
        self._weights = plan_weights(self._model)
        self._halt = tf.Variable(False, trainable=False)
        self._places()
        try:
            self._losses = loss_function(plan.loss, plan.loss_options)
            self._features, self._labels = feature_spec(self._model), label_spec(self._model, plan.loss)
            self._classes = class_count(self._model, plan.loss)
            self._metrics = {
                name: metric_function(name, plan.loss, self._labels, self._model.outputs[0]) for name in plan.metrics
            }
            weights = [tf.TensorSpec(spec.shape, tf.float32) for spec in plan.weights]
            streams = tf.TensorSpec((self._streams, 2), tf.int64)
            order = tf.TensorSpec((None,), tf.int32)
            # traced now: a plan that does not fit is refused here, and no later call can trace again
            steps = tf.TensorSpec((), tf.int32)
            self._train = _compile(self._training, weights, streams, self._features, self._labels, order, steps)
            self._evaluate = _compile(self._evaluation, weights, streams, self._features, self._labels)
        except Refusal:
            raise
        except Exception as error:  # anything: Keras and TensorFlow check shapes and names in many ways
            words = " ".join(str(error).split())
            raise Refusal(Code.PLAN_INVALID, f"The plan's model, loss and metrics don't fit together: {words}.") from error

    def evaluate(self, weights: Weights, examples: Examples) -> Metrics:
        """The means of loss (with the model's regularization, as Keras reports it) and metrics; {} for no examples.

        Raises:
            Refusal: `shard_invalid` for examples or `model_mismatch` for weights that don't fit the plan.
        """
        if not len(examples):
            return {}
        streams = np.zeros((self._streams, 2), dtype=np.int64)
        sums = _run(self._evaluate, self._tensors(weights), streams, *self._arrays(examples)).numpy()
        return dict(zip(("loss", *self._metrics), (float(s) / len(examples) for s in sums), strict=True))

    def train(
        self, weights: Weights, examples: Examples, seed: int, stop: Stop | None = None, *, steps: int | None = None
    ) -> list[npt.NDArray[np.float32]]:
        """Train from `weights` as the plan says; the same seed gives the same weights.

        Args:
            weights: in the manifest's order; left as they are.
            examples: features as the model takes them; labels of shape (n,) for a sparse loss, else as the model's output.
            seed: at least 0; gives the order of the examples and what dropout and noise draw.
            stop: read before each step of the compiled loop.
            steps: only the first so many steps of the whole training; None for all of them.

        Raises:
            Refusal: `training_failed` when the loss or a weight is not finite; `shard_invalid` for shapes, dtypes or labels or
                `model_mismatch` for weights that don't fit the plan.
            Stopped: at the next step once `stop` is set.
        """
        stop = stop or Stop()
        if not len(examples):
            raise Refusal(Code.TRAINING_FAILED, "There are no examples to train on.")
        rng = np.random.default_rng(seed)
        streams = np.zeros((self._streams, 2), dtype=np.int64)  # Keras counts in the second word, so the first tells them apart
        streams[:, 0] = rng.integers(2**31, size=self._streams)
        order = np.concatenate([rng.permutation(len(examples)) for _ in range(self._plan.training.epochs)], dtype=np.int32)
        whole = self._plan.training.steps(len(examples))
        last = np.int32(whole if steps is None else min(steps, whole))
        given = (self._tensors(weights), streams, *self._arrays(examples), order, last)
        self._halt.assign(False)
        with stop.telling(lambda: self._halt.assign(True)):
            total, trained = _run(self._train, *given)
        stop.check()
        new = [tensor.numpy() for tensor in trained]
        if not np.isfinite(total.numpy()) or not all(np.isfinite(weight).all() for weight in new):
            raise Refusal(
                Code.TRAINING_FAILED, "Training diverged: the loss or a weight is not finite; try a lower learning rate."
            )
        return new

    def learn(
        self, weights: Weights, examples: Examples, seed: int, stop: Stop | None = None, *, steps: int | None = None
    ) -> Vector:
        """As `train`, but how far each weight has moved; see `fedlearn.core.learning.Learner`."""
        return difference(self.train(weights, examples, seed, stop, steps=steps), weights)

    # --- what is compiled

    def _training(self, weights: Sequence[Any], streams: Any, features: Any, labels: Any, *batches: Any) -> Any:
        order, last = batches  # the examples in the order in which they come, and after how many steps it ends
        training, count = self._plan.training, tf.shape(labels)[0]
        steps = (count + training.batch_size - 1) // training.batch_size

        rule = rule_of(training)

        def body(step: Any, trainable: list[Any], rest: list[Any], slots: list[list[Any]], total: Any) -> Any:
            epoch, first = step // steps, step % steps * training.batch_size
            batch = tf.slice(order, [epoch * count + first], [tf.minimum(training.batch_size, count - first)])
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(trainable)
                losses, rest, regularization = self._forward(
                    trainable, rest, tf.gather(features, batch), tf.gather(labels, batch)
                )
                scaled = rule.scale * (tf.reduce_mean(losses) + regularization)
            gradients = tape.gradient(scaled, trainable, unconnected_gradients=tf.UnconnectedGradients.ZERO)
            gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
            if training.proximal_mu:  # the gradient of mu/2 * |w - w_t|^2 is mu * (w - w_t)
                pull = rule.scale * training.proximal_mu
                gradients = [
                    gradient + pull * (old - begun) for gradient, old, begun in zip(gradients, trainable, begins, strict=True)
                ]
            moved, slots = rule.apply(trainable, gradients, slots, step + 1)
            trainable = [
                _constrained(variable, weight) for variable, weight in zip(self._model.trainable_variables, moved, strict=True)
            ]
            return step + 1, trainable, rest, slots, total + scaled

        trainable = begins = [state.value(weights, streams) for state in self._trainable]
        rest = [state.value(weights, streams) for state in self._rest]
        start = (tf.constant(0), trainable, rest, rule.start(trainable), tf.constant(0.0))
        # one iteration at a time: each needs the weights of the one before
        _, trainable, rest, _, total = tf.while_loop(
            lambda step, *_: tf.logical_and(step < last, tf.logical_not(self._halt.read_value())),
            body,
            start,
            parallel_iterations=1,
        )
        trained = list(weights)
        for state, value in zip((*self._trainable, *self._rest), (*trainable, *rest), strict=True):
            if state.weight is not None:
                trained[state.weight] = value
        return total, trained

    def _evaluation(self, weights: Sequence[Any], streams: Any, features: Any, labels: Any) -> Any:
        size, count = self._plan.evaluation_batch_size, tf.shape(labels)[0]
        trainable = [state.value(weights, streams) for state in self._trainable]
        rest = [state.value(weights, streams) for state in self._rest]

        def body(first: Any, sums: Any) -> Any:
            x, y = features[first : first + size], labels[first : first + size]
            outputs, _, extra = self._model.stateless_call(trainable, rest, x, training=False, return_losses=True)
            means = [tf.reduce_mean(self._losses(y, outputs)) + _sum(extra)]
            means += [tf.reduce_mean(tf.cast(metric(y, outputs), tf.float32)) for metric in self._metrics.values()]
            return first + size, sums + tf.cast(tf.shape(y)[0], tf.float64) * tf.cast(tf.stack(means), tf.float64)

        sums = tf.zeros((1 + len(self._metrics),), tf.float64)
        return tf.while_loop(lambda first, _: first < count, body, (tf.constant(0), sums), parallel_iterations=1)[1]

    def _forward(self, trainable: list[Any], rest: list[Any], features: Any, labels: Any) -> tuple[Any, list[Any], Any]:
        outputs, rest, extra = self._model.stateless_call(trainable, rest, features, training=True, return_losses=True)
        return self._losses(labels, outputs), list(rest), _sum(extra)

    # --- between numpy and TensorFlow

    def _places(self) -> None:
        places = {id(variable): index for index, variable in enumerate(self._weights)}
        self._streams = 0
        self._trainable = [_State(weight=places[id(variable)]) for variable in self._model.trainable_variables]
        self._rest = []
        for variable in self._model.non_trainable_variables:
            if id(variable) in places:
                self._rest.append(_State(weight=places[id(variable)]))
            elif variable.path.endswith("seed_generator_state"):
                self._rest.append(_State(stream=self._streams))
                self._streams += 1
            else:
                self._rest.append(_State(constant=variable.value.numpy()))

    def _tensors(self, weights: Weights) -> list[Any]:
        if [tuple(weight.shape) for weight in weights] != [spec.shape for spec in self._plan.weights]:
            raise Refusal(Code.MODEL_MISMATCH, "The weights don't have the shapes of the plan's manifest.")
        return [tf.constant(weight, tf.float32) for weight in weights]

    def _arrays(self, examples: Examples) -> tuple[Any, Any]:
        features, labels, rank = examples.features, examples.labels, self._labels.shape.rank
        if labels.ndim == rank - 1:
            labels = labels[..., np.newaxis]  # (n,) for a model that gives (n, 1)
        elif labels.ndim == rank + 1 and labels.shape[-1] == 1:
            labels = labels[..., 0]
        for what, array, spec in (("features", features, self._features), ("labels", labels, self._labels)):
            if not spec.shape.is_compatible_with(array.shape) or len(array) != len(examples):
                raise Refusal(Code.SHARD_INVALID, f"The {what} have the shape {array.shape}; the model takes {spec.shape}.")
            if spec.dtype.is_integer and not np.issubdtype(array.dtype, np.integer):
                raise Refusal(Code.SHARD_INVALID, f"The {what} are {array.dtype}; the model takes whole numbers.")
        if self._classes is not None and not 0 <= labels.min() <= labels.max() < self._classes:
            found = f"The labels go from {labels.min()} to {labels.max()}"
            raise Refusal(Code.SHARD_INVALID, f"{found}; the model has classes from 0 to {self._classes - 1}.")
        return tf.constant(features, self._features.dtype), tf.constant(labels, self._labels.dtype)


def _compile(function: Any, *signature: Any) -> Any:
    compiled = tf.function(function, input_signature=signature, autograph=False)
    compiled.get_concrete_function()
    return compiled


def _run(compiled: Any, *arguments: Any) -> Any:
    try:
        return compiled(*arguments)
    except tf.errors.OpError as error:
        raise Refusal(Code.TRAINING_FAILED, f"TensorFlow refused the examples or the model: {error.message}") from error


def _sum(losses: Sequence[Any]) -> Any:
    return tf.add_n(list(losses)) if losses else tf.constant(0.0)


def _constrained(variable: Any, value: Any) -> Any:
    return value if variable.constraint is None else variable.constraint(value)
