"""A task's driver over the real database, with an aggregator that a test plays."""

import asyncio
import hashlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from fedlearn.adapters.database import DatabaseRoundStore
from fedlearn.adapters.memory import MemoryObjectStore
from fedlearn.core.errors import Refusal
from fedlearn.core.ids import DeviceId, RoundId, TaskId
from fedlearn.core.policy import RoundPolicy
from fedlearn.core.ports import Task
from fedlearn.core.rounds import Aggregate, ModelRef, Phase, Round
from fedlearn.protocol.messages import CheckIn, Model, ModelUpload, RoundOpen
from fedlearn.protocol.plans import Plan
from fedlearn.protocol.tickets import TicketSigner, make_signing_key
from fedlearn.server.coordinator import Coordinator
from fedlearn.server.fleet import Fleet
from fedlearn.server.runner import TaskRunner
from fedlearn.server.surroundings import Surroundings
from support.world import small_plan

PLAN = small_plan()


class PlayedAggregator:
    """Notes what the server asks of an aggregator; a test decides how it answers."""

    def __init__(self) -> None:
        self.opened: list[RoundId] = []
        self.closed: list[RoundId] = []
        self.swept: list[RoundId] = []
        self.placed: list[tuple[int, int]] = []
        self.refuses: Refusal | None = None
        self.served: Model | None = None
        self.sweeping, self.opening = asyncio.Event(), asyncio.Event()
        self.sweeping.set()
        self.opening.set()

    async def open_round(self, round_: Round, plan: Plan) -> RoundOpen:
        await self.opening.wait()
        self.opened.append(round_.id)
        if self.refuses is not None:
            raise self.refuses
        return RoundOpen(task=round_.id.task, round=round_.id.number, kid="0" * 32, state="open", served=self.served)

    async def place_model(self, task: TaskId, *, minimum: int, mixed: int, size_bytes: int, sha256: str) -> ModelUpload:
        self.placed.append((minimum, mixed))
        if self.refuses is not None:
            raise self.refuses
        return ModelUpload(key=f"{task}/models/0", url="http://storage/0", headers={}, valid_seconds=60)

    @staticmethod
    def shared_by(_plan: Plan) -> int:
        return 1

    async def close_round(self, round_id: RoundId, _plan: Plan) -> None:
        self.closed.append(round_id)

    async def sweep_round(self, round_id: RoundId) -> None:
        await self.sweeping.wait()
        self.swept.append(round_id)


async def until(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    """Wait until `condition` gives something true, and return it."""
    async with asyncio.timeout(seconds):
        while not (found := condition()):  # noqa: ASYNC110 - what is waited for lies in a database
            await asyncio.sleep(0.002)
    return found


class Desk:
    """One server's state and its surroundings."""

    def __init__(self, store: DatabaseRoundStore) -> None:
        self.store, self.fleet, self.aggregator = store, Fleet(), PlayedAggregator()
        self.around = Surroundings(
            store=store,
            models=MemoryObjectStore(),
            fleet=self.fleet,
            aggregator=self.aggregator,  # type: ignore[arg-type] - played by the test
            signer=TicketSigner(*make_signing_key()),
            clock=time.time,
            rng=np.random.default_rng(0),
            ticket_grace_seconds=60.0,
        )
        self.coordinator = Coordinator(self.around)
        self.checkin = CheckIn(dataset="mnist", examples=10)

    def add_task(self, name: str = "t", *, rounds: int | None = 1, target: float | None = None, **policy: Any) -> Task:
        base = ModelRef(0, f"{name}/models/0", hashlib.sha256(b"0").hexdigest(), 100)
        task = Task(
            id=TaskId(name),
            state="waiting_for_model",
            plan_digest=PLAN.digest,
            policy=RoundPolicy(**{"goal": 2, "min_fraction": 1.0, "over_selection": 1.0, **policy}),
            rounds=rounds,
            created_at=time.time(),
            upload=base,
            target_accuracy=target,
        )
        self.store.add_task(task, PLAN.canonical)
        return self.store.start_task(task.id, time.time())

    async def drive(self, task: Task) -> TaskRunner:
        await self.coordinator.run_task(task)
        return self.runner(task.id)

    def runner(self, task: str = "t") -> TaskRunner:
        runner = self.coordinator.runner(TaskId(task))
        assert runner is not None
        return runner

    def check_in(self, *devices: str, seconds: float = 10.0) -> dict[str, asyncio.Task[Any]]:
        """Check in each of these devices, and hold the check-ins."""
        return {
            device: asyncio.create_task(self.fleet.wait(DeviceId(device), self.checkin, seconds), name=device)
            for device in devices
        }

    def round(self, number: int, task: str = "t") -> Round:
        return self.store.round(RoundId(TaskId(task), number))

    async def reach(self, number: int, *phases: Phase, task: str = "t") -> Round:
        """Wait until a round is stored in one of these phases."""

        def reached() -> Round | None:
            latest = self.store.latest_round(TaskId(task))
            if latest is None or latest.id.number < number:
                return None
            round_ = self.round(number, task)
            return round_ if round_.phase in phases else None

        found: Round = await until(reached)
        return found

    @staticmethod
    def aggregate(round_: Round) -> Aggregate:
        """A result of everybody who takes part."""
        sha256 = hashlib.sha256(str(round_.id).encode()).hexdigest()
        model = ModelRef(round_.base.version + 1, f"models/{sha256}", sha256, 100)
        return Aggregate(model, frozenset(round_.participants), examples=20)
