"""HTTP/1.1 over one connection, a request at a time: httptools reads the heads of answers, and bodies go straight into memory.

`http.client` reads each head as an e-mail, and takes two calls for each part of a body that has come; here one takes a piece.
"""

import socket
import ssl
import struct
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from httptools import HttpParserError, HttpResponseParser

_SECONDS: Final = 10  # without a byte, until a connection counts as broken
_HEAD_BYTES: Final = 4096  # read at once until a head is whole; what comes of a body with it is copied
_PORTS: Final = {"http": 80, "https": 443}


class Endpoint:
    """Where a connection goes to.

    Args:
        url: http or https; a path is ignored.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.name, self.port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
        host = f"[{self.name}]" if ":" in self.name else self.name
        self.host = host if self.port == _PORTS[parts.scheme] else f"{host}:{self.port}"  # as a signature covers it
        self.tls = ssl.create_default_context() if parts.scheme == "https" else None


class Connection:
    """One connection. Whatever goes wrong is an OSError, after which only `close` is of use.

    `left` is how many bytes of the answer's body have not been read.

    Raises:
        OSError: nobody answers there.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.left, self._host, self._begun = 0, endpoint.host, b""
        self.serves_again = False
        plain = socket.create_connection((endpoint.name, endpoint.port), _SECONDS)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket, self._flags = plain, 0
        if endpoint.tls is not None:
            self._socket = endpoint.tls.wrap_socket(plain, server_hostname=endpoint.name)
            return
        # the kernel keeps the time and waits for a whole piece: otherwise each of its parts takes two calls
        self._flags = socket.MSG_WAITALL
        plain.settimeout(None)
        for timeout in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            plain.setsockopt(socket.SOL_SOCKET, timeout, struct.pack("@ll", _SECONDS, 0))

    def ask(self, method: str, url: str, headers: Mapping[str, str] | None = None, body: bytes | memoryview = b"") -> int:
        """Send a request and read the head of its answer: its status. What an earlier one has left must have been read.

        `serves_again` says afterwards whether the body's length is known, and the connection is good for another request.
        """
        path = url[url.index("/", len("https://")) :]
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self._host}", "Accept-Encoding: identity"]
        lines += (f"{name}: {value}" for name, value in (headers or {}).items() if name.lower() != "content-length")
        lines += [f"Content-Length: {len(body)}"] if method == "PUT" else []
        self._socket.sendall("\r\n".join([*lines, "\r\n"]).encode("ascii"))
        if len(body):
            self._socket.sendall(body)
        head = _Head()
        while not head.complete:
            head.feed(self._socket.recv(_HEAD_BYTES))
        self._begun, self.left = head.body, head.length or 0
        self.serves_again = head.length is not None and head.keeps_alive
        return head.status

    def fill(self, out: memoryview) -> None:
        """The next `len(out)` bytes of the answer's body."""
        got, due = 0, len(out)
        if self._begun:
            got = min(len(self._begun), due)
            out[:got], self._begun = self._begun[:got], self._begun[got:]
        while got < due:
            count = self._socket.recv_into(out[got:], due - got, self._flags)
            if count == 0:
                raise ConnectionError("The answer ends too early.")
            got += count
        self.left -= due

    def close(self) -> None:
        self._socket.close()


class _Head:
    """What httptools tells of an answer until its body begins."""

    def __init__(self) -> None:
        self._parser = HttpResponseParser(self)
        self.complete, self.keeps_alive, self.status = False, False, 0
        self.length: int | None = None
        self.body = b""  # what has come with it

    def feed(self, data: bytes) -> None:
        if not data:
            raise ConnectionError("The connection was closed.")
        try:
            self._parser.feed_data(data)
        except HttpParserError as error:
            raise ConnectionError("That is no HTTP.") from error

    # --- called by httptools, which knows these names

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-length":
            self.length = int(value)

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self.keeps_alive = self._parser.should_keep_alive()
        self.complete = True

    def on_body(self, body: bytes) -> None:
        self.body += body
