"""The command line: what a person or a container starts."""

import errno
import signal
import sys
from types import FrameType
from typing import NoReturn

from fedlearn.core.errors import Code, FedlearnError, Refusal
from fedlearn.imports import uncollected

__all__ = ["main"]

_INTERRUPTED = 130


def main() -> None:
    """Run a command; every failure that a user can mend is one sentence on stderr and an exit code that is not 0."""
    # as a container's first process it would not be ended by a signal that it does not handle
    signal.signal(signal.SIGTERM, _end)
    try:
        with uncollected():
            from fedlearn.cli.app import build  # noqa: PLC0415 - takes half a second, in which Ctrl-C should be quiet too

        build()()
    except KeyboardInterrupt:
        _fail("Stopped.", _INTERRUPTED)
    except SystemExit as end:
        if end.code == _INTERRUPTED:
            _fail("Stopped.", _INTERRUPTED)
        raise
    except FedlearnError as error:
        _fail(f"fedlearn: {_told(error)}")
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _fail("fedlearn: The disk is full: make room, and try again.")


def _told(error: FedlearnError) -> str:
    hint = " (--token, or FEDLEARN_OPERATOR_TOKEN)" if isinstance(error, Refusal) and error.code is Code.UNAUTHENTICATED else ""
    return f"{error.detail}{hint} [{error.code}]"


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def _fail(sentence: str, status: int = 1) -> NoReturn:
    sys.stderr.write(f"{sentence}\n")
    sys.exit(status)
