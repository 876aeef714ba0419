"""One device: check in, train on its own shard, seal, upload, and again."""

import asyncio
import contextvars
import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass

from fedlearn.adapters.http import persist
from fedlearn.core.errors import Code, FedlearnError, Outage
from fedlearn.core.ids import DeviceId, RoundId, TaskId
from fedlearn.core.learning import Shard, Weights
from fedlearn.core.updates import Update
from fedlearn.device.peers import AggregatorClient
from fedlearn.device.workshop import Tools, Workshop
from fedlearn.protocol.envelope import UpdateContext, seal
from fedlearn.protocol.messages import Assignment, CheckIn, ComeBack, DropOut, RoundName, UploadDone, UploadRequest
from fedlearn.protocol.sealing import SealingPublicKey
from fedlearn.protocol.tensors import flatten
from fedlearn.telemetry import metrics
from fedlearn.telemetry.logs import about, log

_log = log(__name__)
_TELL_SECONDS = 5.0
_NOBODY_TO_TELL = frozenset({Code.ROUND_CLOSED, Code.NOT_SELECTED, Code.TASK_UNKNOWN})


@dataclass(frozen=True, slots=True)
class Home:
    """What makes this device this device.

    Args:
        slot: which of the devices of its process, None where it is the only one.
        labels: examples a label, None unless the server is to know.
        seed_name: with the seed and the round it seeds local training; the same for the same shard wherever it is hosted.
    """

    slot: int | None
    dataset: str
    shard: Shard
    seed: int
    seed_name: str
    runtime: str
    labels: Mapping[str, int] | None = None


class Agent:
    """The loop of one device; a round that fails for this device is dropped out of, and the loop goes on."""

    def __init__(self, home: Home, workshop: Workshop, aggregator: AggregatorClient, checkin_seconds: float) -> None:
        self._home, self._workshop, self._aggregator = home, workshop, aggregator
        self._uploaded: RoundName | None = None
        self._checkin = CheckIn(
            slot=home.slot,
            dataset=home.dataset,
            examples=len(home.shard.train),
            holdout_examples=len(home.shard.holdout),
            runtime=home.runtime,
            labels=None if home.labels is None else dict(home.labels),
            wait_seconds=checkin_seconds,
        )
        self.connected = False

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
        try:
            answer = await self._workshop.server.check_in(self._checkin.model_copy(update={"uploaded": self._uploaded}))
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
        try:
            async with asyncio.timeout(assignment.seconds_left):
                await self._contribute(round_id, assignment)
        except TimeoutError:
            _log.warning("not ready before the deadline")
        except asyncio.CancelledError:
            await self._drop_out(round_id, Code.DEVICE_STOPPING, "The process is being stopped.")
            raise
        except FedlearnError as error:
            _log.warning("drops out", code=error.code, detail=error.detail)
            if error.code not in _NOBODY_TO_TELL:
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

    async def _contribute(self, round_id: RoundId, assignment: Assignment) -> None:
        workshop = self._workshop
        await persist(lambda: workshop.server.accept(round_id, self._home.slot))
        tools = await workshop.tools(assignment.plan_digest)
        weights = await workshop.weights(assignment.model, assignment.model_url, tools.plan)
        key = await workshop.sealing_key(round_id)
        in_context = contextvars.copy_context().run  # so that its log lines name round and device
        loop = asyncio.get_running_loop()
        update = await loop.run_in_executor(workshop.compute, in_context, self._train, tools, weights, round_id)
        sealed = await asyncio.to_thread(self._seal, update, key, assignment, tools)
        await self._upload(round_id, assignment.ticket, sealed)

    def _train(self, tools: Tools, weights: Weights, round_id: RoundId) -> Update:
        shard, began = self._home.shard, time.monotonic()
        figures = tools.learner.evaluate(weights, shard.holdout)
        trained = tools.learner.train(weights, shard.train, self._seed(round_id))
        delta = flatten(trained)
        delta -= flatten(weights)
        seconds = time.monotonic() - began
        metrics.TRAINING_SECONDS.observe(seconds)
        metrics.TRAINED_EXAMPLES.inc(len(shard.train) * tools.plan.training.epochs)
        _log.info("trained", examples=len(shard.train), seconds=round(seconds, 3), **figures)
        holdout = len(shard.holdout) if figures else 0
        return Update(delta, examples=len(shard.train), holdout_examples=holdout, metrics=figures)

    def _seed(self, round_id: RoundId) -> int:
        text = f"{self._home.seed}/{self._home.seed_name}/{round_id.number}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")

    @staticmethod
    def _seal(update: Update, key: SealingPublicKey, assignment: Assignment, tools: Tools) -> tuple[bytes, str]:
        context = UpdateContext(
            task=assignment.task,
            round=assignment.round,
            device=DeviceId(assignment.device),
            plan_digest=assignment.plan_digest,
            base_sha256=assignment.model.sha256,
        )
        sealed = seal(update, key=key, context=context, format=tools.plan.update)
        return sealed, hashlib.sha256(sealed).hexdigest()

    async def _upload(self, round_id: RoundId, ticket: str, sealed: tuple[bytes, str]) -> None:
        body, sha256 = sealed
        request = UploadRequest(slot=self._home.slot, size_bytes=len(body), sha256=sha256)
        grant = await persist(lambda: self._aggregator.place(round_id, request, ticket))
        await asyncio.to_thread(self._workshop.transfer.store, grant, body)
        metrics.UPLOADED_BYTES.inc(len(body))
        await persist(lambda: self._aggregator.done(round_id, UploadDone(slot=self._home.slot, sha256=sha256), ticket))
        self._uploaded = RoundName(task=round_id.task, round=round_id.number)
        _log.info("uploaded", bytes=len(body))
