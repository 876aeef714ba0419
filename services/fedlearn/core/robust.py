"""Robust rules: one delta of many, of which some may be anything. Each works on one window of coordinates after the other.

`rows` is always float32 of shape (updates, coordinates of the window), finite, and scratch: a rule may overwrite it. What is
added up is added up in float64. Coordinate rules need each window once. Rules by distance first measure all windows, make of
that one coefficient for each update, and the delta is the sum of the updates with these coefficients.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from fedlearn.core import kernels
from fedlearn.core.distances import Measures, Products, Squares, blocks, squared_distances
from fedlearn.core.updates import Vector

Rows = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]

_NETWORK_MOST = 48  # rows; beyond it numpy's own sort of a transposed block is faster than a network of numpy's operations
_SCORED_BYTES = 8 << 20  # of Krum's distances, which are not all there at once


@runtime_checkable
class CoordinateRule(Protocol):
    def combine(self, rows: Rows, out: Floats) -> None:
        """Write the window's delta to `out`, shape (coordinates,)."""
        ...


class DistanceRule(Protocol):
    def begin(self, updates: int) -> Measures:
        """What is to be measured of so many updates."""
        ...

    def coefficients(self, measured: Floats, examples: Floats) -> Floats:
        """The factor of each update, shape (updates,); `examples` is what each claims to be made from."""
        ...


Rule = CoordinateRule | DistanceRule


class Median:
    """The median of each coordinate, for an even number the mean of the middle two; Yin et al. 2018, definition 1."""

    def combine(self, rows: Rows, out: Floats) -> None:
        count = len(rows)
        _mean_of_ordered(rows, range((count - 1) // 2, count // 2 + 1), out)


class TrimmedMean:
    """For each coordinate the mean without the floor(beta * n) largest and as many smallest; Yin et al. 2018, definition 2.

    Args:
        fraction: beta, above 0 and below 0.5.
    """

    def __init__(self, fraction: float) -> None:
        self.fraction = fraction

    def combine(self, rows: Rows, out: Floats) -> None:
        cut = int(self.fraction * len(rows) + 1e-9)  # 0.29 * 100 is 28.999999999999996
        cut = min(cut, (len(rows) - 1) // 2)  # and 0.4999999999 * 10 is not 5: one or two are left
        _mean_of_ordered(rows, range(cut, len(rows) - cut), out)


class MultiKrum:
    """The mean of the `keep` updates with the least scores: a score is the sum of the n - f - 2 least squared distances.

    Blanchard et al. 2017, "Machine Learning with Adversaries", section 3; Krum is `keep` = 1. It needs n >= 2f + 3.

    Args:
        byzantine: f, how many updates may be anything.
        keep: how many are averaged; None for n - f.
    """

    def __init__(self, byzantine: int, keep: int | None = None) -> None:
        self.byzantine, self.keep = byzantine, keep

    def begin(self, updates: int) -> Measures:
        return Products(updates)

    def coefficients(self, measured: Floats, examples: Floats) -> Floats:  # noqa: ARG002 - a claim must not buy a score
        count = len(measured)
        scores = np.empty(count)
        step = max(1, _SCORED_BYTES // (8 * count))
        for start in range(0, count, step):
            distances = squared_distances(measured, slice(start, start + step))
            np.fill_diagonal(distances[:, start:], np.inf)
            distances.sort(axis=1)
            scores[start : start + step] = distances[:, : count - self.byzantine - 2].sum(axis=1)
        kept = np.argsort(scores, kind="stable")[: self.keep or count - self.byzantine]
        factors = np.zeros(count)
        factors[kept] = 1.0 / len(kept)
        return factors


class GeometricMedian:
    """The point with the least sum of distances to the updates, by smoothed Weiszfeld steps.

    Pillutla et al. 2022, "Robust Aggregation for Federated Learning" (RFA), algorithm 2: v <- sum_k b_k w_k / sum_k b_k with
    b_k = a_k / max(nu, |v - w_k|). Every v is a sum of the updates, so the steps are taken on its coefficients alone: two
    passes over the updates, however many steps. They begin at the mean of the updates cut to their median length: from the
    plain mean it takes hundreds of steps to come back from where one update of 1e38 has taken it.

    Args:
        smoothing: nu, at least 1e-12: an update may lie where the median does, and its coefficient is divided by nu.
        iterations: the most steps; it ends before when no coefficient moves by more than 1e-9 of itself.
        weighted: a_k is the update's share of the examples (as in the paper), else 1 / n.
    """

    def __init__(self, smoothing: float = 1e-6, iterations: int = 100, *, weighted: bool = False) -> None:
        self.smoothing, self.iterations, self.weighted = smoothing, iterations, weighted

    def begin(self, updates: int) -> Measures:
        return Products(updates)

    def coefficients(self, measured: Floats, examples: Floats) -> Floats:
        shares = _shares(examples, weighted=self.weighted)
        factors = NormBound(weighted=self.weighted).coefficients(np.diagonal(measured), examples)
        for _ in range(self.iterations):
            products = measured @ factors
            squares = factors @ products - 2 * products + np.diagonal(measured)
            moved = shares / np.maximum(self.smoothing, np.sqrt(np.maximum(squares, 0.0)))
            moved /= moved.sum()
            still = bool((np.abs(moved - factors) <= 1e-9 * moved).all())
            factors = moved
            if still:
                break
        return factors


class NormBound:
    """The mean of the updates, each scaled down to a length of at most M: sum_k a_k w_k / max(1, |w_k| / M).

    Sun et al. 2019, "Can You Really Backdoor Federated Learning?", section 5.

    Args:
        max_norm: M; None for the median of the round's lengths.
        weighted: a_k is the update's share of the examples, else 1 / n.
    """

    def __init__(self, max_norm: float | None = None, *, weighted: bool = False) -> None:
        self.max_norm, self.weighted = max_norm, weighted

    def begin(self, updates: int) -> Measures:
        return Squares(updates)

    def coefficients(self, measured: Floats, examples: Floats) -> Floats:
        norms = np.sqrt(measured)
        bound = float(np.median(norms)) if self.max_norm is None else self.max_norm
        factors = np.ones_like(norms)
        np.divide(bound, norms, out=factors, where=norms > bound)
        scaled: Floats = factors * _shares(examples, weighted=self.weighted)
        return scaled


def weighted_sum(rows: Rows, factors: Floats, out: Floats) -> None:
    """Write the sum of the rows with these factors to `out`."""
    out[:] = 0.0
    kernels.add_weighted(out, rows, factors)


def _shares(examples: Floats, *, weighted: bool) -> Floats:
    return examples / examples.sum() if weighted else np.full(len(examples), 1.0 / len(examples))


# --- order statistics


def _mean_of_ordered(rows: Rows, kept: range, out: Floats) -> None:
    """Write the mean of each column's values number `kept`, counted from the smallest, to `out`."""
    if kernels.orders(rows, out):
        kernels.mean_of_ordered(rows, _comparators(len(rows), kept), kept, out)
        return
    for block in blocks(rows):
        total = out[block]
        total[:] = 0.0
        for values in _ordered(rows[:, block], kept):
            total += values
        total /= len(kept)


def _ordered(rows: Rows, kept: range) -> Sequence[npt.NDArray[Any]]:
    """The columns' values number `kept`, one vector for each number. Overwrites `rows`."""
    if len(rows) > _NETWORK_MOST:
        columns = np.ascontiguousarray(rows.T)
        columns.sort(axis=1)
        return [columns[:, number] for number in kept]
    wires: list[Vector] = list(rows)
    spare: Vector = np.empty(rows.shape[1], np.float32)
    for low, high in _network(len(rows), kept):
        np.minimum(wires[low], wires[high], out=spare)
        np.maximum(wires[low], wires[high], out=wires[high])
        wires[low], spare = spare, wires[low]
    return [wires[number] for number in kept]


@lru_cache(maxsize=256)
def _comparators(count: int, kept: range) -> npt.NDArray[np.uint16]:
    return np.array(_network(count, kept), np.uint16).reshape(-1, 2)


@lru_cache(maxsize=256)
def _network(count: int, kept: range) -> tuple[tuple[int, int], ...]:
    """Batcher's odd-even merge sort (1968) of `count` wires, without the comparators that no kept wire depends on.

    Each comparator is two vector operations on whole rows, so a few rows sort at the speed of the cache.
    """
    comparators, needed = [], set(kept)
    for low, high in reversed(list(_merge_exchange(count))):
        if low in needed or high in needed:
            comparators.append((low, high))
            needed |= {low, high}
    return tuple(reversed(comparators))


def _merge_exchange(count: int) -> Iterator[tuple[int, int]]:
    """Knuth, The Art of Computer Programming 3, algorithm 5.2.2 M: the comparators for any number of wires, in order."""
    power = 1 << max(0, (count - 1).bit_length() - 1)
    first = power
    while first:
        step, rest, width = power, 0, first
        while True:
            yield from ((low, low + width) for low in range(count - width) if low & first == rest)
            if step == first:
                break
            width, step, rest = step - first, step >> 1, first
        first >>= 1
