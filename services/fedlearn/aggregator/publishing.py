"""From a closed sum to the next model: the server optimizer, and the objects under keys that carry their digests."""

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from fedlearn.aggregator.layout import Descriptor, model_key, served_key, state_key
from fedlearn.aggregator.strategies import optimizer_of
from fedlearn.core.aggregation import Total
from fedlearn.core.errors import Code, Refusal
from fedlearn.core.ids import DeviceId, TaskId, is_digest
from fedlearn.core.ports import ObjectStore
from fedlearn.core.rounds import ModelRef
from fedlearn.core.strategies import State, Step
from fedlearn.core.updates import Vector
from fedlearn.protocol.messages import Model, RoundResult
from fedlearn.protocol.plans import Plan
from fedlearn.protocol.states import StateFile
from fedlearn.protocol.tensors import ModelFile, check_header, decode_vector, encode_model, header_bytes, state_of, unflatten

_PART = 1 << 20  # elements that are read from storage at a time
_SPAN = 1 << 17  # elements that are worked on at a time: they stay in the cache
KEPT_BYTES = 8 << 20  # a larger model is written over the sum, and read again for the next round


class _Base(NamedTuple):
    """The model that a round began with, and the server optimizer's state at it."""

    sha256: str
    weights: Vector
    state: State


class Publisher:
    """Publishes models; it remembers the one that it published last, which is the next round's base, if it is a small one.

    A small model, of at most 8 MiB, has a file of its own, and the sum stays as it is. A larger one's file takes the place of
    the sum, part by part: then there is nothing beside it but the server optimizer's state, once, as a file in which the new
    one is written over the old. Should the storage fail before the model is there, the sum has to be made again.

    Args:
        models: the models bucket.
    """

    def __init__(self, models: ObjectStore) -> None:
        self._models = models
        self._last: _Base | None = None

    def publish(self, descriptor: Descriptor, plan: Plan, total: Total, contributors: list[DeviceId]) -> RoundResult:
        """Apply the plan's strategy to the base model and the round's delta, and write the next version.

        Raises:
            Refusal: `model_mismatch` when the base or its state is not what the descriptor says; `aggregate_not_finite`.
            Outage: `storage_unavailable`.
        """
        task, optimizer = TaskId(descriptor.task), optimizer_of(plan.aggregation)
        states = StateFile(plan, optimizer.keeps) if optimizer.keeps else None
        old, parts = self._base(descriptor, plan, states)
        large = 4 * plan.parameters > KEPT_BYTES
        taken = total.take_mean() if large else None
        # float32 over float64: no part of the file reaches beyond its part of the sum, as long as the header is no longer
        over = large and header_bytes(plan) <= 4 * _PART
        file = ModelFile(plan, stateful=bool(optimizer.keeps), memory=taken if over else None)
        for part, weights in parts:
            delta = total.mean_of(part) if taken is None else taken[part]
            with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is checked
                step = optimizer.step(weights, delta, {name: vector[part] for name, vector in old.items()})
            _check_finite(step)
            file.weights[part] = step.weights
            if states is not None:
                states.write(part, step.state)
        body = file.finish(self._put_state(task, states))  # before the model, so that no model names a state that is not there
        sha256 = hashlib.sha256(body).hexdigest()
        ref = ModelRef(descriptor.base.version + 1, model_key(task, descriptor.round, sha256), sha256, len(body))
        self._models.put(ref.key, body, sha256=sha256)
        self._last = None if large else _Base(sha256, file.weights, {} if states is None else states.vectors)
        return RoundResult(
            model=Model.of(ref), contributors=tuple(contributors), examples=total.examples, metrics=total.metrics()
        )

    def serve(self, base: Model, plan: Plan) -> Model | None:
        """The copy of a base for devices as the plan wants it, written anew with the same bytes if it is there; None for none.

        Raises:
            Refusal: `model_mismatch` when the base is not what it should be, or a weight is beyond float16.
            Outage: `storage_unavailable`.
        """
        if plan.model_encoding == "float32":
            return None
        kept = self._kept(base)
        weights = kept.weights if kept is not None else decode_vector(self._get(base.key, base.sha256), plan)
        body = encode_model(unflatten(weights, plan), plan, encoding=plan.model_encoding)
        served = Model(
            version=base.version, key=served_key(base.key), sha256=hashlib.sha256(body).hexdigest(), size_bytes=len(body)
        )
        self._models.put(served.key, body, sha256=served.sha256)
        return served

    def _kept(self, base: Model) -> _Base | None:
        last = self._last  # read once: another task's model may be published meanwhile, in another thread
        return last if last is not None and last.sha256 == base.sha256 else None

    def _base(
        self, descriptor: Descriptor, plan: Plan, states: StateFile | None
    ) -> tuple[State, Iterator[tuple[slice, Vector]]]:
        """The state at the round's base, and its weights part by part; that it is the right base is known when they end.

        Args:
            states: where the state is read to, if it isn't at hand.
        """
        base = descriptor.base
        kept = self._kept(base)
        if kept is not None:
            return kept.state, ((part, kept.weights[part]) for part in _parts(plan.parameters, _SPAN))
        prefix = self._models.get(base.key, length=header_bytes(plan))
        start = check_header(prefix, base.size_bytes, plan)
        return self._get_state(TaskId(descriptor.task), state_of(prefix), states), self._read(base, prefix[:start], plan)

    def _read(self, base: Model, header: bytes, plan: Plan) -> Iterator[tuple[slice, Vector]]:
        step = max(_SPAN, len(header))  # elements: then no part of the new file reaches beyond its part of the sum
        digest = hashlib.sha256(header)
        buffer = memoryview(bytearray(4 * min(_PART, plan.parameters)))
        for part in _parts(plan.parameters, _PART):
            body = buffer[: 4 * (part.stop - part.start)]
            # what is missing of an object must not be made up by what the memory held before
            digest.update(body[: self._models.get_into(base.key, body, start=len(header) + 4 * part.start)])
            weights = np.frombuffer(body, "<f4").astype(np.float32, copy=False)
            for span in _parts(len(weights), step):
                yield slice(part.start + span.start, part.start + span.stop), weights[span]
        if digest.hexdigest() != base.sha256:
            raise _mismatch(base.key, base.sha256)

    def _put_state(self, task: TaskId, states: StateFile | None) -> str | None:
        if states is None:
            return None
        body = states.finish()
        sha256 = hashlib.sha256(body).hexdigest()
        self._models.put(state_key(task, sha256), body, sha256=sha256)
        return sha256

    def _get_state(self, task: TaskId, sha256: str | None, states: StateFile | None) -> State:
        if sha256 is None or states is None:
            return {}
        if not is_digest(sha256):
            raise Refusal(Code.MODEL_MISMATCH, f"The base model names {sha256!r} as its state, which is no digest.")
        key, digest = state_key(task, sha256), hashlib.sha256()
        for part in _parts(len(states.memory), 4 * _PART):
            body = states.memory[part]
            digest.update(body[: self._models.get_into(key, body, start=part.start)])
        if digest.hexdigest() != sha256:
            raise _mismatch(key, sha256)
        return states.read()

    def _get(self, key: str, sha256: str) -> bytes:
        body = self._models.get(key)
        if hashlib.sha256(body).hexdigest() != sha256:
            raise _mismatch(key, sha256)
        return body


def _parts(length: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def _mismatch(key: str, sha256: str) -> Refusal:
    return Refusal(Code.MODEL_MISMATCH, f"The object at {key!r} does not have the digest {sha256}.")


def _check_finite(step: Step) -> None:
    if not all(np.isfinite(vector).all() for vector in (step.weights, *step.state.values())):
        raise Refusal(
            Code.AGGREGATE_NOT_FINITE,
            "The next model would hold NaN or infinity: lower the server's learning rate, or choose a robust rule.",
        )
