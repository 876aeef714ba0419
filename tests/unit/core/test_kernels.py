"""The compiled loops over updates and numpy give the same bits."""

from collections.abc import Iterator
from ctypes import CDLL

import numpy as np
import pytest

from fedlearn.core import kernels, robust
from fedlearn.core.aggregation import WeightedSum
from fedlearn.core.updates import Update

LENGTHS = (1, 2, 31, 4095, 4096, 4097, 20_001)


def values(kind: str, shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = rng.normal(0, 0.05, shape).astype(np.float32)
    if kind == "denormal":
        rows = (rows * np.float32(1e-39)).astype(np.float32)
        assert (np.abs(rows[rows != 0]) < np.finfo(np.float32).tiny).all()
    elif kind == "wide":
        rows = (rows * 10.0 ** rng.integers(-30, 30, shape)).astype(np.float32)
    elif kind == "not finite":
        rows.ravel()[rng.random(rows.size) < 0.2] = np.inf
        rows.ravel()[rng.random(rows.size) < 0.2] = -np.inf
        rows.ravel()[rng.random(rows.size) < 0.2] = np.nan
    return rows


def same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    """NaNs are alike, whatever else their bits say."""
    known = ~np.isnan(one)
    return bool((known == ~np.isnan(other)).all()) and one[known].tobytes() == other[known].tobytes()


@pytest.mark.parametrize("kind", ["plain", "denormal", "wide", "not finite"])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8, 9, 15, 21])
def test_sums_are_the_same_to_the_last_bit(both: Iterator[None], kind: str, count: int) -> None:
    rng = np.random.default_rng(count)
    # factors of 53 bits: a fused product and sum would show
    factors, start = rng.uniform(0.1, 10, count), rng.normal(0, 1, max(LENGTHS))
    sums = []
    for _ in both:
        with np.errstate(invalid="ignore"):
            for length in LENGTHS:
                total = start[:length].copy()
                kernels.add_weighted(total, values(kind, (count, length), length), factors)
                sums.append(total)
    for compiled, by_numpy in zip(sums[: len(LENGTHS)], sums[len(LENGTHS) :], strict=True):
        assert same_bits(compiled, by_numpy)


def test_a_sum_is_its_own_formula_in_the_order_of_the_rows(both: Iterator[None]) -> None:
    rows, factors = values("plain", (11, 5000)), np.random.default_rng(1).uniform(0.1, 10, 11)
    direct = np.zeros(5000)
    for row, factor in zip(rows, factors, strict=True):
        direct += factor * row.astype(np.float64)
    for _ in both:
        total = np.zeros(5000)
        kernels.add_weighted(total, rows, factors)
        assert total.tobytes() == direct.tobytes()


def test_rows_that_c_can_not_read_as_they_are_are_added_all_the_same(both: Iterator[None]) -> None:
    plain = values("plain", (3, 1000))
    unaligned = np.frombuffer(b"-" + plain[0].tobytes(), np.float32, offset=1)
    strided = np.repeat(plain[1], 2)[::2]
    foreign = plain[2].astype(">f4")
    sums = []
    for _ in both:
        for rows in (list(plain), [unaligned, strided, foreign]):
            total = np.zeros(1000)
            kernels.add_weighted(total, rows, [1.5, 2.5, 3.5])
            sums.append(total.tobytes())
        total = np.zeros(2000)[::2]
        kernels.add_weighted(total, plain, [1.5, 2.5, 3.5])
        sums.append(total.tobytes())
    assert not unaligned.flags.aligned
    assert len(set(sums)) == 1


@pytest.mark.parametrize(("rows", "factors"), [((2, 9), 2), ((2, 10), 3), ((2, 11), 2)], ids=["short", "factors", "long"])
def test_lengths_that_do_not_fit_are_no_memory_fault(both: Iterator[None], rows: tuple[int, int], factors: int) -> None:
    for _ in both:
        with pytest.raises(ValueError, match="same lengths"):
            kernels.add_weighted(np.zeros(10), np.ones(rows, np.float32), np.ones(factors))


@pytest.mark.parametrize("count", [1, 2, 3, 10, 31, 48, 49, 100, 256, 257])
@pytest.mark.parametrize("rule", [robust.Median(), robust.TrimmedMean(0.2)], ids=["median", "trimmed mean"])
def test_order_statistics_are_the_same_to_the_last_bit(both: Iterator[None], rule: robust.CoordinateRule, count: int) -> None:
    matrix = values("wide", (count, 777))
    matrix[:, 5], matrix[::2, 6], matrix[1::2, 6] = 1.0, 0.0, -0.0
    lanes = [slice(0, 100), slice(100, 101), slice(101, 777)]
    given = []
    for _ in both:
        rows, out = matrix.copy(), np.empty(777)
        for lane in lanes:
            rule.combine(rows[:, lane], out[lane])
        given.append(out.tobytes())
    assert given[0] == given[1]


def test_a_network_that_does_not_fit_is_no_memory_fault(library: CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_library", library)
    rows, out = np.ones((4, 10), np.float32), np.empty(10)
    good = np.array([[0, 1]], np.uint16)
    for network, kept, target in (
        (good + 3, range(1), out),
        (good, range(3, 5), out),
        (good, range(2, 2), out),
        (good, range(1), out[1:]),
    ):
        with pytest.raises(ValueError, match="don't fit"):
            kernels.mean_of_ordered(rows, network, kept, target)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 31, 128])
def test_products_are_those_of_float64(library: CDLL, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_library", library)
    for width in (1, 7, 8, 511, 512, 513, 1500):
        rows = values("wide", (count, width + 3))[:, 1 : width + 1]
        start = np.random.default_rng(width).normal(size=(count, count))
        sums = start.copy()
        assert kernels.multiplies(rows, sums)
        kernels.add_products(sums, rows)
        wide = rows.astype(np.float64)
        on_and_right = np.triu_indices(count)
        most = 1e-15 * width * (np.abs(start) + np.abs(wide) @ np.abs(wide).T)
        assert (np.abs(sums - (start + wide @ wide.T)) <= most)[on_and_right].all()


def test_a_product_is_added_up_in_the_documented_order(library: CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_library", library)
    rows, sums = values("wide", (5, 1000)), np.zeros((5, 5))
    kernels.add_products(sums, rows)
    direct = np.zeros((5, 5))
    for strip in (slice(0, 512), slice(512, 1000)):
        wide = rows[:, strip].astype(np.float64)
        lanes = np.zeros((5, 5, 8))
        for column in range(wide.shape[1]):
            lanes[..., column % 8] += np.outer(wide[:, column], wide[:, column])
        a, b, c, d, e, f, g, h = np.moveaxis(lanes, -1, 0)
        direct += ((a + e) + (c + g)) + ((b + f) + (d + h))
    assert np.triu(sums).tobytes() == np.triu(direct).tobytes()


def test_products_of_what_they_can_not_take_are_made_by_blas(library: CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    sums = np.zeros((3, 3))
    for way, rows, taken in (
        (library, values("plain", (3, 10)), True),
        (library, values("plain", (10, 3)).T, False),
        (library, values("plain", (3, 10))[::-1], False),
        (library, values("plain", (129, 10)), False),
        (None, values("plain", (3, 10)), False),
    ):
        monkeypatch.setattr(kernels, "_library", way)
        assert kernels.multiplies(rows, sums) == taken
    monkeypatch.setattr(kernels, "_library", library)
    with pytest.raises(ValueError, match="don't fit"):
        kernels.add_products(sums, values("plain", (4, 10)))


@pytest.mark.parametrize("kind", ["plain", "denormal", "wide", "not finite"])
def test_what_is_finite_is_known_either_way(both: Iterator[None], kind: str) -> None:
    row = values(kind, (1, 999))[0]
    for _ in both:
        assert kernels.all_finite(row) == (kind != "not finite")
        assert kernels.all_finite(row[:0])
        for value in (np.nan, -np.nan, np.inf, -np.inf):
            one = values("plain", (1, 999))[0]
            one[998] = value
            assert not kernels.all_finite(one)
            assert not kernels.all_finite(one[::2])
            assert kernels.all_finite(one[:998])


def test_a_folded_update_gives_the_same_bits_either_way(both: Iterator[None]) -> None:
    updates = [Update(row, number) for number, row in enumerate(values("plain", (10, 3001)), start=1)]
    means = []
    for _ in both:
        total = WeightedSum(3001)
        total.fold_all(updates)
        means.append(total.mean().tobytes())
    assert means[0] == means[1]
