"""How a window of coordinates becomes bytes and back, each window by itself. docs/envelope.md describes the bytes.

What a window may decode to is known before: no byte of it is unpacked before its claimed length is checked against that.
"""

import struct
import threading
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import numpy as np
import numpy.typing as npt
import zstandard

from fedlearn.core.errors import Code, Refusal

Encoding = Literal["float32", "float16", "float64", "int8", "top_k"]
Bytes = bytes | bytearray | memoryview

BLOCK: Final = 1024
"""So many neighbouring coordinates share an int8 scale."""

_STEPS = np.float32(127)
_ENTRY_BYTES = 6  # of top_k: a gap of 4 bytes and a value of 2
_ZSTD_LEVEL = 1
_LENGTH = struct.Struct("<I")


class Codec(Protocol):
    """One encoding; `code` and `compressed` are what the header says of it."""

    @property
    def code(self) -> int: ...

    @property
    def compressed(self) -> bool: ...

    def longest(self, elements: int) -> int:
        """The most bytes that a window of so many coordinates takes."""
        ...

    def encode(self, part: npt.NDArray[Any], rng: np.random.Generator) -> Bytes:
        """The bytes of a window.

        Raises:
            Refusal: `update_not_finite` when a value has no place in this encoding.
        """
        ...

    def decode(self, plain: Bytes, out: npt.NDArray[Any]) -> None:
        """Write a window's coordinates into `out`, which has the window's length.

        Raises:
            Refusal: `update_malformed`, `update_too_large`.
        """
        ...


@dataclass(frozen=True, slots=True)
class Plain:
    """IEEE 754 numbers, little-endian, one after the other."""

    code: int
    wire: np.dtype[Any]
    compressed: bool = False

    def longest(self, elements: int) -> int:
        return elements * self.wire.itemsize

    def encode(self, part: npt.NDArray[Any], rng: np.random.Generator) -> Bytes:  # noqa: ARG002 - rounds to the nearest
        return np.ascontiguousarray(_narrowed(part, self.wire)).data.cast("B")

    def decode(self, plain: Bytes, out: npt.NDArray[Any]) -> None:
        out[:] = np.frombuffer(plain, self.wire)


@dataclass(frozen=True, slots=True)
class Int8:
    """Steps of a scale per block, rounded up or down by chance so that the mean is the value itself; then packed.

    QSGD, Alistarh et al. 2017, section 3.1, with s = 127 and the largest magnitude of a block in place of its length.

    Args:
        exact: the places in the window, from and to, in order, that stay float32 and are in no block.
    """

    exact: tuple[tuple[int, int], ...] = ()
    code: int = 4
    compressed: bool = True

    def longest(self, elements: int) -> int:
        return _longest(self._size(elements))

    def encode(self, part: npt.NDArray[Any], rng: np.random.Generator) -> Bytes:
        if not self.exact:
            return _pack(b"".join(self._rounded(part, rng)))
        exact = np.concatenate([part[start:stop] for start, stop in self.exact]).astype("<f4")
        if not np.isfinite(exact).all():
            raise Refusal(Code.UPDATE_NOT_FINITE, "A value is NaN or infinite.")
        scales, codes = self._rounded(np.concatenate([part[start:stop] for start, stop in self._between(len(part))]), rng)
        return _pack(scales + exact.tobytes() + codes)

    @staticmethod
    def _rounded(part: npt.NDArray[Any], rng: np.random.Generator) -> tuple[bytes, bytes]:
        """Scales and codes."""
        count = len(part)
        blocks = np.zeros((-(-count // BLOCK), BLOCK), np.float32)
        blocks.reshape(-1)[:count] = part
        largest = np.maximum(blocks.max(axis=1, initial=0), -blocks.min(axis=1, initial=0))
        if not np.isfinite(largest).all():
            raise Refusal(Code.UPDATE_NOT_FINITE, "A value is NaN or infinite.")
        # the next number above, so that no value is beyond 127 steps and none has to be clipped
        scales = np.where(largest > 0, np.nextafter(largest / _STEPS, np.float32(np.inf)), np.float32(0))
        np.divide(blocks, scales[:, None], out=blocks, where=scales[:, None] > 0)
        steps = np.floor(blocks)
        blocks -= steps  # exact: what is left to the next step, from 0 to 1
        steps += rng.random(blocks.shape, np.float32) < blocks
        codes = steps.reshape(-1)[:count].astype(np.int8)
        return scales.astype("<f4").tobytes(), codes.tobytes()

    def decode(self, plain: Bytes, out: npt.NDArray[Any]) -> None:
        raw = _unpack(plain, self._size(len(out)), exactly=True)
        kept = self._kept
        count = len(out) - kept
        blocks = -(-count // BLOCK)
        scales = np.frombuffer(raw, "<f4", blocks)
        codes = np.frombuffer(raw, np.int8, count, offset=4 * (blocks + kept))
        if not kept:
            self._values(scales, codes, out)
            return
        values, exact = np.empty(count, np.float32), np.frombuffer(raw, "<f4", kept, offset=4 * blocks)
        self._values(scales, codes, values)
        for places, source in ((self._between(len(out)), values), (self.exact, exact)):
            taken = 0
            for start, stop in places:
                out[start:stop] = source[taken : taken + stop - start]
                taken += stop - start

    @staticmethod
    def _values(scales: npt.NDArray[Any], codes: npt.NDArray[Any], out: npt.NDArray[Any]) -> None:
        count = len(codes)
        whole = count // BLOCK * BLOCK
        with np.errstate(over="ignore", invalid="ignore"):  # whoever takes the update looks whether it is finite
            if whole:
                np.multiply(
                    codes[:whole].reshape(-1, BLOCK), scales[: whole // BLOCK, None], out=out[:whole].reshape(-1, BLOCK)
                )
            if whole < count:
                np.multiply(codes[whole:], scales[-1], out=out[whole:])

    @property
    def _kept(self) -> int:
        return sum(stop - start for start, stop in self.exact)

    def _between(self, elements: int) -> list[tuple[int, int]]:
        """The places that are not exact."""
        edges = [0, *(edge for places in self.exact for edge in places), elements]
        return list(zip(edges[::2], edges[1::2], strict=True))

    def _size(self, elements: int) -> int:
        rounded = elements - self._kept
        return 4 * -(-rounded // BLOCK) + 4 * self._kept + rounded


@dataclass(frozen=True, slots=True)
class TopK:
    """The coordinates that are not 0: how many zeros come before each, and its value as float16; then packed.

    Args:
        most: how many a window may hold.
    """

    most: int
    code: int = 5
    compressed: bool = True

    def longest(self, elements: int) -> int:
        return _longest(_ENTRY_BYTES * min(self.most, elements))

    def encode(self, part: npt.NDArray[Any], rng: np.random.Generator) -> Bytes:  # noqa: ARG002 - `split` has rounded before
        places = np.flatnonzero(part)
        if len(places) > self.most:
            raise Refusal(Code.UPDATE_TOO_LARGE, f"{len(places)} values are not 0; {self.most} are allowed.")
        gaps = (np.diff(places, prepend=-1) - 1).astype("<u4")
        values = _narrowed(part[places], np.dtype("<f2"))
        return _pack(_planes(gaps) + _planes(values))

    def decode(self, plain: Bytes, out: npt.NDArray[Any]) -> None:
        raw = _unpack(plain, _ENTRY_BYTES * min(self.most, len(out)), exactly=False)
        count, rest = divmod(len(raw), _ENTRY_BYTES)
        if rest:
            raise Refusal(Code.UPDATE_MALFORMED, f"A window of {len(raw)} bytes holds no whole number of values.")
        gaps = _joined(raw[: 4 * count], np.dtype("<u4"))
        places = np.cumsum(gaps.astype(np.int64) + 1) - 1
        if count and places[-1] >= len(out):
            raise Refusal(Code.UPDATE_MALFORMED, f"A value is at place {places[-1]} of a window of {len(out)}.")
        out[:] = 0
        out[places] = _joined(raw[4 * count :], np.dtype("<f2"))


_PLAIN: dict[str, Plain] = {
    "float32": Plain(1, np.dtype("<f4")),
    "float16": Plain(2, np.dtype("<f2")),
    "float64": Plain(3, np.dtype("<f8")),
}
_INT8 = Int8()
NAMES: dict[int, Encoding] = {1: "float32", 2: "float16", 3: "float64", 4: "int8", 5: "top_k"}
"""Encodings by the code in the header."""


def codec_of(encoding: Encoding, keep: int) -> Codec:
    """The codec of this name.

    Args:
        keep: how many values a vector keeps by `top_k`.
    """
    if encoding == "top_k":
        return TopK(keep)
    return _INT8 if encoding == "int8" else _PLAIN[encoding]


def _narrowed(part: npt.NDArray[Any], wire: np.dtype[Any]) -> npt.NDArray[Any]:
    if part.dtype == wire:
        return part
    try:
        with np.errstate(over="raise"):
            return part.astype(wire)
    except FloatingPointError as error:
        raise Refusal(
            Code.UPDATE_NOT_FINITE,
            f"A value does not fit {wire.name}: lower the learning rate, or let the plan use float32.",
        ) from error


def _planes(numbers: npt.NDArray[Any]) -> bytes:
    """All first bytes, then all second bytes, and so on: like stands beside like, which packs better."""
    return np.ascontiguousarray(numbers.view(np.uint8).reshape(len(numbers), numbers.itemsize).T).tobytes()


def _joined(planes: bytes, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    return np.ascontiguousarray(np.frombuffer(planes, np.uint8).reshape(dtype.itemsize, -1).T).view(dtype).reshape(-1)


# --- zstd (RFC 8878)

_threads = threading.local()  # neither a compressor nor a decompressor may serve two threads at once


def _pack(raw: bytes) -> bytes:
    """A frame of zstd behind its length, and zeros behind it."""
    if not hasattr(_threads, "compressor"):
        _threads.compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=False)
    frame: bytes = _threads.compressor.compress(raw)
    return (_LENGTH.pack(len(frame)) + frame).ljust(padded(_LENGTH.size + len(frame)), b"\0")


def _unpack(packed: Bytes, size: int, *, exactly: bool) -> bytes:
    """Unpack one frame, whose header says how long its content is: `size`, or up to that. Nothing else is allocated."""
    if len(packed) < _LENGTH.size or len(packed) - _LENGTH.size < _LENGTH.unpack_from(packed)[0]:
        raise Refusal(Code.UPDATE_MALFORMED, f"A window's {len(packed)} bytes are fewer than it says.")
    frame = memoryview(packed)[_LENGTH.size : _LENGTH.size + _LENGTH.unpack_from(packed)[0]]
    try:
        claimed = zstandard.get_frame_parameters(frame).content_size
        if claimed > size:
            raise Refusal(Code.UPDATE_TOO_LARGE, f"A window claims {claimed} bytes; {size} are due.")
        if exactly and claimed != size:
            raise Refusal(Code.UPDATE_MALFORMED, f"A window claims {claimed} bytes; {size} are due.")
        if not hasattr(_threads, "decompressor"):
            _threads.decompressor = zstandard.ZstdDecompressor()
        raw: bytes = _threads.decompressor.decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Refusal(Code.UPDATE_MALFORMED, f"A window does not unpack: {error}.") from error
    return raw


def padded(length: int) -> int:
    """The length that so many bytes are filled up to, so that it says little about what is in them.

    Padmé, Nikitin et al. 2019 (PURBs), algorithm 1: of the length's E + 1 bits only the first log2(E) + 1 may differ. That adds
    at most 12 %, to 200 kB at most 3 %.
    """
    if length < 2:
        return length
    exponent = length.bit_length() - 1
    free = exponent - exponent.bit_length()
    return -(-length >> free) << free if free > 0 else length


def _longest(size: int) -> int:
    """What `size` bytes that don't compress take: ZSTD_COMPRESSBOUND, padded."""
    frame = size + (size >> 8) + (((128 << 10) - size) >> 11 if size < 128 << 10 else 0)
    return padded(_LENGTH.size + frame)
