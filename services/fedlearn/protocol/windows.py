"""Seals and opens a vector: a header, one window of metadata, then fixed windows of coordinates, each sealed by itself.

It opens as a stream, and one window can be fetched by a ranged read. The chain of nonces is STREAM (Hoang, Reyhanitabar,
Rogaway, Vizar 2015): a counter and a last-flag, so that windows can be neither reordered nor dropped, repeated or cut off.
`headers` has what is known before a window is opened; `envelope` puts a device's update in it; the aggregator's partial sums
fit as well.
"""

import hashlib
import io
import os
import struct
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedlearn.core.errors import Code, Refusal
from fedlearn.core.updates import check_finite
from fedlearn.protocol.codecs import Bytes, Int8, Plain
from fedlearn.protocol.headers import MAX_METADATA_BYTES, TAG_BYTES, Header, Layout, make_header, read_header
from fedlearn.protocol.sealing import CONTENT_KEY_BYTES, SealingKey, SealingPublicKey

_METADATA_STEP = 512  # metadata is padded to a multiple, so that an envelope's length says nothing about what is in it


class Coming(NamedTuple):
    """A sealed vector that is read piece by piece.

    Args:
        size: of all of it, in bytes.
        take: gives the next so many bytes: those of window `index`, or with 0 those of the header or the metadata. They are the
            caller's until it asks for more; a writable memoryview is written over.
    """

    size: int
    take: Callable[[int, int], Bytes]


def _opens_in_place() -> bool:
    """Whether what is opened may lie where it lay sealed. OpenSSL promises that, `cryptography` does not say."""
    cipher, nonce, content = AESGCM(bytes(32)), bytes(12), bytes(range(256)) * 16
    sealed = memoryview(bytearray(cipher.encrypt(nonce, content, None)))
    try:
        cipher.decrypt_into(nonce, sealed, None, sealed[:-TAG_BYTES])
    except (ValueError, BufferError, InvalidTag):
        return False
    return sealed[:-TAG_BYTES] == content


OPENS_IN_PLACE = _opens_in_place()


def seal_vector(
    vector: npt.NDArray[Any],
    metadata: bytes,
    *,
    key: SealingPublicKey,
    info: bytes,
    layout: Layout,
    rng: np.random.Generator | None = None,
) -> bytes:
    """Seal a vector for the owner of `key`, who opens it with the same `info` only. The output is written once, in place.

    Args:
        vector: shape (layout.parameters,), float32, or float64 for the encoding of that name.
        metadata: at most 65,536 bytes; spaces are appended, so it should be JSON.
        rng: decides how `int8` rounds; by default nobody knows how.

    Raises:
        Refusal: `update_shape`, `update_dtype`; `update_too_large` for the metadata, or more values than `top_k` keeps;
            `update_not_finite` when a finite value is beyond float16, or int8 is to hold one that is not finite. Nothing is
            clipped: a delta of 65,504 is no update but a model that has diverged.
    """
    _check_vector(vector, layout)
    padded = metadata.ljust(-(-len(metadata) // _METADATA_STEP) * _METADATA_STEP)
    if len(padded) > MAX_METADATA_BYTES:
        raise Refusal(Code.UPDATE_TOO_LARGE, f"The metadata has {len(metadata)} bytes; {MAX_METADATA_BYTES} are allowed.")
    content_key = os.urandom(CONTENT_KEY_BYTES)
    codec, rng = layout.codec, rng or np.random.default_rng()

    def encode(index: int) -> Bytes:
        return layout.codec_at(index).encode(layout.cut(vector, index), rng)

    numbers = range(1, layout.windows + 1)
    # compressed windows are made before, since the header tells their lengths; they are short
    made = {index: encode(index) for index in numbers} if codec.compressed else {}
    lengths = (len(made[index]) if made else codec.longest(len(layout.elements(index))) for index in numbers)
    sizes = [len(padded) + TAG_BYTES, *(length + TAG_BYTES for length in lengths)]
    header = make_header(layout, key, key.wrap(content_key, info), sizes)
    digest = hashlib.sha256(header).digest()
    cipher = AESGCM(content_key)

    # BytesIO gives its buffer away as `bytes` without a copy, which no bytearray does
    stream = io.BytesIO(header)
    stream.seek(len(header) + sum(sizes) - 1)
    stream.write(b"\0")
    with stream.getbuffer() as output:
        start = len(header)
        for index, size in enumerate(sizes):
            plain = padded if index == 0 else made.pop(index) if made else encode(index)
            cipher.encrypt_into(_nonce(index, layout), plain, digest, output[start : start + size])
            start += size
    return stream.getvalue()


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
            sealed: the bytes at `header.span(index)`; a writable memoryview may be written over. Where `OPENS_IN_PLACE`, and if
                `out` has the dtype of the encoding, they may begin where it does.
            out: contiguous, float32 (float64 for that encoding), shape (elements of the window,); or, for int8, uint8: then its
                content is written as it is encoded, shape (`layout.content_bytes(index)`,).

        Raises:
            Refusal: as `metadata`; `update_malformed` or `update_too_large` for what does not unpack to this window;
                `update_not_finite`.
        """
        self._check_length(index, sealed)
        layout = self.header.layout
        codec, nonce = layout.codec_at(index), _nonce(index, layout)
        try:
            if out.dtype == np.uint8:
                assert isinstance(codec, Int8), "no other content is added as it is encoded"
                codec.unpack(self._plain(nonce, sealed), len(layout.elements(index)), out)
            elif isinstance(codec, Plain) and codec.wire == out.dtype:  # the plaintext is written straight to its place
                self._cipher.decrypt_into(nonce, sealed, self.header.digest, out.data.cast("B"))
                check_finite(out)  # now, while it is in the cache
            else:
                codec.decode(self._plain(nonce, sealed), out)
        except InvalidTag as error:
            raise self._tampered(index) from error

    def _plain(self, nonce: bytes, sealed: Bytes) -> Bytes:
        if not OPENS_IN_PLACE or not isinstance(sealed, memoryview) or sealed.readonly:
            return self._cipher.decrypt(nonce, sealed, self.header.digest)
        plain = sealed[:-TAG_BYTES]
        self._cipher.decrypt_into(nonce, sealed, self.header.digest, plain)
        return plain

    def _check_length(self, index: int, sealed: Bytes) -> None:
        due = self.header.span(index).length
        if len(sealed) != due:
            raise Refusal(Code.UPDATE_MALFORMED, f"Window {index} has {len(sealed)} bytes; {due} are due.")

    @staticmethod
    def _tampered(index: int) -> Refusal:
        return Refusal(Code.UPDATE_TAMPERED, f"The seal of window {index} does not open: its bytes or its header were changed.")


def open_vector(
    sealed: Bytes | Coming,
    *,
    key: SealingKey,
    info: bytes,
    layout: Layout,
    digest: str | None = None,
    out: npt.NDArray[Any] | None = None,
) -> tuple[bytes, npt.NDArray[Any]]:
    """Open a whole sealed vector: its metadata and its coordinates, once every tag is checked.

    Args:
        sealed: all of it, or what gives it piece by piece, so that each is opened while it is in the cache.
        digest: as `read_header`.
        out: where to write the coordinates: contiguous, float32 (float64 for that encoding), shape (layout.parameters,); it is
            returned. Its content is undefined after a refusal. None makes a new array.

    Raises:
        Refusal: as `read_header` and `Opening`; `update_malformed` also when bytes are missing or left over.
    """
    vector: npt.NDArray[Any] = np.empty(layout.parameters, _memory_dtype(layout)) if out is None else out
    _check_vector(vector, layout)
    place = partial(layout.cut, vector)
    return open_windows(sealed, place, key=key, info=info, layout=layout, digest=digest), vector


def open_windows(
    sealed: Bytes | Coming,
    place: Callable[[int], npt.NDArray[Any]],
    *,
    key: SealingKey,
    info: bytes,
    layout: Layout,
    digest: str | None = None,
) -> bytes:
    """Open a whole sealed vector as `open_vector`, which raises the same, and return its metadata.

    Args:
        place: where window `index` (from 1) is written, see `Opening.window`.
    """
    size, take = sealed if isinstance(sealed, Coming) else _pieces(sealed)
    if size > layout.max_bytes:
        raise Refusal(Code.UPDATE_TOO_LARGE, f"It has {size} bytes; at most {layout.max_bytes} are due.")
    header = read_header(take(min(size, layout.header_bytes), 0), layout, digest)
    if size != header.total_bytes:
        raise Refusal(Code.UPDATE_MALFORMED, f"It has {size} bytes; its header says {header.total_bytes}.")
    opening = Opening(header, key=key, info=info)
    metadata = opening.metadata(take(header.span(0).length, 0))
    for index in range(1, layout.windows + 1):
        opening.window(index, take(header.span(index).length, index), place(index))
    return metadata


def _pieces(blob: Bytes) -> Coming:
    view = memoryview(blob).cast("B").toreadonly()
    start = 0

    def take(length: int, _: int) -> Bytes:
        nonlocal start
        start += length
        return view[start - length : start]

    return Coming(len(view), take)


def _nonce(index: int, layout: Layout) -> bytes:
    return struct.pack("<Q3xB", index, index == layout.windows)


def _memory_dtype(layout: Layout) -> np.dtype[Any]:
    return np.dtype(np.float64 if layout.encoding == "float64" else np.float32)


def _check_vector(vector: npt.NDArray[Any], layout: Layout) -> None:
    if vector.shape != (layout.parameters,):
        raise Refusal(Code.UPDATE_SHAPE, f"The vector's shape is {vector.shape}; ({layout.parameters},) is due.")
    if vector.dtype != _memory_dtype(layout):
        raise Refusal(Code.UPDATE_DTYPE, f"The vector's dtype is {vector.dtype}; {_memory_dtype(layout)} is due.")
