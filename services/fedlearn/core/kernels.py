"""The loops over updates that numpy takes several passes for, compiled from `kernels.c` and `products.c` where a compiler was
when the package was installed. Without it numpy does the same, to the last bit but for products, and more slowly. Those of int8
are called by `rounding`.
"""

import ctypes
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]

_MOST = 256  # rows that are ordered by the compiled loop, as in kernels.c
_MULTIPLIED = 128  # rows, of which products.c makes inner products; of many more BLAS is as fast, on some processors faster
_STRIP, _ROWS, _CACHE_LINE = 512, 4, 64  # as in products.c, the last in bytes
_WINDOW = 1 << 14  # elements; without it, a window of the sum and of `_TOGETHER` rows, in float64, stay near the L2 cache
_TOGETHER = 8


def load(path: str) -> ctypes.CDLL:
    """The compiled loops of a library; they run without the interpreter's lock."""
    library = ctypes.CDLL(path)
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    library.add_weighted.argtypes = [pointer, pointer, pointer, size, size]
    library.all_finite.argtypes = [pointer, size]
    library.mean_of_ordered.argtypes = [pointer, pointer, size, size, size, pointer, size, size, size]
    library.add_products.argtypes = [pointer, pointer, size, size, size, pointer]
    library.round_blocks.argtypes = [pointer, pointer, pointer, pointer, size]
    library.scale_blocks.argtypes = [pointer, pointer, pointer, size, size]
    library.add_scaled.argtypes = [pointer, pointer, pointer, pointer, size, size, size]
    without_result = "add_weighted", "mean_of_ordered", "add_products", "scale_blocks", "add_scaled"
    for name in without_result:
        getattr(library, name).restype = None
    library.all_finite.restype = library.round_blocks.restype = ctypes.c_int
    return library


def _find() -> ctypes.CDLL | None:
    spec = find_spec("fedlearn.core._kernels")
    if spec is None or spec.origin is None:
        return None
    try:
        return load(spec.origin)
    except AttributeError:  # compiled from an older kernels.c: as if it were not there, until the package is installed again
        return None


_library = _find()


def compiled() -> bool:
    """Whether the compiled loops are there."""
    return _library is not None


def library() -> ctypes.CDLL | None:
    """The compiled loops where they are there; whoever calls one has checked lengths, types and alignment."""
    return _library


def plain(vector: npt.NDArray[Any], dtype: type) -> bool:
    """Whether C sees a vector as it is."""
    return vector.dtype == dtype and vector.flags.c_contiguous and vector.flags.aligned


def address(array: npt.NDArray[Any]) -> int:
    """Where an array begins, for C."""
    begin: int = array.__array_interface__["data"][0]
    return begin


def addresses(arrays: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.uintp]:
    """Where each begins, as an array for C."""
    return np.array([address(array) for array in arrays], np.uintp)


def add_weighted(total: Floats, rows: Sequence[Rows] | Rows, factors: Sequence[float] | Floats) -> None:
    """Add each row times its factor to `total`, in place, in float64 and in the order of the rows.

    Args:
        total: shape (coordinates,), without a negative zero, as no sum that began with zeros has one.
        rows: float32, shape (rows, coordinates).
    """
    factors = np.ascontiguousarray(factors, np.float64)
    if not all(row.shape == total.shape for row in rows) or len(rows) != len(factors):
        raise ValueError("rows, factors and total don't have the same lengths")
    if _library is None or not plain(total, np.float64) or not all(plain(row, np.float32) for row in rows):
        _add_by_numpy(total, rows, factors)
        return
    begins = addresses(list(rows))
    _library.add_weighted(address(total), address(begins), address(factors), len(rows), len(total))


def all_finite(values: npt.NDArray[Any]) -> bool:
    """Whether no value is NaN or infinite; one pass, without a temporary where it can be."""
    if _library is not None and plain(values, np.float32):
        return bool(_library.all_finite(address(values), values.size))
    # a sum is finite only if no element is NaN or infinite, unless it overflows
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(np.dot(values, values))) or bool(np.isfinite(values).all())


def multiplies(rows: Rows, sums: Floats) -> bool:
    """Whether `add_products` takes these."""
    return _library is not None and 0 < len(rows) <= _MULTIPLIED and _strided(rows) and plain(sums, np.float64)


def add_products(sums: Floats, rows: Rows) -> None:
    """Add the inner product of each row with itself and with those after it to `sums`, in place; made and added in float64.

    Args:
        sums: shape (rows, rows); what it holds left of its diagonal is undefined afterwards.
        rows: shape (rows, coordinates); `multiplies` has said yes to both.
    """
    assert _library is not None
    count, width = rows.shape
    if sums.shape != (count, count):
        raise ValueError("sums don't fit the rows")
    space = np.empty(8 * _STRIP * -(-count // _ROWS) * _ROWS + _CACHE_LINE, np.uint8)
    begin = -(-address(space) // _CACHE_LINE) * _CACHE_LINE
    _library.add_products(address(sums), address(rows), rows.strides[0] // rows.itemsize, count, width, begin)


def orders(rows: Rows, out: Floats) -> bool:
    """Whether `mean_of_ordered` takes these."""
    return _library is not None and 0 < len(rows) <= _MOST and _strided(rows) and plain(out, np.float64)


def mean_of_ordered(rows: Rows, network: npt.NDArray[np.uint16], kept: range, out: Floats) -> None:
    """Write the mean of each column's values number `kept`, counted from the smallest, to `out`; added up in that order.

    Args:
        rows: finite, shape (rows, coordinates); `orders` has said yes to them.
        network: comparators that bring these values to their places, shape (comparators, 2): the smaller goes to the first.
    """
    assert _library is not None
    if out.shape != rows.shape[1:] or not 0 <= kept.start < kept.stop <= len(rows) or network.max(initial=0) >= len(rows):
        raise ValueError("network, kept and out don't fit the rows")
    _library.mean_of_ordered(
        address(out),
        address(rows),
        rows.strides[0] // rows.itemsize,
        *rows.shape,
        address(np.ascontiguousarray(network)),
        len(network),
        kept.start,
        len(kept),
    )


def _strided(rows: Rows) -> bool:
    """Whether C sees each row as it is, and finds the next one."""
    return all(plain(row, np.float32) for row in rows[:2]) and rows.strides[0] % rows.itemsize == 0 and rows.strides[0] >= 0


def _add_by_numpy(total: Floats, rows: Sequence[Rows] | Rows, factors: Floats) -> None:
    groups = [slice(first, first + _TOGETHER) for first in range(0, len(rows), _TOGETHER)]
    # a row of one element alone would be summed in another order
    space = np.empty((1 + min(len(rows), _TOGETHER), max(2, min(_WINDOW, len(total)))))
    weights = [np.array([1.0, *factors[group]]) for group in groups]
    for start in range(0, len(total), _WINDOW):
        part = total[start : start + _WINDOW]
        wide = space[:, : len(part)]
        for group, ones in zip(groups, weights, strict=True):
            # the sum so far is the first row, so that what is added together is added in the order of the rows; einsum
            # multiplies and adds row by row, and in float64: in float32 the product would lose what the sum keeps
            wide[0] = part
            for number, row in enumerate(rows[group], start=1):
                wide[number] = row[start : start + _WINDOW]
            np.einsum("i,ij->j", ones, wide[: len(ones)], out=part)
