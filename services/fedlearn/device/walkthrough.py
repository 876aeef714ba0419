"""A device whose steps are taken by hand: it checks in by itself, and then waits before each step until somebody calls it.

`/modeltrain` trains on the assignment that the device holds, `/sendstatus` is its acceptance, `/sendmodel` seals and uploads.
"""

import asyncio
from collections.abc import Awaitable, Callable
from enum import StrEnum
from functools import partial
from typing import TypeVar

from fastapi import APIRouter

from fedlearn.adapters.walkthrough import Told, add_step, out_of_order
from fedlearn.core.eligibility import Conditions
from fedlearn.core.errors import Code, FedlearnError, Outage
from fedlearn.core.ids import RoundId
from fedlearn.core.learning import Metrics, Stop
from fedlearn.core.updates import Update
from fedlearn.device.agent import Agent, Home
from fedlearn.device.peers import AggregatorClient
from fedlearn.device.workshop import Tools, Workshop
from fedlearn.protocol.messages import Assignment
from fedlearn.protocol.tensors import flatten, unflatten

Result = TypeVar("Result")
_PATIENCE_SECONDS = 2.0  # for an assignment that is on its way


class Step(StrEnum):
    TRAIN = "/modeltrain"
    STATUS = "/sendstatus"
    SEND = "/sendmodel"


class Hand:
    """Where the device waits for its next step, and whoever takes one waits for its outcome.

    Args:
        aggregator_url: where the answers point to for what comes after this device's steps.
    """

    def __init__(self, aggregator_url: str) -> None:
        self.aggregator_url = aggregator_url
        self._awaited: Step | None = None
        self._busy: Step | None = None
        self._order: asyncio.Future[asyncio.Future[Told]] | None = None
        self._open = asyncio.Event()
        self.last_sent: int | None = None
        """The round that the device has sent its model in last."""

    async def perform(self, step: Step, action: Callable[[], Awaitable[tuple[Result, Told]]]) -> Result:
        """Wait until somebody takes `step`, then do it; what goes wrong with it is told to them as well."""
        self._order = order = asyncio.get_running_loop().create_future()
        self._awaited = step
        self._open.set()
        try:
            outcome: asyncio.Future[Told] = await order
        finally:
            self._awaited = None
            self._open.clear()
        self._busy = step
        try:
            result, told = await action()
        except FedlearnError as error:
            outcome.set_exception(error)
            raise
        except BaseException:
            outcome.set_exception(Outage(Code.INTERNAL, f"{step} has come to no end; the device's log says more."))
            raise
        finally:
            self._busy = None
        outcome.set_result(told)
        return result

    async def take(self, step: Step) -> Told:
        """Take a step, and return what it has done.

        Raises:
            Refusal: `step_out_of_order`, or what the step itself is refused with.
        """
        if self._busy is not None:
            raise out_of_order(f"The device is at {self._busy} just now: wait for its end.")
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await self._open.wait()
        except TimeoutError:
            raise out_of_order(self._without_round()) from None
        if self._awaited is not step or self._order is None or self._order.done():
            raise out_of_order(f"{self._awaited or step} of this device comes first.")
        outcome: asyncio.Future[Told] = asyncio.get_running_loop().create_future()
        self._order.set_result(outcome)
        self._open.clear()
        return await outcome

    def _without_round(self) -> str:
        if self.last_sent is None:
            return "The server has given this device no round yet: it waits until all devices are there."
        return (
            f"This device has sent its model of round {self.last_sent}. First every other device sends its own, then come the "
            f"aggregator's {self.aggregator_url}/aggregate_models and /send_model_secagg, and the server's /send_model_clients."
        )


class ManualAgent(Agent):
    """The same device with the same calls, one step at a time."""

    def __init__(
        self,
        home: Home,
        workshop: Workshop,
        aggregator: AggregatorClient,
        checkin_seconds: float,
        conditions: Callable[[], Conditions] = Conditions,
        *,
        hand: Hand,
    ) -> None:
        super().__init__(home, workshop, aggregator, checkin_seconds, conditions)
        self._hand = hand

    async def _accept(self, round_id: RoundId) -> None:
        """Nothing: the server is told by a step."""

    async def _contribute(self, round_id: RoundId, assignment: Assignment) -> None:
        workshop, hand, name = self._workshop, self._hand, assignment.device

        async def train() -> tuple[tuple[Tools, Update], Told]:
            tools = await workshop.tools(assignment.plan_digest)
            weights = await workshop.weights(round_id.task, assignment.model, assignment.model_url, tools.plan)
            self._session.note("v")
            loop = asyncio.get_running_loop()
            update = await loop.run_in_executor(workshop.compute, self._train, tools, weights, round_id, Stop())
            local = unflatten(flatten(weights) + update.delta, tools.plan)
            figures = await loop.run_in_executor(workshop.compute, tools.learner.evaluate, local, self._home.shard.holdout)
            return (tools, update), self._trained(round_id, assignment, update, figures)

        async def send_status() -> tuple[None, Told]:
            await workshop.server.accept(round_id, self._home.slot)
            view = await workshop.server.round(round_id)
            standings = ", ".join(f"{p.device} is {p.standing}" for p in view.participants)
            happened = (
                f"{name} has told the server that it is ready to send its model. "
                f"The server answers: round {view.round} is in {view.phase}; {standings}."
            )
            return None, Told(
                happened=happened,
                next=f"{Step.SEND} of this device.",
                figures={"device": name, "round": view.round, "phase": view.phase},
            )

        async def send() -> tuple[None, Told]:
            key = await workshop.sealing_key(round_id)
            before = await self._outbox.round_before(assignment, tools.plan)
            seed = self._seed(round_id)
            pack = partial(self._outbox.pack, update, key, assignment, tools.plan, seed=seed, before=before)
            parcel = await asyncio.to_thread(pack)
            await self._upload(round_id, assignment.ticket, parcel)
            hand.last_sent = round_id.number
            happened = (
                f"{name} has sealed its update for the aggregator alone and uploaded it: {len(parcel.body):,} bytes. "
                "The server can't read it, and neither can the storage."
            )
            after = f"{hand.aggregator_url}/aggregate_models, once every device has sent its model."
            figures: dict[str, str | int | float | None] = {"device": name, "round": round_id.number, "bytes": len(parcel.body)}
            return None, Told(happened=happened, next=after, figures=figures)

        tools, update = await hand.perform(Step.TRAIN, train)
        await hand.perform(Step.STATUS, send_status)
        await hand.perform(Step.SEND, send)

    def _trained(self, round_id: RoundId, assignment: Assignment, update: Update, after: Metrics) -> Told:
        shard, version = self._home.shard, assignment.model.version
        happened = f"{assignment.device} has trained on its {len(shard.train):,} examples in round {round_id.number}."
        if "accuracy" in after and "accuracy" in update.metrics:
            happened += (
                f" On the {len(shard.holdout):,} that it holds out, the global model (version {version}) was right in "
                f"{100 * update.metrics['accuracy']:.2f} %, its own is now in {100 * after['accuracy']:.2f} %."
            )
        figures = {"accuracy": after.get("accuracy"), "global_accuracy": update.metrics.get("accuracy")}
        return Told(
            happened=happened,
            next=f"{Step.STATUS} of this device.",
            figures={"device": assignment.device, "round": round_id.number, "examples": len(shard.train), **figures},
        )


def step_routes(hand: Hand) -> APIRouter:
    """The device's three steps."""
    router = APIRouter(tags=["walk-through"])
    summaries = {
        Step.TRAIN: "Train on this device's own data.",
        Step.STATUS: "Tell the server that this device is ready, and show its answer.",
        Step.SEND: "Send the update to the aggregator, sealed.",
    }

    def taker(step: Step) -> Callable[[], Awaitable[Told]]:
        return lambda: hand.take(step)

    for step, summary in summaries.items():
        add_step(router, step.value, summary, taker(step), Code.TRAINING_FAILED, Code.ROUND_CLOSED, Code.UPDATE_LATE)
    return router
