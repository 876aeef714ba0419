"""How the S3 adapter takes a storage's odd answers, which a scripted server gives here."""

import base64
import hashlib
import http.server
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.credentials import RefreshableCredentials
from botocore.exceptions import ClientError, ConnectTimeoutError, CredentialRetrievalError

from fedlearn.adapters.objects import S3ObjectStore, object_store
from fedlearn.adapters.s3 import S3Settings
from fedlearn.config import StorageSettings
from fedlearn.core.errors import Code, FedlearnError, Outage, Refusal


@dataclass(frozen=True)
class Answer:
    """One scripted answer; `length` may promise more than `body` gives, and status 0 closes the connection without a word."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    length: int | None = None


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class Storage:
    """Gives one answer after another, the last for ever; an answer may depend on the requests so far."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.connections = 0
        self.script: list[Answer | Callable[[list[Request]], Answer]] = []
        storage = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                storage.connections += 1
                super().setup()

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                storage.requests.append(Request(self.command, self.path, headers, body))
                step = storage.script.pop(0) if len(storage.script) > 1 else storage.script[0]
                answer = step if isinstance(step, Answer) else step(storage.requests)
                if answer.status:
                    self.send_response(answer.status)
                    for name, value in answer.headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(answer.body) if answer.length is None else answer.length))
                    self.end_headers()
                    if self.command != "HEAD":
                        self.wfile.write(answer.body)
                self.close_connection = not answer.status or answer.length is not None

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _answer  # noqa: N815 - the names that http.server calls

            def log_message(self, *_: Any) -> None:
                """Tests tell by their results."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def store(self, patience_seconds: float = 10.0, **settings: Any) -> S3ObjectStore:
        given = {"endpoint_url": self.url, "access_key": "key", "secret_key": "secret", **settings}
        return S3ObjectStore("bucket", S3Settings(**given), patience_seconds=patience_seconds)


@pytest.fixture
def storage() -> Iterator[Storage]:
    storage = Storage()
    yield storage
    storage.close()


def error(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>Scripted.</Message></Error>".encode()


def refusal_of(call: Callable[[], Any]) -> FedlearnError:
    with pytest.raises(FedlearnError) as refused:
        call()
    return refused.value


# --- what passes


@pytest.mark.parametrize(
    "trouble",
    [
        pytest.param(Answer(503, error("SlowDown")), id="slow down"),
        pytest.param(Answer(500, error("InternalError")), id="internal error"),
        pytest.param(Answer(502, b"<html>no XML"), id="a proxy's page"),
        pytest.param(Answer(429, error("TooManyRequests")), id="too many requests"),
        pytest.param(Answer(400, error("RequestTimeout")), id="request timeout"),
        pytest.param(Answer(400, error("IDPCommunicationError")), id="a token that could not be checked now"),
        pytest.param(Answer(0), id="a closed connection"),
        pytest.param(Answer(200, b"bod", length=4), id="half an answer"),
    ],
)
def test_a_passing_trouble_is_waited_out(storage: Storage, trouble: Answer) -> None:
    storage.script = [trouble, trouble, Answer(200, b"body")]
    assert storage.store().get("key") == b"body"
    assert len(storage.requests) == 3


def test_a_lasting_trouble_is_an_outage_once_the_patience_is_over(storage: Storage) -> None:
    storage.script = [Answer(503, error("SlowDown"))]
    outage = refusal_of(lambda: storage.store(patience_seconds=0.3).get("key"))
    assert isinstance(outage, Outage)
    assert outage.code is Code.STORAGE_UNAVAILABLE
    assert len(storage.requests) > 2


def test_what_was_digested_before_is_put_by_a_signed_url_and_else_by_boto3_which_sends_the_digest_too(storage: Storage) -> None:
    sha256, checksum = hashlib.sha256(b"body").hexdigest(), base64.b64encode(hashlib.sha256(b"body").digest()).decode()
    storage.script = [Answer(200)]
    storage.store().put("key", b"body", sha256=sha256)
    storage.script = [Answer(500), Answer(200)]
    storage.store().put("key", b"body", sha256=sha256)
    assert ["X-Amz-Signature" in request.path for request in storage.requests] == [True, True, False]
    assert [request.body for request in storage.requests] == [b"body"] * 3
    assert {request.headers["x-amz-checksum-sha256"] for request in storage.requests} == {checksum}


# --- what does not


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        pytest.param(Answer(404, error("NoSuchKey")), Code.NOT_FOUND, id="no such key"),
        pytest.param(Answer(403, error("AccessDenied")), Code.STORAGE_DENIED, id="access denied"),
        pytest.param(Answer(403, error("SignatureDoesNotMatch")), Code.STORAGE_DENIED, id="a wrong secret"),
        pytest.param(Answer(403, error("InvalidAccessKeyId")), Code.STORAGE_DENIED, id="an unknown key"),
        pytest.param(Answer(400, error("InvalidRequest")), Code.BAD_REQUEST, id="a wrong request"),
    ],
)
def test_a_decision_of_the_storage_is_a_refusal_at_once(storage: Storage, answer: Answer, code: Code) -> None:
    storage.script = [answer]
    refusal = refusal_of(lambda: storage.store().get("key"))
    assert isinstance(refusal, Refusal)
    assert refusal.code is code
    assert len(storage.requests) == 1


@pytest.mark.parametrize("body", [pytest.param(error("NoSuchBucket"), id="said"), pytest.param(b"", id="a bare 404")])
def test_a_bucket_that_is_not_made_yet_is_an_outage(storage: Storage, body: bytes) -> None:
    storage.script = [Answer(404, body)]
    for call in (lambda: storage.store().get("key"), lambda: storage.store().list(""), lambda: storage.store().put("key", b"")):
        outage = refusal_of(call)
        assert isinstance(outage, Outage)
        assert outage.code is Code.STORAGE_UNAVAILABLE


@pytest.mark.parametrize(("status", "connections"), [(200, 1), (404, 2)])
def test_who_has_no_such_bucket_is_connected_to_anew_for_it_may_not_be_the_storage(
    storage: Storage, status: int, connections: int
) -> None:
    store = storage.store()
    storage.script = [Answer(status), Answer(200)]
    if status == 200:
        store.put("key", b"")
    else:
        assert isinstance(refusal_of(lambda: store.put("key", b"")), Outage)
    store.put("key", b"")
    assert storage.connections == connections


def test_a_size_that_may_not_be_asked_for_is_not_taken_for_a_missing_object(storage: Storage) -> None:
    storage.script = [Answer(403)]
    assert refusal_of(lambda: storage.store().size("key")).code is Code.STORAGE_DENIED


def test_without_any_credential_the_calls_are_refused(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    storage.script = [Answer(200)]
    store = storage.store(access_key=None, secret_key=None)
    for call in (lambda: store.get("key"), lambda: store.sign_get("key", seconds=60)):
        refusal = refusal_of(call)
        assert (type(refusal), refusal.code) == (Refusal, Code.STORAGE_DENIED)
    assert storage.requests == []


def said(status: int, code: str) -> ClientError:
    details: Any = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(details, "AssumeRoleWithWebIdentity")


@pytest.mark.parametrize(
    ("trouble", "kind", "code"),
    [
        pytest.param(
            CredentialRetrievalError(provider="a test", error_msg="none came"), Outage, Code.STORAGE_UNAVAILABLE, id="retrieval"
        ),
        pytest.param(ConnectTimeoutError(endpoint_url="https://sts"), Outage, Code.STORAGE_UNAVAILABLE, id="no connection"),
        pytest.param(said(503, "ServiceUnavailable"), Outage, Code.STORAGE_UNAVAILABLE, id="a pause"),
        pytest.param(said(403, "AccessDenied"), Refusal, Code.STORAGE_DENIED, id="refused"),
    ],
)
def test_what_keeps_a_credential_from_its_renewal_is_told_by_whether_it_passes(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, trouble: Exception, kind: type[FedlearnError], code: Code
) -> None:
    def renew() -> dict[str, str]:
        raise trouble

    over = datetime.now(UTC)
    passing = RefreshableCredentials("key", "secret", "token", over, refresh_using=renew, method="a test")
    monkeypatch.setattr("fedlearn.adapters.s3._session.get_credentials", lambda: passing)
    store = storage.store(access_key=None, secret_key=None)
    for call in (
        lambda: store.sign_get("key", seconds=60),
        lambda: store.sign_put("key", size_bytes=1, sha256="0" * 64, seconds=60),
    ):
        found = refusal_of(call)
        assert (type(found), found.code) == (kind, code)


@pytest.mark.parametrize(
    ("reason", "requests", "code"),
    [("AccessDenied", 1, Code.STORAGE_DENIED), ("InternalError", 3, None)],
    ids=["refused", "passing"],
)
def test_a_key_that_is_not_deleted_is_not_passed_over(storage: Storage, reason: str, requests: int, code: Code | None) -> None:
    fault = f"<DeleteResult><Error><Key>key</Key><Code>{reason}</Code></Error></DeleteResult>".encode()
    storage.script = [Answer(200, fault), Answer(200, fault), Answer(200, b"<DeleteResult></DeleteResult>")]
    if code is None:
        storage.store().delete(["key"])
    else:
        assert refusal_of(lambda: storage.store().delete(["key"])).code is code
    assert len(storage.requests) == requests


# --- writing once, when the answer to the first attempt is lost


def writer_of(request: Request) -> str:
    return request.headers["x-amz-meta-writer"]


@pytest.mark.parametrize("ours", [True, False], ids=["it had written", "somebody else had"])
def test_a_lost_answer_does_not_hide_who_wrote(storage: Storage, ours: bool) -> None:
    storage.script = [
        Answer(0),
        Answer(412, error("PreconditionFailed")),
        lambda requests: Answer(200, headers={"x-amz-meta-writer": writer_of(requests[0]) if ours else "somebody"}),
    ]
    assert storage.store().put_once("key", b"body") is ours
    first, second, look = storage.requests
    assert (first.method, second.method, look.method) == ("PUT", "PUT", "HEAD")
    assert writer_of(first) == writer_of(second)
    assert first.headers["if-none-match"] == "*"


def test_a_taken_key_is_told_by_who_has_written_it(storage: Storage) -> None:
    taken = Answer(412, error("PreconditionFailed"))
    storage.script = [taken, taken, Answer(200, headers={"x-amz-meta-writer": "another"})]
    assert not storage.store().put_once("key", b"body")
    assert [request.method for request in storage.requests] == ["PUT", "PUT", "HEAD"]


@pytest.mark.parametrize("ours", [True, False], ids=["it had joined them", "it had not"])
def test_a_lost_answer_does_not_hide_that_the_parts_of_a_large_object_are_joined(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, ours: bool
) -> None:
    monkeypatch.setattr("fedlearn.adapters.objects.SINGLE_BYTES", 3)
    digest = hashlib.sha256(hashlib.sha256(b"body").digest()).digest()
    lies_there = {"x-amz-checksum-sha256": f"{base64.b64encode(digest).decode()}-1"}
    storage.script = [
        Answer(200, b"<InitiateMultipartUploadResult><UploadId>id</UploadId></InitiateMultipartUploadResult>"),
        Answer(200, headers={"ETag": "tag"}),
        Answer(0),
        Answer(404, error("NoSuchUpload")),
        Answer(200, headers=lies_there if ours else {}),
        Answer(204),
    ]
    if ours:
        storage.store().put("key", b"body")
    else:
        assert refusal_of(lambda: storage.store().put("key", b"body")).code is Code.STORAGE_UNAVAILABLE
    methods = ["POST", "PUT", "POST", "POST", "HEAD", *([] if ours else ["DELETE"])]
    assert [request.method for request in storage.requests] == methods


# --- what is sent


def test_a_body_is_sent_as_it_is_and_bound_by_the_signature(storage: Storage) -> None:
    storage.script = [Answer(200)]
    storage.store().put("key", b"body")
    (request,) = storage.requests
    assert request.path == "/bucket/key"
    assert request.body == b"body"
    assert re.fullmatch("[0-9a-f]{64}", request.headers["x-amz-content-sha256"])
    assert not [name for name in request.headers if name.startswith("x-amz-checksum")]


def test_urls_are_signed_for_the_address_that_others_see(storage: Storage) -> None:
    storage.script = [Answer(200, b"body")]
    store = storage.store(public_endpoint_url="http://storage.example:8333")
    assert store.get("key") == b"body"
    for url in (store.sign_get("a/key", seconds=60), store.sign_put("a/key", size_bytes=1, sha256="0" * 64, seconds=60).url):
        assert urlsplit(url)[:3] == ("http", "storage.example:8333", "/bucket/a/key")


def test_settings_of_a_service_make_a_store(storage: Storage) -> None:
    storage.script = [Answer(200, b"body")]
    settings = StorageSettings.model_validate({"endpoint_url": storage.url, "access_key": "key", "secret_key": "secret"})
    assert object_store(settings, "models").get("key") == b"body"
    assert storage.requests[0].path == "/models/key"
    assert "Credential=key/" in storage.requests[0].headers["authorization"]


def test_a_secret_does_not_show() -> None:
    assert "hidden" not in repr(S3Settings("http://localhost", access_key="key", secret_key="hidden"))


# --- reading piece by piece


def ranged(body: bytes) -> Callable[[list[Request]], Answer]:
    """What a storage that has `body` answers to a GET, of a range or of all of it."""

    def answer(requests: list[Request]) -> Answer:
        if (asked := requests[-1].headers.get("range")) is None:
            return Answer(200, body)
        first, last = map(int, asked.removeprefix("bytes=").split("-"))
        return Answer(206, body[first : last + 1])

    return answer


def pieces(store: S3ObjectStore, *lengths: int) -> list[bytes]:
    with store.reading("key") as source:
        taken = [bytearray(length) for length in lengths]
        for piece in taken:
            source.fill(memoryview(piece))
    return [bytes(piece) for piece in taken]


def test_the_pieces_of_an_object_come_by_one_request_and_its_connection_serves_again(storage: Storage) -> None:
    storage.script = [ranged(b"0123456789")]
    store = storage.store()
    assert pieces(store, 3, 7) == [b"012", b"3456789"]
    assert pieces(store, 10) == [b"0123456789"]
    assert [request.headers.get("range") for request in storage.requests] == [None, None]
    assert storage.connections == 1


def test_a_connection_on_which_bytes_are_left_does_not_serve_again(storage: Storage) -> None:
    storage.script = [ranged(b"0123456789")]
    store = storage.store()
    assert pieces(store, 3) == [b"012"]
    assert pieces(store, 10) == [b"0123456789"]
    assert storage.connections == 2


def test_where_the_connection_breaks_the_rest_comes_in_ranges(storage: Storage) -> None:
    storage.script = [Answer(200, b"01234", length=10), ranged(b"0123456789")]
    assert pieces(storage.store(), 3, 4, 3) == [b"012", b"3456", b"789"]
    assert [request.headers.get("range") for request in storage.requests] == [None, "bytes=3-6", "bytes=7-9"]


def test_an_object_that_is_gone_in_the_middle_is_told(storage: Storage) -> None:
    storage.script = [Answer(200, b"01234", length=10), Answer(404, error("NoSuchKey"))]
    assert refusal_of(lambda: pieces(storage.store(), 3, 4)).code is Code.NOT_FOUND


def test_an_outage_at_the_first_byte_is_waited_out(storage: Storage) -> None:
    storage.script = [Answer(503), Answer(503), Answer(200, b"0123")]
    assert pieces(storage.store(), 2, 2) == [b"01", b"23"]
