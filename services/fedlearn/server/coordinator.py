"""All tasks of this server: a runner for each, the way from a caller's word to its round, and the evaluator's queue.

Where several replicas serve, one of them leads and has the runners; the others follow the rounds that it drives.
"""

import asyncio
import contextlib
from collections.abc import Callable, Collection
from dataclasses import replace

from fedlearn.adapters.http import persist, spawn
from fedlearn.adapters.web import Probe
from fedlearn.core.errors import Code, FedlearnError, Outage, Refusal
from fedlearn.core.ids import DeviceId, RoundId, TaskId
from fedlearn.core.ports import ALIVE_STATES, ModelVersion, RoundStore, Task
from fedlearn.core.rounds import OUTSTANDING, DeviceDropped, Event, Round, Standing
from fedlearn.core.selection import Census
from fedlearn.protocol.messages import Assignment, CheckIn
from fedlearn.protocol.plans import Plan, read_plan
from fedlearn.server.fleet import has_uploaded
from fedlearn.server.following import Following
from fedlearn.server.observation import observe_task, recall
from fedlearn.server.runner import TaskRunner
from fedlearn.server.surroundings import Surroundings
from fedlearn.server.sweeping import sweep_round
from fedlearn.server.watch import TaskWatch
from fedlearn.telemetry.logs import log
from fedlearn.telemetry.metrics import server as metrics
from fedlearn.telemetry.metrics import tasks as task_metrics

_log = log(__name__)
_RESTART_SECONDS = 2.0


class Coordinator:
    def __init__(self, around: Surroundings) -> None:
        self.around = self._led = around
        self.leads = True
        self.following = Following(around, self.plan)
        self.on_fenced: Callable[[], None] = lambda: None
        """Called when a write of this leader was refused, since another one leads by now."""
        self._runners: dict[TaskId, TaskRunner] = {}
        self._supervisors: dict[TaskId, asyncio.Task[None]] = {}
        self._plans: dict[str, Plan] = {}
        self._sweeps: set[asyncio.Task[None]] = set()
        self._versions_changed = asyncio.Event()
        self._stopping = False
        self._probe = Probe(around.store.ready, Code.DATABASE_UNAVAILABLE, "database")
        around.fleet.on_change = self._wake

    # --- life

    async def start(self) -> None:
        """Lead, as the only server of its database."""
        await persist(lambda: self.lead(self.around.store))

    async def lead(self, store: RoundStore) -> None:
        """Go on with every task that the database says is running, and with rounds that outlived their task's end.

        Args:
            store: what the runners write to: it refuses once another replica leads.
        """
        self._led = replace(self.around, store=store)
        for task in await asyncio.to_thread(store.tasks):
            latest = await asyncio.to_thread(store.latest_round, task.id)
            if task.state in ALIVE_STATES or (latest is not None and not latest.phase.ended):
                await self.run_task(task)
                versions = await asyncio.to_thread(store.versions, task.id)
                recall(latest, next((v for v in reversed(versions) if v.evaluation is not None), None))
        self.leads = True  # only now: until its runner is there, a round is answered for by what was followed
        self.following.leave()
        metrics.LEADER.set(1)

    async def follow(self) -> None:
        """Drive no round any more: another replica does, or will."""
        self.leads = False
        await self.stop()
        for runner in self._runners.values():
            runner.announce()
            task_metrics.leave(runner.id)
        self._runners.clear()
        self._supervisors.clear()

    async def run_task(self, task: Task) -> None:
        """Drive a task's rounds from now on; nothing happens if this server does already."""
        plan = await self.plan(task.plan_digest)
        if task.id in self._supervisors and not self._supervisors[task.id].done():
            return
        observe_task(task, self.around.clock())
        self._runners[task.id] = TaskRunner(task, plan, self._led)
        self._supervisors[task.id] = asyncio.create_task(self._supervise(task, plan), name=f"task {task.id}")
        self.announce_versions()

    def let_go(self) -> None:
        """Answer all requests that are held: this server stops."""
        self._stopping = True
        self.around.fleet.dismiss()
        for watch in self._watches():
            watch.cohort.leave()
        self.announce_versions()

    async def stop(self) -> None:
        metrics.LEADER.set(0)
        running = [*self._supervisors.values(), *self._sweeps]
        for work in running:
            work.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _supervise(self, task: Task, plan: Plan) -> None:
        while True:
            try:
                await self._runners[task.id].run()
            except Exception as error:
                if isinstance(error, Refusal) and error.code is Code.NOT_LEADER:
                    self.on_fenced()
                    return
                _log.exception("the task's driver failed and starts again", task=task.id)
                await asyncio.sleep(_RESTART_SECONDS)
                self._runners[task.id] = TaskRunner(task, plan, self._led)
            else:
                task_metrics.end(task.id)
                _log.info("task has ended", task=task.id)
                return

    def _watches(self) -> Collection[TaskWatch]:
        return self._runners.values() if self.leads else self.following.tasks.values()

    def watched(self) -> list[TaskId]:
        """The tasks whose rounds go on, here or elsewhere."""
        return [watch.id for watch in self._watches()]

    def _watch(self, task: TaskId) -> TaskWatch | None:
        return self._runners.get(task) if self.leads else self.following.tasks.get(task)

    def _wake(self) -> None:
        for runner in self._runners.values():
            runner.wake()

    # --- devices

    async def check_in(self, device: DeviceId, checkin: CheckIn, longest_seconds: float) -> Assignment | None:
        """The device's assignment, at once if it has one (again), else when it is selected; None when the wait is over.

        A device that is unfit gets none, and leaves the round that it had a part in.
        """
        if checkin.unfit is not None:
            await self._excuse(device, checkin.unfit.code)
            return None
        self.around.speeds.note(device, checkin)
        for watch in list(self._watches()):
            if not self.leads and watch.assignment(device) is not None:
                await self.following.read_now(watch.id)  # signals may be behind
            assignment = watch.assignment(device)
            if assignment is not None and not has_uploaded(checkin, assignment):
                return assignment
        return await self.around.fleet.wait(device, checkin, min(checkin.wait_seconds, longest_seconds))

    async def _excuse(self, device: DeviceId, code: Code) -> None:
        """A device that has come back unfit will not report in the round that it was selected for."""
        for runner in self._runners.values():
            if (assignment := runner.assignment(device)) is not None:
                with contextlib.suppress(Refusal):  # the round has just ended
                    await runner.tell(RoundId(TaskId(assignment.task), assignment.round), DeviceDropped(device, code))

    def come_back(self, device: DeviceId, checkin: CheckIn, longest_seconds: float) -> float:
        """After how many seconds a device that gets no work now should check in again (pace steering)."""
        around = self.around
        wanted = sum(watch.wants(checkin.dataset) for watch in self._watches())
        census = Census(around.fleet.size(checkin.dataset), wanted)
        hold = min(checkin.wait_seconds, longest_seconds)
        seconds = around.pace.come_back(census, hold, around.clock(), around.rng)
        around.fleet.expect(device, seconds)
        return seconds

    async def tell(self, round_id: RoundId, event: Event) -> None:
        """Hand an event to its round; it is saved when this returns.

        Raises:
            Refusal: `task_unknown`, `round_closed`, or the round's own.
        """
        runner = self.runner(round_id.task)
        if runner is None:
            raise await self._unwatched(round_id)
        await runner.tell(round_id, event)

    async def while_wanted(self, round_id: RoundId, device: DeviceId, seconds: float) -> None:
        """Wait, at most so long, while a round takes the device's report.

        Raises:
            Refusal: `round_closed` as soon as it does not any more; `task_unknown`, `not_selected`.
        """
        try:
            await self._while_wanted(round_id, device, seconds)
        except Refusal:
            if self.leads:
                raise
            await self.following.read_now(round_id.task)  # signals may be behind
            await self._while_wanted(round_id, device, seconds)

    async def _while_wanted(self, round_id: RoundId, device: DeviceId, seconds: float) -> None:
        watch = self._watch(round_id.task)
        if watch is None:
            raise await self._unwatched(round_id)
        await watch.cohort.while_wanted(round_id, device, seconds)

    async def _unwatched(self, round_id: RoundId) -> FedlearnError:
        """What to say of a round of a task that is not watched here.

        Raises:
            Refusal: `task_unknown`.
        """
        store = self.around.store
        await asyncio.to_thread(store.task, round_id.task)
        latest = await asyncio.to_thread(store.latest_round, round_id.task)
        if latest is not None and latest.id == round_id and not latest.phase.ended:
            return Outage(Code.SERVER_UNREACHABLE, f"The server reads round {round_id} again: repeat the call.")
        return Refusal(Code.ROUND_CLOSED, f"Round {round_id} has ended.")

    def runner(self, task: TaskId) -> TaskRunner | None:
        """The driver of a task's rounds; None for a task that had ended before this server started."""
        return self._runners.get(task)

    def newest_runner(self) -> TaskRunner | None:
        """The driver of the task that was started last."""
        return next(reversed(self._runners.values()), None)

    async def sweep(self, round_id: RoundId) -> None:
        """Let the aggregator sweep a round, if the database says that it has ended: it seems not to know.

        Raises:
            Refusal: `round_unknown`.
        """
        round_ = await asyncio.to_thread(self.around.store.round, round_id)
        if round_.phase.ended:
            spawn(sweep_round(self.around.aggregator, round_id), self._sweeps)

    async def changed(self, task: TaskId, seconds: float) -> None:
        """Wait until a task's round changes, at most so long; at once for a task that has no more rounds to come.

        Raises:
            Refusal: `task_unknown`.
        """
        watch = self._watch(task)
        if watch is None:
            await asyncio.to_thread(self.around.store.task, task)
        else:
            await watch.changed(seconds)

    def parts(self) -> dict[DeviceId, tuple[RoundId, Standing]]:
        """The devices of all running rounds. One that two rounds name is at work for the one where it is outstanding."""
        parts: dict[DeviceId, tuple[RoundId, Standing]] = {}
        for round_ in self.rounds():
            if round_.phase.ended:
                continue
            for device, participant in round_.participants.items():
                if device not in parts or participant.standing in OUTSTANDING:
                    parts[device] = round_.id, participant.standing
        return parts

    def rounds(self) -> list[Round]:
        """The latest round of each task that is driven, here or elsewhere."""
        return [watch.round for watch in self._watches() if watch.round is not None]

    async def cancel(self, task: TaskId) -> None:
        """End a task and abandon its running round."""
        await asyncio.to_thread(self.around.store.end_task, task, "cancelled")
        if (runner := self.runner(task)) is not None:
            await runner.cancel()

    async def pause(self, task: TaskId, paused: bool) -> Task:
        """Let a task's running round end and start no other, or go on.

        Raises:
            Refusal: `task_unknown`, `task_state`.
        """
        runner = self.runner(task)
        async with runner.between_rounds if runner is not None else contextlib.nullcontext():
            changed: Task = await asyncio.to_thread(self.around.store.pause_task, task, paused)
        if runner is not None:
            runner.nudge()
            observe_task(changed, self.around.clock())
        return changed

    async def roll_back(self, task: TaskId, version: int, current: int | None) -> ModelVersion:
        """Make an earlier version the task's model again, as a new version.

        A round that runs on the model before is abandoned: its result could not be committed any more, and its devices are
        free for the next one.

        Args:
            current: the version that the caller takes for the task's; None for whatever it is.

        Raises:
            Refusal: `task_unknown`, `model_unknown`, `base_superseded`.
        """
        store, runner = self.around.store, self.runner(task)
        async with runner.between_rounds if runner is not None else contextlib.nullcontext():
            if current is None:
                model = (await asyncio.to_thread(store.task, task)).model
                current = -1 if model is None else model.version
            restored: ModelVersion = await asyncio.to_thread(store.roll_back, task, version, current, self.around.clock())
        task_metrics.moved(task, restored.ref.version)
        _log.warning("model rolled back", task=task, to=version, version=restored.ref.version)
        if runner is not None:
            if runner.round is not None and runner.round.base != restored.ref:
                await runner.abandon(Code.BASE_SUPERSEDED)
            runner.nudge()
        self.announce_versions()
        return restored

    # --- plans and evaluations

    async def plan(self, digest: str) -> Plan:
        """A plan by its digest.

        Raises:
            Refusal: `not_found`.
        """
        if digest not in self._plans:
            self._plans[digest] = read_plan(await asyncio.to_thread(self.around.store.plan, digest))
        return self._plans[digest]

    def announce_versions(self) -> None:
        """A version has come or has been scored."""
        self._versions_changed.set()
        self._versions_changed = asyncio.Event()
        for watch in self._watches():
            watch.announce()

    async def unevaluated(self, dataset: str, seconds: float) -> ModelVersion | None:
        """The oldest version of a task on this dataset that wants a score; waits for one at most so long."""
        give_up = asyncio.get_running_loop().time() + seconds
        while True:
            changed = self._versions_changed
            for version in await asyncio.to_thread(self.around.store.unevaluated):
                task = await asyncio.to_thread(self.around.store.task, version.task)
                if (await self.plan(task.plan_digest)).dataset == dataset:
                    return version
            left = give_up - asyncio.get_running_loop().time()
            if left <= 0 or self._stopping:
                return None
            try:
                async with asyncio.timeout(left):
                    await changed.wait()
            except TimeoutError:
                return None

    async def ready(self) -> None:
        """Raises:
        Outage: `database_unavailable`, or `internal` when a task's driver has stopped.
        """
        await self._probe()
        stopped = [name for name, supervisor in self._supervisors.items() if supervisor.cancelled()]
        if stopped:
            raise Outage(Code.INTERNAL, f"The rounds of {', '.join(stopped)} are not driven.")
