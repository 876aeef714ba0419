"""When an aggregator goes on with a round: at once, or in the walk-through when somebody takes the step."""

from typing import Protocol

from fedlearn.core.ids import RoundId
from fedlearn.protocol.messages import RoundResult


class Pace(Protocol):
    """Each call returns when the aggregator may go on."""

    async def before_folding(self, round_id: RoundId) -> None: ...

    async def before_reporting(self, round_id: RoundId, result: RoundResult) -> None:
        """The next model lies in storage, and the server has not heard of it."""
        ...


class AtOnce:
    async def before_folding(self, round_id: RoundId) -> None:
        pass

    async def before_reporting(self, round_id: RoundId, result: RoundResult) -> None:
        pass
