"""The aggregator as the server sees it: rounds are opened, closed and swept there, and version 0 gets its place."""

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
    """Every call may be repeated; each raises what `ServiceClient.call` raises."""

    def __init__(self, client: ServiceClient) -> None:
        self._client = client

    async def open_round(self, round_: Round, plan: Plan) -> RoundOpen:
        opening = RoundOpening(
            plan=plan.model_dump(mode="json"),
            base=Model.of(round_.base),
            reporting_seconds=round_.policy.reporting_timeout_seconds,
        )
        return await self._client.call("PUT", f"/v1/rounds/{round_.id}", RoundOpen, opening)

    async def close_round(self, round_id: RoundId) -> None:
        """Ask for the close; the result comes as a call of the aggregator's."""
        await self._client.fetch("POST", f"/v1/rounds/{round_id}/close")

    async def sweep_round(self, round_id: RoundId) -> None:
        await self._client.fetch("DELETE", f"/v1/rounds/{round_id}")

    async def place_model(self, task: TaskId, goal: int, size_bytes: int, sha256: str) -> ModelUpload:
        request = ModelUploadRequest(task=task, goal=goal, size_bytes=size_bytes, sha256=sha256)
        return await self._client.call("POST", "/v1/models", ModelUpload, request)


async def sweep_round(aggregator: AggregatorClient, round_id: RoundId) -> None:
    """Let the aggregator delete what an ended round left in storage; one that is away is waited for, for a while."""
    try:
        await persist(lambda: aggregator.sweep_round(round_id), seconds=_SWEEP_PATIENCE_SECONDS)
    except (Refusal, Outage) as error:
        detail = f"{error.detail} The aggregator sweeps it when it recovers, or opens the next round."
        _log.warning("round not swept", round=str(round_id), code=error.code, detail=detail)
