"""A process that imports TensorFlow once and forks every program that needs it, so that many cost one import.

What it forks is `fedlearn ROLE` with its settings in the environment, as everywhere else. It takes requests as JSON lines on a
socket, and answers with the pid of each child and, later, with its exit status.
"""

import ctypes
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedlearn.imports import uncollected
from fedlearn.local.child import Child

_READY_SECONDS = 120.0
_PR_SET_PDEATHSIG = 1


class ForkedChild:
    """One program that the nursery has forked; the same interface as `Child`."""

    def __init__(self, nursery: "Nursery", pid: int) -> None:
        self._nursery, self.pid = nursery, pid
        self._ended = threading.Event()
        self._status: int | None = None

    @property
    def running(self) -> bool:
        return not self._ended.is_set() and self._nursery.running

    @property
    def status(self) -> int | None:
        """Its exit status, None while it runs."""
        return self._status

    def wait(self, seconds: float) -> bool:
        """Whether it has ended, after at most `seconds`."""
        return self._ended.wait(seconds) or not self._nursery.running

    def terminate(self, seconds: float) -> None:
        """Ask it to end, and kill it if it has not after `seconds`."""
        if self.running:
            _signal(self.pid, signal.SIGTERM)
        if not self.wait(seconds):
            _signal(self.pid, signal.SIGKILL)
            self._ended.wait(seconds)

    def ended(self, status: int) -> None:
        self._status = status
        self._ended.set()


class Nursery:
    """The launcher's end."""

    def __init__(self, log: Path) -> None:
        self._socket, theirs = socket.socketpair()
        program = [sys.executable, "-m", "fedlearn.local.nursery", str(theirs.fileno())]
        self._child = Child(program, directory=log.parent, environment=os.environ, log=log, pass_fds=[theirs.fileno()])
        theirs.close()
        self._children: dict[int, ForkedChild] = {}
        self._born: dict[int, int] = {}
        self._news = threading.Condition()
        self._requests = 0
        threading.Thread(target=self._listen, name="nursery", daemon=True).start()

    @property
    def running(self) -> bool:
        return self._child.running

    @property
    def pid(self) -> int:
        return self._child.pid

    def wait(self, seconds: float) -> bool:
        return self._child.wait(seconds)

    def terminate(self, seconds: float) -> None:
        """End the nursery; the kernel ends what it has forked with it."""
        self._child.terminate(seconds)
        self._socket.close()

    def start(self, arguments: list[str], environment: Mapping[str, str], log: Path) -> ForkedChild:
        """Fork `fedlearn ARGUMENTS`; waits until the nursery has imported what it forks.

        Raises:
            TimeoutError: when the nursery does not answer.
        """
        with self._news:
            self._requests += 1
            number = self._requests
            request = {"number": number, "arguments": arguments, "environment": dict(environment), "log": str(log)}
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            if not self._news.wait_for(lambda: number in self._born or not self.running, _READY_SECONDS) or not self.running:
                raise TimeoutError("the nursery does not answer")
            return self._children[self._born.pop(number)]

    def _listen(self) -> None:
        with self._socket.makefile("r") as lines:
            for line in lines:
                self._hear(json.loads(line))
        with self._news:
            self._news.notify_all()

    def _hear(self, news: dict[str, int]) -> None:
        with self._news:
            if "status" in news:
                self._children[news["pid"]].ended(news["status"])
            else:
                self._children[news["pid"]] = ForkedChild(self, news["pid"])
                self._born[news["number"]] = news["pid"]
            self._news.notify_all()


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


# --- the nursery's own end


def main() -> None:
    """Import, then fork until the launcher hangs up."""
    _import_all()
    requests = socket.socket(fileno=int(sys.argv[1]))
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    waiting = b""
    while True:
        ready, _, _ = select.select([requests.fileno(), read], [], [])
        if read in ready:
            os.read(read, 4096)
            _bury(requests)
        if requests.fileno() in ready:
            received = requests.recv(65536)
            if not received:
                return
            *lines, waiting = (waiting + received).split(b"\n")
            for line in lines:
                _fork(requests, json.loads(line), (read, write))


def _import_all() -> None:
    """Import what is forked, without what is of no use there.

    Keras looks for matplotlib, for pictures that nobody draws there. And what the garbage collector looks at in a child is
    written to, so that its memory would not be shared any more.
    """
    sys.modules["matplotlib"] = None  # type: ignore[assignment]  # as the import system has it for what is not to be had
    with uncollected():
        for module in ("fedlearn.cli.app", "fedlearn.device.app", "fedlearn.device.evaluator", "fedlearn.learning.training"):
            importlib.import_module(module)
    del sys.modules["matplotlib"]
    gc.freeze()


def _bury(requests: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        requests.sendall(json.dumps({"pid": pid, "status": os.waitstatus_to_exitcode(status)}).encode() + b"\n")


def _fork(requests: socket.socket, request: dict[str, Any], descriptors: tuple[int, int]) -> None:
    parent, pid = os.getpid(), os.fork()
    if pid:
        requests.sendall(json.dumps({"number": request["number"], "pid": pid}).encode() + b"\n")
        return
    status = 1
    try:
        os.setsid()
        _tie_to(parent)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        requests.close()
        for descriptor in descriptors:
            os.close(descriptor)
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(request["environment"])
        status = _become(request["arguments"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _tie_to(parent: int) -> None:
    """Ask Linux to end this process with its parent."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)


def _become(arguments: list[str]) -> int:
    sys.argv = ["fedlearn", *arguments]
    try:
        runpy.run_module("fedlearn", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


if __name__ == "__main__":
    main()
