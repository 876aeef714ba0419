"""All commands."""

import typer

from fedlearn.cli import backup, chaos, data, devices, models, plot, rounds, run, services, status, tasks, up

_HELP = "Federated learning, native to Kubernetes."


def build() -> typer.Typer:
    """The command line."""
    app = typer.Typer(help=_HELP, no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False)
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
