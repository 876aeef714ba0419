"""A Kubernetes API that a test plays: it answers what it is told to, and keeps what it was asked."""

import json
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

from fedlearn.adapters.kubernetes.connection import Connection, connect


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    query: Mapping[str, str]
    body: Any


@dataclass(frozen=True)
class Answer:
    """A status and a body; of `events` each is a line of a watch, and `stays` leaves it open after them."""

    status: int = 200
    body: Any = None
    events: Iterable[Any] = ()
    stays: bool = False


def failure(status: int, message: str) -> Answer:
    return Answer(status, {"kind": "Status", "status": "Failure", "message": message, "code": status})


class PlayedApi:
    """Answers in the order in which they were put in; the last one of a kind is given again and again."""

    def __init__(self, directory: Path) -> None:
        self.url = ""
        self.asked: list[Asked] = []
        self.changed = threading.Condition()
        self.end = threading.Event()
        self._answers: dict[tuple[str, str], deque[Answer]] = defaultdict(deque)
        self._kubeconfig = directory / "kubeconfig"

    def answer(self, kind: str, *answers: Answer) -> None:
        """Answers to a `kind` of request: a method and the path's last word, and `WATCH` for a watch."""
        method, _, word = kind.partition(" ")
        self._answers[method, word] = deque(answers)

    def take(self, asked: Asked) -> Answer:
        method = "WATCH" if "watch" in asked.query else asked.method
        with self.changed:
            self.asked.append(asked)
            self.changed.notify_all()
            answers = self._answers[method, asked.path.rstrip("/").rpartition("/")[2]]
            if not answers:
                return failure(404, f"nobody plays {method} {asked.path}")
            return answers.popleft() if len(answers) > 1 else answers[0]

    def of(self, method: str) -> list[Asked]:
        """What was asked by this method; `WATCH` for watches."""
        with self.changed:
            return [a for a in self.asked if ("WATCH" if "watch" in a.query else a.method) == method]

    def wait_for(self, condition: Callable[[], Any], seconds: float = 10.0) -> None:
        """Wait until a condition holds that requests bring about."""
        with self.changed:
            assert self.changed.wait_for(condition, seconds), [f"{a.method} {a.path} {dict(a.query)}" for a in self.asked]

    def kubeconfig(self, url: str = "", namespace: str = "fl") -> Path:
        context = {"cluster": "played", "user": "me", "namespace": namespace}
        config = {
            "current-context": "played",
            "clusters": [{"name": "played", "cluster": {"server": url or self.url}}],
            "contexts": [{"name": "played", "context": context}],
            "users": [{"name": "me", "user": {"token": "mine"}}],
        }
        self._kubeconfig.write_text(json.dumps(config))
        return self._kubeconfig


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    api: PlayedApi

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        length = int(self.headers.get("Content-Length", 0))
        body = json.loads(self.rfile.read(length)) if length else None
        answer = self.api.take(Asked(self.command, parts.path, dict(parse_qsl(parts.query)), body))
        if answer.events or answer.stays:
            self._stream(answer)
            return
        content = json.dumps(answer.body).encode()
        self.send_response(answer.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _stream(self, answer: Answer) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for event in answer.events:
            line = json.dumps(event).encode() + b"\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            self.wfile.flush()
        if answer.stays:
            self.api.end.wait(30)
        self.wfile.write(b"0\r\n\r\n")

    do_GET = do_POST = do_PUT = do_PATCH = _serve  # noqa: N815 - http.server's names

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Whoever hangs up in the middle of a watch does so on purpose."""


@contextmanager
def played_api(directory: Path) -> Iterator[PlayedApi]:
    with played(PlayedApi(directory)) as api:
        yield api


Played = TypeVar("Played", bound=PlayedApi)


@contextmanager
def played(api: Played) -> Iterator[Played]:
    """Serve this API."""
    with _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"api": api})) as server:
        api.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield api
        finally:
            api.end.set()
            server.shutdown()
            thread.join()


@contextmanager
def connected(api: PlayedApi, url: str = "") -> Iterator[Connection]:
    connection = connect(api.kubeconfig(url))
    try:
        yield connection
    finally:
        connection.close()
