"""This server as one of several on one database: it leads the rounds when it can, and follows who leads otherwise."""

import asyncio
import time

from fedlearn.adapters.database import DatabasePresences, DatabaseRoundStore, Listener
from fedlearn.adapters.database.signals import EVERYTHING, LEADER, TASK, VERSIONS, WAITING
from fedlearn.adapters.http import spawn
from fedlearn.core.errors import Code, Outage
from fedlearn.core.ids import TaskId
from fedlearn.core.replicas import LeaderLock
from fedlearn.server.coordinator import Coordinator
from fedlearn.server.election import Election
from fedlearn.server.exchange import Exchange
from fedlearn.server.forwarding import Forwarder
from fedlearn.server.roster import Roster
from fedlearn.telemetry.logs import log

_log = log(__name__)


class Replica:
    """An `election.Candidate`.

    Args:
        name: which no other replica has.
        address: the base URL by which the others reach this one.
    """

    def __init__(
        self, coordinator: Coordinator, store: DatabaseRoundStore, lock: LeaderLock, roster: Roster, *, name: str, address: str
    ) -> None:
        around = coordinator.around
        self._coordinator, self._store, self._name, self._address = coordinator, store, name, address
        self._election = Election(lock, self)
        self._exchange = around.fleet.journal = Exchange(
            DatabasePresences(store.database),
            name,
            around.fleet,
            roster=roster,
            speeds=around.speeds,
            is_busy=lambda: self._election.leads,
            clock=around.clock,
            now=time.monotonic,
        )
        self.forwarder = Forwarder(store, name, lambda: self._election.leads)
        self._listener: Listener | None = None
        self._work: list[asyncio.Task[None]] = []
        self._running: set[asyncio.Task[None]] = set()
        self._following: asyncio.Task[None] | None = None
        coordinator.on_fenced = self._election.doubt

    async def start(self) -> None:
        """Follow, and ask for the lead."""
        loop = asyncio.get_running_loop()
        await self.forwarder.__aenter__()
        await self.follow()

        def hear(signal: str) -> None:
            loop.call_soon_threadsafe(self._hear, signal)

        self._listener = Listener(self._store.database, hear)
        self._listener.start()
        self._work = [
            spawn(work, self._running) for work in (self._election.run(), self._exchange.tell(), self._exchange.look())
        ]

    async def stop(self) -> None:
        """Let another replica lead at once."""
        for work in self._work:
            work.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)
        await self._election.stop()
        if self._following is not None:
            self._following.cancel()
        if self._listener is not None:
            await asyncio.to_thread(self._listener.stop)
        await self.forwarder.__aexit__()

    def check(self) -> None:
        """Raises:
        Outage: `internal` when something of it has ended by itself.
        """
        if any(work.done() for work in self._work) or (self._following is not None and self._following.done()):
            raise Outage(Code.INTERNAL, "This replica neither leads nor follows; its log says why.")

    # --- the candidate

    async def lead(self) -> None:
        epoch = await asyncio.to_thread(self._store.take_lead, self._name, self._address)
        await self._coordinator.lead(self._store.fenced(epoch))
        if self._following is not None:
            self._following.cancel()
            self._following = None
        self._exchange.look_now()
        _log.info("this replica leads the rounds", epoch=epoch, replica=self._name)

    async def follow(self) -> None:
        await self._coordinator.follow()
        if self._following is None:
            self._following = spawn(self._coordinator.following.run(), self._running)

    # --- signals

    def _hear(self, signal: str) -> None:
        coordinator = self._coordinator
        if signal in (EVERYTHING, LEADER):
            self.forwarder.look_again()
        if signal in (EVERYTHING, VERSIONS):
            coordinator.announce_versions()
            for task in coordinator.watched():
                coordinator.around.feed.versions(task)
        if signal == EVERYTHING:
            self._exchange.look_now()
            coordinator.following.read_again()
        if signal == WAITING:
            self._exchange.look_again()
        if signal.startswith(TASK) and not self._election.leads:
            coordinator.following.read_again(TaskId(signal.removeprefix(TASK)))
