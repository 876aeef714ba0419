"""A child process that does not outlive its parent, not even one that is killed."""

import atexit
import errno
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

# Run between fork and the program: asks the kernel for SIGKILL when the parent dies, then becomes the program. A program of its
# own rather than `preexec_fn`, which may deadlock in a process that has threads.
_TIE = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG, SIGKILL
if os.getppid() != int(sys.argv[1]):  # it died before the line above
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


class Child:
    """One running program in a session of its own, so that the terminal's Ctrl-C does not reach it.

    The kernel watches the *thread* that forked, so a thread of the child's own forks it and then waits for its end.

    Args:
        arguments: the program's path and its arguments.
        log: receives what it prints; emptied first.
        pass_fds: file descriptors that it inherits.

    Raises:
        OSError: when there is no such program, or it can't be started.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        directory: Path,
        environment: Mapping[str, str],
        log: Path,
        pass_fds: Sequence[int] = (),
    ) -> None:
        if shutil.which(arguments[0]) is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), arguments[0])
        tie = [sys.executable, "-I", "-S", "-c", _TIE, str(os.getpid())] if sys.platform == "linux" else []
        self._arguments, self._directory, self._environment = [*tie, *arguments], directory, environment
        self._log, self._pass_fds = log, tuple(pass_fds)
        self._process: subprocess.Popen[bytes] | None = None
        self._error: OSError | None = None
        self._started, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"child {Path(arguments[0]).name}", daemon=True)
        # for Ctrl-C in the lines below, when nobody has the child yet, and for where the kernel does not watch
        atexit.register(self.kill)
        self._thread.start()
        self._wait_for_start()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return not self._ended.is_set()

    @property
    def status(self) -> int | None:
        """Its exit status, None while it runs."""
        return self._process.poll() if self._process is not None else None

    def wait(self, seconds: float) -> bool:
        """Whether it has ended, after at most `seconds`."""
        return self._ended.wait(seconds)

    def terminate(self, seconds: float) -> None:
        """Ask it to end, and kill it if it has not after `seconds`."""
        if self.running:
            assert self._process is not None
            self._process.terminate()
            self.wait(seconds)
        self.kill()

    def kill(self) -> None:
        """End it now; returns when it has ended."""
        if self._thread.ident is not None:
            self._started.wait()
            if self._process is not None and self.running:
                self._process.kill()
                self._ended.wait()
        atexit.unregister(self.kill)

    def _wait_for_start(self) -> None:
        self._started.wait()
        if self._error is not None:
            atexit.unregister(self.kill)
            raise self._error

    def _run(self) -> None:
        try:
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    self._arguments,
                    cwd=self._directory,
                    env=dict(self._environment),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=self._pass_fds,
                    start_new_session=True,
                    umask=0o077,
                )
        except OSError as error:
            self._error = error
            self._ended.set()
            return
        finally:
            self._started.set()
        self._process.wait()
        self._ended.set()
