"""One HTTP/1.1 connection against a socket that answers byte by byte as a test says."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from fedlearn.adapters import connections
from fedlearn.adapters.connections import Connection, Endpoint
from fedlearn.local.certificates import write_certificates

OK = b"HTTP/1.1 200 OK\r\nContent-Length: "


class Peer:
    """Reads a request's head (and `body` bytes after it), then sends these pieces, one after the other; None closes."""

    def __init__(self, *pieces: bytes | None, body: int = 0, accept: Callable[[socket.socket], socket.socket] | None = None):
        self._pieces, self._body, self._accept = pieces, body, accept
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        self.port = self._listening.getsockname()[1]

    def _serve(self) -> None:
        with suppress(OSError):
            plain = self._listening.accept()[0]
            with self._accept(plain) if self._accept else plain as answering:
                self._answer(answering)

    def _answer(self, answering: socket.socket) -> None:
        for piece in self._pieces:
            if piece is None:
                return
            if piece.startswith(b"HTTP/"):
                head, _, rest = self._read(answering).partition(b"\r\n\r\n")
                while len(rest) < self._body:
                    rest += answering.recv(65_536)
                self.heads.append(head)
                self.bodies.append(rest)
            answering.sendall(piece)
        answering.recv(1)  # until the other side closes

    @staticmethod
    def _read(answering: socket.socket) -> bytes:
        got = b""
        while b"\r\n\r\n" not in got:
            got += answering.recv(65_536)
        return got

    def close(self) -> None:
        self._listening.close()
        self._thread.join(10)


@contextmanager
def connected(*pieces: bytes | None, body: int = 0) -> Iterator[tuple[Connection, Peer]]:
    peer = Peer(*pieces, body=body)
    connection = Connection(Endpoint(f"http://127.0.0.1:{peer.port}"))
    try:
        yield connection, peer
    finally:
        connection.close()
        peer.close()


def filled(connection: Connection, count: int) -> bytes:
    out = bytearray(count)
    connection.fill(memoryview(out))
    return bytes(out)


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param((OK + b"6\r\n\r\nabcdef",), id="at once"),
        pytest.param((OK + b"6\r\n\r\n", b"abcdef"), id="head, then body"),
        pytest.param((OK + b"6\r\n", b"Date: now\r", b"\n\r\nabc", b"d", b"ef"), id="in bits"),
        pytest.param((b"HTTP/1.1 200 OK\r\nDate: now\r\ncontent-LENGTH:6\r\n\r\nabcdef",), id="a name in other letters"),
    ],
)
def test_a_body_is_read_piece_by_piece_however_it_comes(pieces: tuple[bytes, ...]) -> None:
    with connected(*pieces) as (connection, peer):
        assert (connection.ask("GET", f"http://127.0.0.1:{peer.port}/bucket/key?a=b"), connection.left) == (200, 6)
        assert [filled(connection, count) for count in (1, 0, 4, 1)] == [b"a", b"", b"bcde", b"f"]
        assert (connection.left, connection.serves_again) == (0, True)
    assert peer.heads[0].split(b"\r\n") == [
        b"GET /bucket/key?a=b HTTP/1.1",
        f"Host: 127.0.0.1:{peer.port}".encode(),
        b"Accept-Encoding: identity",
    ]


def test_a_connection_serves_again_and_sends_bodies_with_their_headers() -> None:
    with connected(OK + b"0\r\n\r\n", OK + b"2\r\n\r\nno", body=4) as (connection, peer):
        url = f"http://127.0.0.1:{peer.port}/key"
        for body in (b"body", memoryview(b"more")):
            assert connection.ask("PUT", url, {"content-length": "4", "If-None-Match": "*"}, body) == 200
            filled(connection, connection.left)
    assert peer.bodies == [b"body", b"more"]
    lines = peer.heads[0].split(b"\r\n")
    assert lines[3:] == [b"If-None-Match: *", b"Content-Length: 4"]


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", id="it says that it closes"),
        pytest.param(b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", id="HTTP/1.0"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", id="no length"),
    ],
)
def test_it_says_when_it_does_not_serve_again(head: bytes) -> None:
    with connected(head) as (connection, _):
        assert connection.ask("GET", "http://there/key") == 200
        assert not connection.serves_again


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param((b"HTTP/1.1 200", None), id="in the head"),
        pytest.param((b"HTTP/", None), id="at once"),
        pytest.param((b"HTTP/1.1 hello\r\n\r\n",), id="no status"),
        pytest.param((b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",), id="a length that is no number"),
        pytest.param((b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nContent-Length: 7\r\n\r\n",), id="two lengths"),
    ],
)
def test_what_breaks_off_or_is_no_http_is_an_error_of_the_connection(pieces: tuple[bytes | None, ...]) -> None:
    with connected(*pieces) as (connection, _), pytest.raises(ConnectionError):
        connection.ask("GET", "http://there/key")


def test_a_body_that_breaks_off_is_an_error_of_the_connection() -> None:
    with connected(OK + b"6\r\n\r\nabc", None) as (connection, _):
        connection.ask("GET", "http://there/key")
        assert filled(connection, 2) == b"ab"
        with pytest.raises(ConnectionError):
            filled(connection, 4)


def test_a_peer_that_falls_silent_is_waited_for_no_longer_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_SECONDS", 1)
    with connected(OK + b"6\r\n\r\nabc") as (connection, _):
        connection.ask("GET", "http://there/key")
        with pytest.raises(OSError, match="temporarily unavailable"):
            filled(connection, 6)


def test_where_nobody_listens_is_an_error_of_the_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with pytest.raises(OSError, match="refused"):
        Connection(Endpoint(f"http://127.0.0.1:{port}"))


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("http://storage:8333", "storage:8333", 8333),
        ("http://Storage:80/below", "storage", 80),
        ("https://storage", "storage", 443),
        ("https://[::1]:9000", "[::1]:9000", 9000),
    ],
)
def test_the_host_is_named_as_signatures_cover_it(url: str, host: str, port: int) -> None:
    endpoint = Endpoint(url)
    assert (endpoint.host, endpoint.port, endpoint.tls is not None) == (host, port, url.startswith("https"))


def test_over_tls_it_does_the_same_for_those_whom_an_authority_vouches_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_certificates(tmp_path, "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "node.pem", tmp_path / "node-key.pem")

    def greeted(plain: socket.socket) -> socket.socket:
        return context.wrap_socket(plain, server_side=True)

    body = bytes(range(256)) * 400
    for trusted in (True, False):
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem" if trusted else "/dev/null"))
        peer = Peer(OK + b"102400\r\n\r\n" + body, accept=greeted)
        endpoint = Endpoint(f"https://127.0.0.1:{peer.port}")
        if trusted:
            connection = Connection(endpoint)
            assert connection.ask("GET", f"https://127.0.0.1:{peer.port}/key") == 200
            assert filled(connection, 102_400) == body
            connection.close()
        else:
            with pytest.raises(ssl.SSLCertVerificationError):
                Connection(endpoint)
        peer.close()
