"""The sums of a round's other aggregators, out of storage: each leaves its own there when it has closed its part."""

from dataclasses import dataclass

from fedlearn.aggregator.layout import Descriptor
from fedlearn.aggregator.partials import Chain, Partials
from fedlearn.core.aggregation import WeightedSum
from fedlearn.core.errors import Code, Outage
from fedlearn.core.ids import DeviceId
from fedlearn.core.ports import ObjectStore
from fedlearn.protocol.plans import Plan
from fedlearn.protocol.sealing import SealingKey


@dataclass(slots=True)
class _Part:
    """One aggregator's sum, of which so many parts are added."""

    partials: Partials
    chain: Chain
    added: int = 0
    counted: bool = False


class Others:
    """All of them but `shard`'s own; for one sum, into which they are merged once."""

    def __init__(self, descriptor: Descriptor, plan: Plan, key: SealingKey, updates: ObjectStore, shard: int) -> None:
        self._descriptor, self._plan, self._key, self._updates = descriptor, plan, key, updates
        self._shards = [other for other in range(descriptor.aggregators) if other != shard]
        self._parts: dict[int, _Part] = {}

    def contributors(self) -> dict[DeviceId, str]:
        """Whose updates they have counted, by digest, once all have closed their part of the round.

        Raises:
            Refusal: `partial_sum_damaged`.
            Outage: `aggregator_unreachable` while one has not; `storage_unavailable`.
        """
        for shard in self._shards:
            if shard not in self._parts:
                partials = Partials(self._descriptor, self._plan, self._key, self._updates, shard)
                chain = partials.read()
                if not chain.final:
                    raise Outage(Code.AGGREGATOR_UNREACHABLE, f"Aggregator {shard} has not closed its part of the round yet.")
                self._parts[shard] = _Part(partials, chain)
        return {device: digest for shard in self._shards for device, digest in self._parts[shard].chain.contributors.items()}

    def merge_into(self, total: WeightedSum) -> None:
        """Add what is not added yet; `contributors` has been called before.

        Raises:
            Refusal: `partial_sum_damaged`, `not_found`.
            Outage: `storage_unavailable`; it may be called again.
        """
        for shard in self._shards:
            part = self._parts[shard]
            for number in part.partials.load(part.chain, total, skip=part.added):
                part.added = number + 1
            if not part.counted:
                total.add_state(part.chain.manifests[-1].tally)
                part.counted = True
