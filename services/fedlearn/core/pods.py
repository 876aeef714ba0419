"""A device's pod as the cluster sees it."""

from dataclasses import dataclass
from enum import StrEnum


class PodState(StrEnum):
    PENDING = "pending"
    """It has no node yet, or its images and init containers are under way."""
    RUNNING = "running"
    """It runs, but is not ready."""
    READY = "ready"
    TERMINATING = "terminating"
    """It was deleted and has some seconds left; its process was told to stop."""
    ENDED = "ended"
    """Its containers have ended and do not start again."""
    UNKNOWN = "unknown"
    """Its node does not answer."""

    @property
    def leaving(self) -> bool:
        """Whether it takes no new work."""
        return self in (PodState.TERMINATING, PodState.ENDED)


@dataclass(frozen=True, slots=True)
class Pod:
    """`node` is None until it is scheduled."""

    name: str
    uid: str
    state: PodState
    node: str | None = None
