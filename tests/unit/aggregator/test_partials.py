"""Partial sums: each update is counted once, wherever the aggregator dies."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from fedlearn.adapters.memory import MemoryBucket, MemoryObjectStore
from fedlearn.aggregator import partials
from fedlearn.aggregator.folding import Folding
from fedlearn.aggregator.layout import partials_prefix, read_update, updates_prefix
from fedlearn.core.errors import Code, Outage, Refusal
from fedlearn.core.ids import DeviceId
from support.sealed import PLAN, ROUND, SealedRound, updates_of, weighted_mean


class Dies(BaseException):
    """What SIGKILL does to a process, as far as its storage can tell."""


class MortalStore(MemoryObjectStore):
    """A storage whose user dies before or after a certain call that changes something."""

    def __init__(self, bucket: MemoryBucket) -> None:
        super().__init__(bucket)
        self.calls: list[str] = []
        self.dies_at: int | None = None
        self.after = False

    def _step(self, name: str, call: Callable[[], object]) -> object:
        self.calls.append(name)
        doomed = self.dies_at == len(self.calls) - 1
        if doomed and not self.after:
            raise Dies
        answer = call()
        if doomed:
            raise Dies
        return answer

    def put(self, key: str, body: bytes | memoryview, *, sha256: str | None = None) -> None:
        self._step("sum", lambda: super(MortalStore, self).put(key, body, sha256=sha256))

    def put_once(self, key: str, body: bytes) -> bool:
        return bool(self._step("manifest", lambda: super(MortalStore, self).put_once(key, body)))

    def delete(self, keys: list[str]) -> None:  # type: ignore[override]
        self._step("delete", lambda: super(MortalStore, self).delete(keys))


@pytest.fixture(autouse=True)
def _several_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partials, "_PART_ELEMENTS", PLAN.parameters // 3 + 1)
    monkeypatch.setattr(partials, "_WINDOW_ELEMENTS", 1000)


@pytest.fixture
def sealed() -> SealedRound:
    return SealedRound(MemoryObjectStore())


def folding_of(sealed: SealedRound, store: MemoryObjectStore | None = None) -> Folding:
    return Folding(sealed.descriptor, sealed.plan, sealed.key, store or sealed.store)


def left(sealed: SealedRound) -> set[DeviceId]:
    return {read_update(ROUND, found.key)[0] for found in sealed.store.list(updates_prefix(ROUND))}


def fold_all(folding: Folding, sealed: SealedRound) -> None:
    """What an aggregator does with the updates that lie there."""
    for found in sealed.store.list(updates_prefix(ROUND)):
        folding.consider(*read_update(ROUND, found.key))


STEPS = ["sum", "sum", "sum", "manifest", "delete", "delete"]


def test_a_partial_sum_is_written_before_its_manifest_and_that_before_anything_is_deleted(sealed: SealedRound) -> None:
    store = MortalStore(sealed.store.bucket)
    for device, update in updates_of(3).items():
        sealed.bring(device, update)
    folding = folding_of(sealed, store)
    fold_all(folding, sealed)
    folding.save()
    assert store.calls == STEPS


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("saves_before", [0, 1], ids=["the first sum", "the second sum"])
@pytest.mark.parametrize("step", range(len(STEPS)), ids=[f"{name} {number}" for number, name in enumerate(STEPS)])
def test_wherever_the_aggregator_dies_every_update_is_counted_once(
    sealed: SealedRound, step: int, saves_before: int, *, after: bool
) -> None:
    updates = updates_of(12)
    names, store = list(updates), MortalStore(sealed.store.bucket)
    digests = {}
    first = folding_of(sealed, store)
    for number in range(saves_before + 1):
        for device in names[4 * number : 4 * number + 4]:
            digests[device] = sealed.bring(device, updates[device])
            first.consider(device, digests[device])
        store.calls.clear()
        if number == saves_before:
            store.dies_at, store.after = step, after
            with pytest.raises(Dies):
                first.save()
        else:
            first.save()
    counted = dict(first.counts().folded)

    second = folding_of(sealed)
    second.resume()
    assert second.counts().folded.items() <= counted.items()
    fold_all(second, sealed)
    assert second.counts().folded == counted
    for device in names[len(counted) :]:
        digests[device] = sealed.bring(device, updates[device])
        second.consider(device, digests[device])
    second.save()
    assert left(sealed) == set()

    third = folding_of(sealed)
    third.resume()
    total = third.total(digests)
    assert (total.examples, total.updates) == (sum(update.examples for update in updates.values()), 12)
    np.testing.assert_allclose(total.mean(), weighted_mean(updates), rtol=1e-12, atol=1e-15)


def test_the_sum_is_the_same_to_the_last_bit_with_and_without_partial_sums(sealed: SealedRound) -> None:
    updates = updates_of(9)
    digests = {device: sealed.bring(device, update) for device, update in updates.items()}
    whole, cut = folding_of(sealed), folding_of(sealed)
    for number, (device, digest) in enumerate(digests.items()):
        whole.consider(device, digest)
        if number % 4 == 3:
            cut.save()
            cut = folding_of(sealed)
            cut.resume()
        cut.consider(device, digest if number < 8 else sealed.bring(device, updates[device]))
    expected = whole.total(digests)
    assert (cut.total(dict(cut.counts().folded)).mean() == expected.mean()).all()
    assert cut.total(dict(cut.counts().folded)).metrics() == expected.metrics()


def test_an_update_that_comes_again_after_it_was_deleted_is_not_counted_again(sealed: SealedRound) -> None:
    updates = updates_of(3)
    digests = {}
    folding = folding_of(sealed)
    for device, update in updates.items():
        digests[device] = sealed.bring(device, update)
        folding.consider(device, digests[device])
    bodies = dict(sealed.store.bucket.objects)
    folding.save()
    sealed.store.bucket.objects.update({key: body for key, body in bodies.items() if key.startswith(updates_prefix(ROUND))})
    second = folding_of(sealed)
    second.resume()
    fold_all(second, sealed)
    assert second.total(digests).updates == 3
    another = sealed.bring(next(iter(updates)), replace(updates[next(iter(updates))], examples=5))
    with pytest.raises(Refusal) as caught:
        second.consider(next(iter(updates)), another)
    assert caught.value.code is Code.UPDATE_REPEATED


def test_storage_holds_one_sum_however_many_have_been_written(sealed: SealedRound) -> None:
    folding = folding_of(sealed)
    for device, update in updates_of(6).items():
        folding.consider(device, sealed.bring(device, update))
        folding.save()
    keys = [found.key for found in sealed.store.list(partials_prefix(ROUND, 0))]
    assert len([key for key in keys if key.endswith(".json")]) == 6
    assert len([key for key in keys if not key.endswith(".json")]) == 3, "the parts of the last one"


def test_a_save_is_repeated_when_the_answer_to_its_manifest_was_lost(sealed: SealedRound) -> None:
    class Forgetful(MemoryObjectStore):
        lost = False

        def put_once(self, key: str, body: bytes) -> bool:
            super().put_once(key, body)
            if not self.lost:
                self.lost = True
                raise Outage(Code.STORAGE_UNAVAILABLE, "The connection broke.")
            return False

    updates = updates_of(4)
    names = list(updates)
    folding = folding_of(sealed, Forgetful(sealed.store.bucket))
    digests = {device: sealed.bring(device, updates[device]) for device in names}
    for device in names[:3]:
        folding.consider(device, digests[device])
    with pytest.raises(Outage):
        folding.save()
    folding.consider(names[3], digests[names[3]])
    folding.save()
    assert left(sealed) == {names[3]}
    assert folding.unsaved == 1


def test_of_two_processes_that_think_a_round_theirs_one_is_told_that_it_is_not(sealed: SealedRound) -> None:
    updates = updates_of(4)
    digests = {device: sealed.bring(device, update) for device, update in updates.items()}
    one, other = folding_of(sealed), folding_of(sealed)
    for device in list(digests)[:3]:
        one.consider(device, digests[device])
    for device in list(digests)[1:]:
        other.consider(device, digests[device])
    one.save()
    with pytest.raises(Refusal) as caught:
        other.save()
    assert caught.value.code is Code.ROUND_CONFLICT
    assert left(sealed) == {list(digests)[3]}, "what the loser has counted is not deleted"


@pytest.mark.parametrize(
    "harm",
    [
        lambda objects, manifests, parts: objects.pop(manifests[0]),
        lambda objects, manifests, parts: objects.update({manifests[1]: objects[manifests[1]].replace(b"ce-3", b"ce-9")}),
        lambda objects, manifests, parts: objects.update({manifests[1]: b"{}"}),
        lambda objects, manifests, parts: objects.update({parts[0]: objects[parts[1]]}),
        lambda objects, manifests, parts: objects.update({parts[0]: objects[parts[0]][:-1] + b"\\0\\0"}),
    ],
    ids=["a manifest is gone", "a manifest names another device", "a manifest is none", "parts are mixed", "a part is changed"],
)  # fmt: skip
def test_partial_sums_that_do_not_fit_together_are_refused(sealed: SealedRound, harm: Callable[..., object]) -> None:
    folding = folding_of(sealed)
    for device, update in updates_of(4).items():
        folding.consider(device, sealed.bring(device, update))
        if device in ("device-1", "device-3"):
            folding.save()
    keys = [found.key for found in sealed.store.list(partials_prefix(ROUND, 0))]
    manifests = [key for key in keys if key.endswith(".json")]
    harm(sealed.store.bucket.objects, manifests, [key for key in keys if key not in manifests])
    with pytest.raises(Refusal) as caught:
        folding_of(sealed).resume()
    assert caught.value.code in (Code.PARTIAL_SUM_DAMAGED, Code.NOT_FOUND)
