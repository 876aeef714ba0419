import hashlib
import http.server
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fedlearn.adapters import transfer
from fedlearn.adapters.transfer import SignedTransfer
from fedlearn.core.errors import Code, FedlearnError, Outage, Refusal
from fedlearn.core.ports import UploadGrant

BODY = b"what one device has learnt" * 1000
SHA256 = hashlib.sha256(BODY).hexdigest()


class Storage:
    """Answers requests in turn as a test says, then with success and BODY; keeps what came."""

    def __init__(self) -> None:
        self.answers: list[int] = []
        self.came: list[tuple[str, bytes, dict[str, str]]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                outer.came.append((self.command, body, {name.lower(): value for name, value in self.headers.items()}))
                status = outer.answers.pop(0) if outer.answers else 200
                self.send_response(status)
                payload = BODY if status == 200 and self.command == "GET" else b""
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            do_GET = do_PUT = _answer  # noqa: N815

            def log_message(self, *_: Any) -> None:
                return

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/bucket/key?X-Amz-Signature=s"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def storage() -> Iterator[Storage]:
    storage = Storage()
    yield storage
    storage.close()


@pytest.fixture
def signed(monkeypatch: pytest.MonkeyPatch) -> Iterator[SignedTransfer]:
    monkeypatch.setattr(transfer, "_RETRIES", transfer._RETRIES.new(total=3, backoff_factor=0.01, backoff_jitter=0))
    signed = SignedTransfer()
    yield signed
    signed._pool.clear()


def error_of(call: Callable[[], Any]) -> FedlearnError:
    with pytest.raises(FedlearnError) as caught:
        call()
    return caught.value


def test_an_object_is_fetched_and_checked(storage: Storage, signed: SignedTransfer) -> None:
    assert signed.fetch(storage.url, sha256=SHA256, size_bytes=len(BODY)) == BODY
    for wrong in ({"sha256": "0" * 64, "size_bytes": len(BODY)}, {"sha256": SHA256, "size_bytes": 1}):
        assert error_of(lambda given=wrong: signed.fetch(storage.url, **given)).code is Code.MODEL_MISMATCH


def test_an_object_is_stored_with_the_headers_of_its_grant(storage: Storage, signed: SignedTransfer) -> None:
    signed.store(UploadGrant(storage.url, {"If-None-Match": "*", "x-amz-checksum-sha256": "abc"}), BODY)
    ((method, body, headers),) = storage.came
    assert (method, body) == ("PUT", BODY)
    assert (headers["if-none-match"], headers["x-amz-checksum-sha256"]) == ("*", "abc")


def test_finding_the_object_there_already_is_success(storage: Storage, signed: SignedTransfer) -> None:
    storage.answers = [412]
    signed.store(UploadGrant(storage.url, {}), BODY)
    assert len(storage.came) == 1


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_passing_trouble_is_waited_out(storage: Storage, signed: SignedTransfer, status: int) -> None:
    storage.answers = [status, status]
    signed.store(UploadGrant(storage.url, {}), BODY)
    assert [body for _, body, _ in storage.came] == [BODY] * 3


def test_a_lasting_trouble_is_an_outage(storage: Storage, signed: SignedTransfer) -> None:
    storage.answers = [503] * 10
    error = error_of(lambda: signed.store(UploadGrant(storage.url, {}), BODY))
    assert isinstance(error, Outage)
    assert error.code is Code.STORAGE_UNAVAILABLE
    assert len(storage.came) == 4


def test_a_storage_that_is_not_there_is_an_outage(signed: SignedTransfer) -> None:
    error = error_of(lambda: signed.fetch("http://127.0.0.1:9/bucket/key", sha256=SHA256, size_bytes=1))
    assert (type(error), error.code) == (Outage, Code.STORAGE_UNAVAILABLE)
    assert "X-Amz" not in error.detail


@pytest.mark.parametrize(("status", "code"), [(400, Code.FORBIDDEN), (403, Code.FORBIDDEN), (404, Code.NOT_FOUND)])
def test_a_url_that_is_not_valid_any_more_is_a_refusal_at_once(
    storage: Storage, signed: SignedTransfer, status: int, code: Code
) -> None:
    storage.answers = [status]
    error = error_of(lambda: signed.fetch(storage.url, sha256=SHA256, size_bytes=len(BODY)))
    assert (type(error), error.code) == (Refusal, code)
    assert len(storage.came) == 1


def test_a_signed_url_is_in_no_error(storage: Storage, signed: SignedTransfer) -> None:
    storage.close()
    error = error_of(lambda: signed.store(UploadGrant(storage.url, {}), BODY))
    assert "X-Amz-Signature" not in str(error)
    assert "127.0.0.1" in str(error)
