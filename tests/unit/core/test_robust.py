"""Each robust rule against its formula, written down once more in plain numpy over whole updates."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.core import robust
from fedlearn.core.robust import (
    CoordinateRule,
    GeometricMedian,
    Median,
    MultiKrum,
    NormBound,
    Rule,
    TrimmedMean,
    weighted_sum,
)

PARAMETERS, WINDOW = 5003, 1000
COUNTS = [1, 2, 3, 5, 10, 31, 32, 33, 100]


def some_rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, PARAMETERS)).astype(np.float32)


def by_windows(rule: Rule, rows: np.ndarray, examples: np.ndarray | None = None) -> np.ndarray:
    """What the rule makes of these updates, window by window."""
    out = np.empty(rows.shape[1])
    windows = [slice(start, start + WINDOW) for start in range(0, rows.shape[1], WINDOW)]
    if isinstance(rule, CoordinateRule):
        for part in windows:
            rule.combine(rows[:, part].copy(), out[part])
        return out
    measures = rule.begin(len(rows))
    for part in windows:
        for job in measures.jobs(rows[:, part].copy()):
            job()
    factors = rule.coefficients(measures.result(), np.ones(len(rows)) if examples is None else examples)
    for part in windows:
        weighted_sum(rows[:, part].copy(), factors, out[part])
    return out


@pytest.mark.parametrize("count", COUNTS)
def test_the_median_is_numpys(count: int) -> None:
    rows = some_rows(count)
    np.testing.assert_allclose(by_windows(Median(), rows), np.median(rows.astype(np.float64), axis=0), atol=1e-12)


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.29, 0.49])
@pytest.mark.parametrize("count", COUNTS)
def test_the_trimmed_mean_leaves_out_the_largest_and_the_smallest(count: int, fraction: float) -> None:
    rows = some_rows(count)
    cut = int(np.floor(round(fraction * count, 9)))
    direct = np.sort(rows.astype(np.float64), axis=0)[cut : count - cut].mean(axis=0)
    np.testing.assert_allclose(by_windows(TrimmedMean(fraction), rows), direct, atol=1e-12)


@pytest.mark.parametrize(("count", "fraction"), [(2, 0.4999999999), (10, 0.4999999999), (100, 0.49999999999)])
def test_a_fraction_close_to_half_leaves_the_median(both: Iterator[None], count: int, fraction: float) -> None:
    rows = some_rows(count)
    for _ in both:
        np.testing.assert_array_equal(by_windows(TrimmedMean(fraction), rows), by_windows(Median(), rows))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_ties_and_order_change_no_median(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.integers(-2, 3, (count, 70)).astype(np.float32)
    np.testing.assert_array_equal(by_windows(Median(), rows), np.median(rows, axis=0))
    np.testing.assert_array_equal(by_windows(Median(), rng.permutation(rows)), np.median(rows, axis=0))


def krum_scores(rows: np.ndarray, byzantine: int) -> np.ndarray:
    """Blanchard et al. 2017: for each the sum of the squared distances to its n - f - 2 closest others."""
    wide, scores = rows.astype(np.float64), []
    for i, row in enumerate(wide):
        others = np.sort([np.sum((row - other) ** 2) for j, other in enumerate(wide) if j != i])
        scores.append(others[: len(rows) - byzantine - 2].sum())
    return np.array(scores)


@pytest.mark.parametrize(("count", "byzantine"), [(5, 1), (7, 2), (10, 2), (10, 0)])
def test_krum_takes_the_update_that_is_closest_to_its_closest(count: int, byzantine: int) -> None:
    rows = some_rows(count)
    chosen = int(np.argmin(krum_scores(rows, byzantine)))
    np.testing.assert_array_equal(by_windows(MultiKrum(byzantine, keep=1), rows), rows[chosen].astype(np.float64))


def test_krums_scores_are_the_same_however_few_of_them_are_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = some_rows(31)
    whole = by_windows(MultiKrum(7, keep=3), rows)
    monkeypatch.setattr(robust, "_SCORED_BYTES", 8 * 31 * 4)
    np.testing.assert_array_equal(by_windows(MultiKrum(7, keep=3), rows), whole)
    best = np.argsort(krum_scores(rows, 7))[:3]
    np.testing.assert_allclose(whole, rows[best].astype(np.float64).mean(axis=0), atol=1e-12)


@pytest.mark.parametrize("keep", [None, 2, 5])
def test_multi_krum_averages_the_best(keep: int | None) -> None:
    rows = some_rows(10)
    best = np.argsort(krum_scores(rows, 2))[: keep or 8]
    np.testing.assert_allclose(by_windows(MultiKrum(2, keep), rows), rows[best].astype(np.float64).mean(axis=0), atol=1e-12)


def weiszfeld(rows: np.ndarray, shares: np.ndarray, smoothing: float, iterations: int) -> np.ndarray:
    """Pillutla et al. 2022, algorithm 2, on the vectors themselves."""
    wide = rows.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1)
    point = (shares * np.minimum(1, np.median(norms) / norms)) @ wide
    for _ in range(iterations):
        weights = shares / np.maximum(smoothing, np.linalg.norm(wide - point, axis=1))
        point = weights @ wide / weights.sum()
    return point


@pytest.mark.parametrize("weighted", [False, True])
def test_the_geometric_median_takes_the_steps_of_smoothed_weiszfeld(weighted: bool) -> None:
    rows, examples = some_rows(9), np.arange(1.0, 10.0)
    rows[:2] += 5
    shares = examples / examples.sum() if weighted else np.full(9, 1 / 9)
    for iterations in (1, 3, 50):
        rule = GeometricMedian(1e-6, iterations, weighted=weighted)
        np.testing.assert_allclose(by_windows(rule, rows, examples), weiszfeld(rows, shares, 1e-6, iterations), atol=1e-6)


def test_no_point_nearby_has_a_smaller_sum_of_distances_than_the_geometric_median() -> None:
    rows = some_rows(9)
    found = by_windows(GeometricMedian(), rows)

    def cost(point: np.ndarray) -> float:
        return float(np.linalg.norm(rows - point, axis=1).sum())

    rng = np.random.default_rng(1)
    assert all(cost(found) < cost(found + rng.normal(0, size, PARAMETERS)) for size in (1e-2, 1e-1, 1.0))


@pytest.mark.parametrize("smoothing", [1e-12, 1e-6, 1.0])
def test_the_geometric_median_of_updates_that_are_alike_is_what_they_are(smoothing: float) -> None:
    rows = np.repeat(some_rows(1), 5, axis=0)
    np.testing.assert_allclose(by_windows(GeometricMedian(smoothing), rows), rows[0], rtol=1e-6)
    assert not by_windows(GeometricMedian(smoothing), np.zeros_like(rows)).any()


@pytest.mark.parametrize("max_norm", [None, 10.0, 1e6])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_norm_bound_scales_down_what_is_longer(max_norm: float | None, weighted: bool) -> None:
    rows, examples = some_rows(6) * np.arange(1, 7, dtype=np.float32)[:, np.newaxis], np.arange(1.0, 7.0)
    norms = np.linalg.norm(rows.astype(np.float64), axis=1)
    bound = max_norm or np.median(norms)
    shares = examples / examples.sum() if weighted else np.full(6, 1 / 6)
    direct = sum(a * row / max(1, norm / bound) for a, row, norm in zip(shares, rows.astype(np.float64), norms, strict=True))
    np.testing.assert_allclose(by_windows(NormBound(max_norm, weighted=weighted), rows, examples), direct, atol=1e-9)


def test_a_norm_bound_leaves_updates_of_nothing_alone() -> None:
    np.testing.assert_array_equal(by_windows(NormBound(), np.zeros((3, 50), np.float32)), np.zeros(50))


ROBUST: list[Any] = [
    pytest.param(Median(), id="median"),
    pytest.param(TrimmedMean(0.2), id="trimmed mean"),
    pytest.param(MultiKrum(2, keep=1), id="Krum"),
    pytest.param(MultiKrum(2), id="Multi-Krum"),
    pytest.param(GeometricMedian(), id="geometric median"),
    pytest.param(NormBound(), id="norm bound"),
]


@pytest.mark.parametrize("size", [1e2, 1e6, 3e38], ids=["large", "huge", "the largest of float32"])
@pytest.mark.parametrize("rule", ROBUST)
def test_two_of_ten_that_are_far_away_move_the_result_by_little(rule: Rule, size: float) -> None:
    honest = some_rows(10) * np.float32(0.1) + np.float32(1)
    poisoned = honest.copy()
    poisoned[[3, 7]] = np.float32(-size)
    moved = np.abs(by_windows(rule, poisoned, np.full(10, 100.0)) - 1.0)
    assert moved.max() < 1.0, "the honest ones are at 1, with a deviation of 0.1"
