"""Robust rules over sealed updates in storage: read by windows, of bounded size, and refused where they say nothing."""

import re
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from fedlearn.adapters.memory import MemoryObjectStore
from fedlearn.aggregator import gathering
from fedlearn.aggregator.folding import Folding
from fedlearn.aggregator.gathering import Sealed, SealedBlocks, combine, fetchers
from fedlearn.aggregator.layout import update_key
from fedlearn.core.errors import Code, Refusal
from fedlearn.core.ids import DeviceId
from fedlearn.core.robust import GeometricMedian, Median, MultiKrum, NormBound, Rows, Rule
from fedlearn.core.updates import Update
from fedlearn.protocol import aggregations
from fedlearn.protocol.envelope import layout_of
from fedlearn.protocol.plans import Plan
from support.sealed import SealedRound, updates_of
from support.world import small_plan

WINDOW = 1024  # 8 windows of 7,850 parameters, the last one shorter


class _Noting(MemoryObjectStore):
    """Notes how many bytes each read asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[int | None] = []

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        self.reads.append(length)
        return super().get(key, start=start, length=length)


def plan_of(rule: str, encoding: str = "float32", **options: Any) -> Plan:
    aggregation = {"strategy": "fedavg", "rule": {"name": rule, **options}}
    return small_plan(aggregation=aggregation, update={"encoding": encoding, "window_elements": WINDOW})


def fed(plan: Plan, updates: dict[DeviceId, Update]) -> tuple[SealedRound, Folding, _Noting]:
    """A round that has counted all these updates."""
    store = _Noting()
    sealed = SealedRound(store, plan=plan)
    folding = Folding(sealed.descriptor, plan, sealed.key, store)
    for device, update in updates.items():
        folding.consider(device, sealed.bring(device, update))
    return sealed, folding, store


def rows_of(updates: dict[DeviceId, Update]) -> np.ndarray:
    return np.stack([update.delta for update in updates.values()]).astype(np.float64)


@pytest.mark.parametrize("encoding", ["float32", "float16"])
def test_the_median_of_sealed_updates_is_numpys(encoding: str) -> None:
    updates = updates_of(7)
    _, folding, _ = fed(plan_of("median", encoding), updates)
    total = folding.total(folding.counts().folded)
    atol = 1e-12 if encoding == "float32" else 1e-4
    np.testing.assert_allclose(total.mean(), np.median(rows_of(updates), axis=0), atol=atol)
    assert total.examples == sum(update.examples for update in updates.values())
    assert total.metrics()["accuracy"] == pytest.approx(np.mean([u.metrics["accuracy"] for u in updates.values()]))


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        pytest.param("median", {}, id="median"),
        pytest.param("trimmed_mean", {}, id="trimmed mean"),
        pytest.param("krum", {}, id="Krum"),
        pytest.param("multi_krum", {"byzantine": 2}, id="Multi-Krum"),
        pytest.param("geometric_median", {"weighted": True}, id="geometric median"),
        pytest.param("norm_bound", {"max_norm": 0.5}, id="norm bound"),
    ],
)
def test_an_aggregator_that_was_restarted_combines_the_same_bits(rule: str, options: dict[str, Any]) -> None:
    sealed, folding, store = fed(plan_of(rule, **options), updates_of(8))
    record = folding.counts().folded
    again = Folding(sealed.descriptor, sealed.plan, sealed.key, store)
    assert again.total(record).mean().tobytes() == folding.total(record).mean().tobytes()


def test_while_updates_come_no_delta_is_kept_and_at_the_close_only_windows_are_read() -> None:
    plan = plan_of("median")
    _, folding, store = fed(plan, updates_of(5))
    assert not hasattr(folding._sum, "_sum")
    store.reads.clear()
    folding.total(folding.counts().folded)
    layout = layout_of(plan)
    assert len(store.reads) == 5 * (1 + layout.windows)
    assert max(length or 0 for length in store.reads) == max(layout.header_bytes, layout.sealed_bytes(1)[-1])


@pytest.mark.parametrize("rule", [Median(), NormBound()], ids=["by coordinates", "by distance"])
@pytest.mark.parametrize("block_bytes", [1, 4 * 6 * 100, 1 << 20], ids=["one coordinate", "parts of windows", "windows"])
def test_blocks_are_never_larger_than_asked_and_give_the_same(rule: Any, block_bytes: int) -> None:
    updates = updates_of(6)
    plan = small_plan(
        aggregation={"strategy": "fedavg", "rule": {"name": "median"}},
        update={"encoding": "float32", "window_elements": WINDOW},
        weights=[{"shape": [1500]}], architecture=small_plan().architecture,
    )  # fmt: skip
    updates = {device: Update(update.delta[:1500].copy(), update.examples) for device, update in updates.items()}
    sealed, folding, store = fed(plan, updates)
    with fetchers() as threads:
        where = [
            Sealed(update_key(sealed.id, device, digest), digest, folding._context(device))
            for device, digest in folding.counts().folded.items()
        ]
        blocks = SealedBlocks(where, plan, sealed.key, store, threads, block_bytes=block_bytes)
        sizes = [rows.nbytes for _, rows in blocks.of(range(6))]
        found = combine(rule, blocks, np.ones(6))
    assert max(sizes) <= max(block_bytes, 4 * 6)
    rows = rows_of(updates)
    norms = np.linalg.norm(rows, axis=1)
    clipped = rows * np.minimum(1, np.median(norms) / norms)[:, np.newaxis]
    direct = np.median(rows, axis=0) if isinstance(rule, Median) else clipped.mean(axis=0)
    np.testing.assert_allclose(found, direct, atol=1e-12)


@pytest.mark.parametrize(
    ("rule", "options", "reports"),
    [
        pytest.param("krum", {"byzantine": 2}, 6, id="Krum with n < 2f + 3"),
        pytest.param("multi_krum", {"byzantine": 1, "keep": 6}, 6, id="Multi-Krum that keeps attackers"),
        pytest.param("trimmed_mean", {"trim_fraction": 0.2}, 4, id="a trimmed mean that trims nobody"),
    ],
)
def test_a_rule_with_too_few_updates_gives_no_result(rule: str, options: dict[str, Any], reports: int) -> None:
    _, folding, _ = fed(plan_of(rule, **options), updates_of(reports))
    with pytest.raises(Refusal, match=re.escape(f"{reports} updates are in")) as refusal:
        folding.total(folding.counts().folded)
    assert refusal.value.code is Code.TOO_FEW_FOR_RULE


def test_more_updates_than_a_rule_by_distance_takes_are_refused_before_any_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    _, folding, store = fed(plan_of("multi_krum"), updates_of(6))
    monkeypatch.setattr(aggregations, "MOST_BY_DISTANCE", 5)
    store.reads.clear()
    with pytest.raises(Refusal, match="6 updates are in; the plan's aggregation takes 5 at most") as refusal:
        folding.total(folding.counts().folded)
    assert refusal.value.code is Code.TOO_MANY_FOR_RULE
    assert store.reads == []


class _InMemory:
    """Blocks of updates that lie in memory; it notes how many of its blocks there are at a time."""

    def __init__(self, rows: np.ndarray, width: int) -> None:
        self.updates, self.parameters = rows.shape
        self._rows, self._width, self.most = rows, width, 0
        self._given: list[weakref.ref[Rows]] = []

    def of(self, chosen: Sequence[int]) -> Iterator[tuple[slice, Rows]]:
        for start in range(0, self.parameters, self._width):
            part = slice(start, start + self._width)
            block = self._rows[list(chosen), part]
            self._given.append(weakref.ref(block))
            self.most = max(self.most, sum(ref() is not None for ref in self._given))
            yield part, block


@pytest.mark.parametrize("rule", [MultiKrum(1), GeometricMedian(), NormBound()], ids=["Multi-Krum", "RFA", "norm bound"])
def test_no_block_of_the_first_pass_is_kept_through_the_second(rule: Rule) -> None:
    blocks = _InMemory(np.random.default_rng(0).normal(size=(7, 100)).astype(np.float32), 100)
    combine(rule, blocks, np.ones(7))
    assert blocks.most == 1


@pytest.mark.parametrize("rule", [Median(), MultiKrum(2), GeometricMedian(), NormBound()], ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("count", [20, 600], ids=["one tile", "four tiles"])
def test_any_number_of_threads_gives_the_same_bits(rule: Rule, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = _InMemory(np.random.default_rng(0).normal(size=(count, 5000)).astype(np.float32), 2000)
    found = []
    for threads in (1, 5):
        with ThreadPoolExecutor(threads) as pool:
            monkeypatch.setattr(gathering, "_lanes", pool)
            found.append(combine(rule, blocks, np.ones(count)).tobytes())
    assert found[0] == found[1]


def test_a_window_that_was_changed_in_storage_since_it_was_checked_is_refused() -> None:
    _, folding, store = fed(plan_of("median"), updates_of(3))
    key = store.list("t/")[1].key
    body = bytearray(store.get(key))
    body[-20] ^= 1
    store.put(key, bytes(body))
    with pytest.raises(Refusal) as refusal:
        folding.total(folding.counts().folded)
    assert refusal.value.code is Code.UPDATE_TAMPERED


def test_an_update_in_whose_place_another_sound_one_lies_since_it_was_counted_is_refused() -> None:
    updates = updates_of(3)
    sealed, folding, store = fed(plan_of("median"), updates)
    device, digest = next(iter(folding.counts().folded.items()))
    store.put(update_key(sealed.id, device, digest), sealed.seal(device, updates[device]))
    with pytest.raises(Refusal) as refusal:
        folding.total(folding.counts().folded)
    assert refusal.value.code is Code.UPDATE_DIGEST
