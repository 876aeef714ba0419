"""Vectors in steps of int8: a scale for each block, and each value rounded up or down by chance so that its mean is the value.

QSGD, Alistarh et al. 2017, section 3.1, with s = 127 and the largest magnitude of a block in place of its length. The loops are
in `kernels.c`; where it was not compiled numpy does the same, to the last bit.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fedlearn.core import kernels
from fedlearn.core.errors import Code, Refusal
from fedlearn.core.kernels import Floats
from fedlearn.core.updates import Vector

Codes = npt.NDArray[np.int8]
Chances = npt.NDArray[np.uint16]

BLOCK: Final = 1024
"""So many neighbouring values share a scale; kernels.c knows this as well."""

_STEPS = np.float32(127)
_CHANCES = np.float32(1 << 16)
_TOGETHER = 32 * BLOCK  # without the loops; so many values stay near the L2 cache from one pass to the next


def blocks(count: int) -> int:
    """How many blocks so many values are."""
    return -(-count // BLOCK)


def draw(rng: np.random.Generator, count: int) -> Chances:
    """Chances for `round_blocks`, the same on every processor: 16 bits each.

    Args:
        rng: whose bit generator draws 64 bits at once, as all of numpy's but MT19937.
    """
    return rng.bit_generator.random_raw(-(-count // 4)).astype("<u8", copy=False).view("<u2")[:count]


def round_blocks(values: Vector, chances: Chances, scales: Vector, codes: Codes) -> None:
    """Write each block's scale and each value's steps of it, at most 127 either way.

    A scale is the next float32 above the block's largest magnitude / 127, so that no value is beyond 127 steps and none has to
    be clipped; it is 0 for a block of zeros. A value of v steps gets floor(v + (chance + 1/2) / 65,536): it goes up with the
    probability that is its fraction, rounded to a 65,536th. So the mean over all chances is off by about 2**-17 of a step at
    most, and by nothing for a whole number of steps.

    Args:
        values: float32, shape (count,).
        chances: as `draw` gives them, shape (count,).
        scales: written; float32, shape (blocks(count),).
        codes: written; shape (count,).

    Raises:
        Refusal: `update_not_finite` for NaN or an infinity; what is written then is undefined.
    """
    count, library = len(values), kernels.library()
    if (len(chances), len(scales), len(codes)) != (count, blocks(count), count):
        raise ValueError("values, chances, scales and codes don't have the same lengths")
    arrays = _for_c((scales, np.float32), (codes, np.int8), (values, np.float32), (chances, np.uint16))
    if library is not None and arrays is not None:
        finite = bool(library.round_blocks(*arrays, count))
    else:
        finite = all(
            _round_by_numpy(
                values[start : start + _TOGETHER],
                chances[start : start + _TOGETHER],
                scales[start // BLOCK : (start + _TOGETHER) // BLOCK],
                codes[start : start + _TOGETHER],
            )
            for start in range(0, count, _TOGETHER)
        )
    if not finite:
        raise Refusal(Code.UPDATE_NOT_FINITE, "A value is NaN or infinite.")


def scale_blocks(codes: Codes, scales: Vector, out: Vector, first: int = 0) -> None:
    """Write each code times its block's scale; whoever takes the values looks whether they are finite.

    Args:
        codes: shape (count,).
        scales: of the whole vector, float32.
        out: written; float32, shape (count,).
        first: the number in the whole vector of the first of `codes`.
    """
    count, library = len(codes), kernels.library()
    if len(out) != count or first < 0 or blocks(first + count) > len(scales):
        raise ValueError("codes, scales and out don't fit one another")
    arrays = _for_c((out, np.float32), (codes, np.int8), (scales, np.float32))
    if library is not None and arrays is not None:
        library.scale_blocks(*arrays, first, count)
    else:
        _scale_by_numpy(codes, scales, out, first)


def add_scaled(
    total: Floats, codes: Sequence[Codes], scales: Sequence[Vector], factors: Sequence[float], first: int = 0
) -> None:
    """Add what `scale_blocks` makes of each codes and scales, times its factor, to `total`: in place, in float64 and in that
    order, to the last bit what `kernels.add_weighted` does with these values.

    Args:
        total: shape (count,), without a negative zero.
        codes: each of shape (count,).
        scales: of the whole vectors, float32.
        first: the number in the whole vectors of the first of `codes`.
    """
    count, library = len(total), kernels.library()
    if any(len(row) != count for row in codes) or not len(codes) == len(scales) == len(factors):
        raise ValueError("codes, scales, factors and total don't have the same lengths")
    if first < 0 or any(blocks(first + count) > len(row) for row in scales):
        raise ValueError("codes and scales don't fit one another")
    weights = np.ascontiguousarray(factors, np.float64)
    plain = all(kernels.plain(row, np.int8) for row in codes) and all(kernels.plain(row, np.float32) for row in scales)
    if library is None or not plain or not kernels.plain(total, np.float64):
        rows = [np.empty(count, np.float32) for _ in codes]
        for row, mine, its in zip(rows, codes, scales, strict=True):
            scale_blocks(mine, its, row, first)
        kernels.add_weighted(total, rows, weights)
        return
    begins = kernels.addresses(codes), kernels.addresses(scales)  # held until C has read them
    places = (kernels.address(array) for array in (total, *begins, weights))
    library.add_scaled(*places, len(codes), first, count)


def _for_c(*arrays: tuple[npt.NDArray[Any], type]) -> list[int] | None:
    """Where they begin, if C sees all of them as they are."""
    if not all(kernels.plain(array, dtype) for array, dtype in arrays):
        return None
    return [kernels.address(array) for array, _ in arrays]


def _round_by_numpy(values: Vector, chances: Chances, scales: Vector, codes: Codes) -> bool:
    count = len(values)
    steps = np.zeros((blocks(count), BLOCK), np.float32)
    steps.reshape(-1)[:count] = values
    largest = np.maximum(steps.max(axis=1), -steps.min(axis=1))
    if not np.isfinite(largest).all():
        return False
    scales[:] = np.where(largest > 0, np.nextafter(largest / _STEPS, np.float32(np.inf)), np.float32(0))
    steps /= np.where(largest > 0, scales, np.float32(1))[:, None]
    raised = chances.astype(np.float32)
    raised += np.float32(0.5)
    raised /= _CHANCES
    raised += steps.reshape(-1)[:count]
    codes[:] = np.floor(raised, out=raised)
    return True


def _scale_by_numpy(codes: Codes, scales: Vector, out: Vector, first: int) -> None:
    count = len(codes)
    head = min(-first % BLOCK, count)  # of a block that began before
    tail = head + (count - head) // BLOCK * BLOCK
    block = blocks(first)
    after = block + (tail - head) // BLOCK
    with np.errstate(over="ignore", invalid="ignore"):
        np.multiply(codes[:head], scales[block - 1 : block] if head else 1, out=out[:head])
        whole = codes[head:tail].reshape(-1, BLOCK)
        np.multiply(whole, scales[block:after, None], out=out[head:tail].reshape(-1, BLOCK))
        np.multiply(codes[tail:], scales[after : after + 1] if tail < count else 1, out=out[tail:])
