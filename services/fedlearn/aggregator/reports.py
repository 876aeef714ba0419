"""What the server is told of a round: who is counted, the next model, or why there is none."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from fedlearn.adapters.http import persist
from fedlearn.aggregator.open_round import OpenRound
from fedlearn.aggregator.peers import ServerClient
from fedlearn.core.errors import Outage, Refusal, SetupError, unforeseen
from fedlearn.core.ids import RoundId
from fedlearn.protocol.messages import RoundResult, UpdatesReport
from fedlearn.telemetry.logs import log

_log = log(__name__)
_GATHER_SECONDS = 0.1  # of 100 updates that come within 3 s, 30 words instead of 86


class Reports:
    """Each is told until the server has taken or refused it."""

    def __init__(self, server: ServerClient) -> None:
        self._server = server

    async def while_open(self, round_: OpenRound) -> None:
        """Tell who is counted, but while more is being folded no more often than the server needs to know."""
        while not round_.published:
            await round_.counted.wait()
            if round_.folds:
                await asyncio.wait(set(round_.folds), timeout=_GATHER_SECONDS)
            round_.counted.clear()
            counts = round_.folding.counts()
            report = UpdatesReport(reported=tuple(counts.folded), refused=dict(counts.refused.items()))
            try:
                await _tell(partial(self._server.report_updates, round_.id, report))
            except Refusal as refusal:
                _log.warning("the server takes no report", round=str(round_.id), code=refusal.code, detail=refusal.detail)

    async def result(self, round_id: RoundId, result: RoundResult) -> None:
        """Raises:
        Refusal: the server's.
        """
        await _tell(lambda: self._server.report_result(round_id, result))

    async def failure(self, round_id: RoundId, error: Exception) -> None:
        """Why it has no result; a server that does not take it has ended the round without."""
        if isinstance(error, Refusal):
            why = error
            _log.error("round has no result", round=str(round_id), code=why.code, detail=why.detail)
        else:
            why = unforeseen(error, "aggregator")
            _log.error("round has no result", round=str(round_id), code=why.code, exc_info=error)
        try:
            await _tell(lambda: self._server.report_failure(round_id, why))
        except Refusal as answer:
            _log.warning("the server takes no failure", code=answer.code, detail=answer.detail)


async def _tell(word: Callable[[], Awaitable[None]]) -> None:
    """Raises:
    Refusal: the server's.
    """

    async def once() -> None:
        try:
            await word()
        except SetupError as error:  # a token's file that can't be read just now: as good as an outage
            _log.warning("the server can't be told", code=error.code, detail=error.detail)
            raise Outage(error.code, error.detail) from error

    await persist(once)
