"""From an update to the bytes that leave the device: what `top_k` keeps back, rounding, and the seal."""

from dataclasses import replace
from functools import partial
from typing import NamedTuple, Self

import numpy as np

from fedlearn.adapters.http import persist
from fedlearn.core.ids import DeviceId, RoundId, TaskId
from fedlearn.core.sparsity import split
from fedlearn.core.updates import Update
from fedlearn.device.peers import ServerClient
from fedlearn.device.residuals import Residuals, last_counted
from fedlearn.protocol.envelope import UpdateContext, digest_of, seal
from fedlearn.protocol.messages import Assignment
from fedlearn.protocol.parts import digests_of
from fedlearn.protocol.plans import Plan
from fedlearn.protocol.sealing import SealingPublicKey

_ROUNDING = 1  # beside the seed of local training, a stream of its own


class Parcel(NamedTuple):
    """A sealed update.

    Args:
        digest: by which it is known.
        sha256: what its upload is bound to: that of all of it, or of each of its parts.
    """

    body: bytes
    digest: str
    sha256: tuple[str, ...]

    @classmethod
    def of(cls, body: bytes) -> Self:
        return cls(body, digest_of(body), digests_of(body))


class Outbox:
    """One device's.

    Args:
        residuals: what `top_k` keeps back.
    """

    def __init__(self, server: ServerClient, residuals: Residuals) -> None:
        self._server, self._residuals = server, residuals

    async def round_before(self, assignment: Assignment, plan: Plan) -> int | None:
        """The round whose residual goes on, where the plan keeps any; without a file nobody is asked.

        Raises:
            Outage: `server_unreachable`.
        """
        if plan.update.encoding != "top_k":
            return None
        task = TaskId(assignment.task)
        rounds = self._residuals.rounds(task, assignment.plan_digest)
        earlier = [number for number in rounds if number < assignment.round]
        if not earlier:
            return None
        versions = await persist(lambda: self._server.versions(task))
        views = {number: await persist(partial(self._server.round, RoundId(task, number))) for number in earlier}
        device = DeviceId(assignment.device)
        return last_counted(device, earlier, assignment.model.version, versions=versions, view=views.__getitem__)

    def pack(
        self, update: Update, key: SealingPublicKey, assignment: Assignment, plan: Plan, *, seed: int, before: int | None
    ) -> Parcel:
        """Make an update ready, in this thread; its delta may be changed.

        Args:
            seed: of this device in this round; it decides how int8 rounds, so that the same training gives the same values.
            before: as `round_before` told it.

        Raises:
            Refusal: as `seal`.
            Outage: `disk_full`.
        """
        if plan.update.encoding == "top_k":
            update = self._largest(update, assignment, plan, before)
        return self._seal(update, key, assignment, plan, seed)

    def _largest(self, update: Update, assignment: Assignment, plan: Plan, before: int | None) -> Update:
        round_id, delta = RoundId(TaskId(assignment.task), assignment.round), update.delta
        if before is not None:
            kept = self._residuals.read(RoundId(round_id.task, before), assignment.plan_digest, plan.parameters)
            if kept is not None:
                delta += kept
        sent = split(delta, plan.update.keep(plan.parameters))
        # before the upload: a device that dies in between makes the same again, from the file of the round before
        self._residuals.write(round_id, assignment.plan_digest, delta, before=before)
        return replace(update, delta=sent)

    @staticmethod
    def _seal(update: Update, key: SealingPublicKey, assignment: Assignment, plan: Plan, seed: int) -> Parcel:
        context = UpdateContext(
            task=assignment.task,
            round=assignment.round,
            device=DeviceId(assignment.device),
            plan_digest=assignment.plan_digest,
            base_sha256=assignment.model.sha256,
        )
        rng = np.random.Generator(np.random.SFC64([seed, _ROUNDING]))
        return Parcel.of(seal(update, key=key, context=context, format=plan.update, rng=rng))
