"""How a window of coordinates becomes bytes and back, each window by itself. docs/envelope.md describes the bytes.

What a window may decode to is known before: no byte of it is unpacked before its claimed length is checked against that.
"""

import struct
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import zstandard

from fedlearn.core.errors import Code, Refusal
from fedlearn.core.kernels import add_weighted
from fedlearn.core.rounding import add_scaled, blocks, draw, round_blocks, scale_blocks
from fedlearn.core.updates import Vector, check_finite

Encoding = Literal["float32", "float16", "float64", "int8", "top_k"]
Bytes = bytes | bytearray | memoryview

_ENTRY_BYTES = 6  # of top_k: a gap of 4 bytes and a value of 2
_LENGTH = struct.Struct("<I")
_SURE_SCALE = np.finfo(np.float32).max / np.float32(128)  # up to this one, no code times its scale is infinite


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
            Refusal: `update_malformed`, `update_too_large`, `update_not_finite`.
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
        check_finite(out)


@dataclass(frozen=True, slots=True)
class Int8:
    """Steps of a scale per block, rounded by chance (`core.rounding`); then packed.

    Args:
        exact: the places in the window, from and to, in order, that stay float32 and are in no block.
    """

    exact: tuple[tuple[int, int], ...] = ()
    code: int = 4
    compressed: bool = True

    def longest(self, elements: int) -> int:
        return _longest(self.content_bytes(elements))

    def content_bytes(self, elements: int) -> int:
        """How many bytes are packed: scales, exact values, codes."""
        rounded = elements - self._kept
        return 4 * (blocks(rounded) + self._kept) + rounded

    def encode(self, part: npt.NDArray[Any], rng: np.random.Generator) -> Bytes:
        raw, most = np.empty(self.content_bytes(len(part)), np.uint8), self.longest(len(part))
        scales, exact, codes = self._sections(raw, len(part))
        if self.exact:
            np.concatenate([part[start:stop] for start, stop in self.exact], out=exact)
            if not np.isfinite(exact).all():
                raise Refusal(Code.UPDATE_NOT_FINITE, "A value is NaN or infinite.")
            part = np.concatenate([part[start:stop] for start, stop in self._between(len(part))])
        round_blocks(part, draw(rng, len(part)), scales, codes)
        return _pack(raw.data, most)

    def decode(self, plain: Bytes, out: npt.NDArray[Any]) -> None:
        raw = np.frombuffer(_unpack(plain, self.content_bytes(len(out)), exactly=True), np.uint8)
        self._check(raw, len(out))
        self._scale(raw, out)

    def unpack(self, plain: Bytes, elements: int, out: npt.NDArray[np.uint8]) -> None:
        """Write a window's content as it is, checked as by `decode`, which raises the same.

        Args:
            out: shape (content_bytes(elements),).
        """
        out[:] = np.frombuffer(_unpack(plain, len(out), exactly=True), np.uint8)
        self._check(out, elements)

    def add(self, total: npt.NDArray[np.float64], contents: Sequence[npt.NDArray[np.uint8]], factors: Sequence[float]) -> None:
        """Add the same window of several vectors, each times its factor: in place, in their order, to the bits of `decode`.

        Args:
            total: shape (elements of the window,), float64.
            contents: as `unpack` has written them.
        """
        sections = [self._sections(content, len(total)) for content in contents]
        scales, exact, codes = ([row[0] for row in sections], [row[1] for row in sections], [row[2] for row in sections])
        for run, kept in self._runs(self._between(len(total))):
            add_scaled(total[run], [row[kept] for row in codes], scales, factors, kept.start)
        for run, kept in self._runs(self.exact):
            add_weighted(total[run], [row[kept] for row in exact], factors)

    def _check(self, raw: npt.NDArray[np.uint8], elements: int) -> None:
        scales, exact, _ = self._sections(raw, elements)
        check_finite(exact)
        if not (np.abs(scales) <= _SURE_SCALE).all():
            out: Vector = np.empty(elements, np.float32)
            self._scale(raw, out)
            check_finite(out)

    def _scale(self, raw: npt.NDArray[np.uint8], out: npt.NDArray[Any]) -> None:
        scales, exact, codes = self._sections(raw, len(out))
        for run, kept in self._runs(self._between(len(out))):
            scale_blocks(codes[kept], scales, out[run], kept.start)
        for run, kept in self._runs(self.exact):
            out[run] = exact[kept]

    @staticmethod
    def _runs(places: Sequence[tuple[int, int]]) -> Iterator[tuple[slice, slice]]:
        """Each of these places in the window, and where its values lie among those of all of them."""
        taken = 0
        for start, stop in places:
            yield slice(start, stop), slice(taken, taken + stop - start)
            taken += stop - start

    def _sections(
        self, raw: npt.NDArray[np.uint8], elements: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.int8]]:
        """Where a window's content has its scales, the exact values and the codes."""
        kept = self._kept
        of_scales = blocks(elements - kept)
        floats = raw[: 4 * (of_scales + kept)].view("<f4")
        return floats[:of_scales], floats[of_scales:], raw[4 * (of_scales + kept) :].view(np.int8)

    @property
    def _kept(self) -> int:
        return sum(stop - start for start, stop in self.exact)

    def _between(self, elements: int) -> list[tuple[int, int]]:
        """The places that are not exact."""
        edges = [0, *(edge for places in self.exact for edge in places), elements]
        return list(zip(edges[::2], edges[1::2], strict=True))


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
        return _pack(_planes(gaps) + _planes(values), self.longest(len(part)))

    def decode(self, plain: Bytes, out: npt.NDArray[Any]) -> None:
        raw = _unpack(plain, _ENTRY_BYTES * min(self.most, len(out)), exactly=False)
        count, rest = divmod(len(raw), _ENTRY_BYTES)
        if rest:
            raise Refusal(Code.UPDATE_MALFORMED, f"A window of {len(raw)} bytes holds no whole number of values.")
        gaps = _joined(raw[: 4 * count], np.dtype("<u4"))
        places = np.cumsum(gaps.astype(np.int64) + 1) - 1
        if count and places[-1] >= len(out):
            raise Refusal(Code.UPDATE_MALFORMED, f"A value is at place {places[-1]} of a window of {len(out)}.")
        values = _joined(raw[4 * count :], np.dtype("<f2"))
        check_finite(values)
        out[:] = 0
        out[places] = values


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

# Level 1, and of its table a sixteenth: what is to be found in numbers by chance is how often each comes, and hardly any that
# come again. Negative levels would not pack that.
_ZSTD = zstandard.ZstdCompressionParameters.from_level(1, hash_log=10)
_threads = threading.local()  # neither a compressor nor a decompressor may serve two threads at once


def _pack(raw: Bytes, most: int) -> bytes:
    """A frame of zstd behind its length, and zeros behind it.

    Args:
        most: what any content that a window may have takes at most, so that no more zeros are needed.
    """
    if not hasattr(_threads, "compressor"):
        _threads.compressor = zstandard.ZstdCompressor(compression_params=_ZSTD)
    frame: bytes = _threads.compressor.compress(raw)
    length = _LENGTH.size + len(frame)
    return b"".join((_LENGTH.pack(len(frame)), frame, bytes(min(padded(length), most) - length)))


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
    """What `size` bytes that don't compress take: ZSTD_COMPRESSBOUND behind its length."""
    return _LENGTH.size + size + (size >> 8) + (((128 << 10) - size) >> 11 if size < 128 << 10 else 0)
