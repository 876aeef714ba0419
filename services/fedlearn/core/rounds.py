"""One round as a pure state machine: `advance(round, event, now) -> (round, effects)`.

The phases are those of Bonawitz et al. 2019, section 2.2. Nothing here waits, sends or stores: a driver saves the round that
`advance` returns and then executes the effects. Effects may be executed again after a crash (`resume`), so each is idempotent.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from fedlearn.core.errors import Code, Refusal
from fedlearn.core.ids import DeviceId, RoundId
from fedlearn.core.policy import RoundPolicy, Verdict


class Phase(StrEnum):
    SELECTION = "selection"
    CONFIGURATION = "configuration"
    REPORTING = "reporting"
    AGGREGATION = "aggregation"
    COMMITTED = "committed"
    ABANDONED = "abandoned"

    @property
    def ended(self) -> bool:
        return self in (Phase.COMMITTED, Phase.ABANDONED)


class Standing(StrEnum):
    """How a selected device stands in its round."""

    SELECTED = "selected"
    ACCEPTED = "accepted"
    REPORTED = "reported"
    REFUSED = "refused"
    DROPPED = "dropped"
    RELEASED = "released"


OUTSTANDING = frozenset({Standing.SELECTED, Standing.ACCEPTED})


@dataclass(frozen=True, slots=True)
class ModelRef:
    """One version of a task's global model, as it lies in object storage."""

    version: int
    key: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Participant:
    standing: Standing
    code: Code | None = None


@dataclass(frozen=True, slots=True)
class Aggregate:
    """What the aggregator reports of a finished round: the new model and weighted means, never one device's figures."""

    model: ModelRef
    contributors: frozenset[DeviceId]
    examples: int
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Round:
    id: RoundId
    policy: RoundPolicy
    base: ModelRef
    opened_at: float
    phase: Phase = Phase.SELECTION
    phase_since: float = 0.0
    participants: Mapping[DeviceId, Participant] = field(default_factory=dict)
    phase_seconds: Mapping[Phase, float] = field(default_factory=dict)
    reason: Code | None = None
    aggregate: Aggregate | None = None
    start: ModelRef | None = None

    def count(self, *standings: Standing) -> int:
        return sum(p.standing in standings for p in self.participants.values())

    def devices(self, *standings: Standing) -> tuple[DeviceId, ...]:
        return tuple(d for d, p in self.participants.items() if p.standing in standings)

    @property
    def deadline(self) -> float | None:
        """When a `Tick` can change something, in seconds of the same clock as `now`."""
        timeouts = {
            Phase.SELECTION: self.policy.selection_timeout_seconds,
            Phase.CONFIGURATION: self.policy.aggregation_timeout_seconds,
            Phase.REPORTING: self.policy.reporting_timeout_seconds,
            Phase.AGGREGATION: self.policy.aggregation_timeout_seconds,
        }
        return self.phase_since + timeouts[self.phase] if self.phase in timeouts else None


# --- events


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class DevicesAvailable:
    """So many devices of this task wait at the server now, and so many more are known and should be back soon.

    Args:
        gathering_seconds: for how long they have gathered for this round, if that began before it was opened.
    """

    count: int
    to_come: int = 0
    gathering_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class CohortSelected:
    devices: tuple[DeviceId, ...]


@dataclass(frozen=True, slots=True)
class RoundOpened:
    """The aggregator has written the round's descriptor and takes updates.

    Args:
        start: the file that devices begin with, where it is not the base itself.
    """

    start: ModelRef | None = None


@dataclass(frozen=True, slots=True)
class DeviceAccepted:
    device: DeviceId


@dataclass(frozen=True, slots=True)
class DeviceDropped:
    device: DeviceId
    code: Code


@dataclass(frozen=True, slots=True)
class UpdatesCounted:
    """The aggregator's word: whose updates are folded, and whose were refused and why. Cumulative, so it may repeat."""

    reported: frozenset[DeviceId]
    refused: Mapping[DeviceId, Code]


@dataclass(frozen=True, slots=True)
class Aggregated:
    aggregate: Aggregate


@dataclass(frozen=True, slots=True)
class Failed:
    """The round cannot be finished (a lost key, a cohort too small, a cancelled task)."""

    code: Code


Event = (
    Tick
    | DevicesAvailable
    | CohortSelected
    | RoundOpened
    | DeviceAccepted
    | DeviceDropped
    | UpdatesCounted
    | Aggregated
    | Failed
)


# --- effects


@dataclass(frozen=True, slots=True)
class SelectCohort:
    """Choose up to `size` of the waiting devices, then tell `CohortSelected`."""

    size: int


@dataclass(frozen=True, slots=True)
class OpenRound:
    """Open the round at the aggregator, then tell `RoundOpened`."""


@dataclass(frozen=True, slots=True)
class AssignCohort:
    """Answer the held check-ins of the devices that are still to accept."""


@dataclass(frozen=True, slots=True)
class CloseRound:
    """Ask the aggregator to close the round and to publish; its answer comes as `Aggregated` or `Failed`."""


@dataclass(frozen=True, slots=True)
class CommitModel:
    """Move the task's model pointer from `base` to `model` by compare-and-set, in the transaction that saves the round."""

    base: ModelRef
    model: ModelRef


@dataclass(frozen=True, slots=True)
class SweepRound:
    """Let the aggregator delete what the round left in storage."""


Effect = SelectCohort | OpenRound | AssignCohort | CloseRound | CommitModel | SweepRound
Step = tuple[Round, tuple[Effect, ...]]


def start(round_id: RoundId, policy: RoundPolicy, base: ModelRef, now: float) -> Round:
    """A new round in SELECTION."""
    return Round(round_id, policy, base, opened_at=now, phase_since=now)


def resume(round_: Round) -> tuple[Effect, ...]:
    """The effects that a driver executes for a round that it finds in the database."""
    match round_.phase:
        case Phase.SELECTION:
            return ()
        case Phase.CONFIGURATION | Phase.REPORTING:
            return (OpenRound(),)
        case Phase.AGGREGATION:
            return (CloseRound(),)
        case _:
            return (SweepRound(),)


def advance(round_: Round, event: Event, now: float) -> Step:
    """Apply one event at time `now` (seconds). An event that does not fit the phase changes nothing.

    Raises:
        Refusal: `not_selected` for word from a device that is not in this round.
    """
    if round_.phase.ended:
        return round_, ()
    if isinstance(event, Failed):
        return _end(round_, Phase.ABANDONED, now, event.code), (SweepRound(),)
    if isinstance(event, DeviceAccepted | DeviceDropped):
        round_ = _word_of_device(round_, event)
    elif isinstance(event, UpdatesCounted):
        round_ = _count_updates(round_, event)
    return _PHASES[round_.phase](round_, event, now)


def _selection(round_: Round, event: Event, now: float) -> Step:
    if isinstance(event, CohortSelected):
        chosen = {device: Participant(Standing.SELECTED) for device in event.devices}
        return _enter(replace(round_, participants=chosen), Phase.CONFIGURATION, now), (OpenRound(),)
    if not isinstance(event, DevicesAvailable):
        return round_, ()
    quorum = round_.policy.selection
    wanted = quorum.minimum if event.gathering_seconds >= quorum.timeout_seconds else round_.policy.goal
    if wanted <= event.count and not event.to_come:  # all are here that could have come: no spare device will
        return round_, (SelectCohort(min(event.count, quorum.goal)),)
    match quorum.verdict(event.count, now - round_.phase_since):
        case Verdict.ENOUGH:
            return round_, (SelectCohort(min(event.count, quorum.goal)),)
        case Verdict.TOO_FEW:
            return _end(round_, Phase.ABANDONED, now, Code.TOO_FEW_DEVICES), ()
        case _:
            return round_, ()


def _configuration(round_: Round, event: Event, now: float) -> Step:
    if isinstance(event, RoundOpened):
        return _enter(replace(round_, start=event.start), Phase.REPORTING, now), (AssignCohort(),)
    if now >= (round_.deadline or math.inf):
        return _end(round_, Phase.ABANDONED, now, Code.AGGREGATOR_UNREACHABLE), (SweepRound(),)
    return round_, ()


def _reporting(round_: Round, event: Event, now: float) -> Step:
    if isinstance(event, RoundOpened):  # the driver has resumed: devices wait for their assignment again
        return round_, (AssignCohort(),)
    reported, outstanding = round_.count(Standing.REPORTED), round_.count(*OUTSTANDING)
    match round_.policy.reporting.verdict(reported, now - round_.phase_since, can_grow=outstanding > 0):
        case Verdict.ENOUGH:
            return _enter(_release(round_), Phase.AGGREGATION, now), (CloseRound(),)
        case Verdict.TOO_FEW:
            return _end(round_, Phase.ABANDONED, now, Code.TOO_FEW_REPORTS), (SweepRound(),)
        case _:
            return round_, ()


def _aggregation(round_: Round, event: Event, now: float) -> Step:
    if isinstance(event, Aggregated):
        aggregate = event.aggregate
        ended = _end(replace(_settle(round_, aggregate.contributors), aggregate=aggregate), Phase.COMMITTED, now)
        return ended, (CommitModel(round_.base, aggregate.model), SweepRound())
    if now >= (round_.deadline or math.inf):
        return _end(round_, Phase.ABANDONED, now, Code.AGGREGATION_TIMEOUT), (SweepRound(),)
    return round_, ()


_PHASES = {
    Phase.SELECTION: _selection,
    Phase.CONFIGURATION: _configuration,
    Phase.REPORTING: _reporting,
    Phase.AGGREGATION: _aggregation,
}


def _word_of_device(round_: Round, event: DeviceAccepted | DeviceDropped) -> Round:
    participant = round_.participants.get(event.device)
    if participant is None:
        raise Refusal(Code.NOT_SELECTED, f"{event.device} is not in round {round_.id}.")
    if participant.standing not in OUTSTANDING:
        return round_
    if isinstance(event, DeviceAccepted):
        return _stand(round_, {event.device: Participant(Standing.ACCEPTED)})
    return _stand(round_, {event.device: Participant(Standing.DROPPED, event.code)})


def _count_updates(round_: Round, event: UpdatesCounted) -> Round:
    changes: dict[DeviceId, Participant] = {}
    for device in event.reported & round_.participants.keys():
        changes[device] = Participant(Standing.REPORTED)
    for device in event.refused.keys() & round_.participants.keys():
        if round_.participants[device].standing in OUTSTANDING and device not in changes:
            changes[device] = Participant(Standing.REFUSED, event.refused[device])
    return _stand(round_, changes)


def _settle(round_: Round, contributors: frozenset[DeviceId]) -> Round:
    """Whose update is in the result has reported, and nobody else: one that was counted after the close is in no model."""
    late = set(round_.devices(Standing.REPORTED)) - contributors
    released = dict.fromkeys(late, Participant(Standing.RELEASED))
    reported = dict.fromkeys(contributors & round_.participants.keys(), Participant(Standing.REPORTED))
    return _stand(round_, {**released, **reported})


def _stand(round_: Round, changes: Mapping[DeviceId, Participant]) -> Round:
    if all(round_.participants[device] == participant for device, participant in changes.items()):
        return round_
    return replace(round_, participants={**round_.participants, **changes})


def _release(round_: Round) -> Round:
    return _stand(round_, {device: Participant(Standing.RELEASED) for device in round_.devices(*OUTSTANDING)})


def _enter(round_: Round, phase: Phase, now: float) -> Round:
    spent = {**round_.phase_seconds, round_.phase: now - round_.phase_since}
    return replace(round_, phase=phase, phase_since=now, phase_seconds=spent)


def _end(round_: Round, phase: Phase, now: float, reason: Code | None = None) -> Round:
    return replace(_enter(_release(round_), phase, now), reason=reason)
