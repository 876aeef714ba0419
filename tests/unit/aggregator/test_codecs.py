"""A round's sum and its robust rules by each codec: numpy's, to the last bit, on what the updates decode to."""

import hashlib
from typing import Any

import numpy as np
import pytest

from fedlearn.adapters.memory import MemoryObjectStore
from fedlearn.aggregator.folding import Folding
from fedlearn.aggregator.publishing import Publisher
from fedlearn.core.aggregation import WeightedSum
from fedlearn.core.errors import Code, Refusal
from fedlearn.core.ids import DeviceId
from fedlearn.core.sparsity import split
from fedlearn.core.updates import Update
from fedlearn.protocol.envelope import UpdateContext, open_update
from fedlearn.protocol.messages import Model
from fedlearn.protocol.plans import Plan
from fedlearn.protocol.tensors import decode_vector, encode_model, unflatten
from support.sealed import BASE, SealedRound
from support.world import random_model, random_update, small_plan

CODECS: dict[str, dict[str, Any]] = {
    "float32": {"encoding": "float32"},
    "float16": {"encoding": "float16"},
    "int8": {"encoding": "int8"},
    "top_k": {"encoding": "top_k", "keep_fraction": 0.1},
}


def plan_of(codec: str, **changes: Any) -> Plan:
    return small_plan(update={**CODECS[codec], "window_elements": 1024}, **changes)


def fed(plan: Plan) -> tuple[Folding, dict[DeviceId, Update]]:
    """A round of seven devices, and their updates as they decode."""
    sealed = SealedRound(MemoryObjectStore(), plan=plan)
    folding, decoded = Folding(sealed.descriptor, plan, sealed.key, sealed.store), {}
    for number in range(7):
        device, update = DeviceId(f"device-{number}"), random_update(plan, number, examples=10 + number)
        if plan.update.encoding == "top_k":
            update = Update(split(update.delta, plan.update.keep(plan.parameters)), update.examples)
        body = sealed.seal(device, update)
        context = UpdateContext(sealed.id.task, sealed.id.number, device, plan.digest, sealed.base.sha256)
        decoded[device] = open_update(body, key=sealed.key, context=context, plan=plan)
        folding.consider(device, sealed.upload(device, body))
    return folding, decoded


@pytest.mark.parametrize("codec", CODECS)
def test_the_sum_is_exact_on_the_decoded_values(codec: str) -> None:
    folding, decoded = fed(plan_of(codec))
    total = folding.total(folding.counts().folded)
    exact = WeightedSum(folding.plan.parameters)
    for update in decoded.values():
        exact.fold(update)
    np.testing.assert_array_equal(total.mean(), exact.mean())
    deltas = [update.delta.astype(np.float64) for update in decoded.values()]
    mean = np.average(deltas, axis=0, weights=[update.examples for update in decoded.values()])
    np.testing.assert_allclose(total.mean(), mean, rtol=0, atol=1e-17)


@pytest.mark.parametrize("codec", ["float16", "int8"])
def test_a_median_reads_windows_that_are_compressed_each_by_itself(codec: str) -> None:
    folding, decoded = fed(plan_of(codec, aggregation={"rule": {"name": "median"}}))
    median = folding.total(folding.counts().folded).mean()
    np.testing.assert_array_equal(median, np.median([update.delta for update in decoded.values()], axis=0))


def test_an_update_in_another_codec_than_the_plans_is_refused() -> None:
    plan = plan_of("int8")
    sealed = SealedRound(MemoryObjectStore(), plan=plan)
    folding, device = Folding(sealed.descriptor, plan, sealed.key, sealed.store), DeviceId("device-0")
    digest = sealed.upload(device, sealed.seal(device, random_update(plan, 0), plan_of("float32")))
    with pytest.raises(Refusal) as refusal:
        folding.consider(device, digest)
    assert refusal.value.code is Code.UPDATE_DTYPE


class TestServedModels:
    def test_devices_get_a_copy_in_float16_by_its_own_digest(self) -> None:
        plan, store = plan_of("int8", model_encoding="float16"), MemoryObjectStore()
        body = random_model(plan)
        store.put(BASE.key, body)
        base = Model.of(BASE).model_copy(update={"sha256": _sha256(body), "size_bytes": len(body)})
        served = Publisher(store).serve(base, plan)
        assert served is not None
        copy = store.get(served.key)
        assert (served.sha256, served.size_bytes, served.version) == (_sha256(copy), len(copy), base.version)
        exact = decode_vector(body, plan)
        np.testing.assert_array_equal(decode_vector(copy, plan, "float16"), exact.astype(np.float16).astype(np.float32))
        assert Publisher(store).serve(base, plan) == served, "another aggregator serves the same bytes"

    def test_where_models_travel_as_float32_there_is_no_copy(self) -> None:
        store = MemoryObjectStore()
        assert Publisher(store).serve(Model.of(BASE), plan_of("int8")) is None
        assert store.list("") == []

    def test_a_model_that_float16_can_not_hold_is_not_served(self) -> None:
        plan, store = plan_of("int8", model_encoding="float16"), MemoryObjectStore()
        vector = np.zeros(plan.parameters, np.float32)
        vector[3] = 1e6
        body = encode_model(unflatten(vector, plan), plan)
        store.put(BASE.key, body)
        base = Model.of(BASE).model_copy(update={"sha256": _sha256(body), "size_bytes": len(body)})
        with pytest.raises(Refusal) as refusal:
            Publisher(store).serve(base, plan)
        assert refusal.value.code is Code.MODEL_MISMATCH


def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
