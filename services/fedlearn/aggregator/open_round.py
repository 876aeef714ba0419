"""One round in an aggregator's memory."""

import asyncio
from typing import Literal

from fedlearn.aggregator.folding import Folding
from fedlearn.aggregator.inflow import Inflow
from fedlearn.core.ids import RoundId
from fedlearn.protocol.messages import RoundResult


class OpenRound:
    """Its sum, and whether it still takes updates.

    Args:
        save_every: see `Inflow`.
    """

    def __init__(self, folding: Folding, save_every: int) -> None:
        self.folding, self.inflow = folding, Inflow(save_every)
        self.accepting = True
        self.counted = asyncio.Event()
        self.closing: asyncio.Task[None] | None = None
        self.result: RoundResult | None = None
        self.published = False
        self.saving = False
        self.closed_before = False
        self.folds: set[asyncio.Task[None]] = set()
        self.work: set[asyncio.Task[None]] = set()

    @property
    def id(self) -> RoundId:
        return self.folding.descriptor.id

    @property
    def state(self) -> Literal["open", "closing", "published"]:
        if self.published:
            return "published"
        return "open" if self.accepting else "closing"

    def tasks(self) -> list[asyncio.Task[None]]:
        """All that is going on for it."""
        return [*self.folds, *self.work, *([self.closing] if self.closing is not None else [])]
