"""The next model and the server optimizer's state: written together, and the same bits from whichever aggregator."""

import hashlib
import json
import tracemalloc
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

from fedlearn.adapters.memory import MemoryObjectStore
from fedlearn.aggregator import publishing
from fedlearn.aggregator.folding import Folding
from fedlearn.aggregator.layout import state_key
from fedlearn.aggregator.publishing import Publisher
from fedlearn.core.aggregation import WeightedSum
from fedlearn.core.errors import Code, Outage, Refusal
from fedlearn.core.ids import RoundId, TaskId
from fedlearn.core.rounds import ModelRef
from fedlearn.core.strategies import FedAdam
from fedlearn.core.updates import Update
from fedlearn.protocol.messages import RoundResult
from fedlearn.protocol.plans import Plan, read_plan
from fedlearn.protocol.tensors import decode_vector, state_of
from support.sealed import SealedRound, updates_of, weighted_mean
from support.world import random_model, random_update, small_plan

TASK = TaskId("t")
WITH_STATE = ["fedavgm", "fedadagrad", "fedadam", "fedyogi"]


def plan_of(strategy: str, **options: Any) -> Plan:
    return small_plan(aggregation={"strategy": strategy, **options})


def plan_with(strategy: str, *lengths: int) -> Plan:
    """One of weights that are vectors of these lengths."""
    return small_plan(aggregation={"strategy": strategy}, weights=[{"shape": [length]} for length in lengths])


class Desk:
    """A task's storage, and rounds that are closed on it one after the other."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.models, self.updates = plan, MemoryObjectStore(), MemoryObjectStore()
        body = random_model(plan)
        self.base = ModelRef(0, "t/models/0.safetensors", hashlib.sha256(body).hexdigest(), len(body))
        self.models.put(self.base.key, body)

    def round(self, number: int, base: ModelRef) -> SealedRound:
        return SealedRound(self.updates, plan=self.plan, base=base, round_id=RoundId(TASK, number))

    def close(self, sealed: SealedRound, contributors: dict[Any, str], publisher: Publisher) -> RoundResult:
        """As an aggregator that was just started and finds the round's close record."""
        folding = Folding(sealed.descriptor, sealed.plan, sealed.key, self.updates)
        return publisher.publish(sealed.descriptor, sealed.plan, folding.total(contributors), sorted(contributors))

    def vector(self, ref: ModelRef) -> np.ndarray:
        return decode_vector(self.models.get(ref.key), self.plan)

    def states(self) -> list[str]:
        return [stored.key for stored in self.models.list("t/states/")]


def bring(sealed: SealedRound, updates: dict[Any, Update], order: Iterable[int]) -> dict[Any, str]:
    devices = list(updates)
    return {devices[i]: sealed.bring(devices[i], updates[devices[i]]) for i in order}


@pytest.mark.parametrize("strategy", WITH_STATE)
def test_an_aggregator_that_was_restarted_publishes_the_same_bits(strategy: str) -> None:
    desk = Desk(plan_of(strategy))
    lasting = Publisher(desk.models)
    base = desk.base
    for number in (1, 2, 3):
        sealed = desk.round(number, base)
        record = bring(sealed, updates_of(5), np.random.default_rng(number).permutation(5))
        folding = Folding(sealed.descriptor, sealed.plan, sealed.key, desk.updates)
        for device, digest in record.items():
            folding.consider(device, digest)
        first = lasting.publish(sealed.descriptor, sealed.plan, folding.total(folding.counts().folded), sorted(record))
        written = desk.states()
        again = desk.close(sealed, record, Publisher(desk.models))
        assert again == first
        assert desk.states() == written, "its state has the same bits as well"
        base = first.model.ref()
    assert len(desk.states()) == 3


def test_two_rounds_of_fedadam_are_two_steps_of_it() -> None:
    desk = Desk(plan_of("fedadam", server_learning_rate=0.1, tau=1e-3))
    weights, state, base = desk.vector(desk.base), {}, desk.base
    for number in (1, 2):
        updates = {device: random_update(desk.plan, number * 10 + i) for i, device in enumerate(updates_of(3))}
        sealed = desk.round(number, base)
        base = desk.close(sealed, bring(sealed, updates, range(3)), Publisher(desk.models)).model.ref()
        step = FedAdam(0.1, 0.9, 0.99, 1e-3).step(weights, weighted_mean(updates), state)
        weights, state = step.weights, step.state
        np.testing.assert_allclose(desk.vector(base), weights, rtol=1e-6, atol=1e-7)


def test_fedavg_keeps_no_state_and_names_none() -> None:
    desk = Desk(plan_of("fedavg"))
    sealed = desk.round(1, desk.base)
    result = desk.close(sealed, bring(sealed, updates_of(2), range(2)), Publisher(desk.models))
    assert desk.states() == []
    assert state_of(desk.models.get(result.model.key)) is None


def flipped(body: bytes) -> bytes:
    return body[:-1] + bytes([body[-1] ^ 1])


@pytest.mark.parametrize(
    "damaged",
    [
        pytest.param(lambda body: body[:-1], id="cut off"),
        pytest.param(lambda _: b"not what was written", id="other bytes"),
        pytest.param(flipped, id="one bit"),
    ],
)
def test_a_state_that_was_damaged_is_never_used(damaged: Callable[[bytes], bytes]) -> None:
    desk = Desk(plan_of("fedyogi"))
    sealed = desk.round(1, desk.base)
    model = desk.close(sealed, bring(sealed, updates_of(2), range(2)), Publisher(desk.models)).model.ref()
    key = state_key(TASK, str(state_of(desk.models.get(model.key))))
    desk.models.put(key, damaged(desk.models.get(key)))
    sealed = desk.round(2, model)
    with pytest.raises(Refusal) as refusal:
        desk.close(sealed, bring(sealed, updates_of(2), range(2)), Publisher(desk.models))
    assert refusal.value.code is Code.MODEL_MISMATCH


@pytest.mark.parametrize("of", ["state", "base"])
def test_what_is_missing_at_the_end_is_not_made_up_by_what_the_memory_held_before(
    of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(plan_of("fedyogi"))
    sealed = desk.round(1, desk.base)
    model = desk.close(sealed, bring(sealed, updates_of(2), range(2)), Publisher(desk.models)).model.ref()
    key = model.key if of == "base" else state_key(TASK, str(state_of(desk.models.get(model.key))))
    whole, get_into = desk.models.get(key), desk.models.get_into
    desk.models.put(key, whole[:-1])

    def into_used_memory(name: str, out: memoryview, *, start: int = 0) -> int:
        if name == key:
            out[:] = whole[start : start + len(out)]
        return get_into(name, out, start=start)

    monkeypatch.setattr(desk.models, "get_into", into_used_memory)
    sealed = desk.round(2, model)
    with pytest.raises(Refusal) as refusal:
        desk.close(sealed, bring(sealed, updates_of(2), range(2)), Publisher(desk.models))
    assert refusal.value.code is Code.MODEL_MISMATCH


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam"])
def test_a_model_that_is_not_finite_is_never_published(strategy: str) -> None:
    desk = Desk(plan_of(strategy, server_learning_rate=10))
    sealed = desk.round(1, desk.base)
    huge = Update(np.full(desk.plan.parameters, 3e38, np.float32), examples=10)
    with pytest.raises(Refusal) as refusal:
        desk.close(sealed, bring(sealed, dict.fromkeys(updates_of(2), huge), range(2)), Publisher(desk.models))
    assert refusal.value.code is Code.AGGREGATE_NOT_FINITE
    assert desk.states() == []


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every model be a large one, of several parts."""
    monkeypatch.setattr(publishing, "KEPT_BYTES", 0)
    monkeypatch.setattr(publishing, "_PART", 1000)
    monkeypatch.setattr(publishing, "_SPAN", 10)  # shorter than the file's header, which must not reach the unread sum


def roomy_plan(strategy: str) -> Plan:
    """One whose parts are longer than the file's header."""
    return plan_with(strategy, 3001, 2)


@pytest.mark.parametrize("rule", [None, {"name": "median"}], ids=["mean", "median"])
@pytest.mark.parametrize("strategy", ["fedavg", "fedadam"])
def test_a_large_model_that_is_written_over_its_sum_has_the_same_bits(
    strategy: str, rule: dict[str, str] | None, request: pytest.FixtureRequest
) -> None:
    plan = roomy_plan(strategy)
    if rule is not None:
        plan = read_plan(json.dumps({**plan.model_dump(mode="json"), "aggregation": {"strategy": strategy, "rule": rule}}))
    desk, published = Desk(plan), []
    rounds = []
    base = desk.base
    for number in (1, 2):
        sealed = desk.round(number, base)
        updates = {device: random_update(plan, number * 10 + i) for i, device in enumerate(updates_of(3))}
        rounds.append((sealed, bring(sealed, updates, range(3))))
        published.append(desk.close(*rounds[-1], Publisher(desk.models)))
        base = published[-1].model.ref()
    request.getfixturevalue("large")
    publisher = Publisher(desk.models)
    assert [desk.close(sealed, record, publisher) for sealed, record in rounds] == published
    assert publisher._last is None


@pytest.mark.usefixtures("large")
def test_a_sum_that_was_written_over_is_made_again_when_the_storage_has_failed() -> None:
    desk = Desk(roomy_plan("fedavg"))
    sealed = desk.round(1, desk.base)
    updates = {device: random_update(desk.plan, i) for i, device in enumerate(updates_of(3))}
    record = bring(sealed, updates, range(3))
    folding = Folding(sealed.descriptor, sealed.plan, sealed.key, desk.updates)
    lost = folding.total(record).take_mean()
    lost[:] = np.nan
    late, more = list(updates_of(4))[-1], random_update(desk.plan, 9)
    folding.consider(late, sealed.bring(late, more))  # as a device may come that is too late
    again = Publisher(desk.models).publish(sealed.descriptor, sealed.plan, folding.total(record), sorted(record))
    assert folding.unsaved == 0
    assert again == desk.close(sealed, record, Publisher(desk.models))


class _Sink(MemoryObjectStore):
    """Reads are those of a storage; of what is written it keeps nothing, so that it takes no memory."""

    def __init__(self, models: MemoryObjectStore) -> None:
        super().__init__()
        self._models = models

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        return self._models.get(key, start=start, length=length)

    def put(self, key: str, body: bytes | memoryview, *, sha256: str | None = None) -> None:
        pass


WIDE = 500_000


def taken_to_publish(strategy: str) -> float:
    """The peak of the memory that is taken beside the sum, in model sizes, in a second round of this strategy."""
    plan = plan_with(strategy, WIDE)
    desk = Desk(plan)
    sealed = desk.round(1, desk.base)
    record = bring(sealed, {device: random_update(plan, i) for i, device in enumerate(updates_of(2))}, range(2))
    second = desk.round(2, desk.close(sealed, record, Publisher(desk.models)).model.ref())
    total = WeightedSum(WIDE)
    total.fold(random_update(plan, 5))
    publisher = Publisher(_Sink(desk.models))
    tracemalloc.start()
    try:
        publisher.publish(second.descriptor, plan, total, list(record))
        return tracemalloc.get_traced_memory()[1] / (4 * WIDE)
    finally:
        tracemalloc.stop()


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize(("strategy", "moments"), [("fedavg", 0), ("fedavgm", 1), ("fedadam", 2)])
def test_beside_the_sum_a_large_models_publishing_takes_its_state_once(strategy: str, moments: int) -> None:
    assert moments <= taken_to_publish(strategy) < moments + 0.1


def test_beside_the_sum_a_small_models_publishing_takes_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "_PART", 1000)
    monkeypatch.setattr(publishing, "_SPAN", 1000)
    assert 1 <= taken_to_publish("fedavg") < 1.1


@pytest.mark.parametrize(("parameters", "kept"), [(1_663_370, True), (2 << 20, True), ((2 << 20) + 1, False)])
def test_models_to_8_mib_are_kept_for_the_next_round_and_no_larger_one(parameters: int, kept: bool) -> None:
    plan = plan_with("fedavg", parameters)
    desk, total = Desk(plan), WeightedSum(parameters)
    total.fold(random_update(plan, 5))
    publisher = Publisher(desk.models)
    publisher.publish(desk.round(1, desk.base).descriptor, plan, total, list(updates_of(2)))
    assert (publisher._last is not None) is kept
    assert total.taken is not kept


class _Overtaken(Publisher):
    """Another task's model is published when the last one has been looked at so many times."""

    looks = 0

    @property
    def _last(self) -> Any:
        self.looks -= 1
        return self._true if self.looks >= 0 else self._other

    @_last.setter
    def _last(self, last: Any) -> None:
        self._true, self._other = last, last and last._replace(sha256="0" * 64, weights=-last.weights, state={})


@pytest.mark.parametrize("looks", range(5))
def test_another_tasks_model_that_is_published_meanwhile_is_not_taken_for_the_base(looks: int) -> None:
    desk = Desk(small_plan(aggregation={"strategy": "fedadam"}, model_encoding="float16"))
    publisher = _Overtaken(desk.models)
    first = desk.round(1, desk.base)
    model = desk.close(first, bring(first, updates_of(3), range(3)), publisher).model
    publisher.looks = looks
    assert publisher.serve(model, desk.plan) == Publisher(desk.models).serve(model, desk.plan)
    second = desk.round(2, model.ref())
    record = bring(second, updates_of(3), range(3))
    publisher.looks = looks
    assert desk.close(second, record, publisher) == desk.close(second, record, Publisher(desk.models))


class _Failing(MemoryObjectStore):
    def put(self, key: str, body: bytes | memoryview, *, sha256: str | None = None) -> None:
        raise Outage(Code.STORAGE_UNAVAILABLE, "It is down.")


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam"])
def test_a_small_models_sum_is_used_again_when_the_storage_has_failed(strategy: str) -> None:
    desk = Desk(plan_of(strategy))
    sealed = desk.round(1, desk.base)
    record = bring(sealed, updates_of(3), range(3))
    folding = Folding(sealed.descriptor, sealed.plan, sealed.key, desk.updates)
    publisher = Publisher(desk.models)
    desk.models.put = _Failing().put  # type: ignore[method-assign]
    with pytest.raises(Outage):
        publisher.publish(sealed.descriptor, sealed.plan, folding.total(record), sorted(record))
    del desk.models.put
    expected = desk.close(sealed, record, Publisher(desk.models))
    desk.updates.delete([stored.key for stored in desk.updates.list("")])
    assert publisher.publish(sealed.descriptor, sealed.plan, folding.total(record), sorted(record)) == expected


@pytest.mark.parametrize("at", [-1, -9], ids=["in its last weight", "before"])
def test_nothing_is_published_upon_a_base_that_was_damaged(at: int) -> None:
    desk = Desk(plan_of("fedavg"))
    sealed = desk.round(1, desk.base)
    record = bring(sealed, updates_of(2), range(2))
    body = bytearray(desk.models.get(desk.base.key))
    body[at] ^= 1
    desk.models.put(desk.base.key, bytes(body))
    before = desk.models.list("")
    with pytest.raises(Refusal) as refusal:
        desk.close(sealed, record, Publisher(desk.models))
    assert refusal.value.code is Code.MODEL_MISMATCH
    assert desk.models.list("") == before
