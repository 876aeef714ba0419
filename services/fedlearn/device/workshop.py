"""What the devices of one process share: plans with their compiled models, the global model, the round's sealing key.

Whatever several devices want at once is made once; they wait for it together. Only the newest of each is kept.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Generic, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedlearn.adapters.http import persist
from fedlearn.adapters.transfer import SignedTransfer
from fedlearn.core.errors import Code, Refusal
from fedlearn.core.ids import RoundId
from fedlearn.core.learning import Learner, Weights
from fedlearn.device.peers import AggregatorClient, ServerClient
from fedlearn.protocol.messages import Model
from fedlearn.protocol.plans import Plan
from fedlearn.protocol.sealing import SealingPublicKey, verify_sealing_key
from fedlearn.protocol.tensors import decode_model

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")
LearnerFactory = Callable[[Plan], Learner]


class Newest(Generic[Key, Value]):
    """Keeps the value that was made last; whoever wants it while it is being made waits for it."""

    def __init__(self) -> None:
        self._key: Key | None = None
        self._making: asyncio.Task[Value] | None = None

    async def get(self, key: Key, make: Callable[[], Awaitable[Value]]) -> Value:
        """The value of `key`; one that could not be made is tried again by the next who asks."""
        failed = self._making is not None and self._making.done() and (self._making.cancelled() or self._making.exception())
        if self._key != key or self._making is None or failed:
            self._key, self._making = key, asyncio.create_task(self._run(make))
        return await asyncio.shield(self._making)

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
        self._tools = Newest[str, Tools]()
        self._weights = Newest[str, Weights]()
        self._sealing_key = Newest[RoundId, SealingPublicKey]()

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

        return await self._tools.get(plan_digest, make)

    async def weights(self, model: Model, url: str, plan: Plan) -> Weights:
        """The global model, fetched once and checked by its digest.

        Raises:
            Refusal: `model_mismatch`, `forbidden`.
            Outage: `storage_unavailable`.
        """

        async def make() -> Weights:
            body = await asyncio.to_thread(self.transfer.fetch, url, sha256=model.sha256, size_bytes=model.size_bytes)
            return decode_model(body, plan, plan.model_encoding)

        return await self._weights.get(model.sha256, make)

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

        return await self._sealing_key.get(round_id, make)
