"""Which replica leads: this one asks for the lead again and again, begins an epoch when it has it, and ends when it is gone."""

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from fedlearn.core.errors import Outage, Refusal
from fedlearn.core.replicas import LeaderLock
from fedlearn.telemetry.logs import log

_log = log(__name__)


class Candidate(Protocol):
    """What an election makes lead and follow."""

    async def lead(self) -> None:
        """Begin to lead.

        Raises:
            Outage: it could not, and is to be asked again.
        """
        ...

    async def follow(self) -> None:
        """End what only a leader may do; it may be called when nothing of it was begun."""
        ...


class Election:
    """Holds the lock in threads, one call at a time, and never takes itself for the holder when its lease may be over."""

    def __init__(self, lock: LeaderLock, candidate: Candidate) -> None:
        self._lock, self._candidate = lock, candidate
        self._threads = ThreadPoolExecutor(1, "lead")  # its own: where all others hang, this one must go on
        self._asking: asyncio.Future[bool] | None = None
        self._asked_at = self._held_until = 0.0
        self._doubted = asyncio.Event()
        self.leads = False

    def doubt(self) -> None:
        """A write was refused: another replica leads, whatever the lock says. A new epoch may begin if it is ours again."""
        self._doubted.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            held = await self._hold()
            if self.leads and (not held or self._doubted.is_set()):
                _log.warning("the lead is lost", held=held)
                await self._give_up()
            if held and not self.leads:
                await self._begin()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._lock.lease_seconds / (4 if self.leads else 12)):
                    await self._doubted.wait()

    async def stop(self) -> None:
        """Let another replica lead at once; `run` must be cancelled before."""
        if self._asking is not None:
            await asyncio.wait({self._asking}, timeout=self._lock.lease_seconds)
        await self._give_up()
        await self._let_go()
        self._threads.shutdown(wait=False)

    async def _begin(self) -> None:
        try:
            await self._candidate.lead()
        except Exception as error:
            if isinstance(error, Outage | Refusal):
                _log.warning("the lead can't be taken yet", code=error.code, detail=error.detail)
            else:
                _log.exception("this replica fails to lead; another one may")
            await self._candidate.follow()
            await self._let_go()
        else:
            self.leads = True

    async def _let_go(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._threads, self._lock.release)

    async def _give_up(self) -> None:
        self.leads = False
        self._doubted.clear()
        await self._candidate.follow()

    async def _hold(self) -> bool:
        now = asyncio.get_running_loop().time
        if self._asking is None:
            self._asked_at = now()
            self._asking = asyncio.get_running_loop().run_in_executor(self._threads, self._lock.hold)
        patience = self._held_until - now() if self.leads else self._lock.lease_seconds
        done, _ = await asyncio.wait({self._asking}, timeout=max(0.0, patience))
        if not done:
            return False
        asked, self._asking = self._asking, None
        try:
            held = asked.result()
        except (Outage, Refusal) as error:
            _log.warning("nobody can tell who leads", code=error.code, detail=error.detail)
            return self.leads and now() < self._held_until
        if held:
            self._held_until = self._asked_at + self._lock.lease_seconds
        return held and now() < self._held_until
