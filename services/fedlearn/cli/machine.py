"""What `fedlearn run` and `fedlearn up` share: options, and how they begin."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from fedlearn.core.errors import Code, SetupError
from fedlearn.imports import uncollected

DataDir = Annotated[Path | None, typer.Option(help="A directory that holds the dataset's IDX files.")]
Partitioner = Annotated[str, typer.Option(help="full, iid, dirichlet, shard, pathological, linear, square or exponential.")]
Alpha = Annotated[float, typer.Option(help="Dirichlet's concentration: the smaller, the more skewed.")]
BatchSize = Annotated[int, typer.Option(help="Examples a local step.")]
LearningRate = Annotated[float, typer.Option(help="The devices' learning rate.")]
Seed = Annotated[int, typer.Option(help="Makes model, shards and training repeatable.")]
TargetAccuracy = Annotated[float | None, typer.Option(help="End as soon as a version reaches it on the test set.")]
Processes = Annotated[int | None, typer.Option(help="Processes that host the devices. Default: one per core.")]
Aggregators = Annotated[int, typer.Option(help="Aggregators that share each round; a robust rule uses the first alone.")]
Learner = Annotated[str, typer.Option(help="keras, or synthetic: random updates, to try the system alone.")]
Port = Annotated[int, typer.Option(help="0: any free one.")]


@contextmanager
def launcher_of(command: str) -> Iterator[None]:
    """Import the launcher within it; from then on SIGTERM ends the command as Ctrl-C does.

    Raises:
        SetupError: `setting_invalid` when a part of it is not installed.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with uncollected():
            yield
    except ModuleNotFoundError as error:
        missing = f"'fedlearn {command}' needs {error.name}: install fedlearn[local,learning]."
        raise SetupError(Code.SETTING_INVALID, missing) from error


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
