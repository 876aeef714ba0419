"""The driver of one task's rounds: it saves what `core.rounds.advance` decides, then executes the effects.

Nothing is acknowledged before it is saved, and whatever it holds in memory it finds again in the database: after a crash it
goes on in the phase that is stored there. All events that have gathered are applied in one step and saved once.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import numpy as np

from fedlearn.adapters.http import persist, spawn
from fedlearn.core import rounds
from fedlearn.core.errors import Code, Outage, Refusal
from fedlearn.core.ids import DeviceId, RoundId
from fedlearn.core.ports import Clock, ObjectStore, RoundStore, Task
from fedlearn.core.rounds import OUTSTANDING, Effect, Event, Phase, Round
from fedlearn.core.selection import choose
from fedlearn.protocol.messages import Assignment
from fedlearn.protocol.plans import Plan
from fedlearn.protocol.tickets import TicketSigner
from fedlearn.server.assignments import Assigner
from fedlearn.server.fleet import Fleet
from fedlearn.server.peers import AggregatorClient
from fedlearn.telemetry import metrics
from fedlearn.telemetry.logs import about, log

_log = log(__name__)
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
_CLOSE_AGAIN_SECONDS = 5.0
_SWEEP_PATIENCE_SECONDS = 600.0
_CONFLICT_PAUSE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every runner works with."""

    store: RoundStore
    models: ObjectStore
    fleet: Fleet
    aggregator: AggregatorClient
    signer: TicketSigner
    clock: Clock
    rng: np.random.Generator
    ticket_grace_seconds: float


@dataclass(frozen=True, slots=True)
class _Told:
    event: Event
    round_id: RoundId
    done: asyncio.Future[None]


class TaskRunner:
    """Runs one round after the other until the task is complete or cancelled."""

    def __init__(self, task: Task, plan: Plan, around: Surroundings) -> None:
        self._task, self._plan, self._around = task, plan, around
        self._inbox: list[_Told] = []
        self._woken = asyncio.Event()
        self._changed = asyncio.Event()
        self._work: set[asyncio.Task[None]] = set()
        self._sweeps: set[asyncio.Task[None]] = set()
        self._assigner: Assigner | None = None
        self._cancelled = False
        self.round: Round | None = None

    # --- what others ask

    def wake(self) -> None:
        """The fleet has changed."""
        if self.round is None or self.round.phase is Phase.SELECTION:
            self._woken.set()

    async def tell(self, round_id: RoundId, event: Event) -> None:
        """Hand in an event and wait until its consequence is saved.

        Raises:
            Refusal: `round_closed` for a round that has ended or is not this task's current one.
        """
        if self.round is None or self.round.id != round_id:
            raise Refusal(Code.ROUND_CLOSED, f"Round {round_id} has ended.")
        told = _Told(event, round_id, asyncio.get_running_loop().create_future())
        self._inbox.append(told)
        self._woken.set()
        await told.done

    async def cancel(self) -> None:
        """Abandon the running round; `run` returns."""
        self._cancelled = True
        round_ = self.round
        if round_ is not None and not round_.phase.ended:
            try:
                await self.tell(round_.id, rounds.Failed(Code.TASK_CANCELLED))
            except Refusal:
                _log.info("round had ended before it was cancelled", round=str(round_.id))

    def assignment(self, device: DeviceId) -> Assignment | None:
        """The device's part in the running round, if it has one that it has not finished."""
        round_ = self.round
        if round_ is None or round_.phase is not Phase.REPORTING or self._assigner is None:
            return None
        participant = round_.participants.get(device)
        if participant is None or participant.standing not in OUTSTANDING:
            return None
        now = self._around.clock()
        seconds_left = (round_.deadline or now) - now
        return self._assigner.assign(device, seconds_left, now) if seconds_left > 0 else None

    def announce(self) -> None:
        """Let those go who wait for a change."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self, seconds: float) -> None:
        """Wait until the round changes, at most so long."""
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            return

    # --- the loop

    async def run(self) -> None:
        """Run rounds until the task has ended."""
        try:
            while (round_ := await self._next_round()) is not None:
                with about(round=str(round_.id)):
                    await self._finish(round_)
        finally:
            for work in (*self._work, *self._sweeps):
                work.cancel()

    async def _next_round(self) -> Round | None:
        store, task_id = self._around.store, self._task.id
        self._task = await self._durably(store.task, task_id)
        latest = await self._durably(store.latest_round, task_id)
        if latest is not None and not latest.phase.ended:
            return latest
        if latest is not None:
            spawn(self._sweep(latest.id), self._sweeps)
        if self._cancelled or self._task.state != "running" or self._task.model is None:
            return None
        if self._task.rounds is not None and await self._committed() >= self._task.rounds:
            await self._durably(store.end_task, task_id, "completed")
            return None
        if self._task.target_accuracy is not None and await self._target_reached(self._task.target_accuracy):
            await self._durably(store.end_task, task_id, "completed")
            return None
        number = 1 if latest is None else latest.id.number + 1
        round_ = rounds.start(RoundId(task_id, number), self._task.policy, self._task.model, self._around.clock())
        await self._durably(store.add_round, round_)
        _log.info("round opened", round=str(round_.id), base_version=round_.base.version)
        return round_

    async def _committed(self) -> int:
        versions = await self._durably(self._around.store.versions, self._task.id)
        return sum(version.round is not None for version in versions)

    async def _target_reached(self, target: float) -> bool:
        assert self._task.model is not None
        while not self._cancelled:
            version = await self._durably(self._around.store.version, self._task.id, self._task.model.version)
            if version.evaluation is not None:
                return version.evaluation.get("accuracy", 0.0) >= target
            await self.changed(_CLOSE_AGAIN_SECONDS)
        return False

    async def _finish(self, round_: Round) -> None:
        self._set(round_)
        if round_.phase in (Phase.CONFIGURATION, Phase.REPORTING):
            self._around.fleet.reserve(round_.devices(*OUTSTANDING))
        self._execute(rounds.resume(round_))
        self._woken.set()  # devices may have begun to wait between two rounds
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
            self._around.fleet.release(round_.participants if self.round is None else self.round.participants)
            for told in self._take():
                told.done.set_exception(Refusal(Code.ROUND_CLOSED, f"Round {told.round_id} has ended."))

    async def _step(self, before: Round) -> None:
        await self._wait(before)
        told, now = self._take(), self._around.clock()
        after, effects = before, list[Effect]()
        refused: dict[int, Refusal] = {}
        time_event = rounds.Tick() if before.phase is not Phase.SELECTION else rounds.DevicesAvailable(len(self._candidates()))
        for index, event in enumerate([*(t.event for t in told), time_event]):
            try:
                after, caused = rounds.advance(after, event, now)
            except Refusal as refusal:
                refused[index] = refusal
                continue
            effects += caused
        after, effects = self._select(after, effects, now)
        if after != before:
            after = await self._save(after, before, effects)
        for index, item in enumerate(told):
            if item.done.done():
                continue
            if index in refused:
                item.done.set_exception(refused[index])
            else:
                item.done.set_result(None)
        if after != before:
            self._set(after)
        self._execute(effects)

    async def _wait(self, round_: Round) -> None:
        left = None if round_.deadline is None else max(0.0, round_.deadline - self._around.clock())
        try:
            async with asyncio.timeout(left):
                await self._woken.wait()
        except TimeoutError:
            return
        finally:
            self._woken.clear()

    def _take(self) -> list[_Told]:
        told, self._inbox = self._inbox, []
        return told

    def _candidates(self) -> list[DeviceId]:
        return self._around.fleet.waiting(self._plan.dataset)

    def _select(self, round_: Round, effects: list[Effect], now: float) -> tuple[Round, list[Effect]]:
        """Carry out SelectCohort at once, so that the cohort is saved in the same step."""
        for effect in effects:
            if isinstance(effect, rounds.SelectCohort):
                cohort = choose(self._candidates(), effect.size, self._around.rng)
                self._around.fleet.reserve(cohort)
                selected, caused = rounds.advance(round_, rounds.CohortSelected(cohort), now)
                return selected, list(caused)
        return round_, effects

    async def _save(self, after: Round, before: Round, effects: list[Effect]) -> Round:
        store = self._around.store
        if not any(isinstance(effect, rounds.CommitModel) for effect in effects):
            await self._durably(store.save_round, after, before)
            return after
        try:
            await self._durably(store.commit, after, before, self._around.clock())
        except Refusal as refusal:
            if refusal.code is not Code.BASE_SUPERSEDED:
                raise
            after, caused = rounds.advance(before, rounds.Failed(refusal.code), self._around.clock())
            effects[:] = caused
            await self._durably(store.save_round, after, before)
        return after

    def _set(self, round_: Round) -> None:
        before, self.round = self.round, round_
        if round_.phase is Phase.SELECTION:
            self._assigner = None
        if before is None or before.id != round_.id or before.phase is not round_.phase:
            _observe(before, round_)
        self.announce()

    # --- effects

    def _execute(self, effects: tuple[Effect, ...] | list[Effect]) -> None:
        round_ = self.round
        assert round_ is not None
        for effect in effects:
            match effect:
                case rounds.OpenRound():
                    spawn(self._open(round_), self._work)
                case rounds.AssignCohort():
                    self._assign(round_)
                case rounds.CloseRound():
                    spawn(self._close(round_.id), self._work)
                case rounds.SweepRound():
                    spawn(self._sweep(round_.id), self._sweeps)
                case _:
                    continue

    async def _open(self, round_: Round) -> None:
        around = self._around
        try:
            await persist(lambda: around.aggregator.open_round(round_, self._plan))
            self._assigner = Assigner(self._task, round_, around.models, around.signer, around.ticket_grace_seconds)
            await self.tell(round_.id, rounds.RoundOpened())
        except Refusal as refusal:
            await self._fail(round_.id, refusal)

    def _assign(self, round_: Round) -> None:
        for device in round_.devices(*OUTSTANDING):
            assignment = self.assignment(device)
            if assignment is not None:
                self._around.fleet.answer(device, assignment)

    async def _close(self, round_id: RoundId) -> None:
        while True:
            try:
                await persist(lambda: self._around.aggregator.close_round(round_id))
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

    async def _sweep(self, round_id: RoundId) -> None:
        try:
            await persist(lambda: self._around.aggregator.sweep_round(round_id), seconds=_SWEEP_PATIENCE_SECONDS)
        except (Refusal, Outage) as error:
            _log.warning("round not swept; the next round's opening sweeps it", code=error.code, detail=error.detail)

    # --- helpers

    @staticmethod
    async def _durably(call: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        """Call the store in a thread; a database that is away is waited for."""
        return await persist(lambda: asyncio.to_thread(call, *args, **kwargs))


def _observe(before: Round | None, after: Round) -> None:
    if before is not None and before.id == after.id and before.phase in after.phase_seconds:
        metrics.PHASE_SECONDS.labels(before.phase).observe(after.phase_seconds[before.phase])
    if not after.phase.ended:
        _log.info("phase", phase=after.phase, devices=len(after.participants))
        return
    metrics.ROUNDS.labels(after.phase, after.reason or "").inc()
    for participant in after.participants.values():
        metrics.PARTICIPANTS.labels(participant.standing).inc()
    if after.aggregate is not None:
        metrics.MODEL_VERSION.set(after.aggregate.model.version)
    _log.info("round ended", outcome=after.phase, reason=after.reason, seconds=round(after.phase_since - after.opened_at, 3))
