"""An aggregator that dies while it publishes: the next one leaves the same bits behind as one that has not died at all."""

import hashlib
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from fedlearn.adapters.memory import MemoryBucket, MemoryObjectStore
from fedlearn.aggregator.layout import close_key
from fedlearn.aggregator.rounds import Rounds
from fedlearn.core.ids import RoundId, TaskId
from fedlearn.core.rounds import ModelRef
from fedlearn.protocol.messages import Model, RoundOpening, RoundResult
from fedlearn.protocol.tensors import state_of
from support.desk import until
from support.sealed import IDENTITY, SealedRound, updates_of
from support.world import random_model, random_update, small_plan
from unit.aggregator.test_partials import Dies, MortalStore
from unit.aggregator.test_rounds import PlayedServer

FIRST, SECOND = (RoundId(TaskId("t"), number) for number in (1, 2))


class Updates(MemoryObjectStore):
    """Tells when the second round's close record lies there."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = threading.Event()

    def put_once(self, key: str, body: bytes) -> bool:
        written = super().put_once(key, body)
        if key == close_key(SECOND):
            self.closed.set()
        return written


class Models(MortalStore):
    """Its user dies when the close record is there: without it the next one decides anew who is in, and in which order."""

    def __init__(self, bucket: MemoryBucket, closed: threading.Event) -> None:
        super().__init__(bucket)
        self._closed = closed

    def put(self, key: str, body: bytes | memoryview, *, sha256: str | None = None) -> None:
        assert self.dies_at is None or self._closed.wait(10)
        super().put(key, body, sha256=sha256)


class Server(PlayedServer):
    """Whoever reports to it may die before or after that."""

    dies: str | None = None

    async def report_result(self, round_id: RoundId, result: RoundResult) -> None:
        if self.dies == "before":
            raise Dies
        await super().report_result(round_id, result)
        if self.dies == "after":
            raise Dies


class Story:
    """Two rounds of a task, in the second of which the aggregator may die."""

    def __init__(self, strategy: str) -> None:
        self.plan = small_plan(aggregation={"strategy": strategy})
        self.updates, self.server = Updates(), Server()
        self.models = Models(MemoryBucket(), self.updates.closed)
        body = random_model(self.plan)
        self.base = ModelRef(0, "t/models/0.safetensors", hashlib.sha256(body).hexdigest(), len(body))
        self.models.put(self.base.key, body)

    @asynccontextmanager
    async def aggregator(self) -> AsyncIterator[Rounds]:
        rounds = Rounds(
            models=self.models,
            updates=self.updates,
            identity=IDENTITY,
            server=self.server,  # type: ignore[arg-type] - played by the test
            min_cohort=2,
            upload_seconds=900,
            workers=2,
        )
        try:
            await rounds.recover()
            yield rounds
        finally:
            await rounds.stop()

    async def first_round(self, rounds: Rounds) -> ModelRef:
        """What it has published."""
        await self.feed(rounds, FIRST, self.base)
        await rounds.close(FIRST)
        (result,) = await until(lambda: self.server.results)
        await rounds.sweep(FIRST)
        self.server.results.clear()
        self.models.calls.clear()
        return result.model.ref()

    async def feed(self, rounds: Rounds, round_id: RoundId, base: ModelRef) -> None:
        """Open a round, and bring five updates, one after the other, so that their order is the same in every story."""
        opening = RoundOpening(plan=self.plan.model_dump(mode="json"), base=Model.of(base), reporting_seconds=60)
        folding = (await rounds.open(round_id, opening)).folding
        sealed = SealedRound(self.updates, folding.key, plan=self.plan, base=base, round_id=round_id)
        for place, device in enumerate(reversed(updates_of(5))):
            digest = sealed.bring(device, random_update(self.plan, 10 * round_id.number + place, examples=10 + 7 * place))
            rounds.uploaded(rounds.find(round_id), device, digest)
            await until(lambda device=device: folding.folded_digest(device) is not None)

    def bits(self) -> dict[str, bytes]:
        """All that lies in the models bucket, by keys that name their bytes' digests."""
        return {stored.key: self.models.get(stored.key) for stored in self.models.list("")}


async def undisturbed(strategy: str) -> dict[str, bytes]:
    story = Story(strategy)
    async with story.aggregator() as rounds:
        base = await story.first_round(rounds)
        await story.feed(rounds, SECOND, base)
        await rounds.close(SECOND)
        (result,) = await until(lambda: story.server.results)
    assert len(story.models.calls) == 2, "a state, then a model"
    assert state_of(story.models.get(result.model.key)) is not None
    return story.bits()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("what", ["state", "model", "report"])
@pytest.mark.parametrize("strategy", ["fedavgm", "fedadagrad", "fedadam", "fedyogi"])
async def test_model_and_state_have_the_bits_that_they_would_have_had(strategy: str, what: str, when: str) -> None:
    story = Story(strategy)
    async with story.aggregator() as rounds:
        base = await story.first_round(rounds)
        await story.feed(rounds, SECOND, base)
        if what == "report":
            story.server.dies = when
        else:
            story.models.dies_at, story.models.after = ["state", "model"].index(what), when == "after"
        closing = (await rounds.close(SECOND)).closing
        assert closing is not None
        await until(closing.done)
        assert isinstance(closing.exception(), Dies)
    lying_there = story.bits()
    story.server.dies = story.models.dies_at = None
    heard = story.server.results.copy()
    async with story.aggregator():
        await until(lambda: len(story.server.results) > len(heard))
    expected = await undisturbed(strategy)
    assert story.bits() == expected
    assert lying_there.items() <= expected.items(), "nor did the dead one leave anything else"
    assert heard in ([], story.server.results[1:])
    assert len(expected) == 5, "three versions, and the states of two"
