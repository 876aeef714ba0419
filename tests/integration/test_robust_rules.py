"""Robust rules over the real storage: read by ranges, and what a direct formula makes of the same updates."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from fedlearn.adapters.objects import S3ObjectStore
from fedlearn.adapters.s3 import S3Settings
from fedlearn.aggregator.folding import Folding
from fedlearn.core.ids import DeviceId, RoundId, TaskId
from fedlearn.core.updates import Update
from fedlearn.local.seaweed import UPDATES
from fedlearn.local.storage import LocalStorage
from fedlearn.protocol.envelope import layout_of
from fedlearn.protocol.plans import Plan
from support.sealed import SealedRound
from support.trial import Trial
from support.world import World, random_update, small_plan

DEVICES, LIARS, WINDOW = 9, 2, 1024
_numbers = itertools.count(1)


def median(rows: np.ndarray) -> np.ndarray:
    return np.median(rows, axis=0)


def trimmed_mean(rows: np.ndarray) -> np.ndarray:
    cut = int(0.25 * len(rows))
    return np.sort(rows, axis=0)[cut : len(rows) - cut].mean(axis=0)


def multi_krum(rows: np.ndarray) -> np.ndarray:
    """Blanchard et al. 2017, section 3, by its words: the n - f updates whose n - f - 2 nearest others are nearest."""
    scores = []
    for row in rows:
        distances = sorted(float(((row - other) ** 2).sum()) for other in rows if other is not row)
        scores.append(sum(distances[: len(rows) - LIARS - 2]))
    return rows[np.argsort(scores)[: len(rows) - LIARS]].mean(axis=0)


RULES = [
    pytest.param({"name": "median"}, median, id="median"),
    pytest.param({"name": "trimmed_mean", "trim_fraction": 0.25}, trimmed_mean, id="trimmed mean"),
    pytest.param({"name": "multi_krum", "byzantine": LIARS}, multi_krum, id="Multi-Krum"),
]
Formula = Callable[[np.ndarray], np.ndarray]


def changes_of(rule: dict[str, Any]) -> dict[str, Any]:
    """What a plan of this rule has that others don't: several windows, the last one shorter."""
    return {
        "aggregation": {"strategy": "fedavg", "rule": rule},
        "update": {"encoding": "float32", "window_elements": WINDOW},
    }


def updates_with_liars(plan: Plan) -> dict[DeviceId, Update]:
    """The honest ones go in one direction, more or less, and the liars far in the other."""
    direction = random_update(plan, seed=99).delta
    updates = {}
    for number in range(DEVICES):
        own = random_update(plan, number, examples=10 + number)
        delta = -50 * direction if number < LIARS else direction + own.delta / 2
        updates[DeviceId(f"device-{number}")] = Update(
            delta.astype(np.float32), own.examples, own.holdout_examples, own.metrics
        )
    return updates


def rows_of(updates: dict[DeviceId, Update]) -> np.ndarray:
    return np.stack([update.delta for update in updates.values()]).astype(np.float64)


class RangedStore(S3ObjectStore):
    """The aggregator's own, which notes of each GET from where and how much."""

    def __init__(self, bucket: str, settings: S3Settings) -> None:
        super().__init__(bucket, settings)
        self.ranges: list[tuple[int, int | None]] = []

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        body = super().get(key, start=start, length=length)
        assert length is None or len(body) == length, "no more and no less than was asked for"
        self.ranges.append((start, length))
        return body

    def get_into(self, key: str, out: memoryview, *, start: int = 0) -> int:
        count = super().get_into(key, out, start=start)
        assert count == len(out), "no more and no less than was asked for"
        self.ranges.append((start, count))
        return count


@pytest.fixture
def store(storage: LocalStorage) -> Iterator[RangedStore]:
    keys = storage.credentials("aggregator")
    settings = S3Settings(endpoint_url=storage.endpoint_url, access_key=keys.access, secret_key=keys.secret)
    store = RangedStore(UPDATES, settings)
    yield store
    store.delete([stored.key for stored in store.list("robust/")])


@pytest.mark.parametrize(("rule", "formula"), RULES)
def test_a_rule_by_ranged_reads_is_the_direct_formula(store: RangedStore, rule: dict[str, Any], formula: Formula) -> None:
    plan = small_plan(**changes_of(rule))
    round_id = RoundId(TaskId("robust"), next(_numbers))
    sealed = SealedRound(store, plan=plan, round_id=round_id)  # type: ignore[arg-type] - of the real storage
    folding = Folding(sealed.descriptor, plan, sealed.key, store)
    updates = updates_with_liars(plan)
    for device, update in updates.items():
        folding.consider(device, sealed.bring(device, update))
    store.ranges.clear()
    found = folding.total(folding.counts().folded).mean()
    np.testing.assert_allclose(found, formula(rows_of(updates)), rtol=1e-9, atol=1e-12)
    assert np.abs(found - rows_of(updates)[LIARS:].mean(axis=0)).max() < 0.05, "the liars have no say"
    layout = layout_of(plan)
    assert layout.windows == 8
    assert len(store.ranges) >= DEVICES * (1 + layout.windows)
    assert max(length or np.inf for _, length in store.ranges) <= max(layout.header_bytes, *layout.sealed_bytes(1))
    assert len({start for start, _ in store.ranges}) == 1 + layout.windows


@pytest.mark.parametrize(("rule", "formula"), RULES)
def test_the_published_model_of_a_round_is_the_direct_formula_s(
    world: World, make_trial: Callable[..., Trial], rule: dict[str, Any], formula: Formula
) -> None:
    trial = make_trial(world, **changes_of(rule))
    trial.submit(goal=DEVICES, rounds=1)
    updates = updates_with_liars(trial.plan)
    devices = trial.devices(*updates)
    for device, assignment, update in zip(devices, trial.assign(*devices), updates.values(), strict=True):
        trial.bring(device, assignment, update)
    assert trial.reach(1, "committed", "abandoned").phase == "committed"
    expected = trial.model(0) + formula(rows_of(updates))
    np.testing.assert_allclose(trial.model(1), expected, rtol=1e-6, atol=1e-6)
