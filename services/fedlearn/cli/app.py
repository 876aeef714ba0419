"""All commands."""

from typing import Annotated

import typer

from fedlearn import __version__
from fedlearn.cli import backup, chaos, data, devices, models, plot, rounds, run, services, status, tasks, up

_HELP = "Federated learning, native to Kubernetes."


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fedlearn {__version__}")
        raise typer.Exit


def build() -> typer.Typer:
    """The command line."""
    app = typer.Typer(help=_HELP, no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False)
    app.callback()(_common)
    run.add_to(app)
    up.add_to(app)
    status.add_to(app)
    plot.add_to(app)
    chaos.add_to(app)
    services.add_to(app)
    backup.add_to(app)
    app.add_typer(data.app, name="data")
    app.add_typer(devices.app, name="devices", rich_help_panel="A running server")
    app.add_typer(models.app, name="models", rich_help_panel="A running server")
    app.add_typer(rounds.app, name="rounds", rich_help_panel="A running server")
    app.add_typer(tasks.app, name="tasks", rich_help_panel="A running server")
    return app


def _common(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_tell_version, help="Print the version.")
    ] = False,
) -> None:
    """Take what all commands have in common."""
