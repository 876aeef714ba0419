"""A task's rounds as they go, read from a server's API again and again."""

from dataclasses import dataclass

from fedlearn.adapters.operator import OperatorClient
from fedlearn.core.errors import Code, Refusal
from fedlearn.core.ports import ALIVE_STATES
from fedlearn.protocol.views import RoundView, TaskView, VersionView
from fedlearn.reporting.history import RoundFigures, figures

ALIVE = ALIVE_STATES | {"waiting_for_model"}


@dataclass(frozen=True, slots=True)
class Picture:
    """A task at one moment.

    Args:
        running: the round that has not ended, if there is one.
    """

    task: TaskView
    running: RoundView | None
    history: list[RoundFigures]
    versions: list[VersionView]

    @property
    def alive(self) -> bool:
        return self.task.state in ALIVE

    @property
    def scored(self) -> bool:
        """Whether no scores are to come; where nobody scores, none are."""
        newest = self.versions[-1:]
        return all(v.evaluation is None for v in self.versions) or all(v.evaluation is not None for v in newest)


class Follower:
    """Looks at a task; rounds that have ended are read once."""

    def __init__(self, client: OperatorClient, task: str) -> None:
        self._client, self._task = client, task
        self._ended: dict[int, RoundView] = {}

    def look(self, wait_seconds: float = 0.0) -> Picture:
        """How the task stands; while it is alive, after its next change or `wait_seconds`.

        Raises:
            Refusal: `task_unknown`.
            Outage: `server_unreachable`.
        """
        task = self._client.task(self._task)
        running = self._current(wait_seconds if task.state in ALIVE else 0.0)
        last = 0 if running is None else running.round
        for number in range(1, last):
            if number not in self._ended:
                self._ended[number] = self._client.round(self._task, number)
        if running is not None and running.phase in ("committed", "abandoned"):
            self._ended[running.round] = running
            running = None
        versions = self._client.models(self._task)
        history = [figures(round_, versions) for _, round_ in sorted(self._ended.items())]
        return Picture(task, running, history, versions)

    def _current(self, wait_seconds: float) -> RoundView | None:
        try:
            return self._client.current_round(self._task, wait_seconds)
        except Refusal as refusal:
            if refusal.code is not Code.ROUND_UNKNOWN:
                raise
            return None
