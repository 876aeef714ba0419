"""Inner products and lengths, window by window: what they are, in which memory, and in which order they are added."""

import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest

from fedlearn.core import distances
from fedlearn.core.distances import Job, Products, Squares, squared_distances


def some_rows(count: int, coordinates: int = 1000) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, coordinates)).astype(np.float32)


def run(jobs: Sequence[Job]) -> None:
    for job in jobs:
        job()


@pytest.mark.parametrize("tile", [512, 7, 1], ids=["one tile", "tiles that don't divide it", "tiles of one"])
@pytest.mark.parametrize("count", [1, 2, 20])
def test_products_of_windows_add_up_to_those_of_the_updates(count: int, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "_TILE", tile)
    rows, products = some_rows(count), Products(count)
    for start in range(0, 1000, 300):
        run(products.jobs(rows[:, start : start + 300]))
    wide = rows.astype(np.float64)
    found = products.result()
    np.testing.assert_allclose(found, wide @ wide.T, atol=1e-9)
    np.testing.assert_array_equal(found, found.T)


def test_squares_of_windows_add_up_to_those_of_the_updates() -> None:
    rows, squares = some_rows(9), Squares(9)
    for start in range(0, 1000, 300):
        run(squares.jobs(rows[:, start : start + 300]))
    np.testing.assert_allclose(squares.result(), (rows.astype(np.float64) ** 2).sum(axis=1), rtol=1e-12)


@pytest.mark.parametrize("measures", [Products, Squares])
@pytest.mark.parametrize("count", [10, 600], ids=["one tile", "several"])
def test_in_whichever_order_jobs_run_they_give_the_same_bits(measures: type[Products | Squares], count: int) -> None:
    rows, forth, back = some_rows(count), measures(count), measures(count)
    run(forth.jobs(rows))
    run(list(forth.jobs(rows))[::-1])
    run(list(back.jobs(rows))[::-1])
    run(back.jobs(rows))
    assert forth.result().tobytes() == back.result().tobytes()


def test_of_many_updates_there_is_one_matrix_and_little_beside_it() -> None:
    rows = some_rows(1200, 300)
    matrix = 8 * 1200**2
    tracemalloc.start()
    try:
        products = Products(1200)
        run(products.jobs(rows))
        products.result()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert matrix <= peak < matrix + (4 << 20)


def test_of_few_updates_all_lanes_matrices_take_little() -> None:
    assert Products(512)._sums.nbytes == 16 << 20
    assert Products(513)._sums.nbytes == 8 * 513**2


def test_squared_distances_are_those_of_the_vectors_all_or_some() -> None:
    rows = some_rows(4).astype(np.float64)
    direct = np.array([[np.sum((a - b) ** 2) for b in rows] for a in rows])
    np.testing.assert_allclose(squared_distances(rows @ rows.T), direct, atol=1e-8)
    np.testing.assert_allclose(squared_distances(rows @ rows.T, slice(1, 3)), direct[1:3], atol=1e-8)
