"""The server as the aggregator sees it: it is told who is counted, of the result, or of a failure."""

from fedlearn.adapters.http import ServiceClient
from fedlearn.core.errors import Refusal
from fedlearn.core.ids import RoundId
from fedlearn.protocol.messages import RoundFailure, RoundResult, UpdatesReport
from fedlearn.protocol.views import RoundView


class ServerClient:
    """Every call may be repeated; each raises what `ServiceClient.fetch` raises."""

    def __init__(self, client: ServiceClient) -> None:
        self._client = client

    async def report_updates(self, round_id: RoundId, report: UpdatesReport) -> None:
        await self._client.fetch("PUT", f"/v1/rounds/{round_id}/updates", report)

    async def report_result(self, round_id: RoundId, result: RoundResult) -> None:
        await self._client.fetch("PUT", f"/v1/rounds/{round_id}/result", result)

    async def report_failure(self, round_id: RoundId, refusal: Refusal) -> None:
        failure = RoundFailure(code=refusal.code, detail=refusal.detail[:1000])
        await self._client.fetch("PUT", f"/v1/rounds/{round_id}/failure", failure)

    async def round(self, round_id: RoundId) -> RoundView:
        """What the server shows of a round to anybody."""
        return await self._client.call("GET", f"/v1/tasks/{round_id.task}/rounds/{round_id.number}", RoundView)
