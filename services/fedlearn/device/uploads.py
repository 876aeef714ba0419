"""The way of a sealed update into object storage: in one piece, or in parts where it is large."""

import asyncio
from functools import partial

from fedlearn.adapters.http import persist
from fedlearn.adapters.transfer import SignedTransfer
from fedlearn.core.errors import Code, Refusal
from fedlearn.core.ids import RoundId
from fedlearn.core.ports import UploadGrant
from fedlearn.device.outbox import Parcel
from fedlearn.device.peers import AggregatorClient
from fedlearn.protocol.messages import UploadRequest
from fedlearn.protocol.parts import SINGLE_BYTES, PartsDone, PartsRequest, PartsUpload, part_sizes
from fedlearn.telemetry.logs import log

_log = log(__name__)


class Upload:
    """One update on its way. What has arrived is not sent again, whatever breaks.

    Args:
        ticket: of the assignment.
    """

    def __init__(
        self,
        aggregator: AggregatorClient,
        transfer: SignedTransfer,
        *,
        round_id: RoundId,
        slot: int | None,
        ticket: str,
        parcel: Parcel,
    ) -> None:
        self._aggregator, self._transfer, self._round, self._ticket = aggregator, transfer, round_id, ticket
        self._slot, self._parcel = slot, parcel
        self._tags: dict[int, str] = {}

    async def bring(self) -> None:
        """Until the storage has all of it.

        Raises:
            Refusal: `forbidden` when the storage does not take it; the aggregator's own.
            Outage: `storage_unavailable`, of one that goes in one piece.
        """
        body, digest, sha256 = self._parcel
        if len(body) > SINGLE_BYTES:
            await self._bring_parts()
            return
        request = UploadRequest(slot=self._slot, size_bytes=len(body), digest=digest, sha256=sha256[0])
        grant = await persist(lambda: self._aggregator.place(self._round, request, self._ticket))
        await asyncio.to_thread(self._transfer.store, grant, body)

    async def _bring_parts(self) -> None:
        body, digest, sha256 = self._parcel
        request = PartsRequest(slot=self._slot, size_bytes=len(body), digest=digest, part_sha256=sha256)
        while len(self._tags) < len(request.part_sha256):
            granted = await persist(partial(self._aggregator.place_parts, self._round, request, self._ticket))
            request = request.model_copy(update={"upload_id": granted.upload_id})
            await self._send_missing(granted)
        tags = tuple(self._tags[index] for index in range(len(request.part_sha256)))
        joined = PartsDone.model_validate({**request.model_dump(), "tags": tags})
        await persist(lambda: self._aggregator.join_parts(self._round, joined, self._ticket))

    async def _send_missing(self, granted: PartsUpload) -> None:
        """Send what has not arrived; return early when the URLs have expired on the way."""
        before = len(self._tags)
        try:
            await persist(lambda: asyncio.to_thread(self._send, granted))
        except Refusal as refusal:
            if refusal.code is not Code.FORBIDDEN or len(self._tags) == before:
                raise
            _log.info("asks for new URLs", arrived=len(self._tags), of=len(granted.parts))

    def _send(self, granted: PartsUpload) -> None:
        view, start = memoryview(self._parcel.body), 0
        for index, (size, part) in enumerate(zip(part_sizes(len(view)), granted.parts, strict=True)):
            if index not in self._tags:
                grant = UploadGrant(part.url, part.headers)
                self._tags[index] = self._transfer.store_part(grant, bytes(view[start : start + size]))
            start += size
