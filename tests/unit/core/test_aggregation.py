from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.core.aggregation import WeightedSum
from fedlearn.core.errors import Code, Refusal
from fedlearn.core.updates import Update

PARAMETERS = 70_001  # more than one window, and not a multiple of it


def some_updates(count: int, seed: int = 0, parameters: int = PARAMETERS) -> list[Update]:
    rng = np.random.default_rng(seed)
    return [
        Update(
            rng.normal(0, 10.0 ** rng.integers(-4, 2), parameters).astype(np.float32),
            examples=int(rng.integers(1, 100_000)),
            holdout_examples=int(rng.integers(0, 1000)),
            metrics={"loss": float(rng.random()), "accuracy": float(rng.random())},
        )
        for _ in range(count)
    ]


def folded(updates: list[Update]) -> WeightedSum:
    total = WeightedSum(updates[0].delta.size)
    for update in updates:
        total.fold(update)
    return total


def direct_mean(updates: list[Update]) -> np.ndarray:
    deltas = np.stack([update.delta for update in updates]).astype(np.float64)
    return np.average(deltas, axis=0, weights=[update.examples for update in updates])


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(12)))
def test_the_mean_is_numpys_weighted_average_in_any_order_of_arrival(order: list[int]) -> None:
    updates = some_updates(12)
    mean = folded([updates[i] for i in order]).mean()
    np.testing.assert_allclose(mean, direct_mean(updates), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("parameters", [1, 2, 3, 16_383, 16_385, 300_001, 600_001])
@pytest.mark.parametrize("groups", [[1] * 12, [12], [5, 7], [8, 1, 3], [2, 10]], ids=str)
def test_updates_are_added_to_the_same_bits_however_many_are_added_at_once(parameters: int, groups: list[int]) -> None:
    updates = some_updates(12, seed=2, parameters=parameters)
    direct = np.zeros(parameters)
    for update in updates:
        direct += update.delta.astype(np.float64) * update.examples
    total, left = WeightedSum(parameters), updates
    with ThreadPoolExecutor(2) as threads:
        for size in groups:
            total.fold_all(left[:size], threads, cores=2)
            left = left[size:]
    assert (total.mean() * total.examples == direct / total.examples * total.examples).all()
    assert total.updates == 12


@pytest.mark.parametrize("cut", [1, 5, 11])
def test_partial_sums_merge_to_the_whole(cut: int) -> None:
    updates = some_updates(12, seed=1)
    merged = folded(updates[:cut]) + folded(updates[cut:])
    whole = folded(updates)
    np.testing.assert_allclose(merged.mean(), whole.mean(), rtol=1e-9, atol=1e-12)
    assert (merged.examples, merged.updates, merged.holdout_examples) == (whole.examples, 12, whole.holdout_examples)
    assert merged.metrics() == pytest.approx(whole.metrics())


def test_metrics_are_weighted_by_what_was_held_out_and_not_by_what_was_trained_on() -> None:
    delta = np.zeros(4, np.float32)
    total = folded(
        [
            Update(delta, examples=1, holdout_examples=30, metrics={"accuracy": 1.0}),
            Update(delta, examples=999, holdout_examples=10, metrics={"accuracy": 0.0}),
        ]
    )
    assert total.metrics() == {"accuracy": 0.75}


def test_devices_that_held_nothing_out_leave_the_metrics_alone() -> None:
    delta = np.zeros(4, np.float32)
    assert folded([Update(delta, examples=5)]).metrics() == {}


def test_parts_of_the_mean_are_the_means() -> None:
    total = folded(some_updates(3))
    mean = total.mean()
    for part in (slice(0, 1), slice(1, 70_000), slice(70_000, PARAMETERS)):
        assert total.mean_of(part).tobytes() == mean[part].tobytes()
    assert total.mean().tobytes() == mean.tobytes(), "the sum is as it was"


def test_a_mean_that_is_taken_is_the_mean_and_what_comes_late_is_only_counted() -> None:
    updates = some_updates(3)
    total, mean, late = folded(updates), folded(updates).mean(), some_updates(1, seed=9)[0]
    taken = total.take_mean()
    assert taken.tobytes() == mean.tobytes()
    total.fold(late)
    total.fold_part(0, late.delta[:5], late.examples)
    total.add_part(0, np.ones(5))
    assert taken.tobytes() == mean.tobytes()
    assert total.taken
    assert (total.updates, total.examples) == (4, sum(update.examples for update in (*updates, late)))


def test_a_sum_of_nothing_has_no_mean() -> None:
    with pytest.raises(Refusal) as refusal:
        WeightedSum(4).mean()
    assert refusal.value.code is Code.TOO_FEW_REPORTS


def test_sums_of_different_models_do_not_merge() -> None:
    with pytest.raises(Refusal) as refusal:
        WeightedSum(4) + WeightedSum(5)
    assert refusal.value.code is Code.UPDATE_SHAPE
