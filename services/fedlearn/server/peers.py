"""The aggregator as the server sees it: rounds are opened, closed and swept there, and version 0 gets its place."""

import asyncio

from fedlearn.adapters.http import ServiceClient, persist
from fedlearn.core.errors import Outage, Refusal
from fedlearn.core.ids import RoundId, TaskId
from fedlearn.core.rounds import Round
from fedlearn.protocol.messages import Model, ModelUpload, ModelUploadRequest, RoundOpen, RoundOpening
from fedlearn.protocol.plans import Plan
from fedlearn.telemetry.logs import log

_log = log(__name__)
_SWEEP_PATIENCE_SECONDS = 600.0


class AggregatorClient:
    """Every call may be repeated; each raises what `ServiceClient.call` raises.

    Args:
        others: further aggregators that share rounds with the first, whose number is 0 and who publishes.
    """

    def __init__(self, client: ServiceClient, *others: ServiceClient) -> None:
        self._client, self._all = client, (client, *others)

    def shared_by(self, plan: Plan) -> int:
        """How many aggregators share a round of this plan: one where a robust rule needs all updates in one place."""
        return len(self._all) if plan.aggregation.rule is None else 1

    async def open_round(self, round_: Round, plan: Plan) -> RoundOpen:
        aggregators = self.shared_by(plan)
        opening = RoundOpening(
            plan=plan.model_dump(mode="json"),
            base=Model.of(round_.base),
            reporting_seconds=round_.policy.reporting_timeout_seconds,
            aggregators=aggregators,
        )
        opened = await asyncio.gather(
            *(client.call("PUT", f"/v1/rounds/{round_.id}", RoundOpen, opening) for client in self._all[:aggregators])
        )
        return opened[0]

    async def close_round(self, round_id: RoundId, plan: Plan) -> None:
        """Ask for the close; the result comes as a call of the first aggregator's."""
        clients = self._all[: self.shared_by(plan)]
        await asyncio.gather(*(client.fetch("POST", f"/v1/rounds/{round_id}/close") for client in clients))

    async def sweep_round(self, round_id: RoundId) -> None:
        await asyncio.gather(*(client.fetch("DELETE", f"/v1/rounds/{round_id}") for client in self._all))

    async def place_model(self, task: TaskId, *, minimum: int, mixed: int, size_bytes: int, sha256: str) -> ModelUpload:
        request = ModelUploadRequest(task=task, minimum=minimum, mixed=mixed, size_bytes=size_bytes, sha256=sha256)
        return await self._client.call("POST", "/v1/models", ModelUpload, request)


async def sweep_round(aggregator: AggregatorClient, round_id: RoundId) -> None:
    """Let the aggregator delete what an ended round left in storage; one that is away is waited for, for a while."""
    try:
        await persist(lambda: aggregator.sweep_round(round_id), seconds=_SWEEP_PATIENCE_SECONDS)
    except (Refusal, Outage) as error:
        detail = f"{error.detail} The aggregator sweeps it when it recovers, or opens the next round."
        _log.warning("round not swept", round=str(round_id), code=error.code, detail=detail)
