"""One task as this server sees it: what devices and people ask of it, whoever drives its rounds."""

import asyncio
import contextlib

from fedlearn.core.ids import DeviceId, TaskId
from fedlearn.core.ports import ALIVE_STATES, Task
from fedlearn.core.rounds import OUTSTANDING, Phase, Round
from fedlearn.protocol.messages import Assignment, Model
from fedlearn.protocol.plans import Plan
from fedlearn.server.assignments import Assigner
from fedlearn.server.cohort import Cohort
from fedlearn.server.surroundings import Surroundings

_ANSWERED_AT_ONCE = 100


class TaskWatch:
    """The task's latest round. Whoever keeps it current calls `show`."""

    def __init__(self, task: Task, plan: Plan, around: Surroundings) -> None:
        self._task, self._plan, self._around = task, plan, around
        self._changed = asyncio.Event()
        self._assigner: Assigner | None = None
        self.cohort = Cohort(around.fleet, plan.dataset)
        self.round: Round | None = None

    @property
    def id(self) -> TaskId:
        return self._task.id

    @property
    def is_over(self) -> bool:
        """Whether no round begins any more."""
        return self._task.state not in ALIVE_STATES

    def wants(self, dataset: str) -> int:
        """How many devices with shards of this dataset its next round selects; 0 once there is none."""
        return 0 if self.is_over or dataset != self._plan.dataset else self._task.policy.selection.goal

    def assignment(self, device: DeviceId) -> Assignment | None:
        """The device's part in the running round, if it has one that it has not finished."""
        round_ = self.round
        if round_ is None or round_.phase is not Phase.REPORTING or self._assigner is None or not self.is_prepared(round_):
            return None
        participant = round_.participants.get(device)
        if participant is None or participant.standing not in OUTSTANDING:
            return None
        now = self._around.clock()
        seconds_left = (round_.deadline or now) - now
        return self._assigner.assign(device, seconds_left, now) if seconds_left > 0 else None

    async def assign_here(self, round_: Round) -> None:
        """Answer the check-ins of the round's devices that are held here."""
        answered = 0
        for device in round_.devices(*OUTSTANDING):
            if self._around.fleet.holds_here(device) and (assignment := self.assignment(device)) is not None:
                self._around.fleet.answer(device, assignment)
                answered += 1
                if answered % _ANSWERED_AT_ONCE == 0:  # a cohort of thousands takes a second: others have their turns meanwhile
                    await asyncio.sleep(0)

    def announce(self) -> None:
        """Let those go who wait for a change."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self, seconds: float) -> None:
        """Wait until the round changes, at most so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()

    def is_prepared(self, round_: Round) -> bool:
        """Whether its devices can be given their assignments; an earlier round's are of no use."""
        return self._assigner is not None and self._assigner.round_id == round_.id

    def prepare(self, round_: Round) -> None:
        """From now on the round's devices can be given their assignments."""
        around = self._around
        grace, steps = around.ticket_grace_seconds, around.speeds.steps(round_.participants, self._plan)
        start = Model.of(round_.start or round_.base)
        self._assigner = Assigner(
            self._task,
            round_,
            around.models,
            around.signer,
            start=start,
            grace_seconds=grace,
            steps=steps,
            aggregators=around.aggregator.shared_by(self._plan),
        )

    def show(self, round_: Round) -> None:
        """This is the task's round now, and it is durable."""
        self.round = round_
        self.cohort.follow(round_)
        feed = self._around.feed
        feed.round(round_)
        if round_.phase is Phase.COMMITTED and round_.aggregate is not None:
            feed.version(round_.id.task, round_.aggregate.model.version)
            feed.task(round_.id.task)
        self.announce()
