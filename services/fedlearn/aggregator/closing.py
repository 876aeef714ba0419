"""The end of a round: whose updates its model is made of, decided once for all, and the model."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fedlearn.aggregator.layout import CloseRecord, close_key
from fedlearn.aggregator.open_round import OpenRound
from fedlearn.aggregator.publishing import Publisher
from fedlearn.core.errors import Code, Refusal
from fedlearn.core.ids import RoundId
from fedlearn.core.ports import ObjectStore
from fedlearn.protocol.messages import RoundResult
from fedlearn.protocol.plans import Plan

Result = TypeVar("Result")


class Closer:
    """Writes the close record, and has the model published that it names.

    Args:
        updates: the updates bucket.
        min_cohort: no aggregate of fewer distinct devices is published.
        in_thread: runs what blocks.
    """

    def __init__(
        self, updates: ObjectStore, publisher: Publisher, min_cohort: int, in_thread: Callable[..., Coroutine[Any, Any, Any]]
    ) -> None:
        self._updates, self._publisher, self._min_cohort, self._in_thread = updates, publisher, min_cohort, in_thread

    def check_cohort(self, plan: Plan, reports: int) -> None:
        """Whether a result of so many updates mixes those of enough devices.

        Raises:
            Refusal: `cohort_too_small`.
        """
        if (mixed := plan.aggregation.mixed(reports)) < self._min_cohort:
            raise Refusal(
                Code.COHORT_TOO_SMALL,
                f"{mixed} devices' updates would be in the result; none of fewer than {self._min_cohort} is published.",
            )

    async def result(self, round_: OpenRound) -> RoundResult:
        """What has been folded by now becomes the round's model, unless a close record that lies in storage says otherwise.

        Raises:
            Refusal: `cohort_too_small`; and as `Folding.total` and `Publisher.publish`.
            Outage: `storage_unavailable`, `aggregator_unreachable`; it may be called again.
        """
        if round_.closed_before:
            return await self._publish(round_, await self._record(round_.id))
        others = await self._in_thread(round_.folding.others.contributors)
        record = CloseRecord(contributors={**round_.folding.counts().folded, **others})
        # the model may be written beside its record: it counts only once it is reported, and that comes after both
        written, result = await asyncio.gather(
            self._write(round_, record),
            self._publish(round_, record),
            return_exceptions=True,  # both have ended before this is called again
        )
        if not _outcome(written) and (earlier := await self._record(round_.id)) != record:
            return await self._publish(round_, earlier)
        return _outcome(result)

    async def _write(self, round_: OpenRound, record: CloseRecord) -> bool:
        body = record.model_dump_json().encode()
        written: bool = await self._in_thread(self._updates.put_once, close_key(round_.id), body)
        round_.closed_before = True
        return written

    async def _publish(self, round_: OpenRound, record: CloseRecord) -> RoundResult:
        folding = round_.folding
        self.check_cohort(folding.plan, len(record.contributors))
        total = await self._in_thread(folding.total, record.contributors)
        result: RoundResult = await self._in_thread(
            self._publisher.publish, folding.descriptor, folding.plan, total, sorted(record.contributors)
        )
        return result

    async def _record(self, round_id: RoundId) -> CloseRecord:
        return CloseRecord.model_validate_json(await self._in_thread(self._updates.get, close_key(round_id)))


def _outcome(end: Result | BaseException) -> Result:
    """What a call has given; or what it has raised is raised."""
    if isinstance(end, BaseException):
        raise end
    return end
