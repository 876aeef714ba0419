"""A child process tells how it ended, ends when it is told to, and never stays behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fedlearn.local.child import Child
from support.kernel import is_alive

SECONDS = 30.0


def python(program: str, directory: Path, **environment: str) -> Child:
    return Child([sys.executable, "-c", program], directory=directory, environment=environment, log=directory / "log")


def wait_for_log(child: Child, directory: Path, text: str) -> None:
    give_up = time.monotonic() + SECONDS
    while text not in (directory / "log").read_text():
        assert child.running
        assert time.monotonic() < give_up
        time.sleep(0.01)


def test_it_runs_where_it_is_told_with_the_given_environment_and_logs_both_streams(tmp_path: Path) -> None:
    program = "import os, sys; print(os.getcwd(), sorted(os.environ)); print('error', file=sys.stderr)"
    child = python(program, tmp_path, GIVEN="1", LC_CTYPE="C.UTF-8")
    assert child.wait(SECONDS)
    lines = (tmp_path / "log").read_text().splitlines()
    assert sorted(lines) == sorted([f"{tmp_path} ['GIVEN', 'LC_CTYPE']", "error"])


@pytest.mark.parametrize("status", [0, 3])
def test_its_exit_status_is_known_when_it_has_ended(tmp_path: Path, status: int) -> None:
    child = python(f"raise SystemExit({status})", tmp_path)
    assert child.wait(SECONDS)
    assert not child.running
    assert child.status == status


def test_it_is_asked_to_end_and_may_do_so_in_its_own_way(tmp_path: Path) -> None:
    program = "import signal; signal.signal(signal.SIGTERM, lambda *_: exit(7)); print('up', flush=True); signal.pause()"
    child = python(program, tmp_path)
    wait_for_log(child, tmp_path, "up")
    child.terminate(SECONDS)
    assert child.status == 7


def test_it_is_killed_if_it_does_not_listen(tmp_path: Path) -> None:
    program = (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True)\nwhile True: signal.pause()"
    )
    child = python(program, tmp_path)
    wait_for_log(child, tmp_path, "up")
    child.terminate(0.1)
    assert child.status == -signal.SIGKILL


def test_ending_it_twice_is_no_error(tmp_path: Path) -> None:
    child = python("", tmp_path)
    child.kill()
    child.kill()
    child.terminate(SECONDS)
    assert not child.running


def test_it_is_in_a_session_of_its_own(tmp_path: Path) -> None:
    child = python("import signal; signal.pause()", tmp_path)
    try:
        assert os.getsid(child.pid) == child.pid
    finally:
        child.kill()


def test_it_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    children: list[Child] = []
    program = "import signal; print('up', flush=True); signal.pause()"
    thread = threading.Thread(target=lambda: children.append(python(program, tmp_path)))
    thread.start()
    thread.join()
    (child,) = children
    try:
        wait_for_log(child, tmp_path, "up")
        assert not child.wait(0.05)
    finally:
        child.kill()


def test_it_inherits_what_it_is_given(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as given:
        program = [sys.executable, "-c", f"import os; os.write({writer}, b'inherited')"]
        child = Child(program, directory=tmp_path, environment={}, log=tmp_path / "log", pass_fds=[writer])
        os.close(writer)
        assert child.wait(SECONDS)
        assert given.read() == b"inherited"


def test_a_program_that_is_missing_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Child([str(tmp_path / "missing")], directory=tmp_path, environment={}, log=tmp_path / "log")


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "raise SystemExit", "raise RuntimeError"])
def test_it_ends_with_its_parent_however_that_ends(tmp_path: Path, end: str) -> None:
    program = (
        "import os, pathlib, sys\n"
        "from fedlearn.local.child import Child\n"
        "here = pathlib.Path(sys.argv[1])\n"
        "sleeper = [sys.executable, '-c', 'import signal; print(1, flush=True); signal.pause()']\n"
        "child = Child(sleeper, directory=here, environment={}, log=here / 'log')\n"
        "print(child.pid, flush=True)\n"
        f"{end}\n"
    )
    parent = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    pid, give_up = int(parent.stdout), time.monotonic() + SECONDS
    while is_alive(pid):
        assert time.monotonic() < give_up
        time.sleep(0.01)


@pytest.mark.parametrize("which", [0, 1], ids=["while its thread starts", "while the thread starts it"])
def test_ctrl_c_in_the_middle_of_its_start_leaves_nothing(tmp_path: Path, which: int) -> None:
    program = f"""
import atexit, os, pathlib, sys, threading
from fedlearn.local.child import Child

def look():  # runs after what Child has registered
    lines = [path.read_bytes() for path in pathlib.Path("/proc").glob("[0-9]*/cmdline") if path.parent.name != str(os.getpid())]
    print("left" if any(b"{tmp_path}/mark" in line for line in lines) else "nothing left")

atexit.register(look)
waits, wait = [], threading.Event.wait

def interrupted(event, timeout=None):
    answer = wait(event, timeout)
    if threading.current_thread() is threading.main_thread():
        waits.append(event)
        if len(waits) == {which} + 1:
            raise KeyboardInterrupt
    return answer

threading.Event.wait = interrupted
try:
    Child([sys.executable, "-c", "import time; time.sleep(60)", "{tmp_path}/mark"],
          directory=pathlib.Path("{tmp_path}"), environment={{}}, log=pathlib.Path("{tmp_path}/log"))
except KeyboardInterrupt:
    print("interrupted")
"""
    parent = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=SECONDS, check=False)
    assert (parent.stdout.split("\n"), parent.stderr) == (["interrupted", "nothing left", ""], "")
