"""The driver of one task's rounds: it saves what `core.rounds.advance` decides, then executes the effects.

Nothing is acknowledged before it is saved, and whatever it holds in memory it finds again in the database: after a crash it
goes on in the phase that is stored there. All events that have gathered are applied in one step and saved once.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import ParamSpec, TypeVar

from fedlearn.adapters.http import persist, spawn
from fedlearn.core import rounds
from fedlearn.core.errors import Code, FedlearnError, Outage, Refusal
from fedlearn.core.happenings import Happening, Kind, between
from fedlearn.core.ids import RoundId
from fedlearn.core.ports import ALIVE_STATES, Task
from fedlearn.core.rounds import Effect, Event, Phase, Round
from fedlearn.core.selection import choose
from fedlearn.protocol.plans import Plan
from fedlearn.server.inbox import Inbox, Word
from fedlearn.server.observation import observe
from fedlearn.server.surroundings import Surroundings
from fedlearn.server.sweeping import sweep_round
from fedlearn.server.watch import TaskWatch
from fedlearn.telemetry.logs import about, log

_log = log(__name__)
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
_CLOSE_AGAIN_SECONDS = 5.0
_CONFLICT_PAUSE_SECONDS = 1.0
_READ_AGAIN_SECONDS = 30.0
_LOOK_AGAIN_SECONDS = 1.0
_FLOAT32 = 1e-6  # an accuracy of 0.97 comes as 0.96999997
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 30.0


class TaskRunner(TaskWatch):
    """Runs one round after the other until the task is complete or cancelled."""

    def __init__(self, task: Task, plan: Plan, around: Surroundings) -> None:
        super().__init__(task, plan, around)
        self._inbox = Inbox()
        self._loaded = asyncio.Event()
        self._woken = asyncio.Event()
        self._work: set[asyncio.Task[None]] = set()
        self._sweeps: set[asyncio.Task[None]] = set()
        self._cancelled = asyncio.Event()
        self._nudged = asyncio.Event()
        self.between_rounds = asyncio.Lock()
        """Whoever holds it knows that no round begins meanwhile."""
        self._failed = self._ended = False
        self._abandoned = 0

    @property
    def is_over(self) -> bool:
        return self._cancelled.is_set() or self._ended

    # --- what others ask

    def wake(self) -> None:
        """The fleet has changed."""
        if self.round is None or self.round.phase is Phase.SELECTION:
            self._woken.set()

    async def tell(self, round_id: RoundId, event: Event) -> None:
        """Hand in an event and wait until its consequence is saved.

        Raises:
            Refusal: `round_closed` for a round that has ended or is not this task's current one.
            Outage: `server_unreachable` when this driver has lost its place; the next one takes the word.
        """
        await self._loaded.wait()
        if self._failed or self.round is None or self.round.id != round_id or self.round.phase.ended:
            raise self._unheard(round_id)
        self._woken.set()
        await self._inbox.hand_in(round_id, event)

    async def cancel(self) -> None:
        """Abandon the running round; `run` returns."""
        self._cancelled.set()
        self.nudge()
        await self.abandon(Code.TASK_CANCELLED)

    async def abandon(self, reason: Code) -> None:
        """Abandon the running round, if there is one; the next one begins."""
        round_ = self.round
        if round_ is not None and not round_.phase.ended:
            try:
                await self.tell(round_.id, rounds.Failed(reason))
            except FedlearnError as error:
                _log.info("the round ends without this word", round=str(round_.id), code=error.code)

    def nudge(self) -> None:
        """The task's state has changed."""
        self._nudged.set()
        self.announce()

    # --- the loop

    async def run(self) -> None:
        """Run rounds until the task has ended."""
        try:
            while (round_ := await self._next_round()) is not None:
                with about(round=str(round_.id)):
                    await self._finish(round_)
                await self._pause()
            self._ended = True
            self._loaded.set()
            await asyncio.gather(*self._sweeps)
        except BaseException:
            self._failed = True
            self.cohort.leave()
            raise
        finally:
            self._loaded.set()
            for work in (*self._work, *self._sweeps):
                work.cancel()

    async def _next_round(self) -> Round | None:
        store, task_id = self._around.store, self._task.id
        latest, committed = await self._look()
        if self._task.state not in ALIVE_STATES:
            self._cancelled.set()
        if latest is not None and not latest.phase.ended:
            return latest
        if latest is not None and self.round is None:
            self.round = latest
            self.cohort.follow(latest)
            spawn(sweep_round(self._around.aggregator, latest.id), self._sweeps)
        if self._cancelled.is_set() or self._task.model is None:
            return None
        if self._task.rounds is not None and committed >= self._task.rounds:
            await self._complete("All its rounds are committed.")
            return None
        if self._task.target_accuracy is not None and await self._target_reached(self._task.target_accuracy):
            await self._complete("Its target accuracy is reached.")
            return None
        number = 1 if latest is None else latest.id.number + 1

        def begin() -> tuple[Task, Round | None]:
            task = store.task(task_id)  # as it is now that nobody changes it
            if task.state != "running" or task.model is None:
                return task, None
            round_ = rounds.start(RoundId(task_id, number), task.policy, task.model, self._around.clock())
            store.add_round(round_)
            return task, round_

        async with self.between_rounds:
            self._task, round_ = await self._durably(begin)
        if round_ is None:
            return await self._next_round()
        _log.info("round opened", round=str(round_.id), base_version=round_.base.version)
        return round_

    async def _look(self) -> tuple[Round | None, int]:
        """Read the task, its latest round and how many it has committed; wait while it is paused and has no round to end."""
        store, task_id = self._around.store, self._task.id

        def read() -> tuple[Task, Round | None, int]:
            committed = sum(version.round is not None for version in store.versions(task_id))
            return store.task(task_id), store.latest_round(task_id), committed

        while True:
            self._nudged.clear()
            self._task, latest, committed = await self._durably(read)
            if self._task.state != "paused" or (latest is not None and not latest.phase.ended):
                return latest, committed
            self._loaded.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_READ_AGAIN_SECONDS):
                    await self._nudged.wait()

    async def _complete(self, why: str) -> None:
        store, told = (
            self._around.store,
            Happening(Kind.TASK_CHANGED, self._around.clock(), self._task.id, detail=f"Completed: {why}"),
        )
        await self._durably(store.end_task, self._task.id, "completed")
        await self._durably(store.log, (told,))
        self._around.feed.happened((told,))
        self._around.feed.task(self._task.id)

    async def _pause(self) -> None:
        """Let time pass between rounds that are abandoned at once: a refusal that lasts would fill the database with them."""
        ended = self.round
        assert ended is not None
        self._abandoned = self._abandoned + 1 if ended.phase is Phase.ABANDONED else 0
        if self._abandoned:
            pause = min(_FIRST_PAUSE_SECONDS * 2.0 ** (self._abandoned - 1), _LONGEST_PAUSE_SECONDS)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ended.opened_at + pause - ended.phase_since):
                    await self._cancelled.wait()

    async def _target_reached(self, target: float) -> bool:
        assert self._task.model is not None
        while not self._cancelled.is_set():
            version = await self._durably(self._around.store.version, self._task.id, self._task.model.version)
            if version.evaluation is not None:
                return version.evaluation.get("accuracy", 0.0) >= target - _FLOAT32
            await self.changed(_CLOSE_AGAIN_SECONDS)
        return False

    async def _finish(self, round_: Round) -> None:
        self._set(round_)
        self._woken.set()  # devices may wait already, or time may be over
        self._execute(rounds.resume(round_))
        try:
            while self.round is not None and not self.round.phase.ended:
                await self._step(self.round)
        except Refusal as refusal:
            if refusal.code is not Code.ROUND_CONFLICT:
                raise
            _log.warning("another writer was first; reading again", detail=refusal.detail)
            await asyncio.sleep(_CONFLICT_PAUSE_SECONDS)
        finally:
            for work in self._work:
                work.cancel()
            self.cohort.let_go()
            self._turn_away(self._inbox.take())

    async def _step(self, before: Round) -> None:
        await self._wait(before)
        words, now = self._inbox.take(), self._around.clock()
        after, effects, refused = self._advance(before, words, now)
        after, effects = self._select(after, effects, now)
        if after != before:
            try:
                after = await self._save(after, before, effects)
            except BaseException:
                self.cohort.hold(())
                self._turn_away(words)
                raise
            self._set(after)
        for word in words:
            if word in refused:
                word.refuse(refused[word])
            else:
                word.confirm()
        self._execute(effects)

    def _advance(self, before: Round, words: list[Word], now: float) -> tuple[Round, list[Effect], dict[Word, Refusal]]:
        """Apply what has come in, and then that time has passed."""
        after, effects, refused = before, list[Effect](), dict[Word, Refusal]()
        for word in words:
            try:
                if word.round_id != before.id:
                    raise Refusal(Code.ROUND_CLOSED, f"Round {word.round_id} has ended.")
                after, caused = rounds.advance(after, word.event, now)
            except Refusal as refusal:
                refused[word] = refusal
            else:
                effects += caused
        for event in self._events_of_its_own(before):
            after, caused = rounds.advance(after, event, now)
            effects += caused
        return after, effects, refused

    def _events_of_its_own(self, round_: Round) -> Iterator[Event]:
        if self._cancelled.is_set():
            yield rounds.Failed(Code.TASK_CANCELLED)
        yield self.cohort.available(round_, self._around.clock()) if round_.phase is Phase.SELECTION else rounds.Tick()

    def _turn_away(self, words: list[Word]) -> None:
        for word in words:
            word.refuse(self._unheard(word.round_id))

    def _unheard(self, round_id: RoundId) -> FedlearnError:
        """Why no word for this round is taken: it has ended, or it goes on and is being read again."""
        current = self.round
        if self._failed or (current is not None and current.id == round_id and not current.phase.ended):
            return Outage(Code.SERVER_UNREACHABLE, f"The server reads round {round_id} again: repeat the call.")
        return Refusal(Code.ROUND_CLOSED, f"Round {round_id} has ended.")

    async def _wait(self, round_: Round) -> None:
        assert round_.deadline is not None  # it has not ended
        left = round_.deadline - self._around.clock()
        if round_.phase is Phase.SELECTION:  # a device that was to come back may be missed no longer
            left = min(left, _LOOK_AGAIN_SECONDS)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, left)):
                await self._woken.wait()
        self._woken.clear()

    def _select(self, round_: Round, effects: list[Effect], now: float) -> tuple[Round, list[Effect]]:
        """Carry out SelectCohort at once, so that the cohort is saved in the same step."""
        for effect in effects:
            if isinstance(effect, rounds.SelectCohort):
                cohort = choose(self.cohort.candidates(round_), effect.size, self._around.rng)
                self.cohort.hold(cohort)
                selected, caused = rounds.advance(round_, rounds.CohortSelected(cohort), now)
                return selected, list(caused)
        return round_, effects

    async def _save(self, after: Round, before: Round, effects: list[Effect]) -> Round:
        store, now = self._around.store, self._around.clock()
        told = between(before, after, now)
        if not any(isinstance(effect, rounds.CommitModel) for effect in effects):
            await self._durably(store.save_round, after, before, told)
            self._around.feed.happened(told)
            return after
        try:
            await self._durably(store.commit, after, before, now, told)
        except Refusal as refusal:
            if refusal.code is not Code.BASE_SUPERSEDED:
                raise
            after, caused = rounds.advance(before, rounds.Failed(refusal.code), now)
            effects[:] = caused
            told = between(before, after, now)
            await self._durably(store.save_round, after, before, told)
        self._around.feed.happened(told)
        return after

    def _set(self, round_: Round) -> None:
        before = self.round
        self._loaded.set()
        observe(before, round_)
        self.show(round_)
        if round_.phase.ended and (before is None or before.id != round_.id or not before.phase.ended):
            self._tell_listeners(round_)

    def _tell_listeners(self, round_: Round) -> None:
        for listener in self._around.listeners:
            try:
                listener.ended(round_)
            except Exception:
                _log.exception("a listener fails to hear of a round's end")

    # --- effects

    def _execute(self, effects: tuple[Effect, ...] | list[Effect]) -> None:
        round_ = self.round
        assert round_ is not None
        for effect in effects:
            match effect:
                case rounds.OpenRound():
                    spawn(self._open(round_), self._work)
                case rounds.AssignCohort():
                    spawn(self.assign_here(round_), self._work)
                case rounds.CloseRound():
                    spawn(self._close(round_.id), self._work)
                case rounds.SweepRound():
                    spawn(sweep_round(self._around.aggregator, round_.id), self._sweeps)
                case _:
                    continue

    async def _open(self, round_: Round) -> None:
        around = self._around
        try:
            opened = await persist(lambda: around.aggregator.open_round(round_, self._plan))
            start = None if opened.served is None else opened.served.ref()
            self.prepare(replace(round_, start=start))
            await self.tell(round_.id, rounds.RoundOpened(start))
        except Refusal as refusal:
            await self._fail(round_.id, refusal)

    async def _close(self, round_id: RoundId) -> None:
        while True:
            try:
                await persist(lambda: self._around.aggregator.close_round(round_id, self._plan))
            except Refusal as refusal:
                await self._fail(round_id, refusal)
                return
            await asyncio.sleep(_CLOSE_AGAIN_SECONDS)

    async def _fail(self, round_id: RoundId, refusal: Refusal) -> None:
        _log.error("the aggregator refuses the round", code=refusal.code, detail=refusal.detail)
        try:
            await self.tell(round_id, rounds.Failed(refusal.code))
        except Refusal:
            _log.info("round had ended already")

    # --- helpers

    @staticmethod
    async def _durably(call: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        """Call the store in a thread; a database that is away is waited for."""
        return await persist(lambda: asyncio.to_thread(call, *args, **kwargs))
