"""What a device's step does with a gradient, as functions of tensors; and the way from a Keras optimizer to a plan and back.

Keras' optimizers keep their state in variables, and with TensorFlow they have no stateless form; a test holds each rule against
the optimizer of its name.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedlearn.core.errors import Code, Refusal
from fedlearn.learning.runtime import keras, tf
from fedlearn.protocol.plans import Adagrad, Adam, Clipping, LocalTraining, RMSprop

Move = Callable[[Any, list[Any], Any], tuple[Any, list[Any]]]
"""(gradient, the weight's slots, steps from 1) -> what to take off the weight, its new slots."""


@dataclass(frozen=True, slots=True)
class Rule:
    """How weights move.

    Args:
        scale: by which the loss is to be multiplied before it is derived.
        slots: what each of a weight's slots starts from.
        clip: applied to all gradients first.
    """

    scale: float
    slots: tuple[float, ...]
    move: Move
    clip: Callable[[list[Any]], list[Any]]
    decay: float

    def start(self, weights: Sequence[Any]) -> list[list[Any]]:
        return [[tf.fill(tf.shape(weight), value) for value in self.slots] for weight in weights]

    def apply(self, weights: list[Any], gradients: list[Any], slots: list[list[Any]], step: Any) -> tuple[list[Any], Any]:
        """The new weights and their new slots.

        Args:
            step: integer, from 1.
        """
        time = tf.cast(step, tf.float32)
        moved = [self.move(gradient, own, time) for gradient, own in zip(self.clip(gradients), slots, strict=True)]
        if self.decay:
            weights = [weight - weight * self.decay for weight in weights]
        return [weight - by for weight, (by, _) in zip(weights, moved, strict=True)], [own for _, own in moved]


def rule_of(training: LocalTraining) -> Rule:
    """The plan's optimizer."""
    rate, optimizer = training.learning_rate, training.optimizer
    # SGD scales by the learning rate here, one number, instead of in each gradient, as many as there are weights
    scale = rate if optimizer is None else 1.0
    match optimizer:
        case None:
            slots, move = _sgd(training)
        case Adam():
            slots, move = (0.0, 0.0), _adam(optimizer, rate)
        case RMSprop():
            slots, move = (0.0,), _rmsprop(optimizer, rate)
        case Adagrad():
            slots, move = (optimizer.initial_accumulator_value,), _adagrad(optimizer, rate)
    return Rule(scale, slots, move, _clip(training.clipping, scale), training.weight_decay * rate)


def _sgd(training: LocalTraining) -> tuple[tuple[float, ...], Move]:
    momentum = training.momentum

    def with_momentum(gradient: Any, slots: list[Any], _: Any) -> tuple[Any, list[Any]]:
        velocity = momentum * slots[0] + gradient
        return (momentum * velocity + gradient if training.nesterov else velocity), [velocity]

    return ((0.0,), with_momentum) if momentum else ((), lambda gradient, slots, _: (gradient, slots))


def _adam(adam: Adam, rate: float) -> Move:
    def move(gradient: Any, slots: list[Any], time: Any) -> tuple[Any, list[Any]]:
        first = slots[0] + (gradient - slots[0]) * (1 - adam.beta_1)
        second = slots[1] + (tf.square(gradient) - slots[1]) * (1 - adam.beta_2)
        alpha = rate * tf.sqrt(1 - tf.pow(adam.beta_2, time)) / (1 - tf.pow(adam.beta_1, time))
        return alpha * first / (tf.sqrt(second) + adam.epsilon), [first, second]

    return move


def _rmsprop(rmsprop: RMSprop, rate: float) -> Move:
    def move(gradient: Any, slots: list[Any], _: Any) -> tuple[Any, list[Any]]:
        mean = rmsprop.rho * slots[0] + (1 - rmsprop.rho) * tf.square(gradient)
        return rate * gradient * tf.math.rsqrt(mean + rmsprop.epsilon), [mean]

    return move


def _adagrad(adagrad: Adagrad, rate: float) -> Move:
    def move(gradient: Any, slots: list[Any], _: Any) -> tuple[Any, list[Any]]:
        total = slots[0] + tf.square(gradient)
        return rate * gradient * tf.math.rsqrt(total + adagrad.epsilon), [total]

    return move


def _clip(clipping: Clipping | None, scale: float) -> Callable[[list[Any]], list[Any]]:
    if clipping is None:
        return lambda gradients: gradients
    limit = clipping.limit * scale  # the gradients are scaled as well
    match clipping.by:
        case "norm":
            return lambda gradients: [tf.clip_by_norm(gradient, limit) for gradient in gradients]
        case "global_norm":
            return lambda gradients: list(tf.clip_by_global_norm(gradients, limit)[0])
        case "value":
            return lambda gradients: [tf.clip_by_value(gradient, -limit, limit) for gradient in gradients]


# --- from Keras and to Keras

_KINDS: dict[str, type[Adam] | type[RMSprop] | type[Adagrad] | None] = {
    "SGD": None, "Adam": Adam, "AdamW": Adam, "RMSprop": RMSprop, "Adagrad": Adagrad
}  # fmt: skip
_CLIPPING = {"clipnorm": "norm", "global_clipnorm": "global_norm", "clipvalue": "value"}
_PLAIN = {
    "amsgrad": False, "centered": False, "use_ema": False, "loss_scale_factor": None, "gradient_accumulation_steps": None
}  # fmt: skip
"""What devices don't do, and the value that turns it off."""


def describe_optimizer(optimizer: Any) -> dict[str, Any]:
    """A Keras optimizer as the fields of `LocalTraining`.

    Raises:
        Refusal: `optimizer_not_allowed`.
    """
    kind, config = type(optimizer).__name__, optimizer.get_config()
    if getattr(keras.optimizers, kind, None) is not type(optimizer) or kind not in _KINDS:
        raise _refused(f"Devices don't have the optimizer {kind}: use {', '.join(_KINDS)}")
    for setting, off in _PLAIN.items():
        if config.get(setting, off) != off:
            raise _refused(f"Devices don't have {kind}'s {setting}: leave it out")
    if not isinstance(config["learning_rate"], float | int):
        raise _refused("The learning rate is a schedule, but a device's optimizer begins anew in each round: give a number")
    description: dict[str, Any] = {"learning_rate": _short(config["learning_rate"])}
    description["weight_decay"] = config["weight_decay"] or 0.0
    clipping = [{"by": by, "limit": config[key]} for key, by in _CLIPPING.items() if config[key]]
    if clipping:
        description["clipping"] = clipping[0]  # Keras allows one
    fields = _KINDS[kind]
    if fields is None:
        return {**description, "momentum": config["momentum"], "nesterov": config["nesterov"]}
    if config.get("momentum"):
        raise _refused(f"Devices don't have {kind}'s momentum: leave it out")
    return {**description, "optimizer": fields(**{name: config[name] for name in fields.model_fields if name != "name"})}


def keras_optimizer(training: LocalTraining) -> Any:
    """The plan's optimizer as one of Keras."""
    optimizer, clipping = training.optimizer, training.clipping
    settings: dict[str, Any] = {"learning_rate": training.learning_rate, "weight_decay": training.weight_decay or None}
    if clipping is not None:
        settings |= {key: clipping.limit for key, by in _CLIPPING.items() if by == clipping.by}
    if optimizer is None:
        return keras.optimizers.SGD(momentum=training.momentum, nesterov=training.nesterov, **settings)
    return getattr(keras.optimizers, type(optimizer).__name__)(**optimizer.model_dump(exclude={"name"}), **settings)


def _short(number: float) -> float:
    """The shortest decimal that is this float32: Keras keeps 0.1 as 0.10000000149."""
    return float(str(np.float32(number)))


def _refused(sentence: str) -> Refusal:
    return Refusal(Code.OPTIMIZER_NOT_ALLOWED, f"{sentence}.")
