"""A sealed vector: a header, one window of metadata, then fixed windows of coordinates, each encoded and sealed by itself.

The format, byte by byte, stands in docs/envelope.md. It opens as a stream, and one window can be fetched by a ranged read. The
chain of nonces is STREAM (Hoang, Reyhanitabar, Rogaway, Vizar 2015): a counter and a last-flag, so that windows can be neither
reordered nor dropped, repeated or cut off. `envelope` puts a device's update in it; the aggregator's partial sums fit as well.
"""

import hashlib
import io
import os
import struct
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedlearn.core.errors import Code, Refusal
from fedlearn.protocol.sealing import CONTENT_KEY_BYTES, WRAPPED_BYTES, SealingKey, SealingPublicKey

Encoding = Literal["float32", "float16", "float64"]
Bytes = bytes | bytearray | memoryview

MAGIC = b"FLSEALED"
VERSION = 1
TAG_BYTES = 16
MAX_METADATA_BYTES = 65_536
_METADATA_STEP = 512  # metadata is padded to a multiple, so that an envelope's length says nothing about what is in it
_FIXED = struct.Struct("<8sHBBIQ16sI")  # magic, version, encoding, compression, window_elements, parameters, kid, wrapped_bytes
_WIRE: dict[Encoding, np.dtype[Any]] = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2"), "float64": np.dtype("<f8")}
_CODES: dict[Encoding, int] = {"float32": 1, "float16": 2, "float64": 3}
_ENCODINGS = {code: encoding for encoding, code in _CODES.items()}


class Span(NamedTuple):
    """Where a window lies: `length` bytes from `start`."""

    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Layout:
    """How a vector is cut and encoded. Window 0 is the metadata, windows 1 to `windows` are the coordinates in order."""

    parameters: int
    encoding: Encoding
    window_elements: int

    @property
    def windows(self) -> int:
        return -(-self.parameters // self.window_elements)

    @property
    def header_bytes(self) -> int:
        """The header's length: what a ranged read fetches first."""
        return _FIXED.size + WRAPPED_BYTES + 4 * (1 + self.windows)

    @property
    def max_bytes(self) -> int:
        """The longest that a sealed vector of this layout can be."""
        body = self.parameters * _WIRE[self.encoding].itemsize + self.windows * TAG_BYTES
        return self.header_bytes + MAX_METADATA_BYTES + TAG_BYTES + body

    def elements(self, index: int) -> range:
        """The coordinates of window `index` (from 1)."""
        start = (index - 1) * self.window_elements
        return range(start, min(start + self.window_elements, self.parameters))

    def cut(self, vector: npt.NDArray[Any], index: int) -> npt.NDArray[Any]:
        """Window `index` (from 1) of a vector, as a view."""
        part = self.elements(index)
        return vector[part.start : part.stop]

    def sealed_bytes(self, index: int) -> int:
        """The length of window `index` (from 1) with its tag."""
        return len(self.elements(index)) * _WIRE[self.encoding].itemsize + TAG_BYTES


@dataclass(frozen=True, slots=True)
class Header:
    """A header that was read and fits its layout.

    Args:
        kid: which sealing key the content key is wrapped to.
        wrapped: the content key, wrapped.
        offsets: where each window starts, and where the last one ends.
        digest: SHA-256 of the header's bytes; every window's tag covers it.
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


def seal_vector(vector: npt.NDArray[Any], metadata: bytes, *, key: SealingPublicKey, info: bytes, layout: Layout) -> bytes:
    """Seal a vector for the owner of `key`, who opens it with the same `info` only. The output is written once, in place.

    Args:
        vector: shape (layout.parameters,), float32, or float64 for the encoding of that name.
        metadata: at most 65,536 bytes; spaces are appended, so it should be JSON.

    Raises:
        Refusal: `update_shape`, `update_dtype`; `update_too_large` for the metadata; `update_not_finite` when a finite value
            is beyond float16. It is never clipped: a delta of 65,504 is no update but a model that has diverged.
    """
    _check_vector(vector, layout)
    padded = metadata.ljust(-(-len(metadata) // _METADATA_STEP) * _METADATA_STEP)
    if len(padded) > MAX_METADATA_BYTES:
        raise Refusal(Code.UPDATE_TOO_LARGE, f"The metadata has {len(metadata)} bytes; {MAX_METADATA_BYTES} are allowed.")
    content_key = os.urandom(CONTENT_KEY_BYTES)
    sizes = [len(padded) + TAG_BYTES, *(layout.sealed_bytes(index) for index in range(1, layout.windows + 1))]
    code, kid = _CODES[layout.encoding], bytes.fromhex(key.kid)
    fixed = _FIXED.pack(MAGIC, VERSION, code, 0, layout.window_elements, layout.parameters, kid, WRAPPED_BYTES)
    header = fixed + key.wrap(content_key, info) + struct.pack(f"<{len(sizes)}I", *sizes)
    digest = hashlib.sha256(header).digest()
    cipher = AESGCM(content_key)

    # BytesIO gives its buffer away as `bytes` without a copy, which no bytearray does
    stream = io.BytesIO(header)
    stream.seek(len(header) + sum(sizes) - 1)
    stream.write(b"\0")
    with stream.getbuffer() as output:
        start = len(header)
        for index, size in enumerate(sizes):
            plain = padded if index == 0 else _encode(layout.cut(vector, index), layout.encoding)
            cipher.encrypt_into(_nonce(index, layout), plain, digest, output[start : start + size])
            start += size
    return stream.getvalue()


def read_header(prefix: Bytes, layout: Layout) -> Header:
    """Read a header from the first `layout.header_bytes` bytes or more, and check it against the layout that is due.

    Raises:
        Refusal: `update_malformed`, `update_too_large` (it claims more than is due), `update_shape` (less, or other windows)
            or `update_dtype` (another encoding). Nothing that the header claims is allocated before it is checked.
    """
    if len(prefix) < _FIXED.size:
        raise Refusal(Code.UPDATE_MALFORMED, f"{len(prefix)} bytes are no sealed header.")
    magic, version, encoding, compression, window_elements, parameters, kid, wrapped_bytes = _FIXED.unpack_from(prefix)
    if (magic, version, compression, wrapped_bytes) != (MAGIC, VERSION, 0, WRAPPED_BYTES) or encoding not in _ENCODINGS:
        raise Refusal(Code.UPDATE_MALFORMED, "This is no sealed vector of version 1.")
    if parameters > layout.parameters:
        raise Refusal(Code.UPDATE_TOO_LARGE, f"It claims {parameters} parameters; {layout.parameters} are due.")
    if (parameters, window_elements) != (layout.parameters, layout.window_elements):
        raise Refusal(
            Code.UPDATE_SHAPE,
            f"It holds {parameters} parameters in windows of {window_elements}; "
            f"{layout.parameters} in windows of {layout.window_elements} are due.",
        )
    if _ENCODINGS[encoding] != layout.encoding:
        raise Refusal(Code.UPDATE_DTYPE, f"It is encoded as {_ENCODINGS[encoding]}; {layout.encoding} is due.")
    if len(prefix) < layout.header_bytes:
        raise Refusal(Code.UPDATE_MALFORMED, f"The header is cut off after {len(prefix)} of {layout.header_bytes} bytes.")
    sizes = struct.unpack_from(f"<{1 + layout.windows}I", prefix, _FIXED.size + WRAPPED_BYTES)
    if sizes[0] > MAX_METADATA_BYTES + TAG_BYTES:
        raise Refusal(Code.UPDATE_TOO_LARGE, f"The metadata claims {sizes[0]} bytes; {MAX_METADATA_BYTES} are allowed.")
    if sizes[0] < TAG_BYTES:
        raise Refusal(Code.UPDATE_MALFORMED, f"The metadata claims {sizes[0]} bytes, less than a tag.")
    if any(size != layout.sealed_bytes(index) for index, size in enumerate(sizes[1:], start=1)):
        raise Refusal(Code.UPDATE_SHAPE, "The windows' lengths do not tile the vector.")
    return Header(
        layout,
        kid.hex(),
        bytes(prefix[_FIXED.size : _FIXED.size + WRAPPED_BYTES]),
        tuple(accumulate(sizes, initial=layout.header_bytes)),
        hashlib.sha256(prefix[: layout.header_bytes]).digest(),
    )


class Opening:
    """An unwrapped content key: opens the windows of one sealed vector, in any order.

    Raises:
        Refusal: `update_tampered` when `header` is for another key or another `info`, or was changed.
    """

    def __init__(self, header: Header, *, key: SealingKey, info: bytes) -> None:
        if header.kid != key.kid:
            raise Refusal(Code.UPDATE_TAMPERED, f"It is sealed to key {header.kid}, not to {key.kid}.")
        content_key = key.unwrap_content_key(header.wrapped, info)
        if len(content_key) != CONTENT_KEY_BYTES:
            raise Refusal(Code.UPDATE_MALFORMED, f"The content key has {len(content_key)} bytes, not {CONTENT_KEY_BYTES}.")
        self.header = header
        self._cipher = AESGCM(content_key)

    def metadata(self, sealed: Bytes) -> bytes:
        """Open window 0.

        Raises:
            Refusal: `update_tampered`, `update_malformed` for a length that is not the header's.
        """
        self._check_length(0, sealed)
        try:
            return self._cipher.decrypt(_nonce(0, self.header.layout), sealed, self.header.digest)
        except InvalidTag as error:
            raise self._tampered(0) from error

    def window(self, index: int, sealed: Bytes, out: npt.NDArray[Any]) -> None:
        """Open window `index` (from 1) into `out`, whose content is undefined after a refusal.

        Args:
            sealed: the bytes at `header.span(index)`.
            out: contiguous, float32 (float64 for that encoding), shape (elements of the window,).

        Raises:
            Refusal: as `metadata`.
        """
        self._check_length(index, sealed)
        layout = self.header.layout
        # where encoding and memory agree, the plaintext is written straight to its place
        wire = _WIRE[layout.encoding]
        target = out if out.dtype == wire else np.empty(len(out), wire)
        try:
            self._cipher.decrypt_into(_nonce(index, layout), sealed, self.header.digest, target.data.cast("B"))
        except InvalidTag as error:
            raise self._tampered(index) from error
        if target is not out:
            out[:] = target

    def _check_length(self, index: int, sealed: Bytes) -> None:
        due = self.header.span(index).length
        if len(sealed) != due:
            raise Refusal(Code.UPDATE_MALFORMED, f"Window {index} has {len(sealed)} bytes; {due} are due.")

    @staticmethod
    def _tampered(index: int) -> Refusal:
        return Refusal(Code.UPDATE_TAMPERED, f"The seal of window {index} does not open: its bytes or its header were changed.")


def open_vector(
    blob: Bytes, *, key: SealingKey, info: bytes, layout: Layout, out: npt.NDArray[Any] | None = None
) -> tuple[bytes, npt.NDArray[Any]]:
    """Open a whole sealed vector: its metadata and its coordinates, once every tag is checked.

    Args:
        out: where to write the coordinates: contiguous, float32 (float64 for that encoding), shape (layout.parameters,); it is
            returned. Its content is undefined after a refusal. None makes a new array.

    Raises:
        Refusal: as `read_header` and `Opening`; `update_malformed` also when bytes are missing or left over.
    """
    view = memoryview(blob).cast("B")
    if len(view) > layout.max_bytes:
        raise Refusal(Code.UPDATE_TOO_LARGE, f"It has {len(view)} bytes; at most {layout.max_bytes} are due.")
    header = read_header(view, layout)
    if len(view) != header.total_bytes:
        raise Refusal(Code.UPDATE_MALFORMED, f"It has {len(view)} bytes; its header says {header.total_bytes}.")
    opening = Opening(header, key=key, info=info)
    vector: npt.NDArray[Any] = np.empty(layout.parameters, _memory_dtype(layout)) if out is None else out
    _check_vector(vector, layout)
    start, length = header.span(0)
    metadata = opening.metadata(view[start : start + length])
    for index in range(1, layout.windows + 1):
        start, length = header.span(index)
        opening.window(index, view[start : start + length], layout.cut(vector, index))
    return metadata, vector


def _nonce(index: int, layout: Layout) -> bytes:
    return struct.pack("<Q3xB", index, index == layout.windows)


def _encode(part: npt.NDArray[Any], encoding: Encoding) -> memoryview:
    wire = _WIRE[encoding]
    if part.dtype != wire:
        try:
            with np.errstate(over="raise"):
                part = part.astype(wire)
        except FloatingPointError as error:
            raise Refusal(
                Code.UPDATE_NOT_FINITE,
                f"A value does not fit {encoding}: lower the learning rate, or let the plan use float32.",
            ) from error
    return np.ascontiguousarray(part).data.cast("B")


def _memory_dtype(layout: Layout) -> np.dtype[Any]:
    return np.dtype(np.float64 if layout.encoding == "float64" else np.float32)


def _check_vector(vector: npt.NDArray[Any], layout: Layout) -> None:
    if vector.shape != (layout.parameters,):
        raise Refusal(Code.UPDATE_SHAPE, f"The vector's shape is {vector.shape}; ({layout.parameters},) is due.")
    if vector.dtype != _memory_dtype(layout):
        raise Refusal(Code.UPDATE_DTYPE, f"The vector's dtype is {vector.dtype}; {_memory_dtype(layout)} is due.")
