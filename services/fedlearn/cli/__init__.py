"""The command line: what a person or a container starts."""

import errno
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

import click
import typer

from fedlearn.cli import data, models, run, services, tasks
from fedlearn.core.errors import FedlearnError

__all__ = ["main"]

_HELP = "Federated learning, native to Kubernetes."
_INTERRUPTED = 130


def build() -> typer.Typer:
    """All commands."""
    app = typer.Typer(help=_HELP, no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False)
    run.add_to(app)
    services.add_to(app)
    app.add_typer(data.app, name="data")
    app.add_typer(models.app, name="models")
    app.add_typer(tasks.app, name="tasks", hidden=True)
    return app


def main() -> None:
    """Run a command; every failure that a user can mend is one sentence on stderr and an exit code that is not 0."""
    # as a container's first process it would not be ended by a signal that it does not handle
    signal.signal(signal.SIGTERM, _end)
    sys.exit(_guard(lambda: build()(standalone_mode=False)))


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def _guard(command: Callable[[], object]) -> int:
    try:
        status = command()
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return _say("Stopped.", _INTERRUPTED)
    except FedlearnError as error:
        return _say(f"fedlearn: {error.detail}")
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return _say("fedlearn: The disk is full: make room, and try again.")
    return status if isinstance(status, int) else 0


def _say(sentence: str, status: int = 1) -> int:
    click.echo(sentence, err=True)
    return status
