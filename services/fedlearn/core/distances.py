"""What rules by distance learn of the updates, window after window: their inner products or their lengths, in float64.

A window is measured in jobs that may run at once. What they are, and in which order their results are added, depends on the
number of updates and the width of the window alone: so any number of threads gives the same bits.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial, reduce
from itertools import combinations_with_replacement, pairwise
from typing import Protocol

import numpy as np

from fedlearn.core import kernels
from fedlearn.core.kernels import Floats, Rows

Job = Callable[[], None]

LANES = 8  # parts of a window's coordinates that are worked on at once, as far as there are cores
_TILE = 512  # updates; of more, each job makes one tile of the matrix, so that it need not be there once for each lane
_BLOCK_BYTES = 1 << 19  # what is multiplied at a time stays in the L2 cache


class Measures(Protocol):
    """What has been measured so far."""

    def jobs(self, rows: Rows) -> Sequence[Job]:
        """What is to be done to measure one window more, shape (updates, coordinates). Jobs of one window may run at once;
        those of the next come after them.
        """
        ...

    def result(self) -> Floats:
        """Of all windows; called once, at the end."""
        ...


class Products:
    """The inner products of the updates, shape (updates, updates), of which every distance follows.

    Memory, beside 4 MiB for each job that runs: of more than 512 updates the matrix itself, 8 bytes * updates^2, once; of
    fewer one matrix for each of eight lanes, 16 MiB at most together.
    """

    def __init__(self, updates: int) -> None:
        edges = _edges(updates, -(-updates // _TILE))
        self._tiles = list(combinations_with_replacement(edges, 2))  # on and above the diagonal
        self._sums = np.zeros((LANES if len(edges) == 1 else 1, updates, updates))

    def jobs(self, rows: Rows) -> Sequence[Job]:
        lanes = cut(rows, len(self._sums))
        return [
            partial(_add_products, rows[above, lane], None if left == above else rows[left, lane], sums[above, left])
            for lane, sums in zip(lanes, self._sums, strict=True)
            for above, left in self._tiles
        ]

    def result(self) -> Floats:
        products = _added(self._sums)
        for above, left in self._tiles:
            tile = products[above, left]
            if above == left:
                tile[:] = np.triu(tile) + np.triu(tile, 1).T
            else:
                products[left, above] = tile.T
        return products


class Squares:
    """The squared lengths of the updates, shape (updates,)."""

    def __init__(self, updates: int) -> None:
        self._sums = np.zeros((LANES, updates))

    def jobs(self, rows: Rows) -> Sequence[Job]:
        return [partial(_add_squares, rows[:, lane], sums) for lane, sums in zip(cut(rows), self._sums, strict=True)]

    def result(self) -> Floats:
        return _added(self._sums)


def squared_distances(products: Floats, some: slice = slice(None)) -> Floats:
    """|w_i - w_j|^2 of the inner products of all w, shape (n, n); or `some` of its rows."""
    squares = np.diagonal(products)
    distances = squares[some, np.newaxis] + squares
    distances -= 2 * products[some]
    return np.maximum(distances, 0.0, out=distances)


def cut(rows: Rows, lanes: int = LANES) -> list[slice]:
    """The lanes of a window's coordinates: as many on every machine."""
    return _edges(rows.shape[1], lanes)


def blocks(rows: Rows) -> Iterator[slice]:
    """Coordinates that stay in the cache together."""
    step = max(64, _BLOCK_BYTES // (rows.itemsize * len(rows)))
    return (slice(start, min(start + step, rows.shape[1])) for start in range(0, rows.shape[1], step))


def _edges(length: int, parts: int) -> list[slice]:
    return [slice(start, stop) for start, stop in pairwise(np.linspace(0, length, parts + 1).astype(int).tolist())]


def _add_products(above: Rows, left: Rows | None, sums: Floats) -> None:
    """Of the updates `above` with those `left`, or with themselves: then only what is not left of the diagonal counts."""
    if left is None and kernels.multiplies(above, sums):
        kernels.add_products(sums, above)
        return
    for block in blocks(above):
        wide = above[:, block].astype(np.float64)
        sums += wide @ (wide if left is None else left[:, block].astype(np.float64)).T


def _add_squares(rows: Rows, sums: Floats) -> None:
    for block in blocks(rows):
        wide = rows[:, block].astype(np.float64)
        sums += np.einsum("ij,ij->i", wide, wide)


def _added(sums: Floats) -> Floats:
    """The lanes' sums, added in their order to the first."""
    return reduce(lambda total, lane: np.add(total, lane, out=total), sums[1:], sums[0])
