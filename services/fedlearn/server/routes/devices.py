"""What devices call: check in, accept, drop out; and the plan, which evaluators read too."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from fedlearn.adapters.gate import Gate
from fedlearn.adapters.identity import Caller
from fedlearn.adapters.openapi import BY_TOKEN, problems
from fedlearn.adapters.web import gone
from fedlearn.config import ServerSettings
from fedlearn.core.errors import Code
from fedlearn.core.ids import RoundId, TaskId
from fedlearn.core.rounds import DeviceAccepted, DeviceDropped
from fedlearn.protocol.messages import (
    PLAN_EXAMPLE,
    Acceptance,
    Assignment,
    CheckIn,
    ComeBack,
    Digest,
    DropOut,
    RoundNumber,
    TaskName,
    Wanted,
)
from fedlearn.server.coordinator import Coordinator
from fedlearn.server.forwarding import BY_LEADER, at_leader
from fedlearn.server.roster import Roster
from fedlearn.telemetry.logs import log

_log = log(__name__)
_UNFIT_COME_BACK_SECONDS = 15.0  # somebody has to mend its shard first


def device_routes(coordinator: Coordinator, roster: Roster, gate: Gate, settings: ServerSettings) -> APIRouter:
    accounts = settings.identity
    router = APIRouter(prefix="/v1", tags=["devices"])
    admit = gate.admit(accounts.device)
    Device = Annotated[Caller, Depends(admit)]  # noqa: N806 - a type
    refusals = (
        *BY_TOKEN,
        *BY_LEADER,
        Code.DEVICE_REPLACED,
        Code.NOT_SELECTED,
        Code.ROUND_CLOSED,
        Code.TASK_UNKNOWN,
    )
    Reader = Annotated[Caller, Depends(gate.admit(accounts.device, accounts.evaluator))]  # noqa: N806 - a type

    @router.post(
        "/checkins",
        summary="Offer a device, and wait for work.",
        responses=problems(*BY_TOKEN, *BY_LEADER, Code.DEVICE_REPLACED),
    )
    async def check_in(checkin: CheckIn, caller: Device, request: Request) -> Assignment | ComeBack:
        await _excused_at_leader(checkin, request)
        device = roster.admit(caller, checkin.slot)
        roster.check_in(device, checkin)
        # a device that hangs up no longer waits: it must not be selected
        waiting = asyncio.create_task(coordinator.check_in(device, checkin, settings.max_checkin_seconds))
        hung_up = asyncio.create_task(gone(request))
        await asyncio.wait({waiting, hung_up}, return_when=asyncio.FIRST_COMPLETED)
        hung_up.cancel()
        if waiting.done() and (assignment := waiting.result()) is not None:
            return assignment
        if not waiting.done():
            waiting.cancel()
            await asyncio.wait({waiting})
            coordinator.around.fleet.forget(device)
        if checkin.unfit is not None:
            return ComeBack(after_seconds=_UNFIT_COME_BACK_SECONDS)
        return ComeBack(after_seconds=coordinator.come_back(device, checkin, settings.max_checkin_seconds))

    @router.post(
        "/rounds/{task}/{number}/acceptances",
        dependencies=[Depends(admit), Depends(at_leader)],
        status_code=204,
        summary="Say that a device starts its part.",
        responses=problems(*refusals),
    )
    async def accept(task: TaskName, number: RoundNumber, acceptance: Acceptance, caller: Device) -> None:
        device = roster.admit(caller, acceptance.slot)
        await coordinator.tell(RoundId(TaskId(task), number), DeviceAccepted(device))

    @router.post(
        "/rounds/{task}/{number}/dropouts",
        dependencies=[Depends(admit), Depends(at_leader)],
        status_code=204,
        summary="Say that a device will not report.",
        responses=problems(*refusals),
    )
    async def drop(task: TaskName, number: RoundNumber, dropout: DropOut, caller: Device) -> None:
        device = roster.admit(caller, dropout.slot)
        _log.warning("device drops out", round=f"{task}/{number}", device=device, code=dropout.code, detail=dropout.detail)
        await coordinator.tell(RoundId(TaskId(task), number), DeviceDropped(device, dropout.code))

    @router.get(
        "/rounds/{task}/{number}/wanted",
        status_code=204,
        summary="Wait while a round takes a device's report: its answer ends the device's work as soon as it is in vain.",
        responses=problems(*refusals),
    )
    async def wanted(
        task: TaskName,
        number: RoundNumber,
        caller: Device,
        request: Request,
        asked: Annotated[Wanted, Query()],
    ) -> None:
        device = roster.admit(caller, asked.slot)
        seconds = min(asked.wait_seconds, settings.max_checkin_seconds)
        waiting = asyncio.create_task(coordinator.while_wanted(RoundId(TaskId(task), number), device, seconds))
        hung_up = asyncio.create_task(gone(request))
        await asyncio.wait({waiting, hung_up}, return_when=asyncio.FIRST_COMPLETED)
        hung_up.cancel()
        if waiting.done():
            waiting.result()
        waiting.cancel()

    @router.get(
        "/plans/{digest}",
        summary="A plan, by the SHA-256 of these very bytes.",
        responses={
            200: {"content": {"application/json": {"example": PLAN_EXAMPLE}}},
            **problems(*BY_TOKEN, Code.NOT_FOUND),
        },
        response_class=Response,
    )
    async def plan(digest: Annotated[Digest, Path()], _caller: Reader) -> Response:
        return Response((await coordinator.plan(digest)).canonical, media_type="application/json")

    return router


async def _excused_at_leader(checkin: CheckIn, request: Request) -> None:
    """An unfit device is answered at once, and the leader lets go of it."""
    if checkin.unfit is not None:
        await at_leader(request)
