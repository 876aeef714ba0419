"""Updates that are read twice by ranges: the sum is what it is when they are held as a whole."""

import numpy as np
import pytest

from fedlearn.adapters.memory import MemoryBucket, MemoryObjectStore
from fedlearn.aggregator import folding as folding_module
from fedlearn.aggregator import streaming
from fedlearn.aggregator.folding import Counts, Folding
from fedlearn.aggregator.layout import update_key
from fedlearn.core.errors import Code, Outage, Refusal
from fedlearn.core.ids import DeviceId
from support.sealed import SealedRound, updates_of, weighted_mean
from support.world import small_plan

A = DeviceId("device-0")
WINDOWED = small_plan(update={"encoding": "float32", "window_elements": 1024})


class Counting(MemoryObjectStore):
    """A storage whose ranged reads into memory can be made to fail from the n-th on, or to give other bytes."""

    reads, fails_at, changes_at = 0, None, None

    def get_into(self, key: str, out: memoryview, *, start: int = 0) -> int:
        self.reads += 1
        if self.fails_at is not None and self.reads > self.fails_at:
            raise Outage(Code.STORAGE_UNAVAILABLE, "The storage is away.")
        count = super().get_into(key, out, start=start)
        if self.changes_at is not None and self.reads > self.changes_at:
            out[count - 1] ^= 1
        return count


@pytest.fixture
def store() -> Counting:
    return Counting(MemoryBucket())


@pytest.fixture
def sealed(store: Counting, monkeypatch: pytest.MonkeyPatch) -> SealedRound:
    monkeypatch.setattr(folding_module, "LARGE_BYTES", 0)
    monkeypatch.setattr(streaming, "_SPAN_BYTES", 2500)
    return SealedRound(store, plan=WINDOWED)


def folding_of(sealed: SealedRound) -> Folding:
    return Folding(sealed.descriptor, sealed.plan, sealed.key, sealed.store)


@pytest.mark.parametrize("encoding", ["float32", "int8"])
def test_the_sum_is_the_same_to_the_last_bit_as_of_updates_held_as_a_whole(
    sealed: SealedRound, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    sealed = SealedRound(sealed.store, plan=small_plan(update={"encoding": encoding, "window_elements": 1024}))
    updates = updates_of(7)
    digests = {device: sealed.bring(device, update) for device, update in updates.items()}
    streamed = folding_of(sealed).total(digests)
    monkeypatch.setattr(folding_module, "LARGE_BYTES", 1 << 30)
    whole = folding_of(sealed).total(digests)
    assert (streamed.mean() == whole.mean()).all()
    assert (streamed.examples, streamed.metrics()) == (whole.examples, whole.metrics())


def reads_of_one(sealed: SealedRound, store: Counting, digest: str) -> int:
    before = store.reads
    folding_of(sealed).consider(A, digest)
    return store.reads - before


def test_an_outage_between_two_windows_is_gone_on_from_and_counts_once(sealed: SealedRound, store: Counting) -> None:
    updates = updates_of(3)
    digests = {device: sealed.bring(device, update) for device, update in updates.items()}
    reads = reads_of_one(sealed, store, digests[A])
    assert reads > 4, "several spans, twice"
    for failing in range(reads):
        folding = folding_of(sealed)
        store.reads, store.fails_at = 0, failing
        with pytest.raises(Outage):
            folding.consider(A, digests[A])
        assert folding.counts().folded == {}
        store.fails_at = None
        for device, digest in digests.items():
            folding.consider(device, digest)
        total = folding.total(digests)
        assert total.updates == 3  # type: ignore[attr-defined] - a weighted sum
        assert np.abs(total.mean() - weighted_mean(updates)).max() < 1e-12


def test_a_storage_that_gives_other_bytes_the_second_time_spoils_nothing_that_is_published(
    sealed: SealedRound, store: Counting
) -> None:
    updates = updates_of(4)
    digests = {device: sealed.bring(device, update) for device, update in updates.items()}
    reads = reads_of_one(sealed, store, digests[A])
    folding = folding_of(sealed)
    others = {device: digest for device, digest in digests.items() if device != A}
    for device, digest in list(others.items())[:2]:
        folding.consider(device, digest)
    store.reads, store.changes_at = 0, reads - 1  # its last span, when the others have been added
    with pytest.raises(Refusal) as caught:
        folding.consider(A, digests[A])
    assert caught.value.code is Code.UPDATE_TAMPERED
    store.changes_at = None
    folding.save()
    for device, digest in others.items():
        folding.consider(device, digest)
    total = folding.total(others)
    assert np.abs(total.mean() - weighted_mean({device: updates[device] for device in others})).max() < 1e-12
    assert folding.counts().refused == {A: Code.UPDATE_TAMPERED}


def folding_with_half_of(digest: str, sealed: SealedRound, store: Counting) -> Folding:
    """In its sum are all windows of A's update but the last, which is gone."""
    reads, folding = reads_of_one(sealed, store, digest), folding_of(sealed)
    store.reads, store.fails_at = 0, reads - 1
    with pytest.raises(Outage):
        folding.consider(A, digest)
    store.fails_at = None
    store.delete([update_key(sealed.id, A, digest)])
    return folding


def test_an_update_of_which_the_rest_is_gone_costs_no_other_device_its_own(sealed: SealedRound, store: Counting) -> None:
    updates = updates_of(2)
    digests = {device: sealed.bring(device, update) for device, update in updates.items()}
    folding = folding_with_half_of(digests[A], sealed, store)
    (other,) = digests.keys() - {A}
    folding.consider(other, digests[other])
    assert folding.counts() == Counts({other: digests[other]}, {A: Code.NOT_FOUND})
    assert (folding.total({other: digests[other]}).mean() == updates[other].delta).all()


def test_a_sum_with_a_part_of_an_update_in_it_is_not_handed_over(sealed: SealedRound, store: Counting) -> None:
    digests = {device: sealed.bring(device, update) for device, update in updates_of(3).items()}
    reads, folding = reads_of_one(sealed, store, digests[A]), folding_of(sealed)
    store.reads, store.changes_at = 0, reads - 1
    with pytest.raises(Refusal):
        folding.consider(A, digests[A])
    store.changes_at = None
    with pytest.raises(Refusal) as caught:
        folding.save(final=True)
    assert caught.value.code is Code.PARTIAL_SUM_DAMAGED
    assert not folding.finished


def test_a_total_whose_sum_is_spoiled_on_the_way_is_made_again(sealed: SealedRound, store: Counting) -> None:
    updates = updates_of(3)
    digests = {device: sealed.bring(device, update) for device, update in updates.items()}
    folding = folding_with_half_of(digests[A], sealed, store)
    others = {device: digest for device, digest in digests.items() if device != A}
    with pytest.raises(Outage):
        folding.total(others)
    expected = weighted_mean({device: updates[device] for device in others})
    assert np.abs(folding.total(others).mean() - expected).max() < 1e-12
