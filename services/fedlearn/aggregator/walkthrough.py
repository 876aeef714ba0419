"""The aggregator's steps by hand: `/aggregate_models` folds and builds the next model, `/send_model_secagg` reports it.

Updates arrive as ever and wait in storage, sealed; the server closes the round as ever once it hears that enough are folded.
"""

import asyncio
from dataclasses import dataclass, field

from fastapi import APIRouter

from fedlearn.adapters.walkthrough import Told, add_step, out_of_order
from fedlearn.aggregator.open_round import OpenRound
from fedlearn.aggregator.peers import ServerClient
from fedlearn.aggregator.rounds import Rounds
from fedlearn.core.errors import Code, Outage, Refusal
from fedlearn.core.ids import RoundId
from fedlearn.protocol.messages import RoundResult

_PATIENCE_SECONDS = 120.0
_LOOK_AGAIN_SECONDS = 0.5
_OPENING_SECONDS = 3.0  # for a round that the server is about to open


@dataclass(slots=True)
class _Steps:
    """How far one round's steps have been taken."""

    fold: asyncio.Event = field(default_factory=asyncio.Event)
    built: asyncio.Event = field(default_factory=asyncio.Event)
    report: asyncio.Event = field(default_factory=asyncio.Event)
    result: RoundResult | None = None


class ByHand:
    """The pace of the walk-through."""

    def __init__(self) -> None:
        self._steps: dict[RoundId, _Steps] = {}

    def of(self, round_id: RoundId) -> _Steps:
        """The round's steps; those of earlier rounds are forgotten."""
        for older in [known for known in self._steps if known.task == round_id.task and known.number < round_id.number]:
            del self._steps[older]
        return self._steps.setdefault(round_id, _Steps())

    async def before_folding(self, round_id: RoundId) -> None:
        await self.of(round_id).fold.wait()

    async def before_reporting(self, round_id: RoundId, result: RoundResult) -> None:
        steps = self.of(round_id)
        steps.result = result
        steps.built.set()
        await steps.report.wait()


class Walkthrough:
    """What `/aggregate_models` and `/send_model_secagg` do with the newest round.

    Args:
        server_url: where the answers point to for what comes next.
    """

    def __init__(self, rounds: Rounds, pace: ByHand, server: ServerClient, server_url: str) -> None:
        self._rounds, self._pace, self._server, self._server_url = rounds, pace, server, server_url
        self._next = f"{server_url}/send_model_clients"

    async def aggregate(self) -> Told:
        """Fold every update of the round and build the next model.

        Raises:
            Refusal: `step_out_of_order`, or why the round has ended without a model.
        """
        round_ = await self._newest()
        steps = self._pace.of(round_.id)
        if steps.built.is_set():
            what = self._next if steps.report.is_set() else "/send_model_secagg of the aggregator"
            raise out_of_order(f"The model of round {round_.id.number} is built: {what} comes next.")
        await self._check_all_have_sent(round_)
        steps.fold.set()
        await self._rounds.fold_stored(round_)
        await self._until_built(round_, steps)
        result = steps.result
        assert result is not None
        happened = (
            f"The aggregator has opened, checked and folded {len(result.contributors)} updates, {result.examples:,} examples "
            f"in all. Their weighted mean makes version {result.model.version} of the model, which lies in storage; "
            "nobody has been told of it."
        )
        return Told(
            happened=happened,
            next="/send_model_secagg of the aggregator.",
            figures={
                "round": round_.id.number,
                "version": result.model.version,
                "updates": len(result.contributors),
                "examples": result.examples,
            },
        )

    async def report(self) -> Told:
        """Tell the server where the next model lies.

        Raises:
            Refusal: `step_out_of_order`.
        """
        round_ = await self._newest()
        steps = self._pace.of(round_.id)
        if not steps.built.is_set():
            raise out_of_order("/aggregate_models of the aggregator comes first: there is no new model yet.")
        if steps.report.is_set():
            raise out_of_order(f"The server has the model of round {round_.id.number}: {self._next} comes next.")
        steps.report.set()
        if round_.closing is not None:
            await asyncio.wait({round_.closing}, timeout=_PATIENCE_SECONDS)
        result = steps.result
        if result is None or round_.state != "published":
            raise Outage(Code.SERVER_UNREACHABLE, "The server has not taken the model: its log says why.")
        return Told(
            happened=f"The server knows version {result.model.version} by its digest {result.model.sha256[:12]} and holds it.",
            next=f"{self._next}",
            figures={"round": round_.id.number, "version": result.model.version, "sha256": result.model.sha256},
        )

    async def _newest(self) -> OpenRound:
        give_up = asyncio.get_running_loop().time() + _OPENING_SECONDS
        while (round_ := self._rounds.newest()) is None:
            if asyncio.get_running_loop().time() > give_up:
                raise out_of_order("No round is open: the server opens one when all devices are there.")
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)
        return round_

    async def _check_all_have_sent(self, round_: OpenRound) -> None:
        view = await self._server.round(round_.id)
        sent = await self._rounds.senders(round_)
        missing = [p.device for p in view.participants if p.standing in ("selected", "accepted") and p.device not in sent]
        if missing:
            raise out_of_order(f"/sendmodel of {', '.join(missing)} comes first, and before it /modeltrain and /sendstatus.")
        if not view.participants:
            raise out_of_order("The devices come first: /modeltrain, /sendstatus and /sendmodel of each.")

    async def _until_built(self, round_: OpenRound, steps: _Steps) -> None:
        give_up = asyncio.get_running_loop().time() + _PATIENCE_SECONDS
        while True:
            try:
                async with asyncio.timeout(_LOOK_AGAIN_SECONDS):
                    await steps.built.wait()
            except TimeoutError:
                view = await self._server.round(round_.id)
                if view.reason is not None:
                    raise Refusal(view.reason, f"Round {view.round} was abandoned, and the next one begins.") from None
                if asyncio.get_running_loop().time() > give_up:
                    raise Outage(Code.SERVER_UNREACHABLE, "The server has not closed the round; its log says why.") from None
            else:
                return


def step_routes(walkthrough: Walkthrough) -> APIRouter:
    """The aggregator's two steps."""
    router = APIRouter(tags=["walk-through"])
    add_step(
        router,
        "/aggregate_models",
        "Fold the devices' updates and build the next model.",
        walkthrough.aggregate,
        Code.TOO_FEW_REPORTS,
        Code.COHORT_TOO_SMALL,
        Code.SERVER_UNREACHABLE,
    )
    add_step(router, "/send_model_secagg", "Hand the next model to the server.", walkthrough.report, Code.SERVER_UNREACHABLE)
    return router
