"""Ports of this machine that nobody listens on."""

import secrets
import socket
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from fedlearn.adapters.listeners import listen

HOST = "127.0.0.1"
_LOWEST = 10240
_given: deque[int] = deque(maxlen=512)  # whoever was given one of these may not listen yet


def free_port(wanted: int = 0) -> int:
    """`wanted` if nothing listens there; for 0 any free port, as `free_ports`.

    Raises:
        SetupError: `port_busy`.
    """
    if not wanted:
        return free_ports(1)[0]
    listen(HOST, wanted).close()
    _given.append(wanted)
    return wanted


def free_ports(count: int) -> Sequence[int]:
    """Free ports below those that the kernel gives to outgoing connections, which might take one before it is used.

    None of them was given to anybody in this process of late.
    """
    with ExitStack() as held:
        found: list[int] = []
        while len(found) < count:
            port = secrets.choice(range(_LOWEST, _first_ephemeral()))
            if port not in _given and _bind(held.enter_context(socket.socket()), port):
                found.append(port)
                _given.append(port)
        return found


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return _bind(probe, port)


def _bind(probe: socket.socket, port: int) -> bool:
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that wait for their end do not count
    try:
        probe.bind((HOST, port))
        probe.listen(1)
    except OSError:
        return False
    return True


def _first_ephemeral() -> int:
    setting = Path("/proc/sys/net/ipv4/ip_local_port_range")
    low = int(setting.read_text().split()[0]) if setting.exists() else 32768
    return max(low, _LOWEST + 1000)
