"""The server and the aggregator as a device sees them."""

from fedlearn.adapters.http import TICKET_HEADER, ServiceClient
from fedlearn.core.errors import Code, Refusal
from fedlearn.core.ids import RoundId, TaskId
from fedlearn.core.ports import UploadGrant
from fedlearn.protocol.messages import (
    Acceptance,
    Assignment,
    CheckIn,
    CheckInAnswer,
    ComeBack,
    DropOut,
    Upload,
    UploadDone,
    UploadRequest,
)
from fedlearn.protocol.parts import PartsDone, PartsRequest, PartsUpload
from fedlearn.protocol.plans import Plan, read_plan
from fedlearn.protocol.sealing import SignedSealingKey
from fedlearn.protocol.views import Evaluation, EvaluationJob, RoundView, VersionList, VersionView

_SLACK_SECONDS = 15.0
_JOIN_SECONDS = 120.0


class ServerClient:
    """Each call raises what `ServiceClient.call` raises."""

    def __init__(self, client: ServiceClient) -> None:
        self._client = client

    async def check_in(self, checkin: CheckIn) -> Assignment | ComeBack:
        """Held by the server for up to `checkin.wait_seconds`."""
        patience = checkin.wait_seconds + _SLACK_SECONDS
        return (await self._client.call("POST", "/v1/checkins", CheckInAnswer, checkin, timeout_seconds=patience)).root

    async def accept(self, round_id: RoundId, slot: int | None) -> None:
        await self._client.fetch("POST", f"/v1/rounds/{round_id}/acceptances", Acceptance(slot=slot))

    async def wanted(self, round_id: RoundId, slot: int | None, wait_seconds: float) -> None:
        """Held by the server for up to `wait_seconds` while the round takes this device's report; else `round_closed`."""
        path = f"/v1/rounds/{round_id}/wanted?wait_seconds={wait_seconds}" + ("" if slot is None else f"&slot={slot}")
        await self._client.fetch("GET", path, timeout_seconds=wait_seconds + _SLACK_SECONDS)

    async def drop_out(self, round_id: RoundId, dropout: DropOut) -> None:
        await self._client.fetch("POST", f"/v1/rounds/{round_id}/dropouts", dropout)

    async def round(self, round_id: RoundId) -> RoundView:
        """What the server shows of a round to anybody."""
        return await self._client.call("GET", f"/v1/tasks/{round_id.task}/rounds/{round_id.number}", RoundView)

    async def versions(self, task: TaskId) -> list[VersionView]:
        """All versions of a task's model, as the server shows them to anybody."""
        return (await self._client.call("GET", f"/v1/tasks/{task}/models", VersionList)).root

    async def plan(self, digest: str) -> Plan:
        """The plan of this digest; a plan that is not allowed here raises `plan_invalid`, whatever the server thinks of it."""
        return read_plan(await self._client.fetch("GET", f"/v1/plans/{digest}"))

    async def next_evaluation(self, dataset: str, wait_seconds: float) -> EvaluationJob | None:
        path = f"/v1/evaluations/next?dataset={dataset}&wait_seconds={wait_seconds}"
        body = await self._client.fetch("GET", path, timeout_seconds=wait_seconds + _SLACK_SECONDS)
        return EvaluationJob.model_validate_json(body) if body else None

    async def evaluate(self, task: TaskId, version: int, evaluation: Evaluation) -> None:
        await self._client.fetch("PUT", f"/v1/evaluations/{task}/{version}", evaluation)


class AggregatorClient:
    """Each call raises what `ServiceClient.call` raises.

    Args:
        others: further aggregators that share rounds with the first, whose number is 0.
    """

    def __init__(self, client: ServiceClient, *others: ServiceClient) -> None:
        self._client, self._all = client, (client, *others)

    def at(self, number: int) -> "AggregatorClient":
        """The aggregator of this number.

        Raises:
            Refusal: `ticket_foreign` when this device is configured with fewer.
        """
        if number >= len(self._all):
            detail = f"The assignment names aggregator {number}; this device is configured with {len(self._all)}."
            raise Refusal(Code.TICKET_FOREIGN, detail)
        return AggregatorClient(self._all[number])

    async def sealing_key(self, round_id: RoundId) -> SignedSealingKey:
        """As the aggregator sent it: the caller verifies it."""
        return await self._client.call("GET", f"/v1/rounds/{round_id}/sealing-key", SignedSealingKey)

    async def place(self, round_id: RoundId, request: UploadRequest, ticket: str) -> UploadGrant:
        path = f"/v1/rounds/{round_id}/uploads"
        upload = await self._client.call("POST", path, Upload, request, headers={TICKET_HEADER: ticket})
        return UploadGrant(upload.url, upload.headers)

    async def place_parts(self, round_id: RoundId, request: PartsRequest, ticket: str) -> PartsUpload:
        path = f"/v1/rounds/{round_id}/uploads/parts"
        return await self._client.call("POST", path, PartsUpload, request, headers={TICKET_HEADER: ticket})

    async def join_parts(self, round_id: RoundId, joined: PartsDone, ticket: str) -> None:
        path = f"/v1/rounds/{round_id}/uploads/parts/done"
        await self._client.fetch("POST", path, joined, headers={TICKET_HEADER: ticket}, timeout_seconds=_JOIN_SECONDS)

    async def done(self, round_id: RoundId, hint: UploadDone, ticket: str) -> None:
        await self._client.fetch("POST", f"/v1/rounds/{round_id}/uploads/done", hint, headers={TICKET_HEADER: ticket})
