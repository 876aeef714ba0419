"""What the aggregator calls: whose updates are counted, the result, a failure; and the keys that tickets are checked by."""

from typing import Annotated

from fastapi import APIRouter, Depends

from fedlearn.adapters.gate import Gate
from fedlearn.adapters.identity import Caller
from fedlearn.adapters.openapi import BY_TOKEN, problems
from fedlearn.config import ServerSettings
from fedlearn.core.errors import Code, Refusal
from fedlearn.core.ids import DeviceId, RoundId, TaskId
from fedlearn.core.rounds import Aggregate, Aggregated, Event, Failed, UpdatesCounted
from fedlearn.protocol.messages import JsonWebKeys, RoundFailure, RoundNumber, RoundResult, TaskName, UpdatesReport
from fedlearn.server.coordinator import Coordinator
from fedlearn.server.forwarding import BY_LEADER, at_leader
from fedlearn.server.walkthrough import Held
from fedlearn.telemetry.logs import log

_log = log(__name__)


def aggregator_routes(coordinator: Coordinator, gate: Gate, settings: ServerSettings, held: Held | None = None) -> APIRouter:
    """`held` keeps results back in the walk-through."""
    router = APIRouter(prefix="/v1", tags=["aggregator"])
    admit = gate.admit(settings.identity.aggregator)
    Aggregator = Annotated[Caller, Depends(admit)]  # noqa: N806 - a type
    led = [Depends(admit), Depends(at_leader)]
    refusals = problems(*BY_TOKEN, *BY_LEADER, Code.TASK_UNKNOWN, Code.ROUND_UNKNOWN)

    async def tell(round_id: RoundId, event: Event) -> None:
        """Word of a round that has ended changes nothing, and its sender need not repeat it, but forget the round."""
        try:
            await coordinator.tell(round_id, event)
        except Refusal as refusal:
            if refusal.code is not Code.ROUND_CLOSED:
                raise
            await coordinator.sweep(round_id)

    @router.put(
        "/rounds/{task}/{number}/updates",
        dependencies=led,
        status_code=204,
        summary="Whose updates are counted.",
        responses=refusals,
    )
    async def updates(task: TaskName, number: RoundNumber, report: UpdatesReport, _caller: Aggregator) -> None:
        counted = UpdatesCounted(
            reported=frozenset(DeviceId(device) for device in report.reported),
            refused={DeviceId(device): code for device, code in report.refused.items()},
        )
        await tell(RoundId(TaskId(task), number), counted)

    @router.put(
        "/rounds/{task}/{number}/result", dependencies=led, status_code=204, summary="The published model.", responses=refusals
    )
    async def result(task: TaskName, number: RoundNumber, result: RoundResult, _caller: Aggregator) -> None:
        contributors = frozenset(DeviceId(device) for device in result.contributors)
        aggregate = Aggregate(result.model.ref(), contributors, result.examples, result.metrics)
        if held is not None and held.keep(RoundId(TaskId(task), number), Aggregated(aggregate)):
            return
        await tell(RoundId(TaskId(task), number), Aggregated(aggregate))
        coordinator.announce_versions()

    @router.put(
        "/rounds/{task}/{number}/failure",
        dependencies=led,
        status_code=204,
        summary="Why there is no model.",
        responses=refusals,
    )
    async def failure(task: TaskName, number: RoundNumber, failure: RoundFailure, _caller: Aggregator) -> None:
        _log.error("the aggregator gives up a round", round=f"{task}/{number}", code=failure.code, detail=failure.detail)
        await tell(RoundId(TaskId(task), number), Failed(failure.code))

    @router.get("/keys", summary="The public keys of tickets, as a JSON Web Key Set.")
    async def keys() -> JsonWebKeys:
        return JsonWebKeys(keys=[coordinator.around.signer.jwk()])

    return router
