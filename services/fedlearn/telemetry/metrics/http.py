"""Every service's own API."""

from collections.abc import Iterable
from enum import StrEnum

from prometheus_client import Histogram

from fedlearn.telemetry.metrics.buckets import CALL_SECONDS


class Status(StrEnum):
    """The class of an answer. A refusal is the caller's fault or a decision, a failure is ours."""

    DONE = "2xx"
    REFUSED = "4xx"
    FAILED = "5xx"


NO_ROUTE = "none"
REQUEST_SECONDS = Histogram(
    "fedlearn_http_request_seconds",
    "Answering a request, by the route's template and the answer's class; some routes hold a request until there is news.",
    ["route", "status"],
    buckets=CALL_SECONDS,
)


def prepare(routes: Iterable[str]) -> None:
    """Let the series of these routes, and of requests for none of them, exist."""
    for route in (*routes, NO_ROUTE):
        for status in Status:
            REQUEST_SECONDS.labels(route, status)


def observe(route: str, status: int, seconds: float) -> None:
    """Count an answered request."""
    kind = Status.FAILED if status >= 500 else Status.REFUSED if status >= 400 else Status.DONE
    REQUEST_SECONDS.labels(route, kind).observe(seconds)
