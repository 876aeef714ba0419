import signal
import subprocess
import sys


def test_a_command_ends_itself_when_it_is_told_to() -> None:
    """By its own handler: the kernel would not end a container's first process for it."""
    arguments = ["tasks", "wait", "--task", "t", "--server", "http://127.0.0.1:9"]
    with subprocess.Popen([sys.executable, "-m", "fedlearn", *arguments], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "Waiting" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 128 + signal.SIGTERM
