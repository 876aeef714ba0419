"""What an ended round has left at the aggregator, and has swept."""

from fedlearn.adapters.http import persist
from fedlearn.core.errors import Outage, Refusal
from fedlearn.core.ids import RoundId
from fedlearn.server.peers import AggregatorClient
from fedlearn.telemetry.logs import log

_log = log(__name__)
_SWEEP_PATIENCE_SECONDS = 600.0


async def sweep_round(aggregator: AggregatorClient, round_id: RoundId) -> None:
    """Let the aggregator delete what an ended round left in storage; one that is away is waited for, for a while."""
    try:
        await persist(lambda: aggregator.sweep_round(round_id), seconds=_SWEEP_PATIENCE_SECONDS)
    except (Refusal, Outage) as error:
        detail = f"{error.detail} The aggregator sweeps it when it recovers, or opens the next round."
        _log.warning("round not swept", round=str(round_id), code=error.code, detail=detail)
