"""Keras models: McMahan's 2NN and CNN, and the way from a model to a plan and back."""

import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from fedlearn.core.errors import Code, Refusal, SetupError, cannot_write
from fedlearn.core.learning import Weights
from fedlearn.learning.objectives import keras_loss
from fedlearn.learning.optimizers import keras_optimizer
from fedlearn.learning.runtime import framework, keras, use_one_core
from fedlearn.protocol.aggregations import Aggregation, FedAvgPlan
from fedlearn.protocol.plans import (
    MAX_PARAMETERS,
    LocalTraining,
    ModelEncoding,
    Plan,
    TensorSpec,
    UpdateFormat,
    exact_ranges,
    faults_of,
    read_plan,
)

__all__ = [
    "BUILDERS",
    "build",
    "build_2nn",
    "build_cnn",
    "compile_model",
    "framework",
    "get_weights",
    "make_plan",
    "model_of",
    "plan_weights",
    "save_keras",
    "set_weights",
    "use_one_core",
]

_IMAGE, _CLASSES = (28, 28, 1), 10


def build_2nn(seed: int) -> Any:
    """The 2NN of McMahan et al. 2017, section 3: two hidden layers of 200 ReLU units; 199,210 parameters.

    Takes float32 images, shape (n, 28, 28, 1); gives float32 probabilities, shape (n, 10).
    """
    seeds = _seeds(seed, 3)
    return keras.Sequential(
        [
            keras.Input(_IMAGE, name="images"),
            keras.layers.Flatten(name="flatten"),
            _dense("hidden_1", 200, "relu", seeds[0]),
            _dense("hidden_2", 200, "relu", seeds[1]),
            _dense("classes", _CLASSES, "softmax", seeds[2]),
        ],
        name="mcmahan_2nn",
    )


def build_cnn(seed: int) -> Any:
    """The CNN of McMahan et al. 2017, section 3: 5x5 convolutions of 32 and 64 channels, each with a 2x2 maximum pool, and 512
    ReLU units; 1,663,370 parameters.

    Takes float32 images, shape (n, 28, 28, 1); gives float32 probabilities, shape (n, 10).
    """
    seeds = _seeds(seed, 4)
    return keras.Sequential(
        [
            keras.Input(_IMAGE, name="images"),
            _conv("conv_1", 32, seeds[0]),
            keras.layers.MaxPooling2D(2, name="pool_1"),
            _conv("conv_2", 64, seeds[1]),
            keras.layers.MaxPooling2D(2, name="pool_2"),
            keras.layers.Flatten(name="flatten"),
            _dense("hidden", 512, "relu", seeds[2]),
            _dense("classes", _CLASSES, "softmax", seeds[3]),
        ],
        name="mcmahan_cnn",
    )


BUILDERS: Mapping[str, Callable[[int], Any]] = {"2nn": build_2nn, "cnn": build_cnn}


def build(name: str, seed: int) -> Any:
    """Build one of `BUILDERS`; the same seed gives the same weights, and touches no global generator.

    Raises:
        SetupError: `setting_invalid` for a name that is not there.
    """
    if name not in BUILDERS:
        raise SetupError(Code.SETTING_INVALID, f"There is no model {name!r}: use {' or '.join(BUILDERS)}.")
    return BUILDERS[name](seed)


def make_plan(
    model: Any,
    *,
    dataset: str,
    loss: str = "sparse_categorical_crossentropy",
    loss_options: Mapping[str, Any] | None = None,
    metrics: Sequence[str] = ("accuracy",),
    training: LocalTraining | None = None,
    evaluation_batch_size: int = 1000,
    update: UpdateFormat | None = None,
    model_encoding: ModelEncoding = "float32",
    aggregation: Aggregation | None = None,
    max_examples: int = 1_000_000,
) -> Plan:
    """Describe how to train `model`, a Keras model that is built; its compilation is left out.

    Raises:
        Refusal: `plan_invalid` when Keras does not give the model back, or a plan may not hold it.
    """
    # through JSON at once: what the manifest describes is what a device will read
    architecture = json.loads(json.dumps(keras.saving.serialize_keras_object(model)))
    architecture.pop("compile_config", None)
    manifest = _manifest(_rebuild(architecture, MAX_PARAMETERS))
    update = update or UpdateFormat()
    if update.encoding == "int8":
        update = update.model_copy(update={"exact": update.exact or exact_ranges(manifest)})
    try:
        plan = Plan(
            dataset=dataset,
            architecture=architecture,
            loss=loss,
            loss_options=dict(loss_options or {}),
            metrics=tuple(metrics),
            training=training or LocalTraining(),
            evaluation_batch_size=evaluation_batch_size,
            update=update,
            model_encoding=model_encoding,
            aggregation=aggregation or FedAvgPlan(),
            max_examples=max_examples,
            weights=manifest,
        )
    except ValidationError as error:
        raise Refusal(Code.PLAN_INVALID, f"No plan can be made of {model.name}: {faults_of(error)}.") from error
    return read_plan(plan.canonical)


def model_of(plan: Plan) -> Any:
    """The Keras model that the plan describes, with fresh weights.

    Raises:
        Refusal: `plan_invalid` when Keras cannot build it (safe mode: no code that came with it runs), or when it is not the
            model of the plan's manifest. A model that is too large is refused before anything is allocated.
    """
    model = _rebuild(plan.architecture, plan.parameters)
    if _manifest(model) != plan.weights:
        raise Refusal(Code.PLAN_INVALID, "The architecture gives other weights than the plan's manifest says.")
    return model


def plan_weights(model: Any) -> list[Any]:
    """The Keras variables that the manifest counts, in its order: the float ones, so no seed of a generator."""
    return [variable for variable in model.weights if keras.backend.is_float_dtype(variable.dtype)]


def get_weights(model: Any, plan: Plan) -> list[npt.NDArray[np.float32]]:
    """Copies of the model's weights in the manifest's order.

    Raises:
        Refusal: `model_mismatch`.
    """
    weights = [variable.value.numpy() for variable in plan_weights(model)]
    _check_fit(weights, plan)
    return weights


def set_weights(model: Any, plan: Plan, weights: Weights) -> None:
    """Give the model weights that stand in the manifest's order.

    Raises:
        Refusal: `model_mismatch`.
    """
    _check_fit(weights, plan)
    _check_fit(plan_weights(model), plan)
    for variable, weight in zip(plan_weights(model), weights, strict=True):
        variable.assign(weight)


def compile_model(model: Any, plan: Plan) -> None:
    """Compile `model` as the plan trains and scores it."""
    loss = keras_loss(plan.loss, plan.loss_options) if plan.loss_options else plan.loss
    model.compile(optimizer=keras_optimizer(plan.training), loss=loss, metrics=list(plan.metrics))


def save_keras(plan: Plan, weights: Weights, path: Path) -> None:
    """Write a compiled `.keras` file, whole or not at all; `keras.models.load_model` of it predicts, scores and trains on.

    Raises:
        Refusal: `plan_invalid`, `model_mismatch`.
        SetupError: `disk_full`, or `setting_invalid` when the file cannot be written.
    """
    model = _restored(plan, weights)
    model.optimizer.build(model.trainable_variables)  # its variables must be in the file for it to load without a complaint
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".saving-") as scratch:
            unfinished = Path(scratch) / "model.keras"
            model.save(unfinished)
            unfinished.replace(path)
    except OSError as error:
        raise cannot_write(f"The model {path}", error) from error


def export_savedmodel(plan: Plan, weights: Weights, directory: Path) -> None:
    """Write a TensorFlow SavedModel with the endpoint `serve`, whole or not at all, to a directory that is not there yet.

    Raises:
        Refusal: `plan_invalid`, `model_mismatch`.
        SetupError: `disk_full`, or `setting_invalid` when the directory is there or cannot be written.
    """
    if directory.exists():
        raise SetupError(Code.SETTING_INVALID, f"{directory} is there already: choose another name, or remove it.")
    model = _restored(plan, weights)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".saving-") as scratch:
            unfinished = Path(scratch) / "model"
            model.export(unfinished, format="tf_saved_model", verbose=False)
            unfinished.rename(directory)
    except OSError as error:
        raise cannot_write(f"The model {directory}", error) from error


def _restored(plan: Plan, weights: Weights) -> Any:
    model = model_of(plan)
    set_weights(model, plan, weights)
    compile_model(model, plan)
    return model


def _rebuild(architecture: Mapping[str, Any], parameters: int) -> Any:
    # Keras keeps half-built state by thread; a thread of its own ends with it, whatever comes of the model.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_deserialize, architecture, parameters).result()


def _deserialize(architecture: Mapping[str, Any], parameters: int) -> Any:
    try:
        with keras.StatelessScope(initialize_variables=False):  # variables have a shape, and no memory yet
            # of a copy, since Keras takes what it reads out of the configuration
            model = keras.saving.deserialize_keras_object(deepcopy(dict(architecture)), safe_mode=True)
    except Exception as error:  # anything: the configuration is foreign, and each layer fails in its own way
        raise Refusal(Code.PLAN_INVALID, f"Keras cannot build the plan's architecture: {_first_line(error)}") from error
    if not isinstance(model, keras.Model) or not model.built:
        raise Refusal(Code.PLAN_INVALID, "The plan's architecture is no model whose input shape is known.")
    found = sum(math.prod(variable.shape) for variable in plan_weights(model))
    if found > parameters:
        raise Refusal(Code.PLAN_INVALID, f"The architecture has {found} parameters; there may be {parameters}.")
    with keras.StatelessScope():
        pass  # on its way out it allocates what was deferred
    return model


def _manifest(model: Any) -> tuple[TensorSpec, ...]:
    foreign = sorted({v.dtype for v in plan_weights(model)} - {"float32"})
    if foreign:
        raise Refusal(Code.PLAN_INVALID, f"The model has weights of {', '.join(foreign)}; a plan holds float32 only.")
    return tuple(TensorSpec(shape=tuple(variable.shape)) for variable in plan_weights(model))


def _check_fit(weights: Sequence[Any], plan: Plan) -> None:
    shapes = [tuple(weight.shape) for weight in weights]
    if shapes != [spec.shape for spec in plan.weights]:
        raise Refusal(Code.MODEL_MISMATCH, f"The weights have the shapes {shapes}, which are not the plan's.")


def _dense(name: str, units: int, activation: str, seed: int) -> Any:
    initializer = keras.initializers.GlorotUniform(seed=seed)
    return keras.layers.Dense(units, activation=activation, kernel_initializer=initializer, name=name)


def _conv(name: str, filters: int, seed: int) -> Any:
    initializer = keras.initializers.GlorotUniform(seed=seed)
    return keras.layers.Conv2D(filters, 5, padding="same", activation="relu", kernel_initializer=initializer, name=name)


def _seeds(seed: int, count: int) -> list[int]:
    return [int(word) for word in np.random.SeedSequence(seed).generate_state(count)]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
