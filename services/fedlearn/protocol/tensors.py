"""Model files: safetensors whose tensors are named by their index in the plan's manifest and lie in its order.

Since names are padded ("00000", "00001", ...) and all tensors are float32, the file's data is the model's flat vector itself:
it is read without a copy. For devices there may be a copy in float16, made alike.
"""

import json
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from fedlearn.core.errors import Code, Refusal
from fedlearn.core.learning import Weights
from fedlearn.core.updates import Vector
from fedlearn.protocol.plans import ModelEncoding, Plan

_LENGTH = struct.Struct("<Q")  # what a safetensors file begins with: the length of its JSON header
_TYPES: dict[ModelEncoding, str] = {"float32": "F32", "float16": "F16"}
_WIRES: dict[ModelEncoding, np.dtype[Any]] = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2")}


def tensor_name(index: int) -> str:
    """The name in a model file of the manifest's weight number `index`."""
    return f"{index:05d}"


def encode_model(weights: Weights, plan: Plan, state: str | None = None, *, encoding: ModelEncoding = "float32") -> bytes:
    """The model file of these weights; the same weights give the same bytes.

    Args:
        state: the digest of the server optimizer's state that belongs to this version, which the file then names.

    Raises:
        Refusal: `model_mismatch` when count, shapes or dtypes are not the manifest's, or a weight is beyond float16.
    """
    if len(weights) != len(plan.weights):
        raise _mismatch(f"the model has {len(weights)} weights, the plan {len(plan.weights)}")
    for index, (weight, spec) in enumerate(zip(weights, plan.weights, strict=True)):
        if weight.shape != spec.shape or weight.dtype != spec.dtype:
            raise _mismatch(f"weight {index} is {weight.dtype} {weight.shape}, in the plan {spec.dtype} {spec.shape}")
    try:
        with np.errstate(over="raise"):
            encoded = [np.ascontiguousarray(weight, _WIRES[encoding]).data for weight in weights]
    except FloatingPointError as error:
        raise _mismatch(f"a weight is beyond {encoding}: let the plan's model_encoding be float32") from error
    return b"".join((_header(plan, encoding, state), *encoded))


class ModelFile:
    """A float32 model file whose weights are written where they lie, so that a large model needs no second copy.

    Args:
        stateful: whether it will name a server optimizer's state.
        memory: where it lies, if that is large enough; else it has memory of its own.
    """

    def __init__(self, plan: Plan, *, stateful: bool, memory: npt.NDArray[Any] | None = None) -> None:
        self._plan = plan
        self.start = len(_header(plan, "float32", "0" * 64 if stateful else None))  # of the weights
        size = self.start + 4 * plan.parameters
        if memory is None or memory.nbytes < size:
            memory = np.empty(size, np.uint8)
        self._memory: npt.NDArray[np.uint8] = memory.view(np.uint8)[:size]
        self.weights: Vector = self._memory[self.start :].view(_WIRES["float32"])  # shape (plan.parameters,)

    def finish(self, state: str | None) -> memoryview:
        """The file as `encode_model` makes it of these weights; `state` is that state's digest."""
        self._memory[: self.start] = np.frombuffer(_header(self._plan, "float32", state), np.uint8)
        return self._memory.data.toreadonly()


def decode_model(body: bytes | memoryview, plan: Plan, encoding: ModelEncoding = "float32") -> list[npt.NDArray[Any]]:
    """The weights of a model file in the manifest's order: read-only views into `body`, or float32 of what is float16 there.

    Raises:
        Refusal: `model_mismatch` when the file is no safetensors, is damaged, or is not of this plan.
    """
    return unflatten(decode_vector(body, plan, encoding), plan)


def decode_vector(body: bytes | memoryview, plan: Plan, encoding: ModelEncoding = "float32") -> Vector:
    """The weights of a model file as one flat vector, float32, shape (plan.parameters,): a view into `body`, or a copy.

    Raises:
        Refusal: as `decode_model`.
    """
    start = check_header(body, len(body), plan, encoding)
    vector = np.frombuffer(body, _WIRES[encoding], count=plan.parameters, offset=start)
    return vector.astype(np.float32, copy=False)  # of float32 a copy on big-endian machines only


def state_of(body: bytes | memoryview) -> str | None:
    """The digest of the server optimizer's state that a checked model file names, None if it names none."""
    length: int = _LENGTH.unpack_from(body)[0]
    named: str | None = json.loads(bytes(body[_LENGTH.size : _LENGTH.size + length]))["__metadata__"].get("state")
    return named


def header_bytes(plan: Plan) -> int:
    """How many bytes from the beginning of a model file are enough for `check_header`."""
    return _LENGTH.size + _longest_json(plan)


def check_header(prefix: bytes | memoryview, size_bytes: int, plan: Plan, encoding: ModelEncoding = "float32") -> int:
    """Check by its header alone that a model file of `size_bytes` is of this plan; returns where its data begin.

    Args:
        prefix: the file's first `header_bytes(plan)` bytes, or all of a shorter file.

    Raises:
        Refusal: `model_mismatch`.
    """
    if len(prefix) < _LENGTH.size:
        raise _mismatch(f"{len(prefix)} bytes are no safetensors file")
    length: int = _LENGTH.unpack_from(prefix)[0]
    if length > _longest_json(plan):
        raise _mismatch(f"its header claims {length} bytes, more than this plan's can have")
    start = _LENGTH.size + length
    if len(prefix) < start:
        raise _mismatch(f"it is cut off within its header, after {len(prefix)} bytes")
    try:
        header = json.loads(bytes(prefix[_LENGTH.size : start]))
    except (ValueError, RecursionError) as error:
        raise _mismatch("its header is no JSON") from error
    for fault in _faults(header, plan, encoding):
        raise _mismatch(fault)
    due = start + _WIRES[encoding].itemsize * plan.parameters
    if size_bytes != due:
        raise _mismatch(f"it has {size_bytes} bytes, its header says {due}")
    return start


def flatten(weights: Weights) -> Vector:
    """The weights as one new vector in the manifest's order, float32, shape (parameters,)."""
    vector: Vector = np.empty(sum(weight.size for weight in weights), np.float32)
    start = 0
    for weight in weights:
        vector[start : start + weight.size] = weight.reshape(-1)
        start += weight.size
    return vector


def difference(weights: Weights, base: Weights) -> Vector:
    """`weights` - `base` as one new vector, as `flatten` has it."""
    vector: Vector = np.empty(sum(weight.size for weight in weights), np.float32)
    start = 0
    for weight, other in zip(weights, base, strict=True):
        np.subtract(weight.reshape(-1), other.reshape(-1), out=vector[start : start + weight.size])
        start += weight.size
    return vector


def unflatten(vector: Vector, plan: Plan) -> list[npt.NDArray[Any]]:
    """The weights that `flatten` made `vector` of, as views into it.

    Raises:
        Refusal: `model_mismatch` when the vector's length is not the plan's.
    """
    if vector.shape != (plan.parameters,):
        raise _mismatch(f"the vector's shape is {vector.shape}, the plan's ({plan.parameters},)")
    weights, start = [], 0
    for spec in plan.weights:
        weights.append(vector[start : start + spec.elements].reshape(spec.shape))
        start += spec.elements
    return weights


def _faults(header: object, plan: Plan, encoding: ModelEncoding) -> Iterator[str]:
    """What keeps a header from being this plan's, worst first."""
    if not isinstance(header, dict):
        yield "its header is no JSON object"
        return
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or metadata.get("plan") != plan.digest:
        yield "its metadata does not name this plan's digest"
    names = {tensor_name(index) for index in range(len(plan.weights))}
    if header.keys() - {"__metadata__"} != names:
        yield f"its tensors are not named {tensor_name(0)} to {tensor_name(len(names) - 1)}"
        return
    for name, entry in _entries(plan, encoding).items():
        if header[name] != entry:
            yield f"tensor {name} is not {entry}"


def _header(plan: Plan, encoding: ModelEncoding, state: str | None) -> bytes:
    # safetensors' own `save` writes two metadata entries in any order
    metadata = {"plan": plan.digest} if state is None else {"plan": plan.digest, "state": state}
    header = json.dumps({"__metadata__": metadata, **_entries(plan, encoding)}, separators=(",", ":")).encode()
    header = header.ljust(-(-len(header) // 8) * 8)
    return _LENGTH.pack(len(header)) + header


def _entries(plan: Plan, encoding: ModelEncoding) -> dict[str, dict[str, object]]:
    entries: dict[str, dict[str, object]] = {}
    start = 0
    for index, spec in enumerate(plan.weights):
        end = start + _WIRES[encoding].itemsize * spec.elements
        entries[tensor_name(index)] = {"dtype": _TYPES[encoding], "shape": list(spec.shape), "data_offsets": [start, end]}
        start = end
    return entries


def _longest_json(plan: Plan) -> int:
    # 100 for an entry's words and its name, 20 for any number; safetensors pads to a multiple of 8
    return 256 + sum(100 + 20 * (2 + len(spec.shape)) for spec in plan.weights)


def _mismatch(fault: str) -> Refusal:
    return Refusal(Code.MODEL_MISMATCH, f"The model does not fit the plan: {fault}.")
