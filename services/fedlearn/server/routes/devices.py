"""What devices call: check in, accept, drop out; and the plan, which evaluators read too."""

import asyncio
import random
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request, Response

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
)
from fedlearn.server.coordinator import Coordinator
from fedlearn.server.roster import Roster
from fedlearn.telemetry.logs import log

_log = log(__name__)
_COME_BACK_SECONDS = 1.0
_UNFIT_COME_BACK_SECONDS = 15.0  # somebody has to mend its shard first


def device_routes(coordinator: Coordinator, roster: Roster, gate: Gate, settings: ServerSettings) -> APIRouter:
    accounts = settings.identity
    router = APIRouter(prefix="/v1", tags=["devices"])
    Device = Annotated[Caller, Depends(gate.admit(accounts.device))]  # noqa: N806 - a type
    refusals = (
        *BY_TOKEN,
        Code.DEVICE_REPLACED,
        Code.NOT_SELECTED,
        Code.ROUND_CLOSED,
        Code.TASK_UNKNOWN,
        Code.SERVER_UNREACHABLE,
    )
    Reader = Annotated[Caller, Depends(gate.admit(accounts.device, accounts.evaluator))]  # noqa: N806 - a type

    @router.post(
        "/checkins",
        summary="Offer a device, and wait for work.",
        responses=problems(*BY_TOKEN, Code.DEVICE_REPLACED),
    )
    async def check_in(checkin: CheckIn, caller: Device, request: Request) -> Assignment | ComeBack:
        device = roster.admit(caller, checkin.slot)
        roster.check_in(device, checkin)
        # a device that hangs up no longer waits: it must not be selected
        waiting = asyncio.create_task(coordinator.check_in(device, checkin, settings.max_checkin_seconds))
        hung_up = asyncio.create_task(gone(request))
        await asyncio.wait({waiting, hung_up}, return_when=asyncio.FIRST_COMPLETED)
        hung_up.cancel()
        if waiting.done() and (assignment := waiting.result()) is not None:
            return assignment
        waiting.cancel()
        if checkin.unfit is not None:
            return ComeBack(after_seconds=_UNFIT_COME_BACK_SECONDS)
        return ComeBack(after_seconds=_COME_BACK_SECONDS * random.uniform(0.0, 1.0))  # noqa: S311 - spreads the load

    @router.post(
        "/rounds/{task}/{number}/acceptances",
        status_code=204,
        summary="Say that a device starts its part.",
        responses=problems(*refusals),
    )
    async def accept(task: TaskName, number: RoundNumber, acceptance: Acceptance, caller: Device) -> None:
        device = roster.admit(caller, acceptance.slot)
        await coordinator.tell(RoundId(TaskId(task), number), DeviceAccepted(device))

    @router.post(
        "/rounds/{task}/{number}/dropouts",
        status_code=204,
        summary="Say that a device will not report.",
        responses=problems(*refusals),
    )
    async def drop(task: TaskName, number: RoundNumber, dropout: DropOut, caller: Device) -> None:
        device = roster.admit(caller, dropout.slot)
        _log.warning("device drops out", round=f"{task}/{number}", device=device, code=dropout.code, detail=dropout.detail)
        await coordinator.tell(RoundId(TaskId(task), number), DeviceDropped(device, dropout.code))

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
