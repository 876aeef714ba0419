"""Sockets that services listen on; apart from `web`, since who only looks for a free port needs no web framework."""

import socket

from fedlearn.core.errors import Code, SetupError


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 takes a free one.

    Raises:
        SetupError: `port_busy`.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise SetupError(Code.PORT_BUSY, f"Port {port} on {host} is taken: stop what holds it, or choose another.") from error
    return listener
