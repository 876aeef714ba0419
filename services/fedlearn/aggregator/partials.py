"""A sum on its way, sealed by the aggregator to itself, with a chain of manifests that says which updates are in it.

The parts of a sum are written first, then its manifest, once: from then on it counts those updates, and they are deleted.
Whatever happens in between, a later process finds either the manifest, or the updates. Every manifest names the digest of the
one before, and every part of a sum is sealed together with the digest of its manifest, so no two are ever mixed.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, ValidationError

from fedlearn.aggregator.layout import Descriptor, manifest_key, partials_prefix, sum_key, update_key
from fedlearn.core.aggregation import TallyState, WeightedSum
from fedlearn.core.errors import Code, Refusal
from fedlearn.core.ids import DeviceId
from fedlearn.core.ports import ObjectStore
from fedlearn.protocol.headers import Layout
from fedlearn.protocol.messages import Digest
from fedlearn.protocol.plans import Plan
from fedlearn.protocol.sealing import SealingKey
from fedlearn.protocol.windows import open_vector, seal_vector

_LABEL = b"fedlearn partial sum v1\n"
_PART_ELEMENTS = 1 << 22  # 32 MiB: what is sealed, written and read at a time
_WINDOW_ELEMENTS = 1 << 18


class Manifest(BaseModel):
    """`{number}.json`: what the sum of this number holds.

    Args:
        number: from 1, without gaps.
        previous: the digest of the manifest before, None for the first.
        final: this aggregator's part of the round is closed.
        contributors: what the sum holds and the one before did not, in the order in which it was added.
        tally: of everything that the sum holds.
    """

    model_config = ConfigDict(frozen=True)

    version: int = 1
    number: int
    previous: Digest | None
    final: bool
    contributors: dict[DeviceId, Digest]
    tally: TallyState


@dataclass(frozen=True, slots=True)
class Chain:
    """The manifests so far, and the last one's digest."""

    manifests: tuple[Manifest, ...] = ()
    digest: str | None = None

    @property
    def number(self) -> int:
        return len(self.manifests)

    @property
    def final(self) -> bool:
        return bool(self.manifests) and self.manifests[-1].final

    @property
    def counted(self) -> int:
        return sum(len(manifest.contributors) for manifest in self.manifests)

    @property
    def contributors(self) -> dict[DeviceId, str]:
        return {device: digest for manifest in self.manifests for device, digest in manifest.contributors.items()}

    def and_then(self, contributors: Mapping[DeviceId, str], tally: TallyState, *, final: bool) -> "Chain":
        """This chain with one more manifest, which is not written."""
        manifest = Manifest(
            number=self.number + 1, previous=self.digest, final=final, contributors=dict(contributors), tally=tally
        )
        return Chain((*self.manifests, manifest), hashlib.sha256(_body(manifest)).hexdigest())


class Partials:
    """The partial sums of one round's aggregator.

    Args:
        shard: which of the round's aggregators it is.
    """

    def __init__(self, descriptor: Descriptor, plan: Plan, key: SealingKey, store: ObjectStore, shard: int) -> None:
        self._descriptor, self._plan, self._key, self._store, self._shard = descriptor, plan, key, store, shard
        self._id = descriptor.id

    def read(self) -> Chain:
        """The chain as it lies in storage.

        Raises:
            Refusal: `partial_sum_damaged`.
            Outage: `storage_unavailable`.
        """
        chain = Chain()
        numbers = [
            found.key for found in self._store.list(partials_prefix(self._id, self._shard)) if found.key.endswith(".json")
        ]
        for key in numbers:
            body = self._store.get(key)
            try:
                manifest = Manifest.model_validate_json(body)
            except ValidationError as error:
                raise _damaged(key) from error
            if (manifest.number, manifest.previous) != (chain.number + 1, chain.digest):
                raise _damaged(key)
            chain = Chain((*chain.manifests, manifest), hashlib.sha256(body).hexdigest())
        return chain

    def load(self, chain: Chain, total: WeightedSum, skip: int = 0) -> Iterator[int]:
        """Add the chain's sum to `total`, part by part, without its tally; gives the number of each part that was added.

        Args:
            skip: how many parts have been added already.

        Raises:
            Refusal: `partial_sum_damaged`, `not_found`.
            Outage: `storage_unavailable`; it may be called again for the parts that are left.
        """
        assert chain.digest is not None
        for number in range(skip, self._parts):
            blob = self._store.get(sum_key(self._id, self._shard, chain.number, chain.digest, number))
            start, layout = self._part(number)
            try:
                raw, values = open_vector(blob, key=self._key, info=self._info(chain.number, number), layout=layout)
            except Refusal as refusal:
                raise _damaged(f"part {number} of sum {chain.number}") from refusal
            if json.loads(raw) != {"manifest": chain.digest}:
                raise _damaged(f"part {number} of sum {chain.number}")
            total.add_part(start, values)
            yield number

    def write_sum(self, chain: Chain, total: WeightedSum) -> None:
        """Write the sum that the chain's last manifest is to speak of; it counts for nothing before that is written."""
        assert chain.digest is not None
        metadata = json.dumps({"manifest": chain.digest}).encode()
        for number in range(self._parts):
            start, layout = self._part(number)
            values = total.part(start, layout.parameters)
            info = self._info(chain.number, number)
            blob = seal_vector(values, metadata, key=self._key.public, info=info, layout=layout)
            self._store.put(sum_key(self._id, self._shard, chain.number, chain.digest, number), blob)

    def commit(self, chain: Chain) -> bool:
        """Write the chain's last manifest, unless there is one of its number; whether it is this one that lies there now."""
        key, body = manifest_key(self._id, self._shard, chain.number), _body(chain.manifests[-1])
        return self._store.put_once(key, body) or self._store.get(key) == body

    def tidy(self, chain: Chain, updates: Mapping[DeviceId, str]) -> None:
        """Delete these updates, which the chain counts, and what is left of other sums than its last."""
        self._store.delete([update_key(self._id, device, digest) for device, digest in updates.items()])
        kept = sum_key(self._id, self._shard, chain.number, chain.digest or "", 0).rpartition("/")[0] + "/"
        found: Sequence[str] = [found.key for found in self._store.list(partials_prefix(self._id, self._shard))]
        self._store.delete([key for key in found if not key.endswith(".json") and not key.startswith(kept)])

    @property
    def _parts(self) -> int:
        return -(-self._plan.parameters // _PART_ELEMENTS)

    def _part(self, number: int) -> tuple[int, Layout]:
        start = number * _PART_ELEMENTS
        elements = min(_PART_ELEMENTS, self._plan.parameters - start)
        return start, Layout(elements, "float64", _WINDOW_ELEMENTS)

    def _info(self, number: int, part: int) -> bytes:
        fields = {
            "task": self._id.task, "round": self._id.number, "plan": self._plan.digest, "base": self._descriptor.base.sha256,
            "shard": self._shard, "number": number, "part": part,
        }  # fmt: skip
        return _LABEL + json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


def _body(manifest: Manifest) -> bytes:
    return manifest.model_dump_json().encode()


def _damaged(what: str) -> Refusal:
    return Refusal(Code.PARTIAL_SUM_DAMAGED, f"The partial sums in object storage do not fit together: {what}.")
