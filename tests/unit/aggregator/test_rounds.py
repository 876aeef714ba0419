import asyncio
import hashlib
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedlearn.adapters.memory import MemoryObjectStore
from fedlearn.aggregator import folding as folding_module
from fedlearn.aggregator.layout import (
    CloseRecord,
    Descriptor,
    close_key,
    descriptor_key,
    partials_prefix,
    round_prefix,
    updates_prefix,
)
from fedlearn.aggregator.publishing import Publisher
from fedlearn.aggregator.rounds import Rounds
from fedlearn.core.errors import Code, Outage, Refusal
from fedlearn.core.ids import DeviceId, RoundId, TaskId
from fedlearn.core.ports import Source, StoredObject
from fedlearn.core.rounds import ModelRef
from fedlearn.core.updates import Update
from fedlearn.protocol.envelope import UpdateContext, digest_of
from fedlearn.protocol.messages import Model, RoundOpening, RoundResult, UpdatesReport, UploadRequest
from fedlearn.protocol.plans import Plan
from fedlearn.protocol.sealing import SealingKey
from fedlearn.protocol.tensors import decode_vector
from fedlearn.telemetry.metrics import aggregator as metrics
from support.desk import until
from support.sealed import BASE, BASE_FILE, IDENTITY, PLAN, ROUND, SealedRound, next_model, updates_of
from support.world import random_model, random_update, small_plan

OPENING = RoundOpening(plan=PLAN.model_dump(mode="json"), base=Model.of(BASE), reporting_seconds=60)
A, B, C = DeviceId("a"), DeviceId("b/0"), DeviceId("c")


class PlayedServer:
    """Notes what an aggregator tells; a test decides how it answers."""

    def __init__(self) -> None:
        self.reports: list[UpdatesReport] = []
        self.results: list[RoundResult] = []
        self.failures: list[tuple[RoundId, Code]] = []
        self.refuses_reports: Refusal | None = None
        self.result_lost = False

    async def report_updates(self, round_id: RoundId, report: UpdatesReport) -> None:
        if self.refuses_reports is not None:
            refusal, self.refuses_reports = self.refuses_reports, None
            raise refusal
        self.reports.append(report)

    async def report_result(self, round_id: RoundId, result: RoundResult) -> None:
        self.results.append(result)
        if self.result_lost:
            self.result_lost = False
            raise Outage(Code.SERVER_UNREACHABLE, "The connection broke.")

    async def report_failure(self, round_id: RoundId, refusal: Refusal) -> None:
        self.failures.append((round_id, refusal.code))

    def reported(self) -> set[str]:
        return set(self.reports[-1].reported) if self.reports else set()


class House:
    """An aggregator's storage, and aggregators that work on it one after the other."""

    def __init__(self) -> None:
        self.models, self.updates, self.server = MemoryObjectStore(), MemoryObjectStore(), PlayedServer()
        self.models.put(BASE.key, BASE_FILE)

    @asynccontextmanager
    async def rounds(
        self,
        *,
        min_cohort: int = 2,
        identity: Ed25519PrivateKey = IDENTITY,
        upload_seconds: int = 900,
        recover: bool = True,
        **more: Any,
    ) -> AsyncIterator[Rounds]:
        rounds = Rounds(
            models=self.models,
            updates=self.updates,
            identity=identity,
            server=self.server,  # type: ignore[arg-type] - played by the test
            min_cohort=min_cohort,
            upload_seconds=upload_seconds,
            workers=2,
            **more,
        )
        try:
            if recover:
                await rounds.recover()
            yield rounds
        finally:
            await rounds.stop()

    def sealed(self) -> SealedRound:
        """The round as its descriptor in storage says."""
        descriptor = Descriptor.model_validate_json(self.updates.get(descriptor_key(ROUND)))
        return SealedRound(self.updates, SealingKey.unwrap(IDENTITY, descriptor.wrapped_key_bytes, ROUND))

    def keys(self) -> list[str]:
        return [stored.key for stored in self.updates.list(round_prefix(ROUND))]

    def model(self, result: RoundResult) -> np.ndarray:
        return decode_vector(self.models.get(result.model.key), PLAN)


@pytest.fixture
def house() -> House:
    return House()


async def refused(call: Awaitable[object] | Callable[[], object]) -> Code:
    with pytest.raises(Refusal) as caught:
        await call() if callable(call) else await call  # type: ignore[misc]
    return caught.value.code


async def feed(house: House, rounds: Rounds, updates: dict[DeviceId, Update]) -> None:
    """Open the round, and bring all these updates."""
    await bring(house, rounds, updates)
    await until(lambda: house.server.reported() == set(updates))


async def bring(house: House, rounds: Rounds, updates: dict[DeviceId, Update]) -> None:
    open_round = await rounds.open(ROUND, OPENING)
    for device, update in updates.items():
        rounds.uploaded(open_round, device, house.sealed().bring(device, update))


async def test_a_round_is_opened_fed_closed_and_swept(house: House) -> None:
    updates = updates_of(3)
    async with house.rounds() as rounds:
        await feed(house, rounds, updates)
        await rounds.close(ROUND)
        result = (await until(lambda: house.server.results))[0]
        assert np.abs(house.model(result) - next_model(BASE_FILE, updates)).max() < 1e-6
        assert (result.model.version, result.examples, set(result.contributors)) == (4, 10 + 17 + 24, set(updates))
        assert result.model.sha256 in result.model.key
        assert hashlib.sha256(house.models.get(result.model.key)).hexdigest() == result.model.sha256
        await rounds.sweep(ROUND)
        assert house.keys() == []


async def test_a_round_is_opened_once_however_often_the_server_asks(house: House) -> None:
    async with house.rounds() as rounds:
        first, *others = await asyncio.gather(*(rounds.open(ROUND, OPENING) for _ in range(5)))
        assert all(other is first for other in others)
        assert house.keys() == [descriptor_key(ROUND)]


async def test_a_round_is_not_opened_anew_with_another_plan_or_base(house: House) -> None:
    async with house.rounds() as rounds:
        await rounds.open(ROUND, OPENING)
        other = OPENING.model_copy(update={"base": OPENING.base.model_copy(update={"sha256": "0" * 64})})
        assert await refused(rounds.open(ROUND, other)) is Code.ROUND_CONFLICT


async def test_a_server_that_opens_a_round_again_is_told_who_is_counted(house: House) -> None:
    updates = updates_of(2)
    async with house.rounds() as rounds:
        await feed(house, rounds, updates)
        house.server.reports.clear()
        await rounds.open(ROUND, OPENING)
        await until(lambda: house.server.reported() == set(updates))


async def test_counting_goes_on_when_one_report_is_refused(house: House) -> None:
    house.server.refuses_reports = Refusal(Code.UNAUTHENTICATED, "The token is renewed just now.")
    updates = updates_of(2)
    async with house.rounds() as rounds:
        open_round = await rounds.open(ROUND, OPENING)
        first, second = updates
        rounds.uploaded(open_round, first, house.sealed().bring(first, updates[first]))
        await until(lambda: house.server.refuses_reports is None)
        rounds.uploaded(open_round, second, house.sealed().bring(second, updates[second]))
        await until(lambda: house.server.reported() == set(updates))


async def test_of_many_updates_that_come_at_once_the_server_hears_in_few_words(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates, reading = updates_of(40), house.updates.reading

    def slowly(key: str) -> AbstractContextManager[Source]:
        time.sleep(0.01)
        return reading(key)

    monkeypatch.setattr(house.updates, "reading", slowly)
    async with house.rounds() as rounds:
        await feed(house, rounds, updates)
    assert len(house.server.reports) < len(updates) / 2
    heard = [len(report.reported) for report in house.server.reports]
    assert heard == sorted(heard)


async def test_each_refusal_is_reported_with_its_code(house: House) -> None:
    async with house.rounds() as rounds:
        open_round = await rounds.open(ROUND, OPENING)
        rounds.uploaded(open_round, A, "0" * 64)
        await until(lambda: house.server.reports)
        assert house.server.reports[-1].refused == {A: Code.UPDATE_MISSING}


@pytest.mark.parametrize("save_every", [2, 100], ids=["with partial sums", "without"])
async def test_whatever_figures_a_device_gives_the_round_has_its_result(house: House, save_every: int) -> None:
    honest, largest = updates_of(3), float(np.finfo(np.float32).max)
    liars = {
        A: replace(random_update(PLAN, 5), holdout_examples=1000, metrics={"loss": 1e308}),
        B: replace(random_update(PLAN, 6), metrics={f"metric-{i}": 1.0 for i in range(100)}),
        C: replace(random_update(PLAN, 7), holdout_examples=1000, metrics={"loss": largest, "accuracy": -largest}),
    }
    async with house.rounds(save_every=save_every) as rounds:
        await bring(house, rounds, {**liars, **honest})
        await until(lambda: house.server.reported() == {C, *honest})
        await rounds.close(ROUND)
        result = (await until(lambda: house.server.results))[0]
        assert set(result.contributors) == {C, *honest}
        assert result.metrics.keys() == {"loss", "accuracy"}


async def test_an_upload_whose_word_never_came_is_counted_at_the_close(house: House) -> None:
    updates = updates_of(3)
    async with house.rounds() as rounds:
        await rounds.open(ROUND, OPENING)
        for device, update in updates.items():
            house.sealed().bring(device, update)
        await rounds.close(ROUND)
        result = (await until(lambda: house.server.results))[0]
        assert set(result.contributors) == set(updates)
        assert np.abs(house.model(result) - next_model(BASE_FILE, updates)).max() < 1e-6


async def test_two_uploads_of_one_device_count_as_one_at_the_close(house: House) -> None:
    async with house.rounds() as rounds:
        await rounds.open(ROUND, OPENING)
        for seed in (1, 2):
            house.sealed().bring(A, random_update(PLAN, seed, examples=10))
        house.sealed().bring(B, random_update(PLAN, 3, examples=10))
        await rounds.close(ROUND)
        result = (await until(lambda: house.server.results))[0]
        assert result.examples == 20
        assert len(result.contributors) == 2


async def test_fewer_distinct_devices_than_min_cohort_are_no_aggregate(house: House) -> None:
    async with house.rounds(min_cohort=3) as rounds:
        await feed(house, rounds, updates_of(2))
        await rounds.close(ROUND)
        await until(lambda: house.server.failures == [(ROUND, Code.COHORT_TOO_SMALL)])
        assert house.server.results == []
        assert [stored.key for stored in house.models.list("")] == [BASE.key], "nothing was published"


async def test_a_closed_round_takes_no_updates(house: House) -> None:
    updates = updates_of(2)
    async with house.rounds() as rounds:
        await feed(house, rounds, updates)
        await rounds.close(ROUND)
        before = metrics.UPDATES.labels(Code.UPDATE_LATE)._value.get()
        assert await refused(asyncio.to_thread(rounds.admit, ROUND)) is Code.UPDATE_LATE
        assert metrics.UPDATES.labels(Code.UPDATE_LATE)._value.get() - before == 1
        result = (await until(lambda: house.server.results))[0]
        house.sealed().bring(C, random_update(PLAN, 99))
        await rounds.close(ROUND)
        assert (await until(lambda: house.server.results[1:])) == [result], "a close that is asked for again changes nothing"
        assert set(result.contributors) == set(updates)


def asking(digest: str, body: bytes = b"sealed") -> UploadRequest:
    return UploadRequest(size_bytes=len(body), digest=digest, sha256=hashlib.sha256(body).hexdigest())


async def test_what_is_granted_is_bound_and_bounded(house: House) -> None:
    async with house.rounds() as rounds:
        open_round = await rounds.open(ROUND, OPENING)
        body = house.sealed().seal(A, random_update(PLAN, 1))
        request = asking(digest_of(body), body)
        granted = rounds.desk.grant(open_round.folding, A, request)
        assert house.updates.bucket.request("PUT", granted.url, body, granted.headers)[0] == 200
        assert house.keys()[-1].endswith(f"updates/a/{digest_of(body)}")
        before = metrics.UPDATES.labels(Code.UPDATE_TOO_LARGE)._value.get()
        larger = request.model_copy(update={"size_bytes": open_round.folding.max_update_bytes + 1})
        with pytest.raises(Refusal) as caught:
            rounds.desk.grant(open_round.folding, A, larger)
        assert caught.value.code is Code.UPDATE_TOO_LARGE
        assert metrics.UPDATES.labels(Code.UPDATE_TOO_LARGE)._value.get() - before == 1


async def test_a_counted_device_is_granted_no_other_update(house: House) -> None:
    updates = updates_of(2)
    async with house.rounds() as rounds:
        await feed(house, rounds, updates)
        open_round, device = rounds.find(ROUND), next(iter(updates))
        counted = open_round.folding.folded_digest(device)
        assert counted is not None
        rounds.desk.grant(open_round.folding, device, asking(counted))
        with pytest.raises(Refusal) as caught:
            rounds.desk.grant(open_round.folding, device, asking("0" * 64))
        assert caught.value.code is Code.UPDATE_REPEATED


# --- recovery: an aggregator is nothing but a process over what lies in storage


async def test_a_restarted_aggregator_counts_what_lies_in_storage_and_says_so(house: House) -> None:
    updates = updates_of(3)
    async with house.rounds() as rounds:
        await feed(house, rounds, updates)
    house.server.reports.clear()
    async with house.rounds() as rounds:
        await until(lambda: house.server.reported() == set(updates))
        await rounds.close(ROUND)
        result = (await until(lambda: house.server.results))[0]
        assert np.abs(house.model(result) - next_model(BASE_FILE, updates)).max() < 1e-6


async def test_a_close_that_was_begun_is_finished_by_the_next_aggregator(house: House) -> None:
    updates = updates_of(3)
    async with house.rounds() as rounds:
        await feed(house, rounds, updates)
        record = CloseRecord(contributors=dict(rounds.find(ROUND).folding.counts().folded))
    house.updates.put(close_key(ROUND), record.model_dump_json().encode())
    house.sealed().bring(C, random_update(PLAN, 99, examples=1000))
    async with house.rounds():
        result = (await until(lambda: house.server.results))[0]
        assert set(result.contributors) == set(updates), "the record says who is in, not what lies there"
        assert np.abs(house.model(result) - next_model(BASE_FILE, updates)).max() < 1e-6


async def test_a_result_whose_answer_was_lost_is_reported_again_and_is_the_same(house: House) -> None:
    house.server.result_lost = True
    async with house.rounds() as rounds:
        await feed(house, rounds, updates_of(2))
        await rounds.close(ROUND)
        await until(lambda: len(house.server.results) == 2)
        assert house.server.results[0] == house.server.results[1]


async def test_after_every_few_updates_their_sum_takes_their_place_in_storage_and_is_gone_on_from(house: House) -> None:
    updates = updates_of(7)
    devices = list(updates)
    async with house.rounds(save_every=2) as rounds:
        await rounds.open(ROUND, OPENING)
        await bring(house, rounds, {device: updates[device] for device in devices[:5]})
        await until(lambda: len(house.server.reported()) == 5)
        await until(lambda: len(house.updates.list(updates_prefix(ROUND))) <= 2)
    async with house.rounds(save_every=2) as rounds:
        await until(lambda: len(house.server.reported()) == 5)
        assert await rounds.senders(rounds.find(ROUND)) == set(devices[:5])
        await bring(house, rounds, {device: updates[device] for device in devices[5:]})
        await rounds.close(ROUND)
        await until(lambda: bool(house.server.results))
    result = house.server.results[0]
    assert (set(result.contributors), result.examples) == (set(devices), sum(update.examples for update in updates.values()))
    assert np.abs(decode_vector(house.models.get(result.model.key), PLAN) - next_model(BASE_FILE, updates)).max() < 1e-6


async def test_after_its_last_update_a_round_that_closes_writes_no_sum_that_nobody_needs(house: House) -> None:
    updates = updates_of(5)
    devices = list(updates)
    async with house.rounds(save_every=4) as rounds:
        await rounds.open(ROUND, OPENING)
        await bring(house, rounds, {device: updates[device] for device in devices[:4]})
        await until(lambda: len(house.server.reported()) == 4)
        await until(lambda: not rounds.find(ROUND).folds)
        assert house.updates.list(partials_prefix(ROUND, 0)) == []
        await bring(house, rounds, {devices[4]: updates[devices[4]]})
        await until(lambda: house.updates.list(partials_prefix(ROUND, 0)) != [])


async def test_a_partial_sum_does_not_wait_behind_the_updates_for_which_it_makes_room(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates, seen, saved = updates_of(7), set[str](), threading.Event()
    reading, put_once = house.updates.reading, house.updates.put_once

    def read(key: str) -> AbstractContextManager[Source]:
        seen.add(key)
        if len(seen) > 3:  # of these, both threads that fold have one in hand by now, and the others wait for a thread
            assert saved.wait(10.0), "the sum of the first three was never written"
        return reading(key)

    def put(key: str, body: bytes) -> bool:
        written = put_once(key, body)
        if key.startswith(partials_prefix(ROUND, 0)):
            saved.set()
        return written

    monkeypatch.setattr(house.updates, "reading", read)
    monkeypatch.setattr(house.updates, "put_once", put)
    async with house.rounds(save_every=2) as rounds:
        await feed(house, rounds, updates)
    assert saved.is_set()


async def enters(rounds: Rounds, device: str, seconds: float) -> bool:
    """Whether there is a place for this device's update within so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            await rounds.find(ROUND).inflow.enter(DeviceId(device))
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize(
    ("plan", "saved"),
    [
        pytest.param(PLAN, True, id="a mean, when a partial sum counts them"),
        pytest.param(
            small_plan(aggregation={"rule": {"name": "median"}}), False, id="a median, which needs them until the end"
        ),
    ],
)
async def test_updates_give_their_places_back(house: House, plan: Plan, saved: bool) -> None:
    *most, (last, its_update) = updates_of(21).items()
    async with house.rounds(save_every=20) as rounds:
        round_ = await rounds.open(ROUND, OPENING.model_copy(update={"plan": plan.model_dump(mode="json")}))
        sealed = SealedRound(house.updates, house.sealed().key, plan=plan)
        for number in range(40):
            assert await enters(rounds, f"device-{number}", 1.0)
        assert not await enters(rounds, "late", 0.05), "there are 40 places"
        for device, update in most:
            rounds.uploaded(round_, device, sealed.bring(device, update))
        await until(lambda: len(round_.folding.counts().folded) == len(most))
        if saved:
            assert not await enters(rounds, "late", 0.05), "they still lie there"
            rounds.uploaded(round_, last, sealed.bring(last, its_update))
        for number in range(20):
            assert await enters(rounds, f"late-{number}", 2.0)


async def test_a_refused_update_gives_its_place_back(house: House) -> None:
    async with house.rounds(save_every=1) as rounds:
        round_ = await rounds.open(ROUND, OPENING)
        for number in range(17):
            await round_.inflow.enter(DeviceId(f"device-{number}"))
        assert not await enters(rounds, "late", 0.05)
        rounds.uploaded(round_, DeviceId("device-0"), "0" * 64)
        assert await enters(rounds, "late", 2.0)


async def test_a_round_that_another_process_has_gone_on_with_is_begun_anew_from_storage(house: House) -> None:
    updates = updates_of(4)
    devices = list(updates)
    async with house.rounds(save_every=2) as stale, house.rounds(save_every=2) as rounds:
        await stale.open(ROUND, OPENING)
        await rounds.open(ROUND, OPENING)
        await bring(house, stale, {device: updates[device] for device in devices[:2]})
        await until(lambda: len(house.server.reported()) == 2)
        await bring(house, rounds, {device: updates[device] for device in devices[1:]})
        await until(lambda: house.updates.list(partials_prefix(ROUND, 0)) != [])
        await bring(house, stale, {devices[2]: updates[devices[2]]})
        await until(lambda: stale.find(ROUND).folding._chain.number == 1)
        await until(lambda: stale.find(ROUND).folding.counts().folded.keys() == set(devices))
        await stale.close(ROUND)
        await until(lambda: bool(house.server.results))
    assert set(house.server.results[0].contributors) == set(devices)


async def test_an_aggregator_with_another_identity_says_that_the_key_is_lost(house: House) -> None:
    async with house.rounds() as rounds:
        await feed(house, rounds, updates_of(2))
    async with house.rounds(identity=Ed25519PrivateKey.generate()) as rounds:
        assert house.server.failures == [(ROUND, Code.AGGREGATOR_KEY_LOST)]
        assert await refused(rounds.close(ROUND)) is Code.AGGREGATOR_KEY_LOST


async def test_until_its_rounds_are_recovered_devices_are_asked_to_come_again(house: House) -> None:
    async with house.rounds() as rounds:
        await rounds.open(ROUND, OPENING)
    async with house.rounds(recover=False) as rounds:
        with pytest.raises(Outage):
            rounds.find(ROUND)
        with pytest.raises(Outage):
            await rounds.ready()
        await rounds.recover()
        assert rounds.find(ROUND).id == ROUND
        await rounds.ready()


async def test_a_round_that_the_server_opens_while_it_is_recovered_is_the_same(house: House) -> None:
    async with house.rounds() as rounds:
        await rounds.open(ROUND, OPENING)
    async with house.rounds(recover=False) as rounds:
        opened = asyncio.create_task(rounds.open(ROUND, OPENING))
        closed = asyncio.create_task(rounds.close(ROUND))
        await rounds.recover()
        assert rounds._rounds[ROUND] is await opened is await closed


async def test_an_outage_of_the_storage_delays_recovery_and_ends_nothing(house: House) -> None:
    updates = updates_of(2)
    async with house.rounds() as rounds:
        await feed(house, rounds, updates)
    house.server.reports.clear()
    reads, listed = house.updates.get, asyncio.Event()
    loop = asyncio.get_running_loop()

    def unavailable(*_: Any, **__: Any) -> bytes:
        loop.call_soon_threadsafe(listed.set)
        raise Outage(Code.STORAGE_UNAVAILABLE, "The storage does not answer.")

    house.updates.get = unavailable  # type: ignore[method-assign]
    async with house.rounds(recover=False) as rounds:
        recovery = asyncio.create_task(rounds.recover())
        await listed.wait()
        house.updates.get = reads  # type: ignore[method-assign]
        await recovery
        await until(lambda: house.server.reported() == set(updates))


async def test_a_storage_that_refuses_to_list_its_rounds_is_asked_again(house: House) -> None:
    """One that is being set up may not know this aggregator's credential yet."""
    lists, asked = house.updates.list, asyncio.Event()
    loop = asyncio.get_running_loop()

    def denied(*_: Any, **__: Any) -> Any:
        loop.call_soon_threadsafe(asked.set)
        raise Refusal(Code.STORAGE_DENIED, "This credential does not allow the call.")

    async with house.rounds(recover=False) as rounds:
        house.updates.list = denied  # type: ignore[method-assign]
        recovery = asyncio.create_task(rounds.recover())
        await asked.wait()
        house.updates.list = lists  # type: ignore[method-assign]
        await recovery
        await rounds.ready()


async def test_one_round_that_can_not_be_recovered_keeps_no_other_from_it(house: House) -> None:
    async with house.rounds() as rounds:
        await rounds.open(ROUND, OPENING)
    house.updates.put(descriptor_key(RoundId(TaskId("broken"), 1)), b"no descriptor")
    async with house.rounds() as rounds:
        assert rounds.find(ROUND).id == ROUND
        assert house.server.failures == [(RoundId(TaskId("broken"), 1), Code.AGGREGATOR_KEY_LOST)]


async def test_a_damaged_wrapped_key_or_an_odd_key_keeps_no_round_from_recovery(house: House) -> None:
    async with house.rounds() as rounds:
        await rounds.open(ROUND, OPENING)
    damaged = RoundId(TaskId("damaged"), 1)
    descriptor = json.loads(house.updates.get(descriptor_key(ROUND)))
    told = {**descriptor, "task": damaged.task, "round": damaged.number, "wrapped_key": descriptor["wrapped_key"][:-1]}
    house.updates.put(descriptor_key(damaged), json.dumps(told).encode())
    house.updates.put("x/²/y", b"")
    async with house.rounds() as rounds:
        assert rounds.find(ROUND).id == ROUND
        assert house.server.failures == [(damaged, Code.AGGREGATOR_KEY_LOST)]


async def test_what_a_round_without_a_descriptor_left_is_swept(house: House) -> None:
    house.updates.put(f"{round_prefix(ROUND)}updates/a/{'0' * 64}", b"late")
    async with house.rounds():
        await until(lambda: house.keys() == [])


async def test_the_next_round_of_a_task_sweeps_an_older_one(house: House) -> None:
    async with house.rounds() as rounds:
        await feed(house, rounds, updates_of(2))
        await rounds.open(RoundId(ROUND.task, 8), OPENING)
        await until(lambda: house.keys() == [])
        assert await refused(asyncio.to_thread(rounds.find, ROUND)) is Code.UPDATE_LATE


async def test_the_descriptor_with_the_key_is_the_first_to_go(house: House) -> None:
    deleted: list[str] = []
    delete = house.updates.delete
    house.updates.delete = lambda keys: (deleted.extend(keys), delete(keys))[1]  # type: ignore[method-assign, func-returns-value]
    async with house.rounds() as rounds:
        await feed(house, rounds, updates_of(2))
        await rounds.sweep(ROUND)
    assert deleted[0] == descriptor_key(ROUND)
    assert len(deleted) == 3


async def test_a_late_upload_is_swept_once_the_last_url_has_expired(house: House) -> None:
    async with house.rounds(upload_seconds=0) as rounds:
        await rounds.open(ROUND, OPENING)
        sealed = house.sealed()
        await rounds.sweep(ROUND)
        sealed.bring(A, random_update(PLAN, 1))
        await until(lambda: house.keys() == [])


async def test_readiness_says_at_once_when_the_storage_does_not_answer(house: House) -> None:
    async with house.rounds() as rounds:
        await rounds.ready()
        rounds._probe._seconds = 0.1
        answered = asyncio.Event()
        loop = asyncio.get_running_loop()

        def hang(_prefix: str) -> list[StoredObject]:
            asyncio.run_coroutine_threadsafe(answered.wait(), loop).result()
            return []

        house.updates.list = hang  # type: ignore[method-assign]
        async with asyncio.timeout(5):
            for answer in await asyncio.gather(*(rounds.ready() for _ in range(20)), return_exceptions=True):
                assert isinstance(answer, Outage)
                assert answer.code is Code.STORAGE_UNAVAILABLE
        answered.set()


async def test_a_round_with_a_robust_rule_goes_the_same_way(house: House) -> None:
    plan = small_plan(aggregation={"strategy": "fedavg", "rule": {"name": "median"}})
    body = random_model(plan)
    base = ModelRef(3, "t/models/base.safetensors", hashlib.sha256(body).hexdigest(), len(body))
    house.models.put(base.key, body)
    opening = RoundOpening(plan=plan.model_dump(mode="json"), base=Model.of(base), reporting_seconds=60)
    updates = updates_of(3)
    async with house.rounds() as rounds:
        open_round = await rounds.open(ROUND, opening)
        descriptor = Descriptor.model_validate_json(house.updates.get(descriptor_key(ROUND)))
        key = SealingKey.unwrap(IDENTITY, descriptor.wrapped_key_bytes, ROUND)
        sealed = SealedRound(house.updates, key, plan=plan, base=base)
        for device, update in updates.items():
            rounds.uploaded(open_round, device, sealed.bring(device, update))
        await until(lambda: house.server.reported() == set(updates))
        await rounds.close(ROUND)
        result = (await until(lambda: house.server.results))[0]
    median = np.median([update.delta for update in updates.values()], axis=0)
    found = decode_vector(house.models.get(result.model.key), plan)
    np.testing.assert_allclose(found, decode_vector(body, plan) + median, atol=1e-6)


async def test_a_round_of_krum_is_opened_only_where_one_devices_update_may_be_published(house: House) -> None:
    plan = small_plan(aggregation={"strategy": "fedavg", "rule": {"name": "krum"}})
    opening = OPENING.model_copy(update={"plan": plan.model_dump(mode="json")})
    async with house.rounds(min_cohort=2) as rounds:
        assert await refused(rounds.open(ROUND, opening)) is Code.COHORT_TOO_SMALL
    async with house.rounds(min_cohort=1) as rounds:
        assert (await rounds.open(ROUND, opening)).state == "open"


@pytest.mark.parametrize(
    ("minimum", "mixed", "said"),
    [
        pytest.param(2, 2, "may close with 2, .* min_cohort, 3: raise .* is 3 or more", id="a small cohort"),
        pytest.param(9, 1, "mixes 1 of the 9 updates.* multi_krum with a keep of 3", id="Krum"),
        pytest.param(9, 2, "mixes 2 of the 9 updates", id="Multi-Krum that keeps few"),
    ],
)
async def test_a_task_whose_rounds_might_close_with_too_few_to_be_published_gets_no_place(
    house: House, minimum: int, mixed: int, said: str
) -> None:
    async with house.rounds(min_cohort=3) as rounds:
        with pytest.raises(Refusal, match=said) as refusal:
            rounds.admission.place_model(TaskId("t"), minimum=minimum, mixed=mixed, size_bytes=100, sha256="0" * 64)
        assert refusal.value.code is Code.COHORT_TOO_SMALL
        key, _ = rounds.admission.place_model(TaskId("t"), minimum=3, mixed=3, size_bytes=100, sha256="0" * 64)
    assert key.startswith("t/models/")


async def test_what_comes_after_the_close_record_is_late_though_publishing_has_to_be_tried_again(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates, put = updates_of(4), house.models.put
    async with house.rounds() as rounds:
        await feed(house, rounds, updates)

        def away(*_: object, **__: object) -> None:
            for _ in range(1000):  # the record is written beside
                if house.updates.size(close_key(ROUND)) is not None:
                    break
                time.sleep(0.01)
            house.sealed().bring(C, random_update(PLAN, 99))
            monkeypatch.setattr(house.models, "put", put)
            raise Outage(Code.STORAGE_UNAVAILABLE, "The storage is away.")

        monkeypatch.setattr(house.models, "put", away)
        round_ = await rounds.close(ROUND)
        (result,) = await until(lambda: house.server.results)
        assert set(result.contributors) == set(updates)
        assert round_.folding.counts().folded.keys() == updates.keys()


async def test_a_close_that_fails_as_nobody_foresaw_is_told_to_the_server(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house.rounds() as rounds:
        await feed(house, rounds, updates_of(2))
        monkeypatch.setattr(Publisher, "publish", lambda *_: 1 / 0)
        await rounds.close(ROUND)
        await until(lambda: house.server.failures)
        assert house.server.failures == [(ROUND, Code.INTERNAL)]


async def test_an_update_that_fails_as_nobody_foresaw_costs_its_device_alone(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates, open_coming = updates_of(3), folding_module.open_coming

    def odd(*given: Any, context: UpdateContext, **more: Any) -> Update:
        if context.device == "odd":
            raise ZeroDivisionError
        return open_coming(*given, context=context, **more)

    monkeypatch.setattr(folding_module, "open_coming", odd)
    async with house.rounds() as rounds:
        open_round = await rounds.open(ROUND, OPENING)
        odd_one = DeviceId("odd")
        rounds.uploaded(open_round, odd_one, house.sealed().bring(odd_one, random_update(PLAN, 50)))
        await feed(house, rounds, updates)
        await until(lambda: open_round.folding.counts().refused)
        assert open_round.folding.counts().refused == {odd_one: Code.INTERNAL}, "the server need not wait for it"
        await rounds.close(ROUND)
        (result,) = await until(lambda: house.server.results)
        assert set(result.contributors) == set(updates)


async def test_an_update_told_twice_has_its_place_until_it_is_folded(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    may_open, open_coming = threading.Event(), folding_module.open_coming

    def slow(*given: Any, **more: Any) -> Update:
        assert may_open.wait(10)
        return open_coming(*given, **more)

    monkeypatch.setattr(folding_module, "open_coming", slow)
    async with house.rounds(save_every=50) as rounds:
        round_ = await rounds.open(ROUND, OPENING)
        left = []
        monkeypatch.setattr(round_.inflow, "leave", left.append)
        digest = house.sealed().bring(A, random_update(PLAN, 1))
        rounds.uploaded(round_, A, digest)
        await until(lambda: (A, digest) in round_.folding._busy)
        rounds.uploaded(round_, A, digest)
        await until(lambda: len(round_.folds) == 1)
        assert left == []
        may_open.set()
        await until(lambda: round_.folding.folded_digest(A) == digest)


async def test_a_storage_that_denies_a_descriptor_for_a_moment_loses_no_round(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates, get = updates_of(3), house.updates.get
    async with house.rounds() as rounds:
        await feed(house, rounds, updates)

    def denied(key: str, **_: object) -> bytes:
        monkeypatch.setattr(house.updates, "get", get)
        raise Refusal(Code.STORAGE_DENIED, "The credential is being renewed.")

    monkeypatch.setattr(house.updates, "get", denied)
    async with house.rounds() as rounds:
        assert house.server.failures == []
        await rounds.close(ROUND)
        (result,) = await until(lambda: house.server.results)
        assert set(result.contributors) == set(updates)


async def test_a_round_that_fails_as_nobody_foresaw_when_it_is_recovered_keeps_no_other_from_it(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house.rounds() as rounds:
        await feed(house, rounds, updates_of(2))
    other = RoundId(TaskId("another"), 1)
    house.updates.put(descriptor_key(other), house.updates.get(descriptor_key(ROUND)))
    unwrap = SealingKey.unwrap

    def odd(identity: Ed25519PrivateKey, blob: bytes, round_: RoundId) -> SealingKey:
        if round_ == other:
            raise ZeroDivisionError
        return unwrap(identity, blob, round_)

    monkeypatch.setattr(SealingKey, "unwrap", odd)
    async with house.rounds() as rounds:
        await until(lambda: rounds.find(ROUND).folding.counts().folded.keys() == updates_of(2).keys())
        assert house.server.failures == [(other, Code.INTERNAL)]
