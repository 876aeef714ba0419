"""What a round left in storage is deleted when it has ended, and again once its last upload URL has expired."""

import asyncio
from concurrent.futures import Executor

from fedlearn.adapters.http import persist
from fedlearn.aggregator.layout import descriptor_key, round_prefix
from fedlearn.core.ids import RoundId
from fedlearn.core.ports import ObjectStore


class Sweeper:
    """Deletes rounds from the updates bucket.

    Args:
        upload_seconds: how long upload URLs are valid, and so how long after its end a round is swept again.
    """

    def __init__(self, updates: ObjectStore, threads: Executor, upload_seconds: int) -> None:
        self._updates, self._threads, self._upload_seconds = updates, threads, upload_seconds

    async def now(self, round_id: RoundId) -> None:
        """Delete what lies there, the descriptor with the wrapped key first: from then on nobody opens the rest.

        Raises:
            Outage: `storage_unavailable`.
        """
        await asyncio.get_running_loop().run_in_executor(self._threads, self._sweep, round_id)

    async def later(self, round_id: RoundId) -> None:
        """Delete what came after the round's end by a URL that was still valid."""
        await asyncio.sleep(self._upload_seconds)
        await persist(lambda: self.now(round_id))

    async def now_and_later(self, round_id: RoundId) -> None:
        await persist(lambda: self.now(round_id))
        await self.later(round_id)

    def _sweep(self, round_id: RoundId) -> None:
        self._updates.drop_parts(round_prefix(round_id))
        stored = [found.key for found in self._updates.list(round_prefix(round_id))]
        self._updates.delete(sorted(stored, key=lambda key: key != descriptor_key(round_id)))
