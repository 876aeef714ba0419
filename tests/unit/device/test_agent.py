import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedlearn.adapters.memory import MemoryObjectStore
from fedlearn.aggregator.folding import Folding
from fedlearn.aggregator.layout import update_key
from fedlearn.core.eligibility import Conditions
from fedlearn.core.errors import Code, FedlearnError, Outage, Refusal, SetupError
from fedlearn.core.ids import DeviceId, RoundId
from fedlearn.core.learning import Examples, Learner, Shard, Stop, Stopped, Weights
from fedlearn.core.ports import UploadGrant
from fedlearn.device.agent import Agent, Home
from fedlearn.device.workshop import Workshop
from fedlearn.learning.synthetic import SyntheticLearner
from fedlearn.protocol.eligibility import DeviceDemands
from fedlearn.protocol.messages import Assignment, CheckIn, ComeBack, DropOut, Model, RoundName, UploadDone, UploadRequest
from fedlearn.protocol.plans import Plan
from fedlearn.protocol.sealing import SealingKey, SignedSealingKey
from fedlearn.protocol.tensors import decode_model
from fedlearn.telemetry.metrics.device import SESSION_SHAPES, SESSIONS
from support.desk import until
from support.sealed import BASE, BASE_FILE, IDENTITY, PLAN, ROUND, SealedRound

DEVICE = DeviceId("pod-0/2")
SHARD = Shard(
    train=Examples(np.zeros((30, 784), np.float32), np.zeros(30, np.int32)),
    holdout=Examples(np.zeros((4, 784), np.float32), np.zeros(4, np.int32)),
)


def assignment(number: int = ROUND.number, seconds_left: float = 30.0) -> Assignment:
    return Assignment(
        task=ROUND.task,
        round=number,
        device=DEVICE,
        plan_digest=PLAN.digest,
        model=Model.of(BASE),
        model_url=BASE.key,
        seconds_left=seconds_left,
        ticket="the ticket",
    )


class Services:
    """A server, an aggregator and a storage that a test plays; each refuses once what `fails` says, by the call's name."""

    def __init__(self, identity: Ed25519PrivateKey = IDENTITY) -> None:
        self.answers: list[Assignment | ComeBack] = []
        self.checkins: list[CheckIn] = []
        self.accepted: list[tuple[RoundId, int | None]] = []
        self.dropped: list[DropOut] = []
        self.told: list[UploadDone] = []
        self.tickets: set[str] = set()
        self.fails: dict[str, list[FedlearnError]] = {}
        self.idle, self.closed = asyncio.Event(), asyncio.Event()
        self.round, self.identity, self.bucket = SealedRound(MemoryObjectStore()), identity, MemoryObjectStore()

    def _perhaps_fail(self, call: str) -> None:
        if self.fails.get(call):
            raise self.fails[call].pop(0)

    # the server

    async def check_in(self, checkin: CheckIn) -> Assignment | ComeBack:
        self._perhaps_fail("check_in")
        self.checkins.append(checkin)
        if not self.answers:
            self.idle.set()
            await asyncio.Event().wait()
        return self.answers.pop(0)

    async def accept(self, round_id: RoundId, slot: int | None) -> None:
        self._perhaps_fail("accept")
        self.accepted.append((round_id, slot))

    async def wanted(self, round_id: RoundId, slot: int | None, wait_seconds: float) -> None:
        self._perhaps_fail("wanted")
        await self.closed.wait()
        raise Refusal(Code.ROUND_CLOSED, "Enough have reported.")

    async def drop_out(self, round_id: RoundId, dropout: DropOut) -> None:
        self.dropped.append(dropout)

    async def plan(self, digest: str) -> Plan:
        self._perhaps_fail("plan")
        return PLAN

    # the aggregator

    def at(self, number: int) -> Self:
        assert number == 0
        return self

    async def sealing_key(self, round_id: RoundId) -> SignedSealingKey:
        self._perhaps_fail("sealing_key")
        key = self.round.key if round_id == ROUND else SealingKey.generate(round_id)
        return key.sign(self.identity)

    async def place(self, round_id: RoundId, request: UploadRequest, ticket: str) -> UploadGrant:
        self._perhaps_fail("place")
        self.tickets.add(ticket)
        key = update_key(ROUND, DEVICE, request.digest)
        return self.round.store.sign_put(key, size_bytes=request.size_bytes, sha256=request.sha256, seconds=60)

    async def done(self, round_id: RoundId, hint: UploadDone, ticket: str) -> None:
        self._perhaps_fail("done")
        self.tickets.add(ticket)
        self.told.append(hint)

    # the storage

    def fetch(self, url: str, *, sha256: str, size_bytes: int) -> bytes:
        self._perhaps_fail("fetch")
        return BASE_FILE

    def store(self, grant: UploadGrant, body: bytes) -> None:
        self._perhaps_fail("store")
        assert self.round.store.bucket.request("PUT", grant.url, body, grant.headers)[0] in (200, 412)


@asynccontextmanager
async def running(
    services: Services,
    make_learner: Callable[[Plan], Learner] = SyntheticLearner,
    seed_name: str = "2",
    conditions: Callable[[], Conditions] = Conditions,
) -> AsyncIterator[Agent]:
    """An agent at work among these services."""
    played: Any = services
    compute = ThreadPoolExecutor(1)
    workshop = Workshop(
        server=played, aggregator=played, identity=IDENTITY.public_key(), make_learner=make_learner, compute=compute
    )
    workshop.transfer = played
    home = Home(2, "mnist", SHARD, seed=5, seed_name=seed_name, runtime="synthetic", state=Path("nowhere"))
    agent = Agent(home, workshop, played, 30.0, conditions)
    work = asyncio.create_task(agent.run())
    try:
        yield agent
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        await asyncio.to_thread(compute.shutdown)


async def settle(services: Services) -> None:
    """Wait until the agent has done all that was assigned, and waits for more."""
    async with asyncio.timeout(10):
        await services.idle.wait()


async def test_a_device_trains_seals_and_uploads_its_delta() -> None:
    services = Services()
    services.answers = [assignment()]
    async with running(services):
        await settle(services)
    assert services.accepted == [(ROUND, 2)]
    assert services.dropped == []
    assert services.tickets == {"the ticket"}
    folding = Folding(services.round.descriptor, PLAN, services.round.key, services.round.store)
    folding.consider(DEVICE, services.told[0].digest)
    total = folding.total(folding.counts().folded)
    base = decode_model(BASE_FILE, PLAN)
    learner = SyntheticLearner(PLAN)
    delta = learner.learn(base, SHARD.train, await seed_of(services))
    assert np.abs(total.mean() - delta).max() < 1e-6
    assert (total.examples, total.holdout_examples) == (30, 4)
    assert total.metrics() == pytest.approx(dict(learner.evaluate(base, SHARD.holdout)))


async def seed_of(services: Services, number: int = ROUND.number, seed_name: str = "2") -> int:
    """The seed that an agent trains with in this round."""
    seeds: list[int] = []

    class Listening(SyntheticLearner):
        def learn(
            self, weights: Weights, examples: Examples, seed: int, stop: Stop | None = None, *, steps: int | None = None
        ) -> Any:
            seeds.append(seed)
            return super().learn(weights, examples, seed, stop, steps=steps)

    again = Services()
    again.round = services.round
    again.answers = [assignment(number)]
    async with running(again, Listening, seed_name):
        await settle(again)
    return seeds[0]


async def test_the_same_shard_in_the_same_round_is_trained_with_the_same_seed_wherever_it_is_hosted() -> None:
    services = Services()
    seeds = [await seed_of(services, number, name) for number, name in ((7, "2"), (7, "2"), (8, "2"), (7, "3"))]
    assert seeds[0] == seeds[1]
    assert len(set(seeds)) == 3


async def test_a_device_names_the_round_that_it_has_uploaded_to() -> None:
    services = Services()
    services.answers = [assignment()]
    async with running(services):
        await settle(services)
    assert [checkin.uploaded for checkin in services.checkins] == [None, RoundName(task=ROUND.task, round=ROUND.number)]


class Counting(SyntheticLearner):
    """Notes how many steps are wanted of it."""

    steps: list[int | None]

    def learn(
        self, weights: Weights, examples: Examples, seed: int, stop: Stop | None = None, *, steps: int | None = None
    ) -> Any:
        self.steps.append(steps)
        return super().learn(weights, examples, seed, stop, steps=steps)


@pytest.mark.parametrize(("wanted", "done"), [(None, 3), (2, 3), (99, 3)], ids=["all", "less than the plan allows", "more"])
async def test_a_device_does_what_its_plan_allows_and_tells_its_speed(wanted: int | None, done: int) -> None:
    services, counting = Services(), type("Counting", (Counting,), {"steps": []})
    services.answers = [assignment().model_copy(update={"local_steps": wanted})]
    async with running(services, counting):
        await settle(services)
    assert counting.steps == [done]
    assert services.checkins[0].speed is None
    speed = services.checkins[1].speed
    assert speed is not None
    assert (speed.task, speed.round, speed.plan_digest, speed.steps) == (ROUND.task, ROUND.number, PLAN.digest, 3)
    assert 0 < speed.seconds < 10


async def test_a_device_seals_nothing_to_a_key_that_its_aggregator_does_not_vouch_for() -> None:
    services = Services(identity=Ed25519PrivateKey.generate())
    services.answers = [assignment()]
    async with running(services):
        await settle(services)
    assert [dropout.code for dropout in services.dropped] == [Code.SEALING_KEY_UNTRUSTED]
    assert services.tickets == set()
    assert services.round.store.list("") == []


class Failing(SyntheticLearner):
    error: Exception = Refusal(Code.TRAINING_FAILED, "The loss is not finite.")

    def learn(
        self, weights: Weights, examples: Examples, seed: int, stop: Stop | None = None, *, steps: int | None = None
    ) -> Any:
        raise self.error


class Broken(Failing):
    error = ZeroDivisionError("a secret of the data")


@pytest.mark.parametrize(("learner", "code"), [(Failing, Code.TRAINING_FAILED), (Broken, Code.INTERNAL)])
async def test_a_device_that_can_not_train_drops_out_and_takes_part_again(learner: type[Failing], code: Code) -> None:
    services = Services()
    services.answers = [assignment(7), assignment(8)]
    async with running(services, learner):
        await settle(services)
    assert [dropout.code for dropout in services.dropped] == [code, code]
    assert "secret" not in services.dropped[0].detail, "what the data made it say is nobody else's business"
    assert [round_id.number for round_id, _ in services.accepted] == [7, 8]


@pytest.mark.parametrize("call", ["accept", "plan", "sealing_key", "place", "done"])
async def test_an_outage_is_waited_out(call: str) -> None:
    services = Services()
    services.answers = [assignment()]
    services.fails = {call: [Outage(Code.AGGREGATOR_UNREACHABLE, "It does not answer.")] * 2}
    async with running(services):
        await settle(services)
    assert services.fails[call] == []
    assert services.dropped == []
    assert len(services.told) == 1


@pytest.mark.parametrize(
    ("call", "code"),
    [
        ("plan", Code.PLAN_INVALID),
        ("fetch", Code.MODEL_MISMATCH),
        ("sealing_key", Code.UPDATE_LATE),
        ("place", Code.UPDATE_TOO_LARGE),
        ("store", Code.FORBIDDEN),
        ("done", Code.TICKET_EXPIRED),
    ],
)
async def test_whatever_is_refused_the_server_is_told_why_and_the_next_round_is_taken(call: str, code: Code) -> None:
    services = Services()
    services.answers = [assignment(7), assignment(7)]
    services.fails = {call: [Refusal(code, "No.")]}
    async with running(services):
        await settle(services)
    assert [dropout.code for dropout in services.dropped] == [code]
    assert services.dropped[0].slot == 2
    assert len(services.told) == 1


@pytest.mark.parametrize("code", [Code.ROUND_CLOSED, Code.NOT_SELECTED, Code.TASK_UNKNOWN])
async def test_a_round_that_does_not_want_the_device_is_left_without_a_word(code: Code) -> None:
    services = Services()
    services.answers = [assignment()]
    services.fails = {"accept": [Refusal(code, "Not you.")]}
    async with running(services):
        await settle(services)
    assert services.dropped == []
    assert services.told == []


@pytest.mark.parametrize(
    "error",
    [
        Outage(Code.SERVER_UNREACHABLE, "It does not answer."),
        Refusal(Code.UNAUTHENTICATED, "The token is not known yet."),
        SetupError(Code.SETTING_INVALID, "The token's file is just being renewed."),
    ],
    ids=["outage", "refusal", "setup error"],
)
async def test_a_check_in_that_fails_is_tried_again_and_readiness_says_so(error: FedlearnError) -> None:
    services = Services()
    services.fails = {"check_in": [error, error]}
    async with running(services) as agent:
        assert not agent.connected
        await settle(services)
    assert services.fails["check_in"] == []


async def test_a_device_is_connected_once_the_server_has_answered() -> None:
    services = Services()
    services.answers = [ComeBack(after_seconds=0)]
    async with running(services) as agent:
        await settle(services)
        assert agent.connected


def sessions() -> Counter[str]:
    """Ended sessions by their shape."""
    samples = [sample for family in SESSIONS.collect() for sample in family.samples if sample.name.endswith("_total")]
    return Counter({sample.labels["shape"]: int(sample.value) for sample in samples})


@pytest.mark.parametrize(
    ("call", "shape"),
    [
        (None, "-v[]+^"),
        ("accept", "-!"),
        ("fetch", "-!"),
        ("sealing_key", "-v!"),
        ("place", "-v[]+#"),
        ("store", "-v[]+#"),
        ("done", "-v[]+#"),
    ],
)
async def test_a_session_is_counted_by_its_shape(call: str | None, shape: str) -> None:
    services, before = Services(), sessions()
    services.answers = [assignment()]
    services.fails = {call: [Refusal(Code.FORBIDDEN, "No.")]} if call else {}
    async with running(services):
        await settle(services)
    assert sessions() - before == {shape: 1}
    assert shape in SESSION_SHAPES


async def test_the_session_of_a_device_that_can_not_train_ends_there() -> None:
    services, before = Services(), sessions()
    services.answers = [assignment()]
    async with running(services, Failing):
        await settle(services)
    assert sessions() - before == {"-v[!": 1}


class Blocked(SyntheticLearner):
    """Trains until it is let go."""

    begun, may_end = threading.Event(), threading.Event()

    def learn(
        self, weights: Weights, examples: Examples, seed: int, stop: Stop | None = None, *, steps: int | None = None
    ) -> Any:
        self.begun.set()
        assert self.may_end.wait(10)
        return super().learn(weights, examples, seed, stop, steps=steps)


@pytest.fixture
def blocked() -> type[Blocked]:
    return type("Blocked", (Blocked,), {"begun": threading.Event(), "may_end": threading.Event()})


async def test_a_device_that_is_too_slow_uploads_nothing_and_waits_for_the_next_round(blocked: type[Blocked]) -> None:
    services, before = Services(), sessions()
    services.answers = [assignment(7, seconds_left=0.05), assignment(8)]
    async with running(services, blocked):
        await until(lambda: len(services.accepted) == 2)
        blocked.may_end.set()
        await settle(services)
    assert len(services.told) == 1
    assert sessions() - before == {"-v[!": 1, "-v[]+^": 1}
    assert services.dropped == []


class Endless(SyntheticLearner):
    """Trains until it is stopped."""

    begun, stopped = threading.Event(), threading.Event()

    def learn(
        self, weights: Weights, examples: Examples, seed: int, stop: Stop | None = None, *, steps: int | None = None
    ) -> Any:
        assert stop is not None
        self.begun.set()
        try:
            stop.wait(10)
        except Stopped:
            self.stopped.set()
            raise


@pytest.fixture
def endless() -> type[Endless]:
    return type("Endless", (Endless,), {"begun": threading.Event(), "stopped": threading.Event()})


class Slow(Services):
    """The server takes its time to save an acceptance."""

    def __init__(self) -> None:
        super().__init__()
        self.may_answer = asyncio.Event()

    async def accept(self, round_id: RoundId, slot: int | None) -> None:
        await self.may_answer.wait()
        await super().accept(round_id, slot)


async def test_a_device_trains_while_the_server_saves_its_acceptance_and_uploads_nothing_before(blocked: type[Blocked]) -> None:
    services = Slow()
    services.answers = [assignment()]
    async with running(services, blocked):
        await until(blocked.begun.is_set)
        blocked.may_end.set()
        await asyncio.sleep(0.1)
        assert (services.tickets, services.round.store.list("")) == (set(), [])
        services.may_answer.set()
        await settle(services)
    assert len(services.told) == 1


async def test_a_device_whose_acceptance_is_refused_stops_training(endless: type[Endless]) -> None:
    services = Slow()
    services.answers = [assignment()]
    services.fails = {"accept": [Refusal(Code.ROUND_CLOSED, "Too late.")]}
    async with running(services, endless):
        await until(endless.begun.is_set)
        services.may_answer.set()
        assert await until(endless.stopped.is_set)
        await settle(services)
    assert services.told == []


async def test_a_device_that_is_quick_does_not_ask_whether_it_is_wanted() -> None:
    services = Services()
    services.answers = [assignment()]
    services.fails = {"wanted": [Refusal(Code.ROUND_CLOSED, "Nobody should hear this.")]}
    async with running(services):
        await settle(services)
    assert len(services.fails["wanted"]) == 1
    assert len(services.told) == 1


async def test_a_device_goes_on_while_nobody_answers_whether_it_is_wanted(
    endless: type[Endless], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedlearn.device.agent._FIRST_ASK_SECONDS", 0.0)
    services = Services()
    services.answers = [assignment()]
    services.fails = {"wanted": [Outage(Code.SERVER_UNREACHABLE, "It does not answer.")] * 2}
    async with running(services, endless):
        await until(lambda: endless.begun.is_set() and services.fails["wanted"] == [])
        assert not endless.stopped.is_set()
        services.closed.set()
        assert await until(endless.stopped.is_set)
    assert services.dropped == []


async def test_a_device_stops_training_as_soon_as_the_round_has_its_goal_and_leaves_it_without_a_word(
    endless: type[Endless],
) -> None:
    services = Services()
    services.answers = [assignment()]
    async with running(services, endless):
        await until(endless.begun.is_set)
        services.closed.set()
        await settle(services)
        assert await until(endless.stopped.is_set)
    assert (services.dropped, services.told, services.round.store.list("")) == ([], [], [])


async def test_a_device_that_stops_being_eligible_aborts_and_says_so(
    endless: type[Endless], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedlearn.device.agent._LOOK_SECONDS", 0.01)
    services, now = Services(), [Conditions()]
    services.answers = [assignment().model_copy(update={"demands": DeviceDemands(idle=True)})]
    async with running(services, endless, conditions=lambda: now[0]):
        await until(endless.begun.is_set)
        now[0] = Conditions(idle=False)
        await settle(services)
        assert await until(endless.stopped.is_set)
    assert [(dropout.code, dropout.detail) for dropout in services.dropped] == [(Code.NOT_ELIGIBLE, "The device is not idle.")]
    assert services.told == []


async def test_a_device_whose_conditions_change_offers_itself_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedlearn.device.agent._LOOK_SECONDS", 0.01)
    services, now = Services(), [Conditions(charging=False)]
    async with running(services, conditions=lambda: now[0]):
        await settle(services)
        now[0] = Conditions(charging=True)
        await until(lambda: len(services.checkins) == 2)
    assert [checkin.conditions.charging for checkin in services.checkins] == [False, True]


async def test_training_that_is_late_stops_too_so_that_the_next_round_finds_the_thread_free(endless: type[Endless]) -> None:
    services = Services()
    services.answers = [assignment(seconds_left=0.2)]
    async with running(services, endless):
        await until(endless.begun.is_set)
        await settle(services)
        assert await until(endless.stopped.is_set)


async def test_a_device_that_is_stopped_in_a_round_tells_the_server(blocked: type[Blocked]) -> None:
    services = Services()
    services.answers = [assignment()]
    async with running(services, blocked):
        await until(blocked.begun.is_set)
        asyncio.get_running_loop().call_later(0.1, blocked.may_end.set)
    assert [dropout.code for dropout in services.dropped] == [Code.DEVICE_STOPPING]
    assert services.told == []


async def test_a_plan_that_differs_from_its_digest_is_refused() -> None:
    services = Services()
    services.answers = [assignment().model_copy(update={"plan_digest": "0" * 64})]
    async with running(services):
        await settle(services)
    assert [dropout.code for dropout in services.dropped] == [Code.PLAN_INVALID]


async def test_a_learner_is_made_once_for_all_rounds_of_a_plan() -> None:
    made: list[Plan] = []

    def make(plan: Plan) -> Learner:
        made.append(plan)
        return SyntheticLearner(plan)

    services = Services()
    services.answers = [assignment(7), assignment(8), assignment(9)]
    async with running(services, make):
        await settle(services)
    assert len(services.accepted) == 3
    assert len(made) == 1
