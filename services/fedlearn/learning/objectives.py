"""What is minimised and what is measured: a plan's names of losses and metrics as functions of single examples.

Per example, so that the mean over a hold-out is exact whatever the batches, and means of several devices can be merged.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from fedlearn.core.errors import Code, Refusal
from fedlearn.learning.runtime import keras, tf

PerExample = Callable[[Any, Any], Any]
"""(labels, outputs) of n examples -> a tensor whose first axis is n, or all of whose axes are to be averaged."""

_SPARSE = "sparse"
_NO_METRICS = {"get", "serialize", "deserialize"}


def loss_function(name: str, options: Mapping[str, Any] | None = None) -> PerExample:
    """Keras' loss of that name, `sparse_categorical_crossentropy` or `SparseCategoricalCrossentropy`, before its mean.

    Raises:
        Refusal: `plan_invalid`.
    """
    loss = keras_loss(name, options)
    function: PerExample = loss.call if isinstance(loss, keras.losses.Loss) else loss
    return function


def keras_loss(name: str, options: Mapping[str, Any] | None = None) -> Any:
    """Keras' loss of that name, with what its class takes.

    Raises:
        Refusal: `plan_invalid`.
    """
    try:
        if not options:
            return keras.losses.get(name)
        kind = getattr(keras.losses, name, None)
        if not (inspect.isclass(kind) and issubclass(kind, keras.losses.Loss)):
            raise Refusal(Code.PLAN_INVALID, f"Only the class of a loss takes options, and {name!r} is none in keras.losses.")
        return kind(**options)
    except (ValueError, TypeError) as error:
        given = f" with {', '.join(options)}" if options else ""
        raise Refusal(Code.PLAN_INVALID, f"Keras has no loss {name!r}{given}.") from error


def metric_function(name: str, loss: str, labels: Any, outputs: Any) -> PerExample:
    """Keras' metric function of that name; `accuracy` is the one that suits the loss, as in `Model.compile`.

    Args:
        labels: the tensors' specification, as `label_spec` gives it.
        outputs: the model's symbolic output.

    Raises:
        Refusal: `plan_invalid` for a metric that is no mean over examples (such as AUC), or does not exist.
    """
    if name == "accuracy":
        if labels.shape.rank < len(outputs.shape) and loss.lower().startswith(_SPARSE):
            name = "sparse_categorical_accuracy"
        else:
            name = "binary_accuracy" if outputs.shape[-1] == 1 else "categorical_accuracy"
    function = getattr(keras.metrics, name, None)
    if name in _NO_METRICS or not inspect.isfunction(function):
        raise Refusal(Code.PLAN_INVALID, f"{name!r} is no function of keras.metrics; a plan's metrics are means over examples.")
    return function


def feature_spec(model: Any) -> Any:
    """Shape and dtype of a batch of features.

    Raises:
        Refusal: `plan_invalid` for a model of several inputs or outputs.
    """
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise Refusal(
            Code.PLAN_INVALID, f"The model has {len(model.inputs)} inputs and {len(model.outputs)} outputs, not one each."
        )
    features = model.inputs[0]
    return tf.TensorSpec((None, *features.shape[1:]), features.dtype)


def label_spec(model: Any, loss: str) -> Any:
    """Shape and dtype of a batch of labels: class numbers for a sparse loss, else like the model's output."""
    output = model.outputs[0]
    if loss.lower().startswith(_SPARSE):
        return tf.TensorSpec((None, *output.shape[1:-1]), tf.int32)
    return tf.TensorSpec((None, *output.shape[1:]), output.dtype)


def class_count(model: Any, loss: str) -> int | None:
    """How many classes a sparse loss numbers, from 0; None for another loss."""
    return int(model.outputs[0].shape[-1]) if loss.lower().startswith(_SPARSE) else None
