"""`fedlearn plot`: accuracy and loss by round, as a picture."""

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from fedlearn.adapters.operator import OperatorClient
from fedlearn.cli.show import DEFAULT_SERVER, ServerOption, TaskOption, newest_task, say
from fedlearn.core.errors import Code, SetupError
from fedlearn.reporting.curves import draw_curves
from fedlearn.reporting.following import Follower
from fedlearn.reporting.history import Summary


def add_to(app: typer.Typer) -> None:
    """Add `plot`."""
    app.command(rich_help_panel="A running server")(plot)


def plot(
    summary: Annotated[
        Path | None, typer.Argument(help="A run's summary.json, or its directory. Default: ask the server.", show_default=False)
    ] = None,
    server: ServerOption = DEFAULT_SERVER,
    task: TaskOption = None,
    out: Annotated[Path, typer.Option(help="Ends in .png, .svg or .pdf.")] = Path("curves.png"),
) -> None:
    """Draw accuracy and loss by round, of a task at a server or of a run that has ended."""
    if summary is not None:
        found = _read(summary / "summary.json" if summary.is_dir() else summary)
        rounds, title = found.rounds, f"{found.dataset}-{found.model}, {found.devices} devices, {found.partitioner}"
    else:
        with OperatorClient(server) as client:
            title = task or newest_task(client)
            rounds = Follower(client, title).look().history
    draw_curves(rounds, out, title)
    say(f"{len(rounds)} rounds: {out}")


def _read(path: Path) -> Summary:
    try:
        return Summary.model_validate_json(path.read_bytes())
    except OSError as error:
        raise SetupError(Code.SETTING_INVALID, f"{path} can't be read: {error.strerror}.") from error
    except ValidationError as error:
        raise SetupError(Code.SETTING_INVALID, f"{path} is no summary of 'fedlearn run'.") from error
