"""What devices go through in a round, told apart and counted."""

from collections.abc import Iterator
from contextlib import contextmanager

from fedlearn.core.errors import Refusal
from fedlearn.telemetry.metrics import device as metrics


class Session:
    """What a device went through in one round, as table 1 of Bonawitz et al. 2019 has it: the letters stand at `SESSIONS`."""

    def __init__(self) -> None:
        self.shape = "-"

    def note(self, event: str) -> None:
        self.shape += event

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count it when the block ends, or fails."""
        try:
            yield
        except BaseException as error:
            self.note("#" if self.shape.endswith("+") and isinstance(error, Refusal) else "!")
            raise
        finally:
            metrics.count_session(self.shape)
