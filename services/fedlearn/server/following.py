"""The tasks that another replica drives, as the database says: read anew when a signal says so."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fedlearn.core.errors import Outage
from fedlearn.core.happenings import between
from fedlearn.core.ids import TaskId
from fedlearn.core.ports import ALIVE_STATES, RoundStore, Task
from fedlearn.core.rounds import Phase, Round
from fedlearn.protocol.plans import Plan
from fedlearn.server.surroundings import Surroundings
from fedlearn.server.watch import TaskWatch
from fedlearn.telemetry.logs import log

_log = log(__name__)
_PAUSE_SECONDS = 0.02  # between two readings, at least: in a busy round every word of a device is a signal
_IDLE_SHARE = 4.0  # after each reading it rests so many times as long as that took
_OUTAGE_PAUSE_SECONDS = 1.0
_READ_ALL_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class _Stored:
    task: Task
    latest: Round | None

    @property
    def is_over(self) -> bool:
        return self.task.state not in ALIVE_STATES and (self.latest is None or self.latest.phase.ended)


class FollowedTask(TaskWatch):
    """A task whose driver is elsewhere."""

    async def follow(self, stored: _Stored) -> None:
        """Take over what is stored, and answer the devices that have been selected by now."""
        before, round_ = self.round, stored.latest
        if stored.task != self._task:
            self._task = stored.task
            self._around.feed.task(stored.task.id)
        if round_ is None or round_ == before:
            self.announce()
            return
        if before is not None and before.id != round_.id:  # its end may not have been seen
            self.cohort.let_go()
        if round_.phase is Phase.REPORTING and not self.is_prepared(round_):
            self.prepare(round_)
        self.show(round_)
        if before is not None and before.id == round_.id:
            self._around.feed.happened(between(before, round_, self._around.clock()))
        if round_.phase is Phase.REPORTING:
            await self.assign_here(round_)


class Following:
    """All of them.

    Args:
        plan: gives a plan by its digest.
    """

    def __init__(self, around: Surroundings, plan: Callable[[str], Awaitable[Plan]]) -> None:
        self._around, self._plan = around, plan
        self.tasks: dict[TaskId, FollowedTask] = {}
        self._named: set[TaskId] = set()
        self._all = False
        self._called = asyncio.Event()
        self._reading = asyncio.Lock()  # so that what was read first is not shown last

    def read_again(self, task: TaskId | None = None) -> None:
        """This task, or with None any, may have changed."""
        if task is None:
            self._all = True
        else:
            self._named.add(task)
        self._called.set()

    async def read_now(self, task: TaskId) -> None:
        """Return when the task is shown as it was stored at the time of the call, or later.

        Raises:
            Refusal: `task_unknown`.
            Outage: `database_unavailable`.
        """
        await self._read({task})

    async def run(self) -> None:
        """Read what has changed, until cancelled; at first everything."""
        self.read_again()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_READ_ALL_SECONDS):
                    await self._called.wait()
            everything, named = self._all or not self._called.is_set(), self._named
            self._called.clear()
            self._all, self._named = False, set()
            began = asyncio.get_running_loop().time()
            try:
                await self._read(None if everything else named)
            except Exception as error:  # whatever it is: a server that follows no more would be of no use
                if isinstance(error, Outage):
                    _log.warning("rounds can't be followed", code=error.code, detail=error.detail)
                else:
                    _log.exception("following the rounds failed, and begins again")
                self.read_again()
                await asyncio.sleep(_OUTAGE_PAUSE_SECONDS)
            await asyncio.sleep(_PAUSE_SECONDS + _IDLE_SHARE * (asyncio.get_running_loop().time() - began))

    def leave(self) -> None:
        """Follow no task any more; who waits for one is answered."""
        for followed in self.tasks.values():
            followed.cohort.leave()
            followed.cohort.let_go()
            followed.announce()
        self.tasks.clear()

    async def _read(self, named: set[TaskId] | None) -> None:
        async with self._reading:
            for stored in await asyncio.to_thread(_load, self._around.store, named):
                await self._show(stored)

    async def _show(self, stored: _Stored) -> None:
        task = stored.task
        if stored.is_over and task.id not in self.tasks:
            return
        if task.id not in self.tasks:
            self.tasks[task.id] = FollowedTask(task, await self._plan(task.plan_digest), self._around)
        await self.tasks[task.id].follow(stored)
        if stored.is_over:
            del self.tasks[task.id]


def _load(store: RoundStore, named: set[TaskId] | None) -> list[_Stored]:
    tasks = store.tasks() if named is None else [store.task(task) for task in named]
    return [_Stored(task, store.latest_round(task.id)) for task in tasks]
