"""From a closed sum to the next model: the server optimizer, and the object under a key that carries its digest."""

import hashlib

from fedlearn.aggregator.layout import Descriptor, model_key
from fedlearn.core.aggregation import WeightedSum
from fedlearn.core.errors import Code, Refusal
from fedlearn.core.ids import DeviceId
from fedlearn.core.ports import ObjectStore
from fedlearn.core.rounds import ModelRef
from fedlearn.core.strategies import FedAvg
from fedlearn.core.updates import Vector
from fedlearn.protocol.messages import Model, RoundResult
from fedlearn.protocol.plans import Plan
from fedlearn.protocol.tensors import decode_vector, encode_model, unflatten


class Publisher:
    """Publishes models; it remembers the one that it published last, which is the next round's base.

    Args:
        models: the models bucket.
    """

    def __init__(self, models: ObjectStore) -> None:
        self._models = models
        self._last: tuple[str, Vector] | None = None

    def publish(self, descriptor: Descriptor, plan: Plan, total: WeightedSum, contributors: list[DeviceId]) -> RoundResult:
        """Apply the plan's strategy to the base model and the mean delta, and write the next version.

        Raises:
            Refusal: `model_mismatch` when the base is not what the descriptor says.
            Outage: `storage_unavailable`.
        """
        optimizer = FedAvg(plan.aggregation.server_learning_rate)
        vector = optimizer.step(self._base(descriptor, plan), total.mean())
        body = encode_model(unflatten(vector, plan), plan)
        sha256 = hashlib.sha256(body).hexdigest()
        ref = ModelRef(descriptor.base.version + 1, model_key(descriptor.id.task, descriptor.round, sha256), sha256, len(body))
        self._models.put(ref.key, body)
        self._last = (sha256, vector)
        return RoundResult(
            model=Model.of(ref), contributors=tuple(contributors), examples=total.examples, metrics=total.metrics()
        )

    def _base(self, descriptor: Descriptor, plan: Plan) -> Vector:
        base = descriptor.base
        if self._last is not None and self._last[0] == base.sha256:
            return self._last[1]
        body = self._models.get(base.key)
        if hashlib.sha256(body).hexdigest() != base.sha256:
            raise Refusal(Code.MODEL_MISMATCH, f"The model at {base.key!r} does not have the digest that the server names.")
        return decode_vector(body, plan)
