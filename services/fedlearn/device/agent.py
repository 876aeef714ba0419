"""One device: check in, train on its own shard, seal, upload, and again."""

import asyncio
import contextvars
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from fedlearn.adapters.http import first_of, persist
from fedlearn.core.eligibility import Conditions, shortfall
from fedlearn.core.errors import Code, FedlearnError, Outage, Refusal
from fedlearn.core.ids import RoundId, TaskId
from fedlearn.core.learning import Shard, Stop, Weights
from fedlearn.core.updates import Update
from fedlearn.core.workload import within
from fedlearn.device.outbox import Outbox, Parcel
from fedlearn.device.peers import AggregatorClient
from fedlearn.device.residuals import Residuals
from fedlearn.device.sessions import Session
from fedlearn.device.uploads import Upload
from fedlearn.device.workshop import Tools, Workshop
from fedlearn.protocol.eligibility import DeviceConditions
from fedlearn.protocol.messages import Assignment, CheckIn, ComeBack, DropOut, RoundName, Speed, UploadDone
from fedlearn.protocol.plans import Plan
from fedlearn.telemetry.logs import about, log
from fedlearn.telemetry.metrics import device as metrics

_log = log(__name__)
_TELL_SECONDS = 5.0
_LEAST_SECONDS = 1e-6
_FIRST_ASK_SECONDS, _ASK_AGAIN_SECONDS = 2.0, 0.5
_LOOK_SECONDS = 1.0
_NOBODY_TO_TELL = frozenset({Code.ROUND_CLOSED, Code.NOT_SELECTED, Code.TASK_UNKNOWN})


class _ConditionsChanged(Exception):
    """The device must be offered anew."""


@dataclass(frozen=True, slots=True)
class Home:
    """What makes this device this device.

    Args:
        slot: which of the devices of its process, None where it is the only one.
        labels: examples a label, None unless the server is to know.
        state: a directory of its own, for what it needs in later rounds.
        seed_name: with the seed and the round it seeds local training; the same for the same shard wherever it is hosted.
    """

    slot: int | None
    dataset: str
    shard: Shard
    seed: int
    seed_name: str
    runtime: str
    state: Path
    labels: Mapping[str, int] | None = None


class Agent:
    """The loop of one device; a round that fails for this device is dropped out of, and the loop goes on."""

    def __init__(
        self,
        home: Home,
        workshop: Workshop,
        aggregator: AggregatorClient,
        checkin_seconds: float,
        conditions: Callable[[], Conditions] = Conditions,
    ) -> None:
        self._home, self._workshop = home, workshop
        self._aggregators, self._aggregator = aggregator, aggregator
        self._conditions = conditions
        self._outbox = Outbox(workshop.server, Residuals(home.state))
        self._uploaded: RoundName | None = None
        self._speed: Speed | None = None
        self._session, self._accepted = Session(), asyncio.Event()
        self._checkin = CheckIn(
            slot=home.slot,
            dataset=home.dataset,
            examples=len(home.shard.train),
            holdout_examples=len(home.shard.holdout),
            runtime=home.runtime,
            labels=None if home.labels is None else dict(home.labels),
            wait_seconds=checkin_seconds,
        )
        self.connected = self._delivered = False

    async def run(self) -> None:
        """Until cancelled; when that happens in a round, the server is told at once."""
        while True:
            answer = await persist(self._check_in)
            if isinstance(answer, ComeBack):
                await asyncio.sleep(answer.after_seconds)
                continue
            with about(round=f"{answer.task}/{answer.round}", device=answer.device):
                await self._take_part(answer)

    async def _check_in(self) -> Assignment | ComeBack:
        offered = self._conditions()
        changes = {"uploaded": self._uploaded, "speed": self._speed, "conditions": DeviceConditions.of(offered)}
        offer = self._checkin.model_copy(update=changes)
        try:
            answer = await first_of(self._workshop.server.check_in(offer), self._while_as(offered))
        except _ConditionsChanged:
            return ComeBack(after_seconds=0.0)
        except FedlearnError as error:
            self.connected = False
            _log.warning("check-in failed", code=error.code, detail=error.detail)
            if not isinstance(error, Outage):  # an identity that is not known yet, a token's file: as good as an outage
                raise Outage(error.code, error.detail) from error
            raise
        self.connected = True
        return answer

    async def _take_part(self, assignment: Assignment) -> None:
        round_id = RoundId(TaskId(assignment.task), assignment.round)
        self._delivered, self._session, self._accepted = False, Session(), asyncio.Event()
        try:
            async with asyncio.timeout(assignment.seconds_left):
                with self._session.counted():
                    await first_of(
                        self._contribute(round_id, assignment),
                        self._accept(round_id),  # beside the rest: the server saves it before it answers
                        self._while_wanted(round_id),
                        self._while_eligible(assignment),
                    )
        except TimeoutError:
            _log.warning("not ready before the deadline")
        except asyncio.CancelledError:
            await self._drop_out(round_id, Code.DEVICE_STOPPING, "The process is being stopped.")
            raise
        except FedlearnError as error:
            if error.code in _NOBODY_TO_TELL:
                _log.info("is released", code=error.code, detail=error.detail)
            else:
                _log.warning("drops out", code=error.code, detail=error.detail)
                await self._drop_out(round_id, error.code, error.detail)
        except Exception as error:
            _log.exception("drops out by an unforeseen failure")
            # its words stay here: they may quote the data that made it
            await self._drop_out(round_id, Code.INTERNAL, f"{type(error).__name__}: the device's log says more.")

    async def _drop_out(self, round_id: RoundId, code: Code, detail: str) -> None:
        told = DropOut(slot=self._home.slot, code=code, detail=detail[:1000])
        try:
            await persist(lambda: self._workshop.server.drop_out(round_id, told), seconds=_TELL_SECONDS)
        except FedlearnError as error:
            _log.info("the server takes no word of it", code=error.code)

    async def _while_wanted(self, round_id: RoundId) -> None:
        """Ends with `round_closed` when the round needs no more reports: what this device does is in vain then.

        Who has done its part before the first question is worth it need not ask.
        """
        seconds = self._checkin.wait_seconds
        await asyncio.sleep(_FIRST_ASK_SECONDS)
        while True:
            try:
                await persist(lambda: self._workshop.server.wanted(round_id, self._home.slot, seconds))
            except Refusal:
                if self._delivered:  # it may be this device's report that has closed the round
                    return
                raise
            await asyncio.sleep(_ASK_AGAIN_SECONDS)

    async def _while_eligible(self, assignment: Assignment) -> None:
        """Ends with `not_eligible` when the device does not meet the task's demands any more."""
        demands, home = assignment.demands.domain(), self._home
        while True:
            lacking = shortfall(demands, self._conditions(), len(home.shard.train), home.runtime)
            if lacking is not None:
                raise Refusal(Code.NOT_ELIGIBLE, lacking)
            await asyncio.sleep(_LOOK_SECONDS)

    async def _while_as(self, offered: Conditions) -> None:
        """Ends when the offer that is held is not true any more; memory comes and goes, and is looked at in the round."""
        while True:
            if replace(self._conditions(), free_memory_bytes=offered.free_memory_bytes) != offered:
                raise _ConditionsChanged
            await asyncio.sleep(_LOOK_SECONDS)

    async def _accept(self, round_id: RoundId) -> None:
        await persist(lambda: self._workshop.server.accept(round_id, self._home.slot))
        self._accepted.set()

    async def _contribute(self, round_id: RoundId, assignment: Assignment) -> None:
        workshop = self._workshop
        tools = await workshop.tools(assignment.plan_digest)
        weights = await workshop.weights(round_id.task, assignment.model, assignment.model_url, tools.plan)
        self._aggregator = self._aggregators.at(assignment.aggregator)
        self._session.note("v")
        key = await workshop.sealing_key(round_id)
        before = await self._outbox.round_before(assignment, tools.plan)
        stop = Stop()

        def make() -> Parcel:
            # both in one go: a delta is as large as the model, and should not wait for other devices' trainings
            update = self._train(tools, weights, round_id, stop, assignment.local_steps)
            return self._outbox.pack(update, key, assignment, tools.plan, seed=self._seed(round_id), before=before)

        in_context = contextvars.copy_context().run  # so that its log lines name round and device
        try:
            parcel = await asyncio.get_running_loop().run_in_executor(workshop.compute, in_context, make)
        except BaseException:
            stop.set()  # the thread is the process's only one: other rounds wait for it
            raise
        await self._accepted.wait()
        await self._upload(round_id, assignment.ticket, parcel)

    def _train(self, tools: Tools, weights: Weights, round_id: RoundId, stop: Stop, wanted_steps: int | None = None) -> Update:
        stop.check()
        # the session is its own: after a deadline this ends when the next one may have begun
        shard, session, training, began = self._home.shard, self._session, tools.plan.training, time.monotonic()
        session.note("[")
        figures = tools.learner.evaluate(weights, shard.holdout)
        whole = training.steps(len(shard.train))
        # not less than the plan allows, whatever the server wants
        steps = whole if wanted_steps is None else within(wanted_steps, whole, training.min_steps_fraction)
        with self._timed(round_id, tools.plan, steps):
            delta = tools.learner.learn(weights, shard.train, self._seed(round_id), stop, steps=steps)
        session.note("]")
        seconds = time.monotonic() - began
        metrics.TRAINING_SECONDS.observe(seconds)
        metrics.TRAINED_EPOCHS.inc(training.epochs * steps / whole)
        metrics.TRAINED_EXAMPLES.inc(training.processed(steps, len(shard.train)))
        _log.info("trained", examples=len(shard.train), steps=steps, of=whole, seconds=round(seconds, 3), **figures)
        holdout = len(shard.holdout) if figures else 0
        # all of its examples, also where it has stopped early: see docs/decisions/0015-work-by-speed.md
        return Update(delta, examples=len(shard.train), holdout_examples=holdout, metrics=figures)

    @contextmanager
    def _timed(self, round_id: RoundId, plan: Plan, steps: int) -> Iterator[None]:
        """Note how long the steps took, for the next check-in."""
        began = time.monotonic()
        yield
        seconds = max(time.monotonic() - began, _LEAST_SECONDS)
        self._speed = Speed(task=round_id.task, round=round_id.number, plan_digest=plan.digest, steps=steps, seconds=seconds)

    def _seed(self, round_id: RoundId) -> int:
        text = f"{self._home.seed}/{self._home.seed_name}/{round_id.number}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")

    async def _upload(self, round_id: RoundId, ticket: str, parcel: Parcel) -> None:
        slot, transfer = self._home.slot, self._workshop.transfer
        self._session.note("+")
        await Upload(self._aggregator, transfer, round_id=round_id, slot=slot, ticket=ticket, parcel=parcel).bring()
        self._delivered = True
        await persist(lambda: self._aggregator.done(round_id, UploadDone(slot=slot, digest=parcel.digest), ticket))
        self._session.note("^")
        self._uploaded = RoundName(task=round_id.task, round=round_id.number)
        _log.info("uploaded", bytes=len(parcel.body))
