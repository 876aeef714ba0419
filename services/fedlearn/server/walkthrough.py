"""The server's step by hand: `/send_model_clients` commits the model that was reported, and the next round begins.

What waits for that step is held in memory only: a server that starts again asks the aggregator once more, as ever.
"""

import asyncio

from fastapi import APIRouter

from fedlearn.adapters.walkthrough import Told, add_step, out_of_order
from fedlearn.core.errors import Code, Refusal
from fedlearn.core.ids import RoundId, TaskId
from fedlearn.core.ports import ALIVE_STATES, ModelVersion
from fedlearn.core.rounds import Aggregated, Phase, Round, Standing
from fedlearn.server.coordinator import Coordinator
from fedlearn.server.runner import TaskRunner

_SCORE_SECONDS = 60.0
_NEXT_ROUND_SECONDS = 15.0
_AGGREGATOR_STEPS = "the aggregator's /aggregate_models and /send_model_secagg"


class Held:
    """Results that the aggregator has reported, until somebody has them committed."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._results: dict[RoundId, Aggregated] = {}

    def keep(self, round_id: RoundId, result: Aggregated) -> bool:
        """Whether it is kept: it is for a round that waits for it."""
        runner = self._coordinator.runner(round_id.task)
        waits = runner is not None and runner.round is not None and runner.round.id == round_id
        if waits and runner is not None and runner.round is not None and not runner.round.phase.ended:
            self._results = {round_id: result}
            return True
        return False

    def of(self, round_id: RoundId) -> Aggregated | None:
        return self._results.get(round_id)

    def drop(self) -> None:
        self._results.clear()


class Walkthrough:
    """What `/send_model_clients` does with the running task's round."""

    def __init__(self, coordinator: Coordinator, held: Held) -> None:
        self._coordinator, self._held = coordinator, held

    async def give(self) -> Told:
        """Commit the model, and wait until it is scored and the devices have it.

        Raises:
            Refusal: `step_out_of_order`, or why the round has ended without a model.
        """
        runner = self._running()
        round_ = runner.round
        assert round_ is not None
        result = self._held.of(round_.id)
        if result is None:
            raise out_of_order(_what_comes_first(round_))
        await self._coordinator.tell(round_.id, result)
        self._held.drop()
        self._coordinator.announce_versions()
        ended = await asyncio.to_thread(self._coordinator.around.store.round, round_.id)
        if ended.reason is not None:
            raise Refusal(ended.reason, f"Round {round_.id.number} was abandoned, and the next one begins.")
        scored = await self._score(runner, round_.id.task, result.aggregate.model.version)
        following = await self._next_round(runner, round_.id)
        return _told(round_, scored, following)

    def _running(self) -> TaskRunner:
        runner = self._coordinator.newest_runner()
        if runner is None or runner.round is None:
            raise out_of_order("There is no task yet: `fedlearn up --manual` submits one when it starts.")
        return runner

    async def _score(self, runner: TaskRunner, task: TaskId, version: int) -> ModelVersion:
        give_up = asyncio.get_running_loop().time() + _SCORE_SECONDS
        while True:
            found: ModelVersion = await asyncio.to_thread(self._coordinator.around.store.version, task, version)
            left = give_up - asyncio.get_running_loop().time()
            if found.evaluation is not None or left <= 0:
                return found
            await runner.changed(min(left, 1.0))

    async def _next_round(self, runner: TaskRunner, before: RoundId) -> Round | None:
        give_up = asyncio.get_running_loop().time() + _NEXT_ROUND_SECONDS
        while asyncio.get_running_loop().time() < give_up:
            round_ = runner.round
            if round_ is not None and round_.id != before and round_.phase is Phase.REPORTING:
                return round_
            if (await asyncio.to_thread(self._coordinator.around.store.task, before.task)).state not in ALIVE_STATES:
                return None
            await runner.changed(0.2)
        return None


def _what_comes_first(round_: Round) -> str:
    match round_.phase:
        case Phase.REPORTING:
            silent = ", ".join(round_.devices(Standing.SELECTED))
            if silent:
                return f"/modeltrain, /sendstatus and /sendmodel of {silent} come first, then {_AGGREGATOR_STEPS}."
            return f"The devices' /sendmodel comes first, then {_AGGREGATOR_STEPS}."
        case Phase.AGGREGATION:
            return "/send_model_secagg of the aggregator comes first."
        case _:
            return "The server waits until all devices are there; then comes /modeltrain of each."


def _told(round_: Round, version: ModelVersion, following: Round | None) -> Told:
    scores = version.evaluation or {}
    happened = f"Round {round_.id.number} is committed: version {version.ref.version} is the global model."
    if "accuracy" in scores:
        happened += f" On the test set, which no device holds, it is right in {100 * scores['accuracy']:.2f} %."
    if following is None:
        after = "/modeltrain of each device, as soon as all devices are there."
    else:
        happened += f" {len(following.participants)} devices have it for round {following.id.number}."
        after = "/modeltrain of each device, for another round; or stop here by Ctrl-C."
    return Told(
        happened=happened,
        next=after,
        figures={
            "round": round_.id.number,
            "version": version.ref.version,
            "accuracy": scores.get("accuracy"),
            "loss": scores.get("loss"),
        },
    )


def step_routes(walkthrough: Walkthrough) -> APIRouter:
    """The server's step."""
    router = APIRouter(tags=["walk-through"])
    add_step(
        router,
        "/send_model_clients",
        "Make the reported model the global one, and give it to the devices.",
        walkthrough.give,
        Code.BASE_SUPERSEDED,
        Code.ROUND_CLOSED,
    )
    return router
