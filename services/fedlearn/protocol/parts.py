"""What goes into storage in parts, so that a broken connection costs one of them, and the messages for a device's."""

import hashlib
from typing import Annotated

from pydantic import Field

from fedlearn.core.errors import Code, Refusal
from fedlearn.core.ports import Part
from fedlearn.protocol.messages import Digest, Message, ReadyUpdate, Seconds, Url

PART_BYTES = 16 << 20
"""What a large object is cut into; the last part is what is left."""
SINGLE_BYTES = 64 << 20
"""A longer object goes in parts."""


class PartsRequest(ReadyUpdate):
    """In parts of `PART_BYTES`."""

    part_sha256: Annotated[tuple[Digest, ...], Field(min_length=1, max_length=10_000, description="Of each part, in order.")]
    upload_id: Annotated[
        str | None, Field(max_length=1024, description="To go on with an upload whose URLs have expired: its id.")
    ] = None


class PartGrant(Message):
    """A pre-signed PUT of one part: these headers and no other bytes, as often as it takes."""

    url: Url
    headers: Annotated[dict[str, str], Field(examples=[{"Content-Length": "16777216"}])]


class PartsUpload(Message):
    upload_id: str
    parts: tuple[PartGrant, ...]
    valid_seconds: Seconds


class PartsDone(PartsRequest):
    """All parts have arrived: what makes them one update."""

    upload_id: Annotated[str, Field(max_length=1024)]
    tags: Annotated[
        tuple[Annotated[str, Field(max_length=200)], ...],
        Field(max_length=10_000, description="The ETag with which the storage has answered each part."),
    ]


def part_sizes(size_bytes: int) -> list[int]:
    """What so many bytes are cut into."""
    whole, rest = divmod(size_bytes, PART_BYTES)
    return [PART_BYTES] * whole + ([rest] if rest else [])


def digests_of(body: bytes) -> tuple[str, ...]:
    """SHA-256, in hexadecimal, of all of it, or of each part of what goes in parts."""
    view = memoryview(body)
    step = PART_BYTES if len(view) > SINGLE_BYTES else len(view) or 1
    return tuple(hashlib.sha256(view[start : start + step]).hexdigest() for start in range(0, len(view) or 1, step))


def parts_of(request: PartsRequest, tags: tuple[str, ...] | None = None) -> list[Part]:
    """The parts that a request describes.

    Raises:
        Refusal: `bad_request` when there are more or fewer of them, or of their tags, than its size has.
    """
    sizes = part_sizes(request.size_bytes)
    tags = ("",) * len(sizes) if tags is None else tags
    if not len(sizes) == len(request.part_sha256) == len(tags):
        raise Refusal(Code.BAD_REQUEST, f"{request.size_bytes} bytes are {len(sizes)} parts of {PART_BYTES}.")
    return [Part(size, sha256, tag) for size, sha256, tag in zip(sizes, request.part_sha256, tags, strict=True)]
