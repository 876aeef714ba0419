"""Where an update may go: signed URLs for exactly its bytes, in one piece or in parts.

Of an open round it is remembered, for as long as it is in memory, which updates each device has asked for: one device must not
fill the bucket. After a restart that begins anew; nothing but the bound depends on it.
"""

import threading
from collections.abc import Sequence
from typing import Final
from weakref import WeakKeyDictionary

from fedlearn.aggregator.folding import Folding
from fedlearn.aggregator.layout import update_key
from fedlearn.core.errors import Code, Refusal
from fedlearn.core.ids import DeviceId
from fedlearn.core.ports import ObjectStore, UploadGrant
from fedlearn.protocol.messages import ReadyUpdate, UploadRequest
from fedlearn.protocol.parts import PartsDone, PartsRequest, parts_of
from fedlearn.telemetry.metrics import aggregator as metrics

_MOST_UPDATES: Final = 3  # an honest device has one, and another each time that it begins anew in the middle of the round


class UploadDesk:
    """For one updates bucket.

    Args:
        seconds: how long URLs are valid.
    """

    def __init__(self, updates: ObjectStore, seconds: int) -> None:
        self._updates, self._seconds = updates, seconds
        # by digest the id of the upload in parts, "" without one
        self._asked: WeakKeyDictionary[Folding, dict[DeviceId, dict[str, str]]] = WeakKeyDictionary()
        self._lock = threading.Lock()  # of what was asked

    def grant(self, folding: Folding, device: DeviceId, request: UploadRequest) -> UploadGrant:
        """A signed URL for exactly the bytes that the request names.

        Raises:
            Refusal: `update_too_large`, or `update_repeated` when another update of the device is counted, or it has asked for
                three others.
        """
        key = self._key(folding, device, request)
        self._note(folding, device, request)
        return self._updates.sign_put(key, size_bytes=request.size_bytes, sha256=request.sha256, seconds=self._seconds)

    def grant_parts(self, folding: Folding, device: DeviceId, request: PartsRequest) -> tuple[str, Sequence[UploadGrant]]:
        """The id of an upload in parts, and a signed URL for each; for one that is under way, new URLs.

        Raises:
            Refusal: `bad_request` for parts that do not make up the size, and as `grant`.
            Outage: `storage_unavailable`.
        """
        key, parts = self._key(folding, device, request), parts_of(request)
        asked = self._note(folding, device, request)
        upload_id = request.upload_id or asked[request.digest]
        if not upload_id:
            begun = self._updates.begin_parts(key)
            with self._lock:  # of two that were begun at once, nobody learns the other's id
                upload_id = asked[request.digest] = asked[request.digest] or begun
        return upload_id, self._updates.sign_parts(key, upload_id, parts, seconds=self._seconds)

    def join_parts(self, folding: Folding, device: DeviceId, done: PartsDone) -> None:
        """Make one object of the parts. What it is worth is seen when it is opened, as with any other.

        Raises:
            Refusal: `update_missing` when a part has not arrived; `update_repeated` when other bytes lie there; and as
                `grant_parts`.
            Outage: `storage_unavailable`.
        """
        key = self._key(folding, device, done)
        if not self._updates.join_parts(key, done.upload_id, parts_of(done, done.tags)):
            raise Refusal(Code.UPDATE_REPEATED, f"Other bytes of {device} lie there already.")

    def _note(self, folding: Folding, device: DeviceId, update: ReadyUpdate) -> dict[str, str]:
        """All that the device has asked for in this round, this update included."""
        with self._lock:
            asked = self._asked.setdefault(folding, {}).setdefault(device, {})
            if update.digest in asked or len(asked) < _MOST_UPDATES:
                asked.setdefault(update.digest, "")
                return asked
        metrics.UPDATES.labels(Code.UPDATE_REPEATED).inc()
        raise Refusal(Code.UPDATE_REPEATED, f"{device} has asked for {_MOST_UPDATES} other updates of this round already.")

    @staticmethod
    def _key(folding: Folding, device: DeviceId, update: ReadyUpdate) -> str:
        if update.size_bytes > folding.max_update_bytes:
            metrics.UPDATES.labels(Code.UPDATE_TOO_LARGE).inc()
            raise Refusal(Code.UPDATE_TOO_LARGE, f"An update of this plan has at most {folding.max_update_bytes} bytes.")
        counted = folding.folded_digest(device)
        if counted not in (None, update.digest):
            metrics.UPDATES.labels(Code.UPDATE_REPEATED).inc()
            raise Refusal(Code.UPDATE_REPEATED, f"An update of {device} is counted already.")
        return update_key(folding.descriptor.id, device, update.digest)
