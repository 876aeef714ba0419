"""What devices begin a round with: the model itself, or a copy of it in float16 that lies beside it.

The aggregator writes the copy before a round opens. Its key tells the model's key and the copy's digest, so that every server
finds it by a listing, and nobody has to remember it.
"""

from collections.abc import Sequence

from fedlearn.core.errors import Code, Outage
from fedlearn.core.ids import is_digest
from fedlearn.core.ports import ObjectStore, StoredObject
from fedlearn.protocol.messages import Model
from fedlearn.protocol.plans import Plan

_SUFFIX = ".safetensors"


def served_key(base: str, sha256: str) -> str:
    """The key of a model's copy."""
    return f"{_prefix(base)}{sha256}{_SUFFIX}"


def find_start(base: Model, plan: Plan, models: ObjectStore) -> Model:
    """What devices of a round from this base begin with.

    Raises:
        Outage: `storage_unavailable`, also while the copy is not there: the aggregator has written it before the round opened.
    """
    if plan.model_encoding == "float32":
        return base
    found = _copies(models.list(_prefix(base.key)), base)
    if not found:
        raise Outage(Code.STORAGE_UNAVAILABLE, f"The copy of {base.key} for devices is not in the object storage.")
    return found[0]


def _prefix(base: str) -> str:
    return f"{base.removesuffix(_SUFFIX)}.float16-"


def _copies(stored: Sequence[StoredObject], base: Model) -> list[Model]:
    named = [(copy, copy.key.removeprefix(_prefix(base.key)).removesuffix(_SUFFIX)) for copy in stored]
    return [
        Model(version=base.version, key=copy.key, sha256=sha256, size_bytes=copy.size_bytes)
        for copy, sha256 in named
        if is_digest(sha256)
    ]
