"""GETs and PUTs by signed URL, straight into the caller's memory or out of it: a fraction of what a call through boto3 costs.

It only ever succeeds or says that it has not: what to do about a status or an outage is known in `objects`, which then asks
again in its own way.
"""

import weakref
from collections.abc import Callable, Mapping
from typing import TypeVar

from fedlearn.adapters.connections import Connection, Endpoint

Result = TypeVar("Result")


class Direct:
    """As many connections to one endpoint as calls at a time; safe for threads."""

    def __init__(self, endpoint_url: str) -> None:
        self._endpoint = Endpoint(endpoint_url)
        self._idle: list[Connection] = []
        weakref.finalize(self, _close, self._idle)

    def read_into(self, url: str, out: memoryview, start: int) -> int | None:
        """The object's bytes from `start` on into `out`, as many as fit: how many; None for any other answer."""
        return self._with_connection(lambda connection: _read(connection, url, out, start))

    def open(self, url: str) -> "Incoming | None":
        """The object, to be read piece by piece and then closed; None for any other answer."""
        return self._with_connection(lambda connection: _open(connection, url, self._idle), back=False)

    def write(self, url: str, headers: Mapping[str, str], body: bytes | memoryview) -> bool:
        """Whether the storage says that it has the object now."""
        return self._with_connection(lambda connection: _write(connection, url, headers, body)) is not None

    def _with_connection(self, call: Callable[[Connection], Result | None], *, back: bool = True) -> Result | None:
        """What a call gives; None as well when its connection breaks, unless that may be because it was idle for too long."""
        while True:
            # list.pop and list.append are atomic
            idle = self._idle.pop() if self._idle else None
            try:
                connection = idle or Connection(self._endpoint)
            except OSError:
                return None
            try:
                result = call(connection)
            except OSError:
                connection.close()
                if idle is None:
                    return None
                continue
            if result is None or not connection.serves_again:
                connection.close()  # rather than read what nobody wants
            elif back:
                self._idle.append(connection)
            return result


class Incoming:
    """An object on its way: `size` bytes, which `fill` reads one after the other, as `Connection.fill` does."""

    def __init__(self, connection: Connection, size: int, idle: list[Connection]) -> None:
        self.size, self._connection, self._idle = size, connection, idle
        self.fill = connection.fill

    def close(self) -> None:
        """The connection serves again if all has been read."""
        if self._connection.left:
            self._connection.close()
        else:
            self._idle.append(self._connection)


def _open(connection: Connection, url: str, idle: list[Connection]) -> Incoming | None:
    status = connection.ask("GET", url)
    return Incoming(connection, connection.left, idle) if status == 200 and connection.serves_again else None


def _read(connection: Connection, url: str, out: memoryview, start: int) -> int | None:
    status = connection.ask("GET", url, {"Range": f"bytes={start}-{start + len(out) - 1}"})
    due = connection.left
    if status != 206 or not connection.serves_again or due > len(out):
        return None
    connection.fill(out[:due])
    return due


def _write(connection: Connection, url: str, headers: Mapping[str, str], body: bytes | memoryview) -> int | None:
    status = connection.ask("PUT", url, headers, body)
    if connection.serves_again:
        connection.fill(memoryview(bytearray(connection.left)))
    return len(body) if status == 200 else None


def _close(connections: list[Connection]) -> None:
    while connections:
        connections.pop().close()
