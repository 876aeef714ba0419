import gc
import threading
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest

from fedlearn.adapters.memory import MemoryBucket, MemoryObjectStore
from fedlearn.aggregator import folding as folding_module
from fedlearn.aggregator import ring, streaming
from fedlearn.aggregator.folding import Folding
from fedlearn.aggregator.layout import update_key
from fedlearn.core.errors import Code, Outage, Refusal
from fedlearn.core.ids import DeviceId
from fedlearn.protocol.envelope import layout_of
from fedlearn.protocol.sealing import SealingKey
from fedlearn.telemetry.metrics import aggregator as metrics
from support.sealed import PLAN, ROUND, SealedRound, updates_of, weighted_mean
from support.world import random_update, small_plan

A, B = DeviceId("a"), DeviceId("b/1")
OTHER_DIGEST = "0" * 64


@pytest.fixture
def sealed() -> SealedRound:
    return SealedRound(MemoryObjectStore())


@pytest.fixture(params=["whole", "streamed"])
def folding(request: pytest.FixtureRequest, sealed: SealedRound, monkeypatch: pytest.MonkeyPatch) -> Folding:
    if request.param == "streamed":
        monkeypatch.setattr(folding_module, "LARGE_BYTES", 0)
        monkeypatch.setattr(streaming, "_SPAN_BYTES", 2500)
    return Folding(sealed.descriptor, sealed.plan, sealed.key, sealed.store)


def counted(result: str) -> float:
    return metrics.UPDATES.labels(result)._value.get()


def refusal_of(folding: Folding, device: DeviceId, digest: str) -> Code:
    with pytest.raises(Refusal) as caught:
        folding.consider(device, digest)
    return caught.value.code


def test_the_total_is_numpys_weighted_mean_in_any_order_of_arrival(sealed: SealedRound) -> None:
    updates = updates_of(9)
    digests = {device: sealed.bring(device, update) for device, update in updates.items()}
    rng = np.random.default_rng(1)
    for _ in range(4):
        folding = Folding(sealed.descriptor, sealed.plan, sealed.key, sealed.store)
        for device in rng.permutation(list(digests)):
            folding.consider(DeviceId(device), digests[DeviceId(device)])
        total = folding.total(digests)
        assert np.abs(total.mean() - weighted_mean(updates)).max() < 1e-9
        assert total.examples == sum(update.examples for update in updates.values())
        assert folding.counts().folded == digests


def test_updates_that_are_folded_at_once_by_several_threads_are_each_counted_once(
    sealed: SealedRound, folding: Folding
) -> None:
    updates = updates_of(12)
    digests = {device: sealed.bring(device, update) for device, update in updates.items()}
    before = counted("folded")
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda item: folding.consider(*item), [*digests.items()] * 4))
    total = folding.total(folding.counts().folded)
    assert np.abs(total.mean() - weighted_mean(updates)).max() < 1e-9
    assert total.updates == 12
    assert counted("folded") - before == 12


def test_an_update_that_is_told_twice_is_counted_once(sealed: SealedRound, folding: Folding) -> None:
    digest = sealed.bring(A, random_update(PLAN, 1))
    folding.consider(A, digest)
    folding.consider(A, digest)
    assert folding.total({A: digest}).updates == 1


def test_of_a_devices_updates_the_first_that_is_folded_stays(sealed: SealedRound, folding: Folding) -> None:
    first, second = (sealed.bring(A, random_update(PLAN, seed)) for seed in (1, 2))
    folding.consider(A, first)
    before = counted(Code.UPDATE_REPEATED)
    assert refusal_of(folding, A, second) is Code.UPDATE_REPEATED
    assert folding.counts().folded == {A: first}
    assert folding.counts().refused == {}, "the device is counted, whatever else it brought"
    assert counted(Code.UPDATE_REPEATED) - before == 1


def test_of_a_devices_updates_that_are_opened_at_once_one_is_counted(sealed: SealedRound, folding: Folding) -> None:
    digests = [sealed.bring(A, random_update(PLAN, seed)) for seed in range(4)]
    start = threading.Barrier(4)

    def consider(digest: str) -> Code | None:
        start.wait()
        try:
            folding.consider(A, digest)
        except Refusal as refusal:
            return refusal.code
        return None

    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(consider, digests))
    assert results.count(None) == 1
    assert set(results) == {None, Code.UPDATE_REPEATED}
    assert folding.total(folding.counts().folded).updates == 1


def tampered(body: bytes, at: int) -> bytes:
    changed = bytearray(body)
    changed[at] ^= 1
    return bytes(changed)


GOOD = random_update(PLAN, 1)
WRONG: dict[str, tuple[Code, Callable[[SealedRound], bytes]]] = {
    "empty": (Code.UPDATE_MALFORMED, lambda r: b""),
    "no envelope": (Code.UPDATE_MALFORMED, lambda r: b"no envelope at all" * 100),
    "cut off": (Code.UPDATE_MALFORMED, lambda r: r.seal(A, GOOD)[:-1]),
    "longer than its header says": (Code.UPDATE_MALFORMED, lambda r: r.seal(A, GOOD) + b"\0"),
    "its last byte changed": (Code.UPDATE_TAMPERED, lambda r: tampered(r.seal(A, GOOD), -1)),
    "its metadata changed": (Code.UPDATE_TAMPERED, lambda r: tampered(r.seal(A, GOOD), 1400)),
    "its wrapped key changed": (Code.UPDATE_TAMPERED, lambda r: tampered(r.seal(A, GOOD), 60)),
    "sealed for another device": (Code.UPDATE_TAMPERED, lambda r: r.seal(B, GOOD)),
    "sealed for another slot": (Code.UPDATE_TAMPERED, lambda r: r.seal(DeviceId("a/0"), GOOD)),
    "sealed for another round": (Code.UPDATE_TAMPERED, lambda r: r.seal(A, GOOD, round=8)),
    "sealed for another task": (Code.UPDATE_TAMPERED, lambda r: r.seal(A, GOOD, task="u")),
    "sealed for another plan": (Code.UPDATE_TAMPERED, lambda r: r.seal(A, GOOD, plan_digest=OTHER_DIGEST)),
    "sealed for another base": (Code.UPDATE_TAMPERED, lambda r: r.seal(A, GOOD, base_sha256=OTHER_DIGEST)),
    "sealed to another key": (
        Code.UPDATE_TAMPERED,
        lambda r: SealedRound(r.store, SealingKey.generate(ROUND)).seal(A, GOOD),
    ),
    "of fewer parameters": (Code.UPDATE_SHAPE, lambda r: r.seal(A, replace(GOOD, delta=GOOD.delta[:-1]))),
    "of more parameters": (
        Code.UPDATE_TOO_LARGE,
        lambda r: r.seal(A, replace(GOOD, delta=np.append(GOOD.delta, np.float32(0)))),
    ),
    "in other windows": (Code.UPDATE_SHAPE, lambda r: r.seal(A, GOOD, small_plan(update={"window_elements": 1024}))),
    "in another encoding": (Code.UPDATE_DTYPE, lambda r: r.seal(A, GOOD, small_plan(update={"encoding": "float16"}))),
    "with a NaN": (Code.UPDATE_NOT_FINITE, lambda r: r.seal(A, replace(GOOD, delta=GOOD.delta * np.float32("nan")))),
    "with an infinity": (
        Code.UPDATE_NOT_FINITE,
        lambda r: r.seal(A, replace(GOOD, delta=np.append(GOOD.delta[:-1], np.float32("inf")))),
    ),
    "of no example": (Code.UPDATE_EXAMPLES, lambda r: r.seal(A, replace(GOOD, examples=0))),
    "of more examples than the plan allows": (Code.UPDATE_EXAMPLES, lambda r: r.seal(A, replace(GOOD, examples=1001))),
    "of 10^9 examples": (Code.UPDATE_EXAMPLES, lambda r: r.seal(A, replace(GOOD, examples=10**9))),
    "with more held out than the plan allows": (
        Code.UPDATE_EXAMPLES,
        lambda r: r.seal(A, replace(GOOD, holdout_examples=1001)),
    ),
    "with a metric that no sum can hold": (
        Code.UPDATE_NOT_FINITE,
        lambda r: r.seal(A, replace(GOOD, holdout_examples=1000, metrics={"loss": 1e308})),
    ),
    "with metrics that the plan does not name": (
        Code.UPDATE_TOO_LARGE,
        lambda r: r.seal(A, replace(GOOD, metrics={f"metric-{i}": 1.0 for i in range(100)})),
    ),
    "larger than any update of the plan": (Code.UPDATE_TOO_LARGE, lambda r: b"\0" * 200_000),
}


@pytest.mark.parametrize(("code", "make"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_update_is_refused_and_leaves_the_totals_untouched(
    code: Code, make: Callable[[SealedRound], bytes], sealed: SealedRound, folding: Folding
) -> None:
    good = sealed.bring(B, random_update(PLAN, 2, examples=20))
    folding.consider(B, good)
    before, folded = counted(code), counted("folded")
    assert refusal_of(folding, A, sealed.upload(A, make(sealed))) is code
    assert counted(code) - before == 1
    assert counted("folded") == folded
    total = folding.total({B: good})
    assert (total.updates, total.examples, total.holdout_examples) == (1, 20, 5)
    assert np.abs(total.mean() - random_update(PLAN, 2).delta).max() < 1e-9
    assert folding.counts().refused == {A: code}


@pytest.mark.parametrize(
    ("code", "lies"),
    [
        pytest.param(Code.UPDATE_MALFORMED, b"no envelope", id="no envelope"),
        pytest.param(Code.UPDATE_DIGEST, SealedRound(MemoryObjectStore()).seal(A, GOOD), id="another header"),
    ],
)
def test_an_update_that_was_found_wrong_is_not_fetched_and_not_counted_again(
    code: Code, lies: bytes, sealed: SealedRound, folding: Folding
) -> None:
    digest = sealed.bring(A, GOOD)
    sealed.store.put(update_key(ROUND, A, digest), lies)
    assert refusal_of(folding, A, digest) is code
    before = counted(code)
    sealed.store.bucket.available = False
    assert refusal_of(folding, A, digest) is code
    assert counted(code) == before
    assert folding.counts().refused == {A: code}
    sealed.store.bucket.available = True
    another = sealed.bring(A, GOOD)
    folding.consider(A, another)
    assert (folding.counts().folded, folding.counts().refused) == ({A: another}, {})


CHANGED = {
    "the content key": (60, Code.UPDATE_DIGEST),
    "its sealing key's name": (24, Code.UPDATE_DIGEST),
    "the metadata": (1400, Code.UPDATE_TAMPERED),
    "a coordinate": (20_000, Code.UPDATE_TAMPERED),
    "the last tag": (-1, Code.UPDATE_TAMPERED),
}


@pytest.mark.parametrize(("at", "code"), CHANGED.values(), ids=CHANGED.keys())
def test_a_byte_that_the_storage_changed_is_found(at: int, code: Code, sealed: SealedRound, folding: Folding) -> None:
    digest = sealed.bring(A, GOOD)
    key = update_key(ROUND, A, digest)
    sealed.store.put(key, tampered(sealed.store.get(key), at))
    assert refusal_of(folding, A, digest) is code
    assert folding.counts().folded == {}


def test_a_sound_update_under_the_name_of_another_is_refused(sealed: SealedRound, folding: Folding) -> None:
    digest, other = sealed.bring(A, GOOD), sealed.seal(A, random_update(PLAN, 2))
    sealed.store.put(update_key(ROUND, A, digest), other)
    assert refusal_of(folding, A, digest) is Code.UPDATE_DIGEST
    again = sealed.upload(A, other)
    folding.consider(A, again)
    assert folding.counts().folded == {A: again}, "by its own name it counts"


def test_the_windows_of_another_update_do_not_open_under_this_ones_header(sealed: SealedRound, folding: Folding) -> None:
    digest, header = sealed.bring(A, GOOD), layout_of(PLAN).header_bytes
    key = update_key(ROUND, A, digest)
    mixed = sealed.store.get(key)[:header] + sealed.seal(A, random_update(PLAN, 2))[header:]
    sealed.store.put(key, mixed)
    assert refusal_of(folding, A, digest) is Code.UPDATE_TAMPERED


def test_an_update_that_is_not_in_storage_is_missing(folding: Folding) -> None:
    before = counted(Code.UPDATE_MISSING)
    assert refusal_of(folding, A, OTHER_DIGEST) is Code.UPDATE_MISSING
    assert counted(Code.UPDATE_MISSING) - before == 1


def test_a_device_whose_update_was_refused_may_bring_a_good_one(sealed: SealedRound, folding: Folding) -> None:
    assert refusal_of(folding, A, OTHER_DIGEST) is Code.UPDATE_MISSING
    digest = sealed.bring(A, GOOD)
    folding.consider(A, digest)
    assert folding.counts().folded == {A: digest}
    assert folding.counts().refused == {}


def test_an_outage_of_the_storage_changes_nothing(sealed: SealedRound, folding: Folding) -> None:
    digest = sealed.bring(A, GOOD)
    sealed.store.bucket.available = False
    with pytest.raises(Outage):
        folding.consider(A, digest)
    assert folding.counts().refused == {}
    sealed.store.bucket.available = True
    folding.consider(A, digest)
    assert folding.total({A: digest}).updates == 1


def test_the_total_is_of_exactly_the_updates_that_the_record_names(sealed: SealedRound, folding: Folding) -> None:
    updates = updates_of(4)
    digests = {device: sealed.bring(device, update) for device, update in updates.items()}
    for device, digest in digests.items():
        folding.consider(device, digest)
    chosen = dict(list(updates.items())[:2])
    total = folding.total({device: digests[device] for device in chosen})
    assert total.updates == 2
    assert np.abs(total.mean() - weighted_mean(chosen)).max() < 1e-9


def test_the_total_after_a_restart_is_the_same_to_the_last_bit(sealed: SealedRound, folding: Folding) -> None:
    digests = {device: sealed.bring(device, update) for device, update in updates_of(6).items()}
    for device in reversed(digests):
        folding.consider(device, digests[device])
    record = dict(folding.counts().folded)
    restarted = Folding(sealed.descriptor, sealed.plan, sealed.key, sealed.store)
    assert (restarted.total(record).mean() == folding.total(record).mean()).all()


def test_a_record_finds_its_updates_by_their_names_and_takes_no_other_in_their_place(
    sealed: SealedRound, folding: Folding
) -> None:
    updates = updates_of(3)
    record = {device: sealed.bring(device, update) for device, update in updates.items()}
    assert np.abs(folding.total(record).mean() - weighted_mean(updates)).max() < 1e-9
    device, digest = list(record.items())[1]
    sealed.store.put(update_key(ROUND, device, digest), sealed.seal(device, updates[device]))
    restarted = Folding(sealed.descriptor, sealed.plan, sealed.key, sealed.store)
    with pytest.raises(Refusal) as caught:
        restarted.total(record)
    assert caught.value.code is Code.UPDATE_DIGEST


def test_there_is_no_total_when_an_update_that_counts_is_gone(sealed: SealedRound) -> None:
    digest = sealed.bring(A, GOOD)
    sealed.store.delete([update_key(ROUND, A, digest)])
    folding = Folding(sealed.descriptor, sealed.plan, sealed.key, sealed.store)
    with pytest.raises(Refusal) as caught:
        folding.total({A: digest})
    assert caught.value.code is Code.UPDATE_MISSING


def test_a_round_uses_the_buffers_of_the_one_before_and_of_another_plan_its_own(sealed: SealedRound) -> None:
    first = Folding(sealed.descriptor, sealed.plan, sealed.key, sealed.store)
    second = Folding(sealed.descriptor, sealed.plan, sealed.key, sealed.store, buffers=first._buffers)
    other = Folding(sealed.descriptor, small_plan(weights=[{"shape": [3]}]), sealed.key, sealed.store, buffers=first._buffers)
    assert second._buffers is first._buffers
    assert other._buffers is not first._buffers
    for folding, deltas in ((first, updates_of(12)), (second, updates_of(12))):
        digests = {device: sealed.bring(device, update) for device, update in deltas.items()}
        for item in digests.items():
            folding.consider(*item)
    np.testing.assert_array_equal(first.total(first.counts().folded).mean(), second.total(second.counts().folded).mean())


@pytest.mark.parametrize("rooms", [2, 3, 4, 10], ids=lambda rooms: f"room for {rooms}")
def test_opened_updates_never_take_more_memory_than_the_ring_has_however_many_threads_bring_them(
    sealed: SealedRound, rooms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ring, "BYTES", rooms * 4 * sealed.plan.parameters)
    folding, updates = Folding(sealed.descriptor, sealed.plan, sealed.key, sealed.store), updates_of(40)
    digests = {device: sealed.bring(device, update) for device, update in updates.items()}
    bad = {DeviceId(f"bad-{number}"): OTHER_DIGEST for number in range(10)}

    def bring(item: tuple[DeviceId, str]) -> None:
        with suppress(Refusal):
            folding.consider(*item)

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(bring, [*bad.items(), *digests.items()]))
    assert np.abs(folding.total(folding.counts().folded).mean() - weighted_mean(updates)).max() < 1e-9
    assert len(folding._buffers._opened) <= rooms, "all of them are back"
    assert len(folding._buffers._pieces) <= 16


def test_a_sum_that_is_made_anew_has_the_room_of_the_one_that_it_takes_the_place_of(sealed: SealedRound) -> None:
    digests = {device: sealed.bring(device, update) for device, update in updates_of(7).items()}
    folding = Folding(sealed.descriptor, sealed.plan, sealed.key, sealed.store)
    for item in digests.items():
        folding.consider(*item)
    record = dict(reversed(digests.items()))
    first = folding.total(record).mean()
    assert len(folding._buffers._opened) <= 8
    np.testing.assert_array_equal(folding.total(record).mean(), first)


def test_the_hold_out_metrics_are_means_weighted_by_what_was_held_out(sealed: SealedRound, folding: Folding) -> None:
    digests = {
        A: sealed.bring(A, replace(GOOD, holdout_examples=10, metrics={"loss": 1.0, "accuracy": 0.5})),
        B: sealed.bring(B, replace(GOOD, holdout_examples=30, metrics={"loss": 2.0, "accuracy": 0.9})),
    }
    for device, digest in digests.items():
        folding.consider(device, digest)
    assert folding.total(digests).metrics() == pytest.approx({"loss": 1.75, "accuracy": 0.8})


class Denying(MemoryObjectStore):
    """A storage that takes no credential while `denies`."""

    denies = False

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        if self.denies:
            raise Refusal(Code.STORAGE_DENIED, "The credential is being renewed.")
        return super().get(key, start=start, length=length)


def test_an_update_that_the_storage_denied_for_a_moment_is_not_wrong() -> None:
    store = Denying(MemoryBucket())
    sealed = SealedRound(store)
    folding, digest = Folding(sealed.descriptor, sealed.plan, sealed.key, store), sealed.bring(A, random_update(PLAN, 1))
    store.denies = True
    assert refusal_of(folding, A, digest) is Code.STORAGE_DENIED
    store.denies = False
    folding.consider(A, digest)
    assert folding.counts().folded == {A: digest}
    assert folding.counts().refused == {}


def test_what_a_refused_update_was_read_into_is_not_kept(sealed: SealedRound, folding: Folding) -> None:
    plan = small_plan(weights=[{"shape": [500_000]}], update={"encoding": "float32"})
    sealed = SealedRound(sealed.store, plan=plan)
    folding = Folding(sealed.descriptor, plan, sealed.key, sealed.store)
    update = random_update(plan, 1)
    update.delta[-1] = np.nan
    tracemalloc.start()
    try:
        for number in range(20):
            device = DeviceId(f"device-{number}")
            assert refusal_of(folding, device, sealed.bring(device, update)) is Code.UPDATE_NOT_FINITE
            sealed.store.delete([found.key for found in sealed.store.list("")])
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 3 * update.delta.nbytes
    finally:
        tracemalloc.stop()


def test_a_sum_that_is_of_no_more_use_makes_room_for_the_next() -> None:
    plan = small_plan(weights=[{"shape": [2_000_000]}], update={"encoding": "int8"})
    sealed = SealedRound(MemoryObjectStore(), plan=plan)
    digests = {DeviceId(f"device-{i}"): sealed.bring(DeviceId(f"device-{i}"), random_update(plan, i)) for i in range(3)}
    tracemalloc.start()
    try:
        folding = Folding(sealed.descriptor, plan, sealed.key, sealed.store)
        for device, digest in digests.items():
            folding.consider(device, digest)
        folding.total(digests)
        fits = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        folding.total(dict(list(digests.items())[:2]))
        assert tracemalloc.get_traced_memory()[1] < 1.1 * fits
    finally:
        tracemalloc.stop()
