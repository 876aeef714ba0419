"""How a sealed vector is cut into windows, and the header in front of them: what is known before anything is opened.

The format, byte by byte, stands in docs/envelope.md; `windows` seals and opens.
"""

import hashlib
import struct
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from operator import contains
from typing import Any, NamedTuple

import numpy.typing as npt

from fedlearn.core.errors import Code, Refusal
from fedlearn.protocol.codecs import NAMES, Bytes, Codec, Encoding, Int8, TopK, codec_of
from fedlearn.protocol.sealing import WRAPPED_BYTES, SealingPublicKey

MAGIC = b"FLSEALED"
VERSION = 1
TAG_BYTES = 16
MAX_METADATA_BYTES = 65_536
_FIXED = struct.Struct("<8sHBBIQ16sI")  # magic, version, encoding, compression, window_elements, parameters, kid, wrapped_bytes
_KINDS = frozenset((code, codec_of(encoding, 0).compressed) for code, encoding in NAMES.items())


class Span(NamedTuple):
    """Where a window lies: `length` bytes from `start`."""

    start: int
    length: int


@dataclass(frozen=True)  # without slots: what is long to work out is worked out once
class Layout:
    """How a vector is cut and encoded. Window 0 is the metadata, windows 1 to `windows` are the coordinates in order.

    Args:
        keep: with `top_k`, how many values are not 0.
        exact: with `int8`, the coordinates, from and to, in order, that stay float32.
    """

    parameters: int
    encoding: Encoding
    window_elements: int
    keep: int = 0
    exact: tuple[tuple[int, int], ...] = ()

    @cached_property
    def codec(self) -> Codec:
        """That of a window in which nothing is exact."""
        return codec_of(self.encoding, self.keep)

    def codec_at(self, index: int) -> Codec:
        """That of window `index` (from 1)."""
        return self._with_exact.get(index) or self.codec

    @cached_property
    def _with_exact(self) -> Mapping[int, Codec]:
        """The codecs of those windows (from 1) in which something is exact."""
        places: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for start, stop in self.exact:
            for index in range(start // self.window_elements + 1, (stop - 1) // self.window_elements + 2):
                part = self.elements(index)
                places[index].append((max(start, part.start) - part.start, min(stop, part.stop) - part.start))
        return {index: Int8(tuple(inside)) for index, inside in places.items()}

    @property
    def windows(self) -> int:
        return -(-self.parameters // self.window_elements)

    @property
    def header_bytes(self) -> int:
        """The header's length: what a ranged read fetches first."""
        return _FIXED.size + WRAPPED_BYTES + 4 * (1 + self.windows)

    @cached_property
    def max_bytes(self) -> int:
        """The longest that a sealed vector of this layout can be."""
        return self.header_bytes + MAX_METADATA_BYTES + TAG_BYTES + self._longest_body

    @cached_property
    def longest_piece(self) -> int:
        """Header, metadata and windows are read one by one; none of them can be longer."""
        windows = (1, *self._with_exact)  # no window is longer than the first, unless something in it is exact
        return max(self.header_bytes, MAX_METADATA_BYTES + TAG_BYTES, *(self.sealed_bytes(i).stop - 1 for i in windows))

    @property
    def _longest_body(self) -> int:
        codec, whole = self.codec, self.parameters // self.window_elements
        body = whole * codec.longest(self.window_elements) + self.windows * TAG_BYTES
        if whole < self.windows:
            body += codec.longest(self.parameters % self.window_elements)
        for index, other in self._with_exact.items():
            elements = len(self.elements(index))
            body += other.longest(elements) - codec.longest(elements)
        if isinstance(codec, TopK):  # what one window holds is missing in the others
            body = min(body, codec.longest(self.parameters) + self.windows * (TAG_BYTES + codec.longest(0)))
        return body

    def elements(self, index: int) -> range:
        """The coordinates of window `index` (from 1)."""
        start = (index - 1) * self.window_elements
        return range(start, min(start + self.window_elements, self.parameters))

    def cut(self, vector: npt.NDArray[Any], index: int) -> npt.NDArray[Any]:
        """Window `index` (from 1) of a vector, as a view."""
        part = self.elements(index)
        return vector[part.start : part.stop]

    def content_bytes(self, index: int) -> int:
        """What window `index` (from 1) of int8 has before it is packed."""
        codec = self.codec_at(index)
        assert isinstance(codec, Int8)
        return codec.content_bytes(len(self.elements(index)))

    def sealed_bytes(self, index: int) -> range:
        """What length window `index` (from 1) may have with its tag; one only, unless it is compressed."""
        codec = self.codec_at(index)
        longest = codec.longest(len(self.elements(index))) + TAG_BYTES
        return range(TAG_BYTES + 1 if codec.compressed else longest, longest + 1)

    @cached_property
    def all_sealed_bytes(self) -> Sequence[range]:
        """`sealed_bytes` of each window, from the first."""
        return [self.sealed_bytes(index) for index in range(1, self.windows + 1)]


@dataclass(frozen=True, slots=True)
class Header:
    """A header that was read and fits its layout.

    Args:
        kid: which sealing key the content key is wrapped to.
        wrapped: the content key, wrapped.
        offsets: where each window starts, and where the last one ends.
        digest: SHA-256 of the header's bytes; every window's tag covers it, so it names the whole.
    """

    layout: Layout
    kid: str
    wrapped: bytes
    offsets: tuple[int, ...]
    digest: bytes

    def span(self, index: int) -> Span:
        """Where window `index` lies; 0 is the metadata."""
        return Span(self.offsets[index], self.offsets[index + 1] - self.offsets[index])

    @property
    def total_bytes(self) -> int:
        return self.offsets[-1]


def make_header(layout: Layout, key: SealingPublicKey, wrapped: bytes, sizes: list[int]) -> bytes:
    """The header of windows that have these lengths with their tags, the metadata's first.

    Args:
        wrapped: the content key, wrapped to `key`.
    """
    codec, kid = layout.codec, bytes.fromhex(key.kid)
    fixed = _FIXED.pack(
        MAGIC, VERSION, codec.code, codec.compressed, layout.window_elements, layout.parameters, kid, WRAPPED_BYTES
    )
    return fixed + wrapped + struct.pack(f"<{len(sizes)}I", *sizes)


def digest_of(blob: Bytes) -> str:
    """What a sealed vector is known by, without opening it: SHA-256 of its header, in hexadecimal.

    Raises:
        Refusal: `update_malformed` when it does not begin with a whole header.
    """
    if len(blob) < _FIXED.size:
        raise Refusal(Code.UPDATE_MALFORMED, f"{len(blob)} bytes are no sealed header.")
    magic, _, encoding, _, window_elements, parameters, _, _ = _FIXED.unpack_from(blob)
    if magic != MAGIC or encoding not in NAMES or window_elements == 0:
        raise Refusal(Code.UPDATE_MALFORMED, "This is no sealed vector.")
    length = Layout(parameters, NAMES[encoding], window_elements).header_bytes
    if len(blob) < length:
        raise Refusal(Code.UPDATE_MALFORMED, f"The header is cut off after {len(blob)} of {length} bytes.")
    return hashlib.sha256(memoryview(blob)[:length]).hexdigest()


def read_header(prefix: Bytes, layout: Layout, digest: str | None = None) -> Header:
    """Read a header from the first `layout.header_bytes` bytes or more, and check it against the layout that is due.

    Args:
        digest: what the vector is known by, if the header must be that one.

    Raises:
        Refusal: `update_malformed`, `update_too_large` (it claims more than is due), `update_shape` (less, or other windows),
            `update_dtype` (another encoding) or `update_digest`. Nothing that the header claims is allocated before it is
            checked.
    """
    if len(prefix) < _FIXED.size:
        raise Refusal(Code.UPDATE_MALFORMED, f"{len(prefix)} bytes are no sealed header.")
    magic, version, encoding, compression, window_elements, parameters, kid, wrapped_bytes = _FIXED.unpack_from(prefix)
    if (magic, version, wrapped_bytes) != (MAGIC, VERSION, WRAPPED_BYTES) or (encoding, compression) not in _KINDS:
        raise Refusal(Code.UPDATE_MALFORMED, "This is no sealed vector of version 1.")
    if parameters > layout.parameters:
        raise Refusal(Code.UPDATE_TOO_LARGE, f"It claims {parameters} parameters; {layout.parameters} are due.")
    if (parameters, window_elements) != (layout.parameters, layout.window_elements):
        raise Refusal(
            Code.UPDATE_SHAPE,
            f"It holds {parameters} parameters in windows of {window_elements}; "
            f"{layout.parameters} in windows of {layout.window_elements} are due.",
        )
    if NAMES[encoding] != layout.encoding:
        raise Refusal(Code.UPDATE_DTYPE, f"It is encoded as {NAMES[encoding]}; {layout.encoding} is due.")
    if len(prefix) < layout.header_bytes:
        raise Refusal(Code.UPDATE_MALFORMED, f"The header is cut off after {len(prefix)} of {layout.header_bytes} bytes.")
    sizes = _read_sizes(prefix, layout)
    found = hashlib.sha256(prefix[: layout.header_bytes])
    if digest not in (None, found.hexdigest()):
        raise Refusal(Code.UPDATE_DIGEST, f"The header that lies there has the digest {found.hexdigest()}, not {digest}.")
    return Header(
        layout,
        kid.hex(),
        bytes(prefix[_FIXED.size : _FIXED.size + WRAPPED_BYTES]),
        tuple(accumulate(sizes, initial=layout.header_bytes)),
        found.digest(),
    )


def _read_sizes(header: Bytes, layout: Layout) -> tuple[int, ...]:
    sizes = struct.unpack_from(f"<{1 + layout.windows}I", header, _FIXED.size + WRAPPED_BYTES)
    if sizes[0] > MAX_METADATA_BYTES + TAG_BYTES:
        raise Refusal(Code.UPDATE_TOO_LARGE, f"The metadata claims {sizes[0]} bytes; {MAX_METADATA_BYTES} are allowed.")
    if sizes[0] < TAG_BYTES:
        raise Refusal(Code.UPDATE_MALFORMED, f"The metadata claims {sizes[0]} bytes, less than a tag.")
    if not all(map(contains, layout.all_sealed_bytes, sizes[1:])):
        raise Refusal(Code.UPDATE_SHAPE, "The windows' lengths do not tile the vector.")
    return sizes
