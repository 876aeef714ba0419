"""Where an update may go: signed URLs for exactly its bytes, in one piece or in parts.

Nothing is remembered of an upload: the caller brings its id, and the storage knows the rest.
"""

from collections.abc import Sequence

from fedlearn.aggregator.folding import Folding
from fedlearn.aggregator.layout import update_key
from fedlearn.core.errors import Code, Refusal
from fedlearn.core.ids import DeviceId
from fedlearn.core.ports import ObjectStore, UploadGrant
from fedlearn.protocol.messages import ReadyUpdate, UploadRequest
from fedlearn.protocol.parts import PartsDone, PartsRequest, parts_of
from fedlearn.telemetry.metrics import aggregator as metrics


class UploadDesk:
    """For one updates bucket.

    Args:
        seconds: how long URLs are valid.
    """

    def __init__(self, updates: ObjectStore, seconds: int) -> None:
        self._updates, self._seconds = updates, seconds

    def grant(self, folding: Folding, device: DeviceId, request: UploadRequest) -> UploadGrant:
        """A signed URL for exactly the bytes that the request names.

        Raises:
            Refusal: `update_too_large`, or `update_repeated` when another update of the device is counted.
        """
        key = self._key(folding, device, request)
        return self._updates.sign_put(key, size_bytes=request.size_bytes, sha256=request.sha256, seconds=self._seconds)

    def grant_parts(self, folding: Folding, device: DeviceId, request: PartsRequest) -> tuple[str, Sequence[UploadGrant]]:
        """The id of an upload in parts, and a signed URL for each; given the id of one that is under way, new URLs for it.

        Raises:
            Refusal: `bad_request` for parts that do not make up the size, and as `grant`.
            Outage: `storage_unavailable`.
        """
        key, parts = self._key(folding, device, request), parts_of(request)
        upload_id = request.upload_id or self._updates.begin_parts(key)
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
