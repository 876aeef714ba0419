"""A process that folds a round's updates from the real storage and kills itself at a certain step of its partial sum.

python -m support.mortal '{"endpoint_url": …, "step": 3, "after": false, …}'
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedlearn.adapters.objects import S3ObjectStore
from fedlearn.adapters.s3 import S3Settings
from fedlearn.aggregator import partials
from fedlearn.aggregator.folding import Folding
from fedlearn.aggregator.layout import Descriptor, read_update, updates_prefix
from fedlearn.core.ids import DeviceId
from fedlearn.local.seaweed import UPDATES
from fedlearn.protocol.plans import read_plan
from fedlearn.protocol.sealing import SealingKey, identity_from_pem

PART_ELEMENTS = 1000


class MortalStore(S3ObjectStore):
    """Every call that changes something is a step."""

    step, after, taken = -1, False, 0

    def _take(self, call: Callable[[], object]) -> object:
        doomed = self.taken == self.step
        self.taken += 1
        if doomed and not self.after:
            os.kill(os.getpid(), signal.SIGKILL)
        answer = call()
        if doomed:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    def put(self, key: str, body: bytes | memoryview) -> None:
        self._take(lambda: super(MortalStore, self).put(key, body))

    def put_once(self, key: str, body: bytes) -> bool:
        return bool(self._take(lambda: super(MortalStore, self).put_once(key, body)))

    def delete(self, keys: Sequence[str]) -> None:
        self._take(lambda: super(MortalStore, self).delete(keys))


def fold(told: Mapping[str, Any]) -> Mapping[DeviceId, str]:
    """Go on from what lies in storage, fold what is new, and write the partial sum, in which step `step` is the last; -1: none.

    Returns:
        The digest of each device's update that was folded.
    """
    settings = S3Settings(endpoint_url=told["endpoint_url"], access_key=told["access"], secret_key=told["secret"])
    store = MortalStore(UPDATES, settings)
    descriptor = Descriptor.model_validate_json(told["descriptor"])
    key = SealingKey.unwrap(identity_from_pem(told["identity"].encode()), descriptor.wrapped_key_bytes, descriptor.id)
    folding = Folding(descriptor, read_plan(json.dumps(descriptor.plan)), key, store)
    folding.resume()
    for found in store.list(updates_prefix(descriptor.id)):
        folding.consider(*read_update(descriptor.id, found.key))
    store.taken, store.step, store.after = 0, int(told["step"]), bool(told["after"])
    folding.save()
    return folding.counts().folded


if __name__ == "__main__":
    partials._PART_ELEMENTS = PART_ELEMENTS
    fold(json.loads(sys.argv[1]))
