"""GETs and PUTs by signed URL, straight into the caller's memory or out of it: a fraction of what a call through boto3 costs.

It only ever succeeds or says that it has not: what to do about a status or an outage is known in `objects`, which then asks
again in its own way.
"""

import http.client
import ssl
import weakref
from collections.abc import Callable, Mapping
from typing import Final, TypeVar
from urllib.parse import urlsplit

Result = TypeVar("Result")
_SECONDS: Final = 10


class Direct:
    """As many connections to one endpoint as calls at a time; safe for threads."""

    def __init__(self, endpoint_url: str) -> None:
        endpoint = urlsplit(endpoint_url)
        self._host, self._port, self._tls = endpoint.hostname or "", endpoint.port, endpoint.scheme == "https"
        self._idle: list[http.client.HTTPConnection] = []
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

    def _with_connection(
        self, call: Callable[[http.client.HTTPConnection], Result | None], *, back: bool = True
    ) -> Result | None:
        while True:
            # list.pop and list.append are atomic
            connection, idle = (self._idle.pop(), True) if self._idle else (self._connect(), False)
            try:
                result = call(connection)
            except (OSError, http.client.HTTPException):
                connection.close()
                if not idle:  # the storage may have closed one that was idle
                    return None
            else:
                if back:
                    self._idle.append(connection)
                return result

    def _connect(self) -> http.client.HTTPConnection:
        if self._tls:
            return http.client.HTTPSConnection(self._host, self._port, timeout=_SECONDS, context=ssl.create_default_context())
        return http.client.HTTPConnection(self._host, self._port, timeout=_SECONDS)


class Incoming:
    """An object on its way: `size` bytes, which `fill` reads one after the other."""

    def __init__(
        self,
        connection: http.client.HTTPConnection,
        answer: http.client.HTTPResponse,
        size: int,
        idle: list[http.client.HTTPConnection],
    ) -> None:
        self.size, self._left = size, size
        self._connection, self._answer, self._idle = connection, answer, idle

    def fill(self, out: memoryview) -> None:
        """The next `len(out)` bytes.

        Raises:
            OSError, HTTPException: they don't come.
        """
        _fill(self._answer, out)
        self._left -= len(out)

    def close(self) -> None:
        """The connection serves again if all has been read."""
        self._answer.close()
        if self._left:
            self._connection.close()
        else:
            self._idle.append(self._connection)


def _open(connection: http.client.HTTPConnection, url: str, idle: list[http.client.HTTPConnection]) -> Incoming | None:
    connection.request("GET", _target(url))
    answer = connection.getresponse()
    if answer.status == 200 and answer.length is not None:
        return Incoming(connection, answer, answer.length, idle)
    answer.close()
    connection.close()
    return None


def _fill(answer: http.client.HTTPResponse, out: memoryview) -> None:
    got = 0
    while got < len(out):
        if not (count := answer.readinto(out[got:])):
            raise http.client.IncompleteRead(b"", len(out) - got)
        got += count


def _read(connection: http.client.HTTPConnection, url: str, out: memoryview, start: int) -> int | None:
    connection.request("GET", _target(url), headers={"Range": f"bytes={start}-{start + len(out) - 1}"})
    answer = connection.getresponse()
    due = answer.length
    if answer.status != 206 or due is None or due > len(out):
        answer.close()
        connection.close()  # rather than read what nobody wants; it opens anew when it is used again
        return None
    _fill(answer, out[:due])
    answer.close()
    return due


def _write(
    connection: http.client.HTTPConnection, url: str, headers: Mapping[str, str], body: bytes | memoryview
) -> int | None:
    connection.request("PUT", _target(url), body, dict(headers))
    answer = connection.getresponse()
    answer.read()
    return len(body) if answer.status == 200 else None


def _target(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.path}?{parts.query}"


def _close(connections: list[http.client.HTTPConnection]) -> None:
    while connections:
        connections.pop().close()
