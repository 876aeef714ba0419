"""A `fedlearn` command as a person types it, and all the processes that come of it."""

import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import ClassVar

PORTS = ["--server-port", "0", "--aggregator-port", "0", "--storage-port", "0"]


def _as_at_a_terminal() -> None:
    # a suite that runs in the background ignores Ctrl-C, and its children would inherit that
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Run:
    """A running `fedlearn`, whose processes are known by a variable that all of them inherit."""

    started: ClassVar[list["Run"]] = []

    def __init__(self, *arguments: str, **environment: str) -> None:
        self.started.append(self)
        self.mark = f"FEDLEARN_TEST_RUN={uuid.uuid4()}"
        name, value = self.mark.split("=")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fedlearn", *arguments],
            env={**os.environ, name: value, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=_as_at_a_terminal,  # noqa: PLW1509 - no thread of ours holds a lock that it needs
        )

    def end(self, seconds: float = 180) -> tuple[int, str, str]:
        """Exit code, standard output and standard error."""
        out, err = self.process.communicate(timeout=seconds)
        return self.process.returncode, out, err

    def processes(self) -> list[str]:
        """The command lines of all processes of this run that are still there."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
        return found

    @classmethod
    def kill_all(cls) -> None:
        """End what still runs; what it has started ends with it."""
        for run in cls.started:
            if run.process.poll() is None:
                run.process.kill()
                run.process.communicate()
        cls.started.clear()
