"""What several replicas of the server ask of the outside: one of them leads, and each knows its own devices."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from fedlearn.core.ids import DeviceId


@dataclass(frozen=True, slots=True)
class Leader:
    """The replica that leads the rounds, or did last.

    Args:
        epoch: grows by one whenever a replica begins to lead.
        holder: the replica's name.
        address: the base URL by which other replicas reach it.
    """

    epoch: int
    holder: str
    address: str


class LeaderLock(Protocol):
    """What at most one of several replicas holds. It is only half of the fence: see `RoundStore.fenced` for the other."""

    lease_seconds: float
    """For so long after its last successful `hold` a replica may take itself for the holder; another one has it later."""

    def hold(self) -> bool:
        """Take the lock if it is free, or keep it: whether it is held now. Call it several times within `lease_seconds`.

        Raises:
            Outage: when nobody can tell now.
            Refusal: `cluster_denied`.
        """
        ...

    def release(self) -> None:
        """Let another replica have it at once; does its best, and raises nothing."""
        ...


@dataclass(frozen=True, slots=True)
class Presence:
    """A device as one replica knows it.

    Args:
        checkin: its last check-in, as JSON.
        waiting: whether the replica holds a check-in of it.
        seconds: within how many it should be heard of again.
        seen_at: when it was heard of last, in seconds since the epoch, UTC.
    """

    device: DeviceId
    checkin: str
    waiting: bool
    seconds: float
    seen_at: float


class Presences(Protocol):
    """The devices that each replica knows of, for the others: a cache. Which devices are in a round, the round says.

    Every method raises `Outage` (`database_unavailable`) when the database does not answer.
    """

    def put(self, replica: str, present: Sequence[Presence], gone: Sequence[DeviceId] = ()) -> None:
        """Note what this replica knows of these devices, and that it knows no more of those that are gone.

        A device is where it was put last, but where it waits, until another replica says that it waits there: word that it
        does not wait any more may be late.
        """
        ...

    def elsewhere(self, replica: str) -> Sequence[Presence]:
        """What other replicas know of devices whose time is not over, in no order. `seconds` are those that are left."""
        ...
