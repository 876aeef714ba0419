"""What is worth telling a person of a round's way: how it ended, and whose updates were refused or never came."""

from collections import defaultdict
from dataclasses import dataclass
from enum import StrEnum

from fedlearn.core.errors import Code
from fedlearn.core.ids import DeviceId, TaskId
from fedlearn.core.rounds import Phase, Round, Standing

MAX_NAMED_DEVICES = 20


class Kind(StrEnum):
    ROUND_COMMITTED = "round_committed"
    ROUND_ABANDONED = "round_abandoned"
    UPDATE_REFUSED = "update_refused"
    DEVICE_DROPPED = "device_dropped"
    TASK_CHANGED = "task_changed"


@dataclass(frozen=True, slots=True)
class Happening:
    """One line of the event log.

    Args:
        at: seconds since the epoch, UTC.
        count: how many devices it is about; `devices` names the first of them.
        detail: one sentence about this very case.
    """

    kind: Kind
    at: float
    task: TaskId
    round: int | None = None
    code: Code | None = None
    count: int = 0
    devices: tuple[DeviceId, ...] = ()
    detail: str = ""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """What somebody did with the operators' token, and when.

    Args:
        actor: the token's name and fingerprint.
        outcome: `done`, or the code of the refusal.
    """

    at: float
    actor: str
    action: str
    task: TaskId | None
    outcome: str


def between(before: Round, after: Round, now: float) -> tuple[Happening, ...]:
    """What has happened from one state of a round to a later one; devices with the same reason are told of together."""
    told: list[Happening] = []
    for kind, standing in ((Kind.UPDATE_REFUSED, Standing.REFUSED), (Kind.DEVICE_DROPPED, Standing.DROPPED)):
        by_code: defaultdict[Code | None, list[DeviceId]] = defaultdict(list)
        for device, participant in after.participants.items():
            if participant.standing is standing and before.participants.get(device) != participant:
                by_code[participant.code].append(device)
        for code, devices in by_code.items():
            named = tuple(devices[:MAX_NAMED_DEVICES])
            told.append(Happening(kind, now, after.id.task, after.id.number, code, len(devices), named))
    if after.phase.ended and not before.phase.ended:
        told.append(_ending(after))
    return tuple(told)


def _ending(round_: Round) -> Happening:
    reported = round_.count(Standing.REPORTED)
    committed = round_.phase is Phase.COMMITTED
    detail = f"{reported} of {len(round_.participants)} devices reported"
    if not round_.participants:
        detail = f"No device was selected; {round_.policy.minimum} were needed"
    elif committed and round_.aggregate is not None:
        detail += f"; version {round_.aggregate.model.version} from {round_.aggregate.examples:,} examples"
    elif round_.reason is Code.TOO_FEW_REPORTS:
        detail += f"; {round_.policy.minimum} were needed"
    kind = Kind.ROUND_COMMITTED if committed else Kind.ROUND_ABANDONED
    return Happening(kind, round_.phase_since, round_.id.task, round_.id.number, round_.reason, reported, (), f"{detail}.")
