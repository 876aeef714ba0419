"""Words to the server that do not arrive at first."""

import asyncio

import pytest

from fedlearn.adapters.memory import MemoryObjectStore
from fedlearn.aggregator.folding import Folding
from fedlearn.aggregator.open_round import OpenRound
from fedlearn.aggregator.reports import Reports
from fedlearn.core.errors import Code, FedlearnError, Outage, Refusal, SetupError
from fedlearn.core.ids import DeviceId, RoundId
from fedlearn.protocol.messages import Model, RoundResult, UpdatesReport
from support.desk import until
from support.sealed import BASE, ROUND, SealedRound
from support.world import random_update

A, B = DeviceId("a"), DeviceId("b")
RESULT = RoundResult(model=Model.of(BASE), contributors=(A,), examples=10, metrics={})
PASSING = [
    pytest.param(Outage(Code.SERVER_UNREACHABLE, "The connection broke."), id="an outage"),
    pytest.param(SetupError(Code.SETTING_INVALID, "The token can't be read."), id="a token file that can't be read"),
]


class Server:
    """Fails as often as there are failures, then takes what it is told."""

    def __init__(self, *failures: FedlearnError) -> None:
        self._failures, self.told = list(failures), list[object]()

    async def report_updates(self, _round: RoundId, report: UpdatesReport) -> None:
        self._take(report.reported)

    async def report_result(self, _round: RoundId, result: RoundResult) -> None:
        self._take(result)

    async def report_failure(self, _round: RoundId, refusal: Refusal) -> None:
        self._take(refusal.code)

    def _take(self, word: object) -> None:
        if self._failures:
            raise self._failures.pop(0)
        self.told.append(word)


def reports_to(server: Server) -> Reports:
    return Reports(server)  # type: ignore[arg-type] - played by the test


@pytest.mark.parametrize("failure", PASSING)
async def test_who_is_counted_is_told_again_and_the_telling_goes_on(failure: FedlearnError) -> None:
    sealed, server = SealedRound(MemoryObjectStore()), Server(failure, failure)
    round_ = OpenRound(Folding(sealed.descriptor, sealed.plan, sealed.key, sealed.store), save_every=100)
    telling = asyncio.create_task(reports_to(server).while_open(round_))
    for device, told in ((A, (A,)), (B, (A, B))):
        round_.folding.consider(device, sealed.bring(device, random_update(sealed.plan, 1)))
        round_.counted.set()
        await until(lambda told=told: server.told[-1:] == [told])
    telling.cancel()


@pytest.mark.parametrize("failure", PASSING)
async def test_a_result_and_a_failure_are_told_until_they_are_taken(failure: FedlearnError) -> None:
    server = Server(failure, failure)
    await reports_to(server).result(ROUND, RESULT)
    assert server.told == [RESULT]
    server = Server(failure, failure)
    await reports_to(server).failure(ROUND, Refusal(Code.COHORT_TOO_SMALL, "Too few."))
    assert server.told == [Code.COHORT_TOO_SMALL]


async def test_a_result_that_is_refused_is_not_told_again() -> None:
    server = Server(Refusal(Code.ROUND_CLOSED, "It has ended."))
    with pytest.raises(Refusal):
        await reports_to(server).result(ROUND, RESULT)
    assert server.told == []
