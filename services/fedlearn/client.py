"""What `import fedlearn` gives to notebooks and scripts: a server's tasks as objects."""

# ruff: noqa: PLC0415 - whoever only reads does not wait for Keras

import os
import time
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from fedlearn.adapters.operator import OperatorClient
from fedlearn.core.errors import Code, Outage, Refusal, SetupError
from fedlearn.core.learning import Weights
from fedlearn.protocol.tensors import decode_model
from fedlearn.protocol.views import FleetView, RoundView, TaskView, VersionView

if TYPE_CHECKING:
    from fedlearn.learning.compiled import Prepared
    from fedlearn.learning.tasks import Task

_LOCAL = "http://127.0.0.1:8000"
_NOT_ENDED = ("waiting_for_model", "running", "paused")
_LOOK_SECONDS, _PAUSE_SECONDS = 2.0, 0.2
_PATIENCE_SECONDS = 60.0


def connect(server: str | None = None, token: str | None = None) -> "Client":
    """A client of a running server; nothing is sent yet.

    Args:
        server: its address. Default: the variable FEDLEARN_SERVER_URL, or this machine's port 8000.
        token: the operators' token, which all that changes something needs. Default: the variable FEDLEARN_OPERATOR_TOKEN.
    """
    address = server or os.environ.get("FEDLEARN_SERVER_URL") or _LOCAL
    return Client(address, token or os.environ.get("FEDLEARN_OPERATOR_TOKEN"))


class Client:
    """A server's tasks and devices. Also a context manager, which closes its connections.

    Every call raises `Refusal` when the server says no, and `Outage` when it does not answer.
    """

    def __init__(self, server: str, token: str | None = None) -> None:
        self._operator = OperatorClient(server, token)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._operator.__exit__(None, None, None)

    def submit(self, task: "Task") -> "SubmittedTask":
        """Check a task, submit it with its model as version 0, and start it; the same one again stays as it is.

        Raises:
            Refusal: what is wrong with the model, see `docs/errors.md`; or `task_exists` for another task of its name.
        """
        prepared = prepare(task)
        view = self._operator.submit(
            task.title,
            prepared.plan,
            prepared.version_0,
            policy=task.policy,
            rounds=task.rounds,
            target_accuracy=task.target_accuracy,
        )
        return self.task(view.task)

    def task(self, name: str) -> "SubmittedTask":
        """The task of this name.

        Raises:
            Refusal: `task_unknown`.
        """
        return SubmittedTask(self._operator, self._operator.task(name).task)

    def tasks(self) -> list[TaskView]:
        """All tasks, the oldest first."""
        return self._operator.tasks()

    def devices(self) -> FleetView:
        """All devices that have checked in, and what they do."""
        return self._operator.devices()


class SubmittedTask:
    """A task at a server, by its name; it knows nothing that the server does not know."""

    def __init__(self, operator: OperatorClient, name: str) -> None:
        self._operator, self.name = operator, name

    def __repr__(self) -> str:
        return f"<fedlearn task {self.name}>"

    @property
    def state(self) -> str:
        """`waiting_for_model`, `running`, `paused`, or one that it has ended in: `completed`, `cancelled`, `failed`."""
        return self.view().state

    def view(self) -> TaskView:
        """All that the server says of it."""
        return self._operator.task(self.name)

    def rounds(self) -> list[RoundView]:
        """Its rounds, ended or not, the first one first."""
        return self._operator.rounds(self.name)

    def versions(self) -> list[VersionView]:
        """Its model's versions, from 0 on, with the scores on the server's test set where there is one."""
        return self._operator.models(self.name)

    def watch(self, timeout_seconds: float | None = None) -> Iterator[RoundView]:
        """Its rounds, each when it has ended, from the first one to the task's end. A server that is away is waited for, for a
        minute.

        Raises:
            TimeoutError: when the task has not ended in time.
        """
        give_up = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        seen, answered_at = 0, time.monotonic()
        while True:
            try:
                state, ended = self.state, self._ended_since(seen)
            except Outage:
                if time.monotonic() - answered_at > _PATIENCE_SECONDS:
                    raise
                time.sleep(_LOOK_SECONDS)
                continue
            answered_at = time.monotonic()
            yield from ended
            seen = ended[-1].round if ended else seen
            if state not in _NOT_ENDED:
                return
            if give_up is not None and time.monotonic() > give_up:
                raise TimeoutError(
                    f"The task {self.name} is {state} after {timeout_seconds:g} s, and {seen} rounds have ended."
                )
            time.sleep(_PAUSE_SECONDS)

    def wait(self, timeout_seconds: float | None = None) -> TaskView:
        """Wait for its end.

        Raises:
            TimeoutError: when it has not ended in time.
        """
        for _ in self.watch(timeout_seconds):
            pass
        return self.view()

    def weights(self, version: int | None = None) -> Weights:
        """The weights of a version, the newest by default: float32 arrays in the order of the model's `weights`."""
        plan = self._operator.plan(self.name)
        return decode_model(self._operator.download(self.name, self._number(version)), plan)

    def model(self, version: int | None = None) -> Any:
        """A version, the newest by default, as a Keras model, compiled as it was submitted."""
        use_keras()
        from fedlearn.learning import models

        plan = self._operator.plan(self.name)
        found = models.model_of(plan)
        models.set_weights(found, plan, decode_model(self._operator.download(self.name, self._number(version)), plan))
        models.compile_model(found, plan)
        return found

    def cancel(self) -> TaskView:
        """End it; a round that runs is abandoned, and all versions stay."""
        return self._operator.cancel(self.name)

    def _number(self, version: int | None) -> int:
        return self.versions()[-1].model.version if version is None else version

    def _ended_since(self, seen: int) -> list[RoundView]:
        """The rounds after number `seen` that have ended."""
        try:
            newest = self._operator.current_round(self.name, wait_seconds=_LOOK_SECONDS)
        except Refusal as refusal:
            if refusal.code is not Code.ROUND_UNKNOWN:  # the first one has not begun
                raise
            return []
        between = [self._operator.round(self.name, number) for number in range(seen + 1, newest.round)]
        # the newest may have ended long ago
        return between + ([newest] if newest.round > seen and newest.phase in ("committed", "abandoned") else [])


def prepare(task: "Task") -> "Prepared":
    """What a server is given of a task, checked.

    Raises:
        Refusal: what is wrong with the model.
        SetupError: `setting_invalid` when Keras is not installed.
    """
    use_keras()
    from fedlearn.learning.compiled import prepare as prepare_task

    return prepare_task(task)


def use_keras() -> None:
    """Import Keras as fedlearn sets it up, before anybody else does.

    Raises:
        SetupError: `setting_invalid` when it is not installed.
    """
    try:
        import fedlearn.learning.runtime  # noqa: F401
    except ModuleNotFoundError as error:
        raise SetupError(Code.SETTING_INVALID, f"Models need {error.name}: install fedlearn[learning].") from error
