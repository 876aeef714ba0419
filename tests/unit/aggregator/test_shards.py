"""Aggregators that share a round over one storage: each sums its own devices, and number 0 publishes what all have."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager

import numpy as np
import pytest

from fedlearn.adapters.memory import MemoryObjectStore
from fedlearn.aggregator.folding import Folding
from fedlearn.aggregator.layout import partials_prefix
from fedlearn.aggregator.rounds import Rounds
from fedlearn.core.errors import Code, Outage, Refusal
from fedlearn.core.ids import DeviceId, shard_of
from fedlearn.core.updates import Update
from fedlearn.protocol.messages import Model, RoundOpening
from fedlearn.protocol.tensors import decode_vector
from support.desk import until
from support.sealed import BASE, BASE_FILE, IDENTITY, PLAN, ROUND, SealedRound, next_model, updates_of
from support.world import random_update
from unit.aggregator.test_rounds import PlayedServer

AGGREGATORS = 3
OPENING = RoundOpening(plan=PLAN.model_dump(mode="json"), base=Model.of(BASE), reporting_seconds=60, aggregators=AGGREGATORS)


class Houses:
    """The storage that several aggregators share, and the server that hears all of them."""

    def __init__(self) -> None:
        self.models, self.updates, self.server = MemoryObjectStore(), MemoryObjectStore(), PlayedServer()
        self.models.put(BASE.key, BASE_FILE)

    @asynccontextmanager
    async def aggregator(self, number: int) -> AsyncIterator[Rounds]:
        rounds = Rounds(
            models=self.models,
            updates=self.updates,
            identity=IDENTITY,
            server=self.server,  # type: ignore[arg-type] - played by the test
            min_cohort=2,
            upload_seconds=900,
            workers=2,
            save_every=3,
            shard=number,
        )
        try:
            await rounds.recover()
            yield rounds
        finally:
            await rounds.stop()

    @asynccontextmanager
    async def all(self, numbers: Iterable[int] = range(AGGREGATORS)) -> AsyncIterator[list[Rounds]]:
        async with AsyncExitStack() as stack:
            aggregators = [await stack.enter_async_context(self.aggregator(number)) for number in numbers]
            yield aggregators

    def reported(self) -> set[DeviceId]:
        return {DeviceId(device) for report in self.server.reports for device in report.reported}

    async def bring(self, aggregators: list[Rounds], updates: dict[DeviceId, Update]) -> None:
        opening = OPENING.model_copy(update={"aggregators": len(aggregators)})
        rounds = [await aggregator.open(ROUND, opening) for aggregator in aggregators]
        descriptor = rounds[0].folding.descriptor
        sealed = SealedRound(self.updates, rounds[0].folding.key)
        assert all(round_.folding.descriptor == descriptor for round_ in rounds)
        for device, update in updates.items():
            number = shard_of(device, len(aggregators))
            aggregators[number].uploaded(rounds[number], device, sealed.bring(device, update))
        await until(lambda: self.reported() == set(updates))


async def committed_exactly(houses: Houses, updates: dict[DeviceId, Update]) -> None:
    (result,) = await until(lambda: houses.server.results)
    assert set(result.contributors) == set(updates)
    assert result.examples == sum(update.examples for update in updates.values())
    published = decode_vector(houses.models.get(result.model.key), PLAN)
    assert np.abs(published - next_model(BASE_FILE, updates)).max() < 1e-6


@pytest.fixture
def houses() -> Houses:
    return Houses()


async def published(aggregators: int, updates: dict[DeviceId, Update]) -> np.ndarray:
    """The model of a round that so many aggregators share, shape (parameters,)."""
    houses = Houses()
    async with houses.all(range(aggregators)) as running:
        await houses.bring(running, updates)
        for aggregator in running:
            await aggregator.close(ROUND)
        await committed_exactly(houses, updates)
    return decode_vector(houses.models.get(houses.server.results[0].model.key), PLAN)


async def test_what_three_aggregators_sum_is_what_one_would_have() -> None:
    updates = updates_of(20)
    assert {shard_of(device, AGGREGATORS) for device in updates} == set(range(AGGREGATORS))
    base = decode_vector(BASE_FILE, PLAN)
    three, one = [await published(aggregators, updates) - base for aggregators in (AGGREGATORS, 1)]
    assert np.linalg.norm(three - one) <= 1e-6 * np.linalg.norm(one)
    assert np.linalg.norm(one) > 0


async def test_the_first_waits_until_the_others_have_closed_their_parts(houses: Houses) -> None:
    updates = updates_of(12)
    async with houses.all() as aggregators:
        await houses.bring(aggregators, updates)
        await aggregators[0].close(ROUND)
        await asyncio.sleep(0.3)
        assert houses.server.results == []
        for aggregator in aggregators[1:]:
            await aggregator.close(ROUND)
        await committed_exactly(houses, updates)


@pytest.mark.parametrize("dead", range(AGGREGATORS))
async def test_the_death_of_one_costs_only_its_time(houses: Houses, dead: int) -> None:
    updates = updates_of(20)
    async with houses.all() as aggregators:
        await houses.bring(aggregators, updates)
        for number in set(range(AGGREGATORS)) - {dead}:
            await aggregators[number].close(ROUND)
        await asyncio.sleep(0.2)
        await aggregators[dead].stop()
        assert houses.server.results == []
        async with houses.aggregator(dead) as reborn:
            await reborn.close(ROUND)
            await committed_exactly(houses, updates)


async def test_all_may_die_when_all_have_closed(houses: Houses) -> None:
    updates = updates_of(12)
    houses.server.result_lost = True
    async with houses.all() as aggregators:
        await houses.bring(aggregators, updates)
        for aggregator in aggregators:
            await aggregator.close(ROUND)
        await until(lambda: houses.server.results)
    first = houses.server.results.copy()
    houses.server.results.clear()
    async with houses.all():
        await committed_exactly(houses, updates)
    assert houses.server.results[0] == first[0], "to the last bit"


async def test_an_aggregator_without_devices_hands_over_an_empty_part(houses: Houses) -> None:
    updates = {device: update for device, update in updates_of(30).items() if shard_of(device, AGGREGATORS) != 1}
    async with houses.all() as aggregators:
        await houses.bring(aggregators, updates)
        for aggregator in aggregators:
            await aggregator.close(ROUND)
        await committed_exactly(houses, updates)


async def test_an_aggregator_folds_no_other_ones_updates(houses: Houses) -> None:
    updates = updates_of(12)
    async with houses.all() as aggregators:
        await houses.bring(aggregators, updates)
        for number, aggregator in enumerate(aggregators):
            round_ = aggregator.find(ROUND)
            await aggregator.fold_stored(round_)
            assert {shard_of(device, AGGREGATORS) for device in round_.folding.counts().folded} <= {number}


def test_a_sum_whose_owner_has_not_closed_is_not_merged() -> None:
    sealed = SealedRound(MemoryObjectStore())
    shared = sealed.descriptor.model_copy(update={"aggregators": 2})
    first, second = (Folding(shared, PLAN, sealed.key, sealed.store, shard=number) for number in range(2))
    updates = updates_of(6)
    digests = {device: sealed.bring(device, update) for device, update in updates.items()}
    for device, digest in digests.items():
        (first, second)[shard_of(device, 2)].consider(device, digest)
    second.save()
    with pytest.raises(Outage):
        first.others.contributors()
    second.save(final=True)
    record = {**first.counts().folded, **first.others.contributors()}
    assert first.total(record).updates == 6
    assert sealed.store.list(partials_prefix(ROUND, 0)) == []
    with pytest.raises(Refusal) as caught:
        first.total({**record, DeviceId("another"): "0" * 64})
    assert caught.value.code is Code.UPDATE_MISSING


async def test_what_comes_after_the_last_partial_sum_is_late(houses: Houses) -> None:
    updates, late = updates_of(8), next(one for i in range(99) if shard_of(one := DeviceId(f"late-{i}"), 2) == 1)
    async with houses.all(range(2)) as (first, second):
        await houses.bring([first, second], updates)
        round_ = await second.close(ROUND)
        await until(lambda: round_.published)
        SealedRound(houses.updates, round_.folding.key).bring(late, random_update(PLAN, 99))
        closing = (await second.close(ROUND)).closing
        assert closing is not None
        await closing
        assert late not in round_.folding.counts().folded
        await first.close(ROUND)
        await committed_exactly(houses, updates)


async def test_a_part_of_the_sum_that_is_spoiled_is_made_again_from_storage(houses: Houses) -> None:
    updates = updates_of(8)
    async with houses.all(range(2)) as (first, second):
        await houses.bring([first, second], updates)
        round_ = second.find(ROUND)
        round_.folding._sum.discard()
        await second.close(ROUND)
        await until(lambda: second.newest() is not round_)
        for aggregator in (second, first):
            await aggregator.close(ROUND)
        await committed_exactly(houses, updates)
