"""The aggregator's API: rounds for the server, keys and uploads for devices."""

import time
from collections.abc import Callable
from functools import partial
from typing import Annotated, TypeVar

from fastapi import APIRouter, Depends, Header
from starlette.concurrency import run_in_threadpool

from fedlearn.adapters.gate import Gate
from fedlearn.adapters.http import TICKET_HEADER
from fedlearn.adapters.identity import Caller
from fedlearn.adapters.openapi import BY_TOKEN, problems
from fedlearn.aggregator.open_round import OpenRound
from fedlearn.aggregator.rounds import Rounds
from fedlearn.config import AggregatorSettings, StorageSettings
from fedlearn.core.errors import Code, Refusal
from fedlearn.core.ids import DeviceId, RoundId, TaskId, device_id
from fedlearn.protocol.messages import (
    ModelUpload,
    ModelUploadRequest,
    RoundNumber,
    RoundOpen,
    RoundOpening,
    TaskName,
    Upload,
    UploadDone,
    UploadRequest,
)
from fedlearn.protocol.parts import PartGrant, PartsDone, PartsRequest, PartsUpload
from fedlearn.protocol.sealing import SignedSealingKey
from fedlearn.protocol.tickets import TicketVerifier

Result = TypeVar("Result")
TicketHeader = Annotated[str, Header(alias=TICKET_HEADER, max_length=4096, description="The assignment's ticket.")]


def server_routes(rounds: Rounds, gate: Gate, settings: AggregatorSettings) -> APIRouter:
    """What only the server's identity may call."""
    router = APIRouter(prefix="/v1", tags=["server"], dependencies=[Depends(gate.admit(settings.identity.server))])
    refusals = (*BY_TOKEN, Code.STORAGE_DENIED)

    @router.put(
        "/rounds/{task}/{number}",
        summary="Open a round.",
        responses=problems(
            *refusals,
            Code.PLAN_INVALID,
            Code.COHORT_TOO_SMALL,
            Code.MODEL_MISMATCH,
            Code.ROUND_CONFLICT,
            Code.AGGREGATOR_KEY_LOST,
        ),
    )
    async def open_round(task: TaskName, number: RoundNumber, opening: RoundOpening) -> RoundOpen:
        return _shown(await rounds.open(RoundId(TaskId(task), number), opening))

    @router.post(
        "/rounds/{task}/{number}/close",
        status_code=202,
        summary="Close a round: the result is reported to the server.",
        responses=problems(*refusals, Code.ROUND_UNKNOWN, Code.AGGREGATOR_KEY_LOST),
    )
    async def close_round(task: TaskName, number: RoundNumber) -> RoundOpen:
        return _shown(await rounds.close(RoundId(TaskId(task), number)))

    @router.delete(
        "/rounds/{task}/{number}", status_code=204, summary="Sweep a round that has ended.", responses=problems(*refusals)
    )
    async def sweep_round(task: TaskName, number: RoundNumber) -> None:
        await rounds.sweep(RoundId(TaskId(task), number))

    @router.post("/models", summary="A place for version 0 of a task.", responses=problems(*refusals, Code.COHORT_TOO_SMALL))
    async def place_model(request: ModelUploadRequest) -> ModelUpload:
        place = partial(
            rounds.admission.place_model,
            TaskId(request.task),
            minimum=request.minimum,
            mixed=request.mixed,
            size_bytes=request.size_bytes,
            sha256=request.sha256,
        )
        key, grant = await _signed(place, settings.storage)
        return ModelUpload(key=key, url=grant.url, headers=dict(grant.headers), valid_seconds=settings.upload_seconds)

    return router


def device_routes(rounds: Rounds, gate: Gate, tickets: TicketVerifier, settings: AggregatorSettings) -> APIRouter:
    """What devices call, each with its own token and the ticket of its assignment."""
    router = APIRouter(prefix="/v1/rounds/{task}/{number}", tags=["devices"])
    Device = Annotated[Caller, Depends(gate.admit(settings.identity.device))]  # noqa: N806 - a type
    refusals = (*BY_TOKEN, Code.UPDATE_LATE, Code.AGGREGATOR_UNREACHABLE)
    storage = (Code.STORAGE_UNAVAILABLE, Code.STORAGE_DENIED)
    by_ticket = (Code.TICKET_INVALID, Code.TICKET_EXPIRED, Code.TICKET_FOREIGN, Code.SERVER_UNREACHABLE)

    async def admitted(task: str, number: int, caller: Caller, slot: int | None, ticket: str) -> tuple[OpenRound, DeviceId]:
        device = device_id(caller.pod, slot)
        check = partial(tickets.verify, ticket, device=device, task=task, round=number, now=time.time())
        # to a thread and back costs more than to check a signature
        granted = await run_in_threadpool(check) if tickets.must_ask(ticket) else check()
        round_ = rounds.admit(RoundId(TaskId(task), number))
        folding = round_.folding
        if (granted.plan_digest, granted.base_sha256) != (folding.plan.digest, folding.descriptor.start.sha256):
            raise Refusal(Code.TICKET_FOREIGN, "The ticket is for another plan or base model than the round's.")
        if granted.aggregator != folding.shard or not folding.mine(device):
            raise Refusal(Code.TICKET_FOREIGN, f"The ticket is for aggregator {granted.aggregator}; this is {folding.shard}.")
        return round_, device

    async def let_in(task: str, number: int, caller: Caller, slot: int | None, ticket: str) -> tuple[OpenRound, DeviceId]:
        round_, device = await admitted(task, number, caller, slot, ticket)
        await round_.inflow.enter(device)
        return rounds.admit(round_.id), device  # it may have closed in the meantime

    @router.get("/sealing-key", summary="What updates of this round are sealed to.", responses=problems(*refusals))
    async def sealing_key(task: TaskName, number: RoundNumber, _caller: Device) -> SignedSealingKey:
        return rounds.signed_key(RoundId(TaskId(task), number))

    @router.post(
        "/uploads",
        summary="Ask where an update may go.",
        responses=problems(*refusals, *by_ticket, *storage, Code.UPDATE_TOO_LARGE, Code.UPDATE_REPEATED),
    )
    async def grant(
        task: TaskName, number: RoundNumber, request: UploadRequest, caller: Device, ticket: TicketHeader
    ) -> Upload:
        round_, device = await let_in(task, number, caller, request.slot, ticket)
        given = await _signed(partial(rounds.desk.grant, round_.folding, device, request), settings.storage)
        return Upload(url=given.url, headers=dict(given.headers), valid_seconds=settings.upload_seconds)

    @router.post(
        "/uploads/parts",
        summary="Ask where the parts of a large update may go.",
        responses=problems(*refusals, *by_ticket, *storage, Code.UPDATE_TOO_LARGE, Code.UPDATE_REPEATED),
    )
    async def grant_parts(
        task: TaskName, number: RoundNumber, request: PartsRequest, caller: Device, ticket: TicketHeader
    ) -> PartsUpload:
        round_, device = await let_in(task, number, caller, request.slot, ticket)
        upload_id, grants = await run_in_threadpool(rounds.desk.grant_parts, round_.folding, device, request)
        parts = tuple(PartGrant(url=given.url, headers=dict(given.headers)) for given in grants)
        return PartsUpload(upload_id=upload_id, parts=parts, valid_seconds=settings.upload_seconds)

    @router.post(
        "/uploads/parts/done",
        status_code=204,
        summary="All parts have arrived: make them one update.",
        responses=problems(*refusals, *by_ticket, *storage, Code.UPDATE_TOO_LARGE, Code.UPDATE_MISSING, Code.UPDATE_REPEATED),
    )
    async def join_parts(task: TaskName, number: RoundNumber, joined: PartsDone, caller: Device, ticket: TicketHeader) -> None:
        round_, device = await admitted(task, number, caller, joined.slot, ticket)
        await run_in_threadpool(rounds.desk.join_parts, round_.folding, device, joined)

    @router.post(
        "/uploads/done",
        status_code=202,
        summary="Hint that an update lies in storage.",
        responses=problems(*refusals, *by_ticket),
    )
    async def done(task: TaskName, number: RoundNumber, hint: UploadDone, caller: Device, ticket: TicketHeader) -> None:
        round_, device = await admitted(task, number, caller, hint.slot, ticket)
        rounds.uploaded(round_, device, hint.digest)

    return router


async def _signed(sign: Callable[[], Result], storage: StorageSettings) -> Result:
    """What `sign` gives; in a thread only if it may have to wait, since there and back costs more than to sign."""
    return await run_in_threadpool(sign) if storage.renews else sign()


def _shown(round_: OpenRound) -> RoundOpen:
    served = round_.folding.descriptor.served
    return RoundOpen(task=round_.id.task, round=round_.id.number, kid=round_.folding.key.kid, state=round_.state, served=served)
