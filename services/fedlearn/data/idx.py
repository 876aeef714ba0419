"""IDX, the format in which MNIST and its successors are published.

Two zero bytes, a type (8 is unsigned byte, the only one here) and the number of axes, then the length of each as a big-endian
32-bit number, then the elements, the last axis fastest.
"""

import math

import numpy as np
import numpy.typing as npt

_UNSIGNED_BYTE = 8


def read_idx(content: bytes) -> npt.NDArray[np.uint8]:
    """The array in an IDX file of unsigned bytes: a read-only view of `content`, nothing is copied.

    Raises:
        ValueError: for anything else.
    """
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _UNSIGNED_BYTE:
        raise ValueError("this is no IDX file of unsigned bytes")
    start = 4 + 4 * content[3]
    shape = tuple(int(size) for size in np.frombuffer(content[4:start], dtype=">u4"))
    if len(shape) != content[3] or len(content) != start + math.prod(shape):
        raise ValueError(f"the file has {len(content)} bytes, other than its header says")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)
