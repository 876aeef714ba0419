"""The plan: all that a device needs to train, as versioned JSON.

An architecture is data, never code: its layers are on an allow-list and its size is bounded before anything is allocated.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from fedlearn.core.errors import Code, Refusal
from fedlearn.core.faults import describe_all
from fedlearn.protocol.aggregations import Aggregation, FedAvgPlan, Strict

MAX_PARAMETERS = 500_000_000
KEEP_FRACTION = 0.01
MAX_EXACT = 65_536
MAX_METRICS = 99  # beside the loss: what an update says, and a result, are at most 100 numbers

ALLOWED_CLASSES = frozenset(
    {
        "Sequential", "Functional", "InputLayer", "Dense", "Activation", "Dropout", "Flatten", "Reshape", "Rescaling",
        "Normalization", "Permute", "RepeatVector", "Conv1D", "Conv2D", "SeparableConv1D", "SeparableConv2D",
        "DepthwiseConv1D", "DepthwiseConv2D", "Conv1DTranspose", "Conv2DTranspose", "MultiHeadAttention",
        "MaxPooling1D", "MaxPooling2D", "AveragePooling1D", "AveragePooling2D", "GlobalAveragePooling1D",
        "GlobalAveragePooling2D", "GlobalMaxPooling1D", "GlobalMaxPooling2D", "ZeroPadding1D", "ZeroPadding2D",
        "UpSampling1D", "UpSampling2D", "BatchNormalization", "LayerNormalization", "GroupNormalization", "Embedding",
        "SimpleRNN", "LSTM", "GRU", "Bidirectional", "TimeDistributed", "Add", "Subtract", "Multiply", "Average",
        "Maximum", "Minimum", "Concatenate", "Dot", "ReLU", "LeakyReLU", "PReLU", "ELU", "Softmax",
        "SpatialDropout1D", "SpatialDropout2D", "GaussianNoise", "GaussianDropout",
    }
)  # fmt: skip
"""Layers that Keras itself builds from numbers and names; none of them runs code that came with the plan."""

INERT_CLASSES = frozenset(
    {
        "DTypePolicy", "__tuple__", "__keras_tensor__", "Zeros", "Ones", "Constant", "GlorotUniform", "GlorotNormal",
        "HeUniform", "HeNormal", "LecunUniform", "LecunNormal", "RandomUniform", "RandomNormal", "TruncatedNormal",
        "VarianceScaling", "Orthogonal", "Identity", "L1", "L2", "L1L2", "MaxNorm", "NonNeg", "UnitNorm", "MinMaxNorm",
    }
)  # fmt: skip
"""What a layer's configuration may hold beside layers: dtypes, initializers, regularizers and constraints."""


ModelEncoding = Literal["float32", "float16"]
Codec = Literal["float32", "float16", "int8", "top_k"]
Name = Annotated[str, Field(min_length=1, max_length=100)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class TensorSpec(Strict):
    """One weight of the manifest, by its index."""

    shape: Annotated[tuple[Annotated[int, Field(ge=0, le=2**31)], ...], Field(max_length=8)]
    dtype: Literal["float32"] = "float32"

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


class Adam(Strict):
    """Kingma and Ba 2015, as `keras.optimizers.Adam` does it."""

    name: Literal["adam"] = "adam"
    beta_1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta_2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    epsilon: Annotated[float, Field(gt=0, le=1)] = 1e-7


class RMSprop(Strict):
    name: Literal["rmsprop"] = "rmsprop"
    rho: Annotated[float, Field(ge=0, lt=1)] = 0.9
    epsilon: Annotated[float, Field(gt=0, le=1)] = 1e-7


class Adagrad(Strict):
    name: Literal["adagrad"] = "adagrad"
    initial_accumulator_value: Annotated[float, Field(ge=0, le=1e6)] = 0.1
    epsilon: Annotated[float, Field(gt=0, le=1)] = 1e-7


class Clipping(Strict):
    """A bound for gradients: for each one's norm, for the norm of all together, or for each value."""

    by: Literal["norm", "global_norm", "value"]
    limit: Annotated[float, Field(gt=0, le=1e9)]


class _Grown(Strict):
    """What has come to have more fields than it began with; those with their default are left out of the JSON, so that a plan
    which is stored or running keeps its digest when fedlearn is upgraded.
    """

    _later: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        given: dict[str, Any] = serialize(self)
        fields = type(self).model_fields
        same = [name for name in self._later if getattr(self, name) == fields[name].get_default(call_default_factory=True)]
        return {name: value for name, value in given.items() if name not in same}


class LocalTraining(_Grown):
    """What a device does with its shard in one round: shuffled epochs, by an optimizer that begins anew in each round.

    Args:
        momentum: SGD's, as is `nesterov`.
        optimizer: None is SGD.
        weight_decay: decoupled, as in AdamW: a step takes so much of each weight times the learning rate.
        min_steps_fraction: the least part of its steps that the server may give a slow device; 1 gives everybody all of them.
        proximal_mu: FedProx, Li et al. 2020, equation 2: the loss gets mu/2 * |w - w_t|^2, which holds a device near the global
            model w_t. 0 turns it off.
    """

    _later: ClassVar = ("nesterov", "optimizer", "weight_decay", "clipping", "min_steps_fraction", "proximal_mu")

    learning_rate: Annotated[float, Field(gt=0, le=100)] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    epochs: Annotated[int, Field(ge=1, le=1000)] = 1
    batch_size: Annotated[int, Field(ge=1, le=65536)] = 10
    nesterov: bool = False
    optimizer: Annotated[Adam | RMSprop | Adagrad, Field(discriminator="name")] | None = None
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    clipping: Clipping | None = None
    min_steps_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    proximal_mu: Annotated[float, Field(ge=0, le=1000)] = 0.0

    def steps(self, examples: int) -> int:
        """How many steps all epochs are on so many examples; the last batch of an epoch is as small as it comes."""
        return self.epochs * math.ceil(examples / self.batch_size)

    def processed(self, steps: int, examples: int) -> int:
        """How many examples the first `steps` of them process."""
        epochs, rest = divmod(steps, math.ceil(examples / self.batch_size))
        return epochs * examples + rest * self.batch_size

    @model_validator(mode="after")
    def _check(self) -> "LocalTraining":
        if self.optimizer is not None and (self.momentum or self.nesterov):
            raise ValueError(f"momentum and nesterov are of SGD, not of {self.optimizer.name}")
        return self


class UpdateFormat(_Grown):
    """How deltas travel: each window of `window_elements` coordinates is encoded and sealed by itself. docs/codecs.md compares.

    Args:
        keep_fraction: of `top_k`, which sends so many of the coordinates (0.01 by default) and keeps the rest for later rounds.
        exact: of `int8`, the coordinates, each range from its first to the one after its last, that stay float32; in order,
            with something between any two. `exact_ranges` finds those that should.
    """

    _later: ClassVar = ("keep_fraction", "exact")

    encoding: Codec = "int8"
    window_elements: Annotated[int, Field(ge=1024, le=16_777_216)] = 262_144
    keep_fraction: Annotated[float | None, Field(gt=0, le=0.5)] = None
    exact: Annotated[tuple[tuple[int, int], ...], Field(max_length=10_000)] = ()

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("encoding") == "top_k" and given.get("keep_fraction") is None:
            return {**given, "keep_fraction": KEEP_FRACTION}
        return given

    @model_validator(mode="after")
    def _check(self) -> "UpdateFormat":
        if (self.keep_fraction is None) != (self.encoding != "top_k"):
            raise ValueError(f"keep_fraction is of top_k, not of {self.encoding}")
        if self.exact and self.encoding != "int8":
            raise ValueError(f"exact is of int8, not of {self.encoding}")
        edges = [edge for range_ in self.exact for edge in range_]
        if edges and (edges[0] < 0 or any(later <= earlier for earlier, later in pairwise(edges))):
            raise ValueError("exact holds ranges in order, none of them empty, with something between any two")
        return self

    def keep(self, parameters: int) -> int:
        """How many of so many coordinates `top_k` sends; 0 for any other encoding."""
        return 0 if self.keep_fraction is None else max(1, round(self.keep_fraction * parameters))


def exact_ranges(weights: Sequence[TensorSpec]) -> tuple[tuple[int, int], ...]:
    """The coordinates that `int8` should leave alone: weights of one dimension or none, of at most `MAX_EXACT` elements.

    Those are biases, and the scales and moving statistics of normalization. They are few, and their values differ by orders of
    magnitude from their neighbours' and from each other's: steps of the largest would be all that is left of the others.
    """
    found: list[tuple[int, int]] = []
    start = 0
    for spec in weights:
        stop = start + spec.elements
        if len(spec.shape) <= 1 and 0 < spec.elements <= MAX_EXACT:
            if found and found[-1][1] == start:
                start = found.pop()[0]
            found.append((start, stop))
        start = stop
    return tuple(found)


def name_codec(codec: str, keep_fraction: float | None = None) -> UpdateFormat:
    """A plan's `update`, by the names that docs/codecs.md lists.

    Raises:
        Refusal: `plan_invalid`, naming what does not fit.
    """
    try:
        return UpdateFormat.model_validate({"encoding": codec, "keep_fraction": keep_fraction})
    except ValidationError as error:
        raise Refusal(Code.PLAN_INVALID, f"The codec is not valid: {faults_of(error)}.") from error


def read_model_encoding(name: str) -> ModelEncoding:
    """Raises:
    Refusal: `plan_invalid` for a name that is no encoding of models.
    """
    for known in get_args(ModelEncoding):
        if known == name:
            return known  # type: ignore[no-any-return]
    raise Refusal(Code.PLAN_INVALID, f"There is no model encoding {name!r}: use {' or '.join(get_args(ModelEncoding))}.")


def check_combination(update: UpdateFormat, aggregation: Aggregation) -> None:
    """Raises:
    Refusal: `plan_invalid` for `top_k` with a robust rule. Most coordinates are 0 in most of its updates, so that a median is;
        and what a rule leaves out or cuts is lost, since the device takes it for delivered.
    """
    if update.encoding == "top_k" and aggregation.rule is not None:
        raise Refusal(Code.PLAN_INVALID, f"top_k goes with the weighted mean only, not with the rule {aggregation.rule.name}.")


class Plan(_Grown):
    """Everything about a task that its devices and its aggregator must agree on.

    Args:
        architecture: the model as Keras' own configuration (`keras.saving.serialize_keras_object`).
        loss: by Keras' name; `loss_options` are what its class takes, such as `from_logits`.
        weights: shape and dtype of each weight, in order, taken from the model that the architecture gives.
        model_encoding: how the global model travels to devices; it is kept, and added to, as float32.
        max_examples: the most examples that one update may claim.
    """

    _later: ClassVar = ("loss_options", "model_encoding")

    plan_version: Literal[1] = 1
    dataset: Annotated[str, Field(min_length=1, max_length=200)]
    architecture: dict[str, Any]
    loss: Name = "sparse_categorical_crossentropy"
    loss_options: dict[Name, bool | int | Finite] = Field(default_factory=dict, max_length=10)
    metrics: Annotated[tuple[Name, ...], Field(max_length=MAX_METRICS)] = ("accuracy",)
    training: LocalTraining = LocalTraining()
    evaluation_batch_size: Annotated[int, Field(ge=1, le=65536)] = 1000
    update: UpdateFormat = UpdateFormat()
    model_encoding: ModelEncoding = "float32"
    aggregation: Aggregation = FedAvgPlan()
    max_examples: Annotated[int, Field(ge=1, le=100_000_000)] = 1_000_000
    weights: Annotated[tuple[TensorSpec, ...], Field(min_length=1, max_length=10_000)]

    @model_validator(mode="after")
    def _check(self) -> "Plan":
        foreign = sorted(set(foreign_classes(self.architecture)))
        if foreign:
            raise ValueError(f"the architecture uses {', '.join(foreign)}, which is not on the list of allowed layers")
        try:
            check_combination(self.update, self.aggregation)
        except Refusal as refusal:
            raise ValueError(refusal.detail.removesuffix(".")) from refusal
        if self.update.exact and self.update.exact[-1][1] > self.parameters:
            raise ValueError(f"exact goes beyond the model's {self.parameters} parameters")
        if self.parameters > MAX_PARAMETERS:
            raise ValueError(f"the model has {self.parameters} parameters, more than {MAX_PARAMETERS}")
        return self

    @cached_property
    def parameters(self) -> int:
        return sum(spec.elements for spec in self.weights)

    @property
    def figures(self) -> tuple[str, ...]:
        """What devices report the means of on their hold-outs, by name."""
        return ("loss", *self.metrics)

    @cached_property
    def canonical(self) -> bytes:
        """The plan as canonical JSON: what is stored, sent and digested."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":")).encode()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of `canonical`, in hexadecimal."""
        return hashlib.sha256(self.canonical).hexdigest()


def read_plan(text: bytes | str) -> Plan:
    """Parse and check a plan.

    Raises:
        Refusal: `plan_invalid`, with every fault in one sentence.
    """
    try:
        return Plan.model_validate_json(text)
    except ValidationError as error:
        raise Refusal(Code.PLAN_INVALID, f"The plan is not valid: {faults_of(error)}.") from error


def faults_of(error: ValidationError) -> str:
    """Where a plan is at fault and how, up to five faults."""
    return describe_all(error.errors()[:5])


def foreign_classes(node: Any) -> Iterator[str]:
    """The classes in a Keras configuration that are not on a list, or claim one of its names from elsewhere."""
    if isinstance(node, dict):
        if "class_name" in node:
            name, module, registered = node["class_name"], node.get("module"), node.get("registered_name")
            known = name in ALLOWED_CLASSES or name in INERT_CLASSES
            ours = (module is None or str(module).split(".")[0] == "keras") and registered in (None, name)
            if not (known and ours):
                yield f"the function {node.get('config')}" if name == "function" else str(registered or name)
        for value in node.values():
            yield from foreign_classes(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from foreign_classes(value)
