"""The aggregator's rounds: opened, fed, closed and swept, each a function of what lies in object storage.

Memory is a cache here: `recover` finds every open round again by its descriptor, folds the updates that lie there, and finishes
a close that was begun.
"""

import asyncio
import base64
import json
import sys
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from fedlearn.adapters.http import persist, spawn
from fedlearn.adapters.web import Probe
from fedlearn.aggregator.admission import Admission
from fedlearn.aggregator.buffers import Buffers
from fedlearn.aggregator.closing import Closer
from fedlearn.aggregator.folding import Folding
from fedlearn.aggregator.layout import (
    Descriptor,
    close_key,
    descriptor_key,
    read_round,
    read_update,
    updates_prefix,
)
from fedlearn.aggregator.open_round import OpenRound
from fedlearn.aggregator.pace import AtOnce, Pace
from fedlearn.aggregator.peers import ServerClient
from fedlearn.aggregator.publishing import Publisher
from fedlearn.aggregator.reports import Reports
from fedlearn.aggregator.sweeping import Sweeper
from fedlearn.aggregator.uploads import UploadDesk
from fedlearn.core.errors import Code, Outage, Refusal
from fedlearn.core.ids import DeviceId, RoundId
from fedlearn.core.ports import ObjectStore, StoredObject
from fedlearn.protocol.messages import RoundOpening, RoundResult
from fedlearn.protocol.plans import Plan, read_plan
from fedlearn.protocol.sealing import SealingKey, SignedSealingKey
from fedlearn.telemetry.logs import about, log
from fedlearn.telemetry.metrics import aggregator as metrics

_log = log(__name__)
Result = TypeVar("Result")
_TELL_SECONDS = 10.0


class Rounds:
    """All rounds of this aggregator.

    Args:
        min_cohort: no aggregate of fewer distinct devices is published.
        upload_seconds: how long upload URLs are valid.
        pace: holds back folding and reporting in the walk-through.
        save_every: after more updates than this a round's sum is written to storage, and they are deleted; about as many more
            may be under way.
        shard: this aggregator's number; the one whose number is 0 publishes.
    """

    def __init__(
        self,
        *,
        models: ObjectStore,
        updates: ObjectStore,
        identity: Ed25519PrivateKey,
        server: ServerClient,
        min_cohort: int,
        upload_seconds: int,
        workers: int,
        pace: Pace | None = None,
        save_every: int = 100,
        shard: int = 0,
    ) -> None:
        self._updates, self._identity, self._reports = updates, identity, Reports(server)
        self.desk, self.admission = UploadDesk(updates, upload_seconds), Admission(models, min_cohort, upload_seconds)
        self._publisher, self._pace = Publisher(models), pace or AtOnce()
        self._closer = Closer(updates, self._publisher, min_cohort, self._in_thread)
        self._save_every, self._shard = save_every, shard
        # hundreds of updates may wait to be folded, and the partial sum that makes room for them must not wait behind them
        self._folders = ThreadPoolExecutor(workers, thread_name_prefix="fold")
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="round")
        self._rounds: dict[RoundId, OpenRound] = {}
        self._buffers: Buffers | None = None
        self._sweeper = Sweeper(updates, self._threads, upload_seconds)
        self._recovered = False
        self._probe = Probe(lambda: updates.list("ready"), Code.STORAGE_UNAVAILABLE, "object storage")
        self._opening = asyncio.Lock()
        self._chores: set[asyncio.Task[None]] = set()

    # --- life

    async def recover(self) -> None:
        """Go on with every round whose descriptor lies in storage, and sweep what is left of others."""
        found: dict[RoundId, bool] = {}
        for stored in await persist(self._all_there_is):
            if (round_id := read_round(stored.key)) is not None:
                found[round_id] = found.get(round_id, False) or stored.key == descriptor_key(round_id)
        lost: set[asyncio.Task[None]] = set()
        for round_id, has_descriptor in found.items():
            if not has_descriptor:
                self._chore(self._sweeper.now_and_later(round_id))
                continue
            try:
                await persist(partial(self._find_again, round_id))
            except Exception as error:  # one odd object must not keep all other rounds waiting
                lost.add(self._chore(self._reports.failure(round_id, error)))
        if lost:  # the server should know why before devices hear that these rounds take no updates, and drop out
            await asyncio.wait(lost, timeout=_TELL_SECONDS)
        self._recovered = True

    async def _all_there_is(self) -> Sequence[StoredObject]:
        """What lies in storage. A refusal is as good as an outage here: without an answer this aggregator can do nothing."""
        try:
            return await asyncio.to_thread(self._updates.list, "")
        except Refusal as refusal:
            _log.error("the rounds in the object storage can't be read", code=refusal.code, detail=refusal.detail)
            raise Outage(refusal.code, refusal.detail) from refusal

    async def stop(self) -> None:
        tasks = [*self._chores, *(task for round_ in self._rounds.values() for task in round_.tasks())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for threads in (self._folders, self._threads):
            threads.shutdown(wait=True, cancel_futures=True)

    async def ready(self) -> None:
        """Raises:
        Outage: `storage_unavailable`.
        """
        await self._probe()
        if not self._recovered:
            raise Outage(Code.STORAGE_UNAVAILABLE, "The rounds in the object storage are not read yet.")

    # --- what the server asks

    async def open(self, round_id: RoundId, opening: RoundOpening) -> OpenRound:
        """Open a round, or find it open. Older rounds of the task have ended, so they are swept.

        Raises:
            Refusal: `plan_invalid`; `cohort_too_small` for a rule whose result mixes fewer updates than `min_cohort`;
                `round_conflict` when it is open with another plan or base; `aggregator_key_lost`.
        """
        plan = read_plan(json.dumps(opening.plan))
        self._closer.check_cohort(plan, sys.maxsize)  # a rule that takes one update of any number: nobody should train for that
        async with self._opening:
            for older in [known for known in self._rounds if known.task == round_id.task and known.number < round_id.number]:
                self._chore(self._sweeper.now_and_later(older))
                self._forget(older)
            if round_id in self._rounds:
                self._rounds[round_id].counted.set()  # a server that asks again may have missed what it was told
            else:
                await self._open_new(round_id, opening, plan)
        round_ = self._rounds[round_id]
        known = round_.folding.descriptor
        if (round_.folding.plan.digest, known.base, known.aggregators) != (plan.digest, opening.base, opening.aggregators):
            raise Refusal(
                Code.ROUND_CONFLICT, f"Round {round_id} is open with another plan, base model or number of aggregators."
            )
        return round_

    async def close(self, round_id: RoundId) -> OpenRound:
        """Begin to close; the result goes to the server by itself.

        Raises:
            Refusal: `round_unknown`; `aggregator_key_lost` when only its descriptor is left.
        """
        round_ = await self._find_again(round_id)
        self._close(round_)
        return round_

    async def sweep(self, round_id: RoundId) -> None:
        """Delete what the round left, now and again once its last upload URL has expired."""
        self._forget(round_id)
        await self._sweeper.now(round_id)
        self._chore(self._sweeper.later(round_id))

    # --- what devices ask

    def find(self, round_id: RoundId) -> OpenRound:
        """Raises:
        Refusal: `update_late` when the round takes no updates (any more).
        Outage: `aggregator_unreachable` while nobody knows, since the rounds in storage are still being read.
        """
        round_ = self._rounds.get(round_id)
        if round_ is None and not self._recovered:
            raise Outage(Code.AGGREGATOR_UNREACHABLE, "The aggregator still reads its rounds from the object storage.")
        if round_ is None or not round_.accepting:
            raise Refusal(Code.UPDATE_LATE, f"Round {round_id} takes no updates.")
        return round_

    def admit(self, round_id: RoundId) -> OpenRound:
        """As `find`, for word of an update: one that is late is counted."""
        try:
            return self.find(round_id)
        except Refusal as refusal:
            metrics.UPDATES.labels(refusal.code).inc()
            raise

    def signed_key(self, round_id: RoundId) -> SignedSealingKey:
        """The round's sealing key with this aggregator's word for it; raises as `find`."""
        return self.find(round_id).folding.key.sign(self._identity)

    def uploaded(self, round_: OpenRound, device: DeviceId, digest: str) -> None:
        """Take the hint that an update lies in storage."""
        round_.inflow.keep(device)
        spawn(self._fold(round_, device, digest), round_.folds)

    # --- what the walk-through asks

    def newest(self) -> OpenRound | None:
        """The round that was opened last and has not ended."""
        return next(reversed(self._rounds.values()), None)

    async def senders(self, round_: OpenRound) -> frozenset[DeviceId]:
        """Whose updates lie in storage, by themselves or in a partial sum."""
        return frozenset(device for device, _ in await self._stored(round_)) | round_.folding.counts().folded.keys()

    # --- opening and recovery

    async def _open_new(self, round_id: RoundId, opening: RoundOpening, plan: Plan) -> None:
        served = await self._in_thread(self._publisher.serve, opening.base, plan)
        key = await self._in_thread(SealingKey.generate, round_id)
        descriptor = Descriptor(
            task=round_id.task,
            round=round_id.number,
            plan=opening.plan,
            base=opening.base,
            aggregators=opening.aggregators,
            served=served,
            kid=key.kid,
            wrapped_key=base64.b64encode(key.wrap(self._identity)).decode(),
        )
        written = await self._in_thread(self._updates.put_once, descriptor_key(round_id), descriptor.model_dump_json().encode())
        if not written:
            await self._resume(round_id)
            return
        self._begin(self._folding(descriptor, plan, key))

    async def _find_again(self, round_id: RoundId) -> OpenRound:
        """The round in memory, or else by its descriptor in storage."""
        async with self._opening:
            return self._rounds.get(round_id) or await self._resume(round_id)

    async def _resume(self, round_id: RoundId) -> OpenRound:
        try:
            body = await self._in_thread(self._updates.get, descriptor_key(round_id))
            descriptor = Descriptor.model_validate_json(body)
        except Refusal as refusal:
            if refusal.code is not Code.NOT_FOUND:  # the storage may give it to us later
                raise Outage(refusal.code, refusal.detail) from refusal
            raise Refusal(Code.ROUND_UNKNOWN, f"Round {round_id} has no descriptor in storage.") from refusal
        except ValidationError as error:
            raise Refusal(Code.AGGREGATOR_KEY_LOST, f"The descriptor of round {round_id} is damaged.") from error
        key = SealingKey.unwrap(self._identity, descriptor.wrapped_key_bytes, round_id)
        folding = self._folding(descriptor, read_plan(json.dumps(descriptor.plan)), key)
        await self._in_thread(folding.resume)
        round_ = self._begin(folding)
        _log.info("round recovered", round=str(round_id))
        if folding.finished:
            self._close(round_)
        elif self._shard == 0 and await self._in_thread(self._updates.size, close_key(round_id)) is not None:
            round_.closed_before = True
            self._close(round_)
        else:
            await self.fold_stored(round_, wait=False)
            round_.counted.set()  # a server whose round has ended without us lets us sweep it
        return round_

    def _folding(self, descriptor: Descriptor, plan: Plan, key: SealingKey) -> Folding:
        self._buffers = Buffers.of(plan, self._buffers)
        return Folding(descriptor, plan, key, self._updates, shard=self._shard, buffers=self._buffers)

    def _begin(self, folding: Folding) -> OpenRound:
        round_ = self._rounds[folding.descriptor.id] = OpenRound(folding, self._save_every)
        spawn(self._reports.while_open(round_), round_.work)
        return round_

    # --- folding

    async def _fold(self, round_: OpenRound, device: DeviceId, digest: str) -> None:
        with about(round=str(round_.id), device=device):
            await self._pace.before_folding(round_.id)
            consider = partial(round_.folding.consider, device, digest)
            try:
                if not await persist(lambda: asyncio.get_running_loop().run_in_executor(self._folders, consider)):
                    return
            except Refusal as refusal:
                _log.warning("update refused", code=refusal.code, detail=refusal.detail)
            except Exception:  # one odd update must not cost the round
                _log.exception("update not folded")
            if round_.folding.plan.aggregation.rule is not None or round_.folding.folded_digest(device) is None:
                round_.inflow.leave(device)  # no partial sum will make room for it
            round_.counted.set()
            # not at once when there are so many: after a round's last update the close comes next, and needs no partial sum
            if round_.accepting and not round_.saving and round_.folding.unsaved > self._save_every:
                round_.saving = True
                spawn(self._save(round_), round_.folds)

    async def _save(self, round_: OpenRound) -> None:
        try:
            await persist(lambda: self._in_thread(round_.folding.save))
            for device in round_.folding.saved:
                round_.inflow.leave(device)
        except Refusal as refusal:
            _log.error("partial sum not written", round=str(round_.id), code=refusal.code, detail=refusal.detail)
            await self._begin_anew(round_)
        finally:
            round_.saving = False

    async def _begin_anew(self, round_: OpenRound) -> None:
        """Drop what is in memory for what is in storage."""
        async with self._opening:
            await persist(partial(self._resume, round_.id))
        for task in round_.tasks():
            if task is not asyncio.current_task():
                task.cancel()

    async def _stored(self, round_: OpenRound) -> list[tuple[DeviceId, str]]:
        stored = await persist(lambda: self._in_thread(self._updates.list, updates_prefix(round_.id)))
        named = [read_update(round_.id, update.key) for update in stored]
        return [(device, digest) for device, digest in named if round_.folding.mine(device)]

    async def fold_stored(self, round_: OpenRound, *, wait: bool = True) -> None:
        """Fold what lies in storage, hinted at or not."""
        for device, digest in await self._stored(round_):
            if round_.folding.folded_digest(device) is None:
                spawn(self._fold(round_, device, digest), round_.folds)
        if wait:
            await asyncio.gather(*round_.folds)

    # --- closing

    def _close(self, round_: OpenRound) -> None:
        round_.accepting = False
        round_.inflow.close()
        if round_.closing is None or round_.closing.done():
            round_.closing = asyncio.create_task(self._finish(round_))

    async def _finish(self, round_: OpenRound) -> None:
        with about(round=str(round_.id)), metrics.PUBLISH_SECONDS.time():
            try:
                if round_.folding.shard != 0:
                    await self._hand_over(round_)
                    return
                if round_.result is None:
                    round_.result = await persist(lambda: self._result(round_))
                result = round_.result
                await self._pace.before_reporting(round_.id, result)
                await self._reports.result(round_.id, result)
                round_.published = True
                _log.info("model published", version=result.model.version, contributors=len(result.contributors))
            except Exception as error:  # otherwise the server waits for its time to be up
                await self._reports.failure(round_.id, error)

    async def _hand_over(self, round_: OpenRound) -> None:
        """Leave this aggregator's part of the sum in storage, where the first aggregator finds it."""
        if not round_.folding.finished:  # otherwise what has come since is late
            await persist(lambda: self.fold_stored(round_))
        try:
            await persist(lambda: self._in_thread(partial(round_.folding.save, final=True)))
        except Refusal as refusal:
            _log.error("part of the sum not handed over", code=refusal.code, detail=refusal.detail)
            await self._begin_anew(round_)  # the server asks again
            return
        round_.published = True
        _log.info("part of the sum handed over", contributors=len(round_.folding.counts().folded))

    async def _result(self, round_: OpenRound) -> RoundResult:
        if not round_.closed_before:
            await self.fold_stored(round_)
        return await self._closer.result(round_)

    # --- tasks and threads

    def _forget(self, round_id: RoundId) -> None:
        round_ = self._rounds.pop(round_id, None)
        if round_ is not None:
            round_.inflow.close()
            for task in round_.tasks():
                task.cancel()

    def _chore(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return spawn(work, self._chores)

    async def _in_thread(self, call: Callable[..., Result], *arguments: object) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)
