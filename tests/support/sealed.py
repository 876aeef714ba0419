"""One round as an aggregator holds it, and updates that are sealed for it."""

import base64
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedlearn.adapters.memory import MemoryObjectStore
from fedlearn.aggregator.layout import Descriptor, update_key
from fedlearn.core.ids import DeviceId, RoundId, TaskId
from fedlearn.core.rounds import ModelRef
from fedlearn.core.updates import Update
from fedlearn.protocol.envelope import UpdateContext, seal
from fedlearn.protocol.messages import Model
from fedlearn.protocol.plans import Plan
from fedlearn.protocol.sealing import SealingKey
from fedlearn.protocol.tensors import decode_vector
from support.world import name_of, random_model, random_update, small_plan

PLAN = small_plan()
BASE_FILE = random_model(PLAN)
BASE = ModelRef(3, "t/models/00000003.safetensors", hashlib.sha256(BASE_FILE).hexdigest(), len(BASE_FILE))
ROUND = RoundId(TaskId("t"), 7)
IDENTITY = Ed25519PrivateKey.generate()


class SealedRound:
    """The descriptor and the key of a round, and the bucket that its updates go to."""

    def __init__(
        self,
        store: MemoryObjectStore,
        key: SealingKey | None = None,
        *,
        plan: Plan = PLAN,
        base: ModelRef = BASE,
        round_id: RoundId = ROUND,
    ) -> None:
        self.store, self.plan, self.base, self.id = store, plan, base, round_id
        self.key = key or SealingKey.generate(round_id)
        self.descriptor = Descriptor(
            task=round_id.task,
            round=round_id.number,
            plan=plan.model_dump(mode="json"),
            base=Model.of(base),
            kid=self.key.kid,
            wrapped_key=base64.b64encode(self.key.wrap(IDENTITY)).decode(),
        )

    def seal(self, device: DeviceId, update: Update, plan: Plan | None = None, **context: Any) -> bytes:
        """An update as `device` would seal it; `context` replaces what it is sealed for."""
        given = {
            "task": self.id.task,
            "round": self.id.number,
            "device": device,
            "plan_digest": self.plan.digest,
            "base_sha256": self.base.sha256,
            **context,
        }
        return seal(update, key=self.key.public, context=UpdateContext(**given), format=(plan or self.plan).update)

    def upload(self, device: DeviceId, body: bytes) -> str:
        """Put the bytes where the device's update belongs; returns their digest."""
        digest = name_of(body)
        self.store.put(update_key(self.id, device, digest), body)
        return digest

    def bring(self, device: DeviceId, update: Update) -> str:
        return self.upload(device, self.seal(device, update))


def updates_of(count: int) -> dict[DeviceId, Update]:
    """So many devices' updates, each with another weight."""
    return {DeviceId(f"device-{i}"): random_update(PLAN, seed=i, examples=10 + 7 * i) for i in range(count)}


def weighted_mean(updates: Mapping[DeviceId, Update]) -> np.ndarray:
    """What numpy makes of the deltas, in float64."""
    deltas = [update.delta.astype(np.float64) for update in updates.values()]
    return np.average(deltas, axis=0, weights=[update.examples for update in updates.values()])


def next_model(base_file: bytes, updates: Mapping[DeviceId, Update], plan: Plan = PLAN) -> np.ndarray:
    """The base and the weighted mean, shape (parameters,), float64."""
    return decode_vector(base_file, plan) + weighted_mean(updates)
