"""What the devices of one process share: plans with their compiled models, the global model, the round's sealing key.

Whatever several devices want at once is made once; they wait for it together. Of each of the last few tasks the newest is kept:
devices of one process may work at several tasks in turn, and to build a learner or fetch a model anew for each round costs more
than to keep it.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Hashable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedlearn.adapters.http import persist
from fedlearn.adapters.transfer import SignedTransfer
from fedlearn.core.errors import Code, Refusal
from fedlearn.core.ids import RoundId, TaskId
from fedlearn.core.learning import Learner, Weights
from fedlearn.device.peers import AggregatorClient, ServerClient
from fedlearn.protocol.messages import Model
from fedlearn.protocol.plans import ModelEncoding, Plan
from fedlearn.protocol.sealing import SealingPublicKey, verify_sealing_key
from fedlearn.protocol.tensors import decode_model

Owner = TypeVar("Owner", bound=Hashable)
Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")
LearnerFactory = Callable[[Plan], Learner]
_MOST_TASKS = 4
_MOST_MODEL_BYTES = 512 << 20  # of larger models only one is kept


class _Kept(NamedTuple, Generic[Key, Value]):
    key: Key
    making: asyncio.Task[Value]
    size_bytes: int

    @property
    def failed(self) -> bool:
        return self.making.done() and (self.making.cancelled() or self.making.exception() is not None)


class Newest(Generic[Owner, Key, Value]):
    """Keeps for each owner the value that was made last; whoever wants it while it is being made waits for it.

    Args:
        most: of so many owners, of those who were asked for last.
        most_bytes: what the values may have together; the last one is kept also if it has more.
    """

    def __init__(self, most: int, most_bytes: float = math.inf) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._kept: dict[Owner, _Kept[Key, Value]] = {}  # the one that was asked for last at the end

    async def get(self, owner: Owner, key: Key, make: Callable[[], Awaitable[Value]], *, size_bytes: int = 0) -> Value:
        """The owner's value of `key`; one that could not be made is tried again by the next who asks."""
        kept = self._kept.pop(owner, None)
        if kept is None or kept.key != key or kept.failed:
            kept = _Kept(key, asyncio.create_task(self._run(make)), size_bytes)
        self._kept[owner] = kept
        while len(self._kept) > 1 and (len(self._kept) > self._most or self._bytes() > self._most_bytes):
            del self._kept[next(iter(self._kept))]
        return await asyncio.shield(kept.making)

    def _bytes(self) -> int:
        return sum(kept.size_bytes for kept in self._kept.values())

    @staticmethod
    async def _run(make: Callable[[], Awaitable[Value]]) -> Value:
        return await make()


@dataclass(frozen=True, slots=True)
class Tools:
    """A plan and the learner that was built and compiled for it."""

    plan: Plan
    learner: Learner


class Workshop:
    """Shared by all devices of a process.

    Args:
        compute: where learners are built and run: one thread, since one process has one core.
        identity: the aggregator's, from this device's own configuration.
    """

    def __init__(
        self,
        *,
        server: ServerClient,
        aggregator: AggregatorClient | None,
        identity: Ed25519PublicKey | None,
        make_learner: LearnerFactory,
        compute: Executor,
    ) -> None:
        self.server, self.compute = server, compute
        self.transfer = SignedTransfer()
        self._aggregator, self._identity, self._make_learner = aggregator, identity, make_learner
        self._tools = Newest[str, str, Tools](_MOST_TASKS)
        self._weights = Newest[TaskId, str, Weights](_MOST_TASKS, _MOST_MODEL_BYTES)
        self._sealing_key = Newest[TaskId, RoundId, SealingPublicKey](_MOST_TASKS)

    async def tools(self, plan_digest: str) -> Tools:
        """The plan of this digest, and its learner.

        Raises:
            Refusal: `plan_invalid` for a plan that is not allowed or whose digest differs.
        """

        async def make() -> Tools:
            plan = await persist(lambda: self.server.plan(plan_digest))
            if plan.digest != plan_digest:
                raise Refusal(Code.PLAN_INVALID, f"The server's plan has the digest {plan.digest}, not {plan_digest}.")
            return Tools(plan, await asyncio.get_running_loop().run_in_executor(self.compute, self._make_learner, plan))

        return await self._tools.get(plan_digest, plan_digest, make)

    async def weights(self, task: TaskId, model: Model, url: str, plan: Plan, encoding: ModelEncoding | None = None) -> Weights:
        """The global model, checked by its digest; a version is fetched once, until the task has a newer one.

        Args:
            encoding: the file's. Default: the plan's `model_encoding`, as devices are given it; a version itself is float32.

        Raises:
            Refusal: `model_mismatch`, `forbidden`.
            Outage: `storage_unavailable`.
        """

        async def make() -> Weights:
            body = await asyncio.to_thread(self.transfer.fetch, url, sha256=model.sha256, size_bytes=model.size_bytes)
            return decode_model(body, plan, encoding or plan.model_encoding)

        return await self._weights.get(task, model.sha256, make, size_bytes=4 * plan.parameters)

    async def sealing_key(self, round_id: RoundId) -> SealingPublicKey:
        """The round's sealing key, if the configured aggregator vouches for it.

        Raises:
            Refusal: `sealing_key_untrusted`, `update_late`.
        """
        aggregator, identity = self._aggregator, self._identity
        assert aggregator is not None
        assert identity is not None

        async def make() -> SealingPublicKey:
            signed = await persist(lambda: aggregator.sealing_key(round_id))
            return verify_sealing_key(signed, identity, round_id)

        return await self._sealing_key.get(round_id.task, round_id, make)
