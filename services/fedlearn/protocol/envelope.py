"""Update envelope v1: a device's update, sealed for one aggregator, one round and one base model.

What counts (examples, metrics, the base's digest) is sealed inside, so that what lies in storage is enough. An update's digest,
by which it is known, is the SHA-256 of its header. docs/envelope.md describes the bytes; `windows` does the sealing.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedlearn.core.errors import Code, Refusal
from fedlearn.core.updates import Update, Vector
from fedlearn.protocol.codecs import Bytes
from fedlearn.protocol.headers import Header, Layout, Span, digest_of, read_header
from fedlearn.protocol.plans import Plan, UpdateFormat
from fedlearn.protocol.sealing import SealingKey, SealingPublicKey
from fedlearn.protocol.windows import Coming, Opening, open_vector, open_windows, seal_vector

__all__ = [
    "Coming",
    "Header",
    "Metadata",
    "Opening",
    "Span",
    "UpdateContext",
    "digest_of",
    "layout_of",
    "open_encoded",
    "open_envelope",
    "open_metadata",
    "open_update",
    "read_header",
    "seal",
]  # fmt: skip

_LABEL = b"fedlearn update envelope v1\n"
_MOST = 2**53  # beyond it an integer of JSON is not the same in every language


@dataclass(frozen=True, slots=True)
class UpdateContext:
    """What an update is for: its content key unwraps in no other context.

    Args:
        device: `pod` or `pod/slot`.
        plan_digest: SHA-256 of the plan's canonical JSON.
        base_sha256: SHA-256 of the global model's file that the delta was made from.
    """

    task: str
    round: int
    device: str
    plan_digest: str
    base_sha256: str

    @property
    def info(self) -> bytes:
        """HPKE's `info`: a label, then the context as canonical JSON."""
        fields = {
            "task": self.task, "round": self.round, "device": self.device, "plan": self.plan_digest, "base": self.base_sha256
        }  # fmt: skip
        return _LABEL + json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


class Metadata(BaseModel):
    """Window 0: what an update says of itself."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    base: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    examples: Annotated[int, Field(ge=0, le=_MOST)]
    holdout_examples: Annotated[int, Field(ge=0, le=_MOST)]
    metrics: Annotated[dict[Annotated[str, Field(min_length=1, max_length=100)], float], Field(max_length=100)]

    def update(self) -> Update:
        """What it says of an update, without the delta."""
        return Update(np.empty(0, np.float32), self.examples, self.holdout_examples, self.metrics)


def layout_of(plan: Plan) -> Layout:
    """How updates of this plan are cut. `header_bytes` is what to read first, `max_bytes` the longest an envelope can be."""
    return _layout(plan.parameters, plan.update)


@lru_cache(maxsize=64)
def _layout(parameters: int, update: UpdateFormat) -> Layout:
    return Layout(parameters, update.encoding, update.window_elements, update.keep(parameters), update.exact)


def seal(
    update: Update,
    *,
    key: SealingPublicKey,
    context: UpdateContext,
    format: UpdateFormat,  # noqa: A002
    rng: np.random.Generator | None = None,
) -> bytes:
    """Seal an update; at its peak it takes the delta's and the envelope's memory, and one window's (compressed, twice the
    envelope's).

    Args:
        rng: decides how `int8` rounds.

    Raises:
        Refusal: `update_not_finite` when a metric is not finite, or a value does not fit float16; `update_dtype`,
            `update_shape`; `update_too_large` for more metrics than an envelope holds, or more values than `top_k` keeps.
    """
    if not all(math.isfinite(value) for value in update.metrics.values()):
        raise Refusal(Code.UPDATE_NOT_FINITE, "A metric is NaN or infinite.")
    try:
        metadata = Metadata(
            base=context.base_sha256,
            examples=update.examples,
            holdout_examples=update.holdout_examples,
            metrics={name: float(value) for name, value in update.metrics.items()},
        )
    except ValidationError as error:
        raise Refusal(Code.UPDATE_MALFORMED, f"An envelope can't say that of an update: {_faults(error)}.") from error
    layout = _layout(update.delta.size, format)
    raw = metadata.model_dump_json().encode()
    return seal_vector(update.delta, raw, key=key, info=context.info, layout=layout, rng=rng)


def open_update(
    sealed: Bytes | Coming,
    *,
    key: SealingKey,
    context: UpdateContext,
    plan: Plan,
    digest: str | None = None,
    out: Vector | None = None,
) -> Update:
    """Open an envelope; nothing is returned before every tag, the order and the length are checked.

    Args:
        sealed: as `open_vector`.
        digest: what the update is known by, if it must be that one.
        out: where to write the delta: contiguous float32, shape (plan.parameters,). The update's delta is then `out` itself.
            Its content is undefined after a refusal.

    Raises:
        Refusal: `update_malformed`; `update_tampered` (a tag fails, another key or another context); `update_too_large`
            (it claims more than the plan allows); `update_shape`; `update_dtype`; `update_digest`; `update_base`.
    """
    raw, delta = open_vector(sealed, key=key, info=context.info, layout=layout_of(plan), digest=digest, out=out)
    return replace(_read_metadata(raw, context).update(), delta=delta)


def open_encoded(
    sealed: Bytes | Coming,
    place: Callable[[int], npt.NDArray[np.uint8]],
    *,
    key: SealingKey,
    context: UpdateContext,
    plan: Plan,
    digest: str | None = None,
) -> Update:
    """Open an envelope of int8 as `open_update`, which raises the same, and leave its windows as they are encoded.

    Args:
        place: where window `index` (from 1) is written, shape (`layout_of(plan).content_bytes(index)`,).

    Returns:
        The update without its delta.
    """
    raw = open_windows(sealed, place, key=key, info=context.info, layout=layout_of(plan), digest=digest)
    return _read_metadata(raw, context).update()


def open_envelope(header: Header, *, key: SealingKey, context: UpdateContext) -> Opening:
    """Unwrap the content key of an envelope that is read by windows: `Opening.window(index, bytes, out)` opens each.

    The header comes from `read_header(prefix, layout_of(plan), digest)`, and `header.span(index)` says what to fetch. The
    caller checks that the object's length is `header.total_bytes`.

    Raises:
        Refusal: `update_tampered`.
    """
    return Opening(header, key=key, info=context.info)


def open_metadata(opening: Opening, sealed: Bytes, context: UpdateContext) -> Metadata:
    """Open window 0, the bytes at `header.span(0)`.

    Raises:
        Refusal: `update_malformed`, `update_tampered` or `update_base`.
    """
    return _read_metadata(opening.metadata(sealed), context)


def _read_metadata(raw: bytes, context: UpdateContext) -> Metadata:
    try:
        metadata = Metadata.model_validate_json(raw)
    except ValidationError as error:
        raise Refusal(Code.UPDATE_MALFORMED, f"The update's metadata is not as documented: {_faults(error)}.") from error
    if metadata.base != context.base_sha256:
        raise Refusal(Code.UPDATE_BASE, f"The update was made from model {metadata.base}, not {context.base_sha256}.")
    return metadata


def _faults(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'metadata'}: {e['msg']}" for e in error.errors()[:5])
