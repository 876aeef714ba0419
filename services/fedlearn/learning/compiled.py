"""From a compiled Keras model to a plan and version 0: everything that could fail on a device is tried here first."""

import inspect
import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from pydantic import ValidationError

from fedlearn.core.errors import Code, Refusal
from fedlearn.learning.models import get_weights, make_plan, model_of, plan_weights, set_weights
from fedlearn.learning.objectives import feature_spec, label_spec, loss_function, metric_function
from fedlearn.learning.optimizers import describe_optimizer
from fedlearn.learning.runtime import keras
from fedlearn.learning.tasks import Task
from fedlearn.learning.training import KerasLearner
from fedlearn.protocol.plans import MAX_PARAMETERS, LocalTraining, Plan, faults_of, foreign_classes
from fedlearn.protocol.tensors import encode_model


class Prepared(NamedTuple):
    """What a server is given.

    Args:
        version_0: the model's file.
    """

    plan: Plan
    version_0: bytes


def prepare(task: Task) -> Prepared:
    """Check a task as a whole.

    Raises:
        Refusal: `layer_not_allowed`, `loss_not_allowed`, `metric_not_allowed`, `optimizer_not_allowed`, `model_too_large`, or
            `plan_invalid` for all else.
    """
    model = task.model
    _check_kind(model)
    loss, options = _loss(model.loss)
    compilation = _compilation(model)
    _check_layers(model)
    plan = make_plan(
        model,
        dataset=task.dataset,
        loss=loss,
        loss_options=options,
        metrics=_metrics(model, loss, compilation),
        training=_training(task),
        evaluation_batch_size=task.evaluation_batch_size,
        update=task.update,
        model_encoding=task.model_encoding,
        aggregation=task.aggregation,
        max_examples=task.max_examples,
    )
    _check_rebuilt(model, plan)
    KerasLearner(plan)  # traces both loops: loss, metrics and model fit together
    return Prepared(plan, encode_model(get_weights(model, plan), plan))


# --- the model


def _check_kind(model: Any) -> None:
    if keras.backend.backend() != "tensorflow":
        raise _refused(f"Keras runs on {keras.backend.backend()}: set KERAS_BACKEND=tensorflow before it is imported")
    if not isinstance(model, keras.Model):
        raise _refused(f"A task's model is a Keras model, not {type(model).__name__}")
    if not model.compiled:
        raise _refused("The model is not compiled: call model.compile(optimizer=…, loss=…, metrics=[…])")


def _check_layers(model: Any) -> None:
    foreign = sorted(set(foreign_classes(_architecture(model))))
    if foreign:
        layers = f"The model uses {', '.join(foreign)}"
        raise Refusal(
            Code.LAYER_NOT_ALLOWED, f"{layers}: a device runs no code that comes with a plan, only Keras' own layers."
        )
    if not model.built or not getattr(model, "inputs", None):
        raise _refused("The model does not know the shape of its input: begin it with keras.Input(shape)")
    feature_spec(model)
    parameters = sum(math.prod(variable.shape) for variable in plan_weights(model))
    if parameters > MAX_PARAMETERS:
        raise Refusal(Code.MODEL_TOO_LARGE, f"The model has {parameters:,} parameters; a plan may have {MAX_PARAMETERS:,}.")
    if getattr(model.outputs[0], "_keras_mask", None) is not None:
        raise _refused("The model's output carries a mask, which devices' losses don't heed: leave mask_zero out, or pool it")


def _architecture(model: Any) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(json.dumps(keras.saving.serialize_keras_object(model)))
    except Exception as error:  # anything: a layer of somebody's own describes itself, or fails to
        words = " ".join(str(error).split())
        raise Refusal(Code.LAYER_NOT_ALLOWED, f"Keras cannot write the model down as data: {words}.") from error
    found.pop("compile_config", None)  # loss, metrics and optimizer have refusals of their own
    return found


def _check_rebuilt(model: Any, plan: Plan) -> None:
    """What devices build of the plan must be the same function of its input, weight by weight."""
    rebuilt = model_of(plan)
    set_weights(rebuilt, plan, get_weights(model, plan))
    shape = [2, *(8 if size is None else size for size in model.inputs[0].shape[1:])]
    rng = np.random.default_rng(0)
    whole = not keras.backend.is_float_dtype(model.inputs[0].dtype)
    probe = rng.integers(0, 2, shape) if whole else rng.random(shape, np.float32)
    ours, theirs = (np.asarray(each(probe, training=False)) for each in (rebuilt, model))
    if not np.allclose(ours, theirs, rtol=1e-4, atol=1e-5, equal_nan=True):
        raise _refused(
            "Rebuilt from its plan, the model gives other outputs: it holds something that Keras does not write down"
        )


# --- how it is compiled


def _compilation(model: Any) -> dict[str, Any]:
    try:
        compilation: dict[str, Any] = model.get_compile_config() or {}
    except Exception as error:  # anything: an object of somebody's own describes itself, or fails to
        words = " ".join(str(error).split())
        raise _refused(f"Keras cannot write down how the model is compiled: {words}") from error
    if compilation.get("loss_weights") is not None:
        raise _no_loss("The model is compiled with loss_weights, which devices don't have")
    if compilation.get("weighted_metrics"):
        raise _no_metric("Devices don't have weighted_metrics: use metrics")
    return compilation


def _loss(loss: Any) -> tuple[str, dict[str, Any]]:
    """The name of the loss, and what differs from its defaults."""
    if isinstance(loss, list | tuple | dict) and len(loss) == 1:
        (loss,) = loss.values() if isinstance(loss, dict) else loss
    if isinstance(loss, str):
        return _known_loss(loss), {}
    if isinstance(loss, keras.losses.Loss):
        return type(loss).__name__, _loss_options(loss)
    if callable(loss):
        name = getattr(loss, "__name__", type(loss).__name__)
        if getattr(keras.losses, name, None) is loss:
            return name, {}
        raise _no_loss(f"The loss {name} is a function of your own, and no code travels with a plan: use one of keras.losses")
    if loss is None:
        raise _no_loss("The model is compiled without a loss: give model.compile(loss=…) one of keras.losses")
    raise _no_loss(f"The model is compiled with {len(loss)} losses; a plan has one")


def _known_loss(name: str) -> str:
    try:
        loss_function(name)
    except Refusal as refusal:
        raise Refusal(Code.LOSS_NOT_ALLOWED, refusal.detail) from refusal
    return name


def _loss_options(loss: Any) -> dict[str, Any]:
    kind = type(loss)
    if getattr(keras.losses, kind.__name__, None) is not kind:
        raise _no_loss(f"The loss {kind.__name__} is not one of keras.losses, and no code travels with a plan")
    usual = _settings(kind())
    options = {key: value for key, value in _settings(loss).items() if key != "name" and value != usual.get(key)}
    for key, value in options.items():
        if key in ("reduction", "dtype", "ignore_class") or not isinstance(value, bool | int | float):
            raise _no_loss(f"Devices don't have {kind.__name__}'s {key}={value!r}: leave it out")
    return options


def _settings(loss: Any) -> dict[str, Any]:
    return {**getattr(loss, "_fn_kwargs", {}), **loss.get_config()}  # Huber's own configuration leaves out its delta


def _metrics(model: Any, loss: str, compilation: dict[str, Any]) -> list[str]:
    names = [_metric(given) for given in _flat(compilation.get("metrics"))]
    for name in names:
        try:
            metric_function(name, loss, label_spec(model, loss), model.outputs[0])
        except Refusal as refusal:
            raise Refusal(Code.METRIC_NOT_ALLOWED, refusal.detail) from refusal
    return list(dict.fromkeys(names))


def _metric(given: Any) -> str:
    """A metric's function in `keras.metrics`, by what the model was compiled with: a name, or a metric as Keras writes it."""
    if isinstance(given, str):
        if given in ("acc", "accuracy"):
            return "accuracy"
        return _function_of(given) if inspect.isclass(getattr(keras.metrics, given, None)) else given
    kind, config = given["class_name"], given["config"]
    if kind == "function":
        raise _no_metric(f"The metric {config} is a function: give a metric of keras.metrics by its name")
    theirs = getattr(keras.metrics, kind, None)
    if given.get("module") != "keras.metrics" or theirs is None:
        raise _no_metric(f"The metric {kind} is not one of keras.metrics, and no code travels with a plan")
    name, usual = _function_of(kind), theirs().get_config()
    changed = [key for key, value in config.items() if key not in ("name", "dtype") and value != usual.get(key)]
    if changed:
        raise _no_metric(f"Devices have {kind} as it is by default, without {', '.join(changed)}")
    return name


def _function_of(kind: str) -> str:
    """What a class of `keras.metrics` is the mean of."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", kind).lower()
    # the class Accuracy compares numbers, and is not what the word 'accuracy' stands for
    if kind == "Accuracy" or not inspect.isfunction(getattr(keras.metrics, name, None)):
        raise _no_metric(f"{kind} is no mean over examples that devices can merge: leave it out, or use 'accuracy'")
    return name


def _flat(given: Any) -> Iterator[Any]:
    if isinstance(given, list | tuple):
        for each in given:
            yield from _flat(each)
    elif isinstance(given, dict) and "class_name" not in given:
        yield from _flat(list(given.values()))
    elif given is not None:
        yield given


def _training(task: Task) -> LocalTraining:
    description = describe_optimizer(task.model.optimizer)
    try:
        return LocalTraining(
            epochs=task.epochs,
            batch_size=task.batch_size,
            min_steps_fraction=task.min_steps_fraction,
            proximal_mu=task.proximal_mu,
            **description,
        )
    except ValidationError as error:
        raise _refused(f"Devices cannot train so: {faults_of(error)}") from error


def _because(code: Code) -> Callable[[str], Refusal]:
    return lambda sentence: Refusal(code, f"{sentence}.")


_refused, _no_loss, _no_metric = map(_because, (Code.PLAN_INVALID, Code.LOSS_NOT_ALLOWED, Code.METRIC_NOT_ALLOWED))
