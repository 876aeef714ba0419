import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog
import urllib3

from fedlearn.telemetry.logs import about, log, set_up_logs


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root, levels = logging.getLogger(), {name: logging.getLogger(name).level for name in ("", "urllib3", "httpx")}
    handlers = root.handlers[:]
    stream = io.StringIO()
    set_up_logs("device", stream=stream)
    yield stream
    structlog.reset_defaults()
    root.handlers[:] = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_says_what_it_is_about(stream: io.StringIO) -> None:
    with about(round="mnist/3", device="fedlearn-device-0/2"):
        log("fedlearn.test").info("trained", seconds=0.25)
    log("fedlearn.test").warning("later")
    first, second = lines(stream)
    assert {
        "service": "device",
        "round": "mnist/3",
        "device": "fedlearn-device-0/2",
        "event": "trained",
    }.items() <= first.items()
    assert (first["level"], first["seconds"], second["level"]) == ("info", 0.25, "warning")
    assert str(first["time"]).endswith("Z")
    assert "round" not in second


def test_a_failure_is_one_line_too(stream: io.StringIO) -> None:
    try:
        raise ValueError("wrong")
    except ValueError:
        log("fedlearn.test").exception("failed")
    (line,) = lines(stream)
    assert "ValueError: wrong" in str(line["exception"])


def test_libraries_log_in_the_same_form(stream: io.StringIO) -> None:
    logging.getLogger("uvicorn.error").info("Started")
    logging.getLogger("httpx").info("HTTP Request")
    assert [(line["event"], line["logger"]) for line in lines(stream)] == [("Started", "uvicorn.error")]


def test_no_library_logs_a_signed_url(stream: io.StringIO) -> None:
    pool = urllib3.PoolManager(retries=urllib3.Retry(total=1, backoff_factor=0))
    with pytest.raises(urllib3.exceptions.HTTPError):
        pool.request("PUT", "http://127.0.0.1:9/bucket/key?X-Amz-Signature=s")
    assert "X-Amz-Signature" not in stream.getvalue()
