"""What a selected device is given: the model's signed URL (made once a round) and a ticket of its own."""

from collections.abc import Mapping

from fedlearn.core.ids import DeviceId, RoundId, shard_of
from fedlearn.core.ports import ObjectStore, Task
from fedlearn.core.rounds import Round
from fedlearn.protocol.eligibility import DeviceDemands
from fedlearn.protocol.messages import Assignment, Model
from fedlearn.protocol.tickets import Ticket, TicketSigner


class Assigner:
    """Makes the assignments of one round.

    Args:
        grace_seconds: how long tickets and URLs outlive the round's deadline.
        start: the model that devices begin with.
        steps: for those devices that have not all of the plan's to do.
        aggregators: how many share the round.
    """

    def __init__(
        self,
        task: Task,
        round_: Round,
        models: ObjectStore,
        signer: TicketSigner,
        *,
        start: Model,
        grace_seconds: float,
        steps: Mapping[DeviceId, int],
        aggregators: int = 1,
    ) -> None:
        self._aggregators = aggregators
        self._task, self._round, self._signer, self._grace, self._steps = task, round_, signer, grace_seconds, steps
        seconds = int(round_.policy.reporting_timeout_seconds + grace_seconds)
        self._start, self._demands = start, DeviceDemands.of(round_.policy.demands)
        self._model_url = models.sign_get(start.key, seconds=seconds)

    @property
    def round_id(self) -> RoundId:
        return self._round.id

    def assign(self, device: DeviceId, seconds_left: float, now: float) -> Assignment:
        aggregator = shard_of(device, self._aggregators)
        ticket = Ticket(
            device=device,
            task=self._task.id,
            round=self._round.id.number,
            plan_digest=self._task.plan_digest,
            base_sha256=self._start.sha256,
            aggregator=aggregator,
        )
        return Assignment(
            task=self._task.id,
            round=self._round.id.number,
            device=device,
            plan_digest=self._task.plan_digest,
            model=self._start,
            model_url=self._model_url,
            demands=self._demands,
            seconds_left=seconds_left,
            local_steps=self._steps.get(device),
            aggregator=aggregator,
            ticket=self._signer.sign(ticket, seconds_left + self._grace, now),
        )
