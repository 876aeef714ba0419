"""A knock at every port and socket that the storage's process opens: without a credential, nothing comes out."""

import http.client
import secrets
import socket
import ssl
import stat
import struct
import time
import tomllib
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path

import jwt
import pytest

from fedlearn.local.certificates import write_certificates
from fedlearn.local.seaweed import UPDATES, Role
from fedlearn.local.storage import LocalStorage
from support.kernel import listening, listening_paths

SECRET = b"what one device has learnt " * 20
KEY = "ports/1/updates/device-0/0"
PATHS = [
    "/",
    f"/{UPDATES}",
    f"/{UPDATES}?list-type=2",
    f"/{UPDATES}/{KEY}",
    "/buckets/",
    f"/buckets/{UPDATES}/",
    f"/buckets/{UPDATES}/{KEY}",
    f"/buckets/{UPDATES}/{KEY}?metadata=true",
    "/?pretty=y",
    "/etc/iam/",
    "/status",
    "/metrics",
    "/ui/index.html",
    "/stats/disk",
    "/debug/pprof/",
    "/dir/assign",
    "/dir/lookup?volumeId=1",
    "/dir/status",
    "/cluster/status",
    "/vol/status",
    *(f"/{volume},01637037d6" for volume in range(1, 6)),
]
HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000")  # preface and empty SETTINGS: gRPC's start
CERTIFIED = ("s3_grpc", "master", "master_grpc", "volume_grpc", "filer", "filer_grpc")
INNER = (*CERTIFIED, "volume")
each_inner_port = pytest.mark.parametrize("name", INNER)
each_certified_port = pytest.mark.parametrize("name", CERTIFIED)


@pytest.fixture(scope="module", autouse=True)
def objects(storage: LocalStorage) -> None:
    storage.store(Role.AGGREGATOR, UPDATES).put(KEY, SECRET)


@pytest.fixture(autouse=True)
def untouched(storage: LocalStorage, objects: None) -> Iterator[None]:
    yield
    assert storage.store(Role.AGGREGATOR, UPDATES).get(KEY) == SECRET


def test_it_listens_on_the_loopback_interface_alone_and_on_no_port_but_its_own(storage: LocalStorage) -> None:
    assert listening(storage.pid) == {("127.0.0.1", port) for port in astuple(storage.ports)}
    assert len(set(astuple(storage.ports))) == len(INNER) + 1


def test_its_unix_sockets_are_for_its_own_user_alone(storage: LocalStorage) -> None:
    paths = listening_paths(storage.pid)
    assert set(storage.ports.sockets) < paths
    for path in paths:
        assert stat.S_IMODE(path.stat().st_mode) == 0o700, path


# --- the S3 port


@pytest.mark.parametrize("path", PATHS)
def test_anonymous_gets_nothing_from_s3(storage: LocalStorage, path: str) -> None:
    for method, body in (("GET", None), ("HEAD", None), ("PUT", b"forged"), ("POST", b"forged"), ("DELETE", None)):
        status, answer = request(storage.port, method, path, body)
        if path == "/status" and method in ("GET", "HEAD"):  # says that it is alive
            assert (status, answer) == (200, b"")
        else:
            assert status in (400, 403, 404, 405)
            assert SECRET not in answer
            assert KEY in path or KEY.encode() not in answer  # it repeats what it was asked for


@pytest.mark.parametrize(
    "action", ["AssumeRole", "GetCallerIdentity", "GetFederationToken", "ListUsers", "CreateUser", "CreateAccessKey"]
)
def test_anonymous_gets_no_key_from_s3(storage: LocalStorage, action: str) -> None:
    form = f"Action={action}&UserName=mallory&RoleArn=arn:aws:iam::0:role/x&RoleSessionName=x&Version=2010-05-08".encode()
    for path in ("/", f"/?Action={action}"):
        status, answer = request(storage.port, "POST", path, form, {"Content-Type": "application/x-www-form-urlencoded"})
        assert status in (400, 403, 404, 405, 501)
        assert b"AccessKeyId" not in answer


# --- all the others


@each_certified_port
def test_plain_http_gets_nothing(storage: LocalStorage, name: str) -> None:
    for path in PATHS:
        for method in ("GET", "PUT", "POST", "DELETE"):
            assert turned_away(port(storage, name), method, path)


@each_inner_port
def test_grpc_without_tls_gets_nothing(storage: LocalStorage, name: str) -> None:
    assert not answers_http2(knock(port(storage, name)), HTTP2)


@each_inner_port
def test_tls_without_a_certificate_gets_nothing(storage: LocalStorage, name: str) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError)):
        over_tls(port(storage, name), context())


@each_inner_port
def test_tls_with_a_certificate_of_another_authority_gets_nothing(storage: LocalStorage, name: str, tmp_path: Path) -> None:
    write_certificates(tmp_path, "127.0.0.1")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        over_tls(port(storage, name), context(tmp_path))


@each_certified_port
def test_its_own_certificate_opens_the_door(storage: LocalStorage, name: str) -> None:
    """The knocks above would find something if a door stood open."""
    assert over_tls(port(storage, name), context(storage.log.parent / "config"))


def test_the_volumes_tell_no_more_than_that_they_are_there(storage: LocalStorage) -> None:
    for path in PATHS:
        for method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
            status, answer = request(storage.ports.volume, method, path, None if method in ("GET", "HEAD") else b"forged")
            assert status in (400, 401) or path == "/status"  # versions, sizes and numbers
            assert SECRET not in answer
            assert KEY.encode() not in answer


def test_who_knows_where_an_object_lies_in_the_volumes_gets_it_with_their_own_token_alone(storage: LocalStorage) -> None:
    written = tomllib.loads((storage.log.parent / "config" / "security.toml").read_text())["jwt"]
    places = list(places_in_volumes(storage.log.parent / "data"))
    reading = written["signing"]["read"]["key"]
    assert SECRET in [request(storage.ports.volume, "GET", *with_token(place, reading))[1] for place in places]
    for place in places:
        for key in (written["signing"]["key"], written["filer_signing"]["read"]["key"], secrets.token_urlsafe(32)):
            assert request(storage.ports.volume, "GET", *with_token(place, key))[0] == 401
        for method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
            assert request(storage.ports.volume, method, f"/{place}")[0] == 401


def test_unix_sockets_do_not_talk_without_a_certificate_either(storage: LocalStorage, tmp_path: Path) -> None:
    for path in storage.ports.sockets:
        assert not answers_http2(knock(path), HTTP2)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            exchange(context().wrap_socket(knock(path)))


def test_its_keys_are_in_files_for_its_own_user_alone(storage: LocalStorage) -> None:
    directory = storage.log.parent
    for kept in (directory, directory / "config", directory / "data", directory / "config" / "identities.json"):
        assert stat.S_IMODE(kept.stat().st_mode) & 0o077 == 0, kept


# --- knocking


def places_in_volumes(data: Path) -> Iterator[str]:
    """What each object's bytes are called in the volumes, read from their indexes and, for the cookie, from the volumes."""
    for index in data.glob("*.idx"):
        volume, content = index.stem.rpartition("_")[2], index.with_suffix(".dat").read_bytes()
        for number, low, high, _ in struct.iter_unpack(">QIBI", index.read_bytes()):
            (cookie,) = struct.unpack_from(">I", content, (low | high << 32) * 8)
            yield f"{volume},{number:x}{cookie:08x}"


def with_token(place: str, key: str) -> tuple[str, None, dict[str, str]]:
    """A path, no body, and headers with a token for it that `key` signs."""
    token = jwt.encode({"fid": place, "exp": int(time.time()) + 60}, key, "HS256")
    return f"/{place}", None, {"Authorization": f"Bearer {token}"}


def port(storage: LocalStorage, name: str) -> int:
    return int(getattr(storage.ports, name))


def request(
    port: int, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def turned_away(port: int, method: str, path: str) -> bool:
    """Whether a plain request ends with a closed connection, or with the word that this is a TLS port."""
    try:
        return request(port, method, path, b"forged") == (400, b"Client sent an HTTP request to an HTTPS server.\n")
    except (ConnectionError, http.client.BadStatusLine):
        return True


def knock(where: int | Path) -> socket.socket:
    if isinstance(where, int):
        return socket.create_connection(("127.0.0.1", where), timeout=10)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(10)
    connection.connect(str(where))
    return connection


def answers_http2(connection: socket.socket, greeting: bytes) -> bool:
    """Whether it answers with an HTTP/2 frame of settings, as a gRPC server does that lets one in."""
    with connection:
        connection.sendall(greeting)
        try:
            return connection.recv(64)[3:4] == b"\x04"
        except ConnectionError:
            return False


def context(certificates: Path | None = None) -> ssl.SSLContext:
    """A client that trusts anybody and speaks both HTTP/2 and HTTP/1.1, with the certificate of a directory or none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    if certificates is not None:
        context.load_cert_chain(certificates / "node.pem", certificates / "node-key.pem")
    return context


def over_tls(port: int, context: ssl.SSLContext) -> bytes:
    return exchange(context.wrap_socket(knock(port)))


def exchange(connection: ssl.SSLSocket) -> bytes:
    """Send a greeting, and give the first bytes of the answer; a TLS 1.3 server refuses a client only when it reads."""
    with connection:
        http2 = connection.selected_alpn_protocol() == "h2"
        connection.sendall(HTTP2 if http2 else b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n")
        return connection.recv(64)
