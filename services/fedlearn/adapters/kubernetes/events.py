"""Kubernetes Events about one pod, so that `kubectl get events` tells what happens. They are news, kept for an hour or so."""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from http import HTTPStatus

from kubernetes.client import ApiClient, EventsV1Api, EventsV1Event, V1ObjectMeta, V1ObjectReference
from kubernetes.client.exceptions import ApiException

from fedlearn.adapters.kubernetes.connection import CALL_SECONDS, asking
from fedlearn.core.errors import Code, FedlearnError, Outage
from fedlearn.telemetry.logs import log

_log = log(__name__)
_CONTROLLER = "fedlearn.server"
_LONGEST_NOTE = 1024  # what the API takes
_QUEUED = 100
_BURST, _SECONDS_AN_EVENT = 50, 2.0
_PAUSES_SECONDS = (1.0, 5.0, 15.0)
_STOP_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Happening:
    """What an Event says.

    Args:
        name: tells this happening from all others of the namespace, and is the same whoever reports it, and however often.
        reason, action: one word each, `LikeThis`: what has happened, and what was done.
        note: a sentence.
        at: seconds since the epoch, UTC.
    """

    name: str
    reason: str
    action: str
    note: str
    at: float
    warning: bool = False


class EventRecorder:
    """Writes Events in a thread of its own; its account needs `create` on `events.events.k8s.io` in the namespace.

    Nothing waits for it, and nothing fails with it: what can't be written is logged and let go. After a burst of 50 it writes
    one in two seconds at most, and says how many it has left out, as a cluster keeps them all for a while.

    Args:
        regarding: the pod that the Events are of, as (name, UID).
        statefulset: what they are related to.
        clock: any clock, in seconds.
    """

    def __init__(
        self,
        api: ApiClient,
        namespace: str,
        regarding: tuple[str, str],
        statefulset: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._events, self._namespace, self._clock = EventsV1Api(api), namespace, clock
        pod, uid = regarding
        self._pod = pod
        self._regarding = V1ObjectReference(api_version="v1", kind="Pod", namespace=namespace, name=pod, uid=uid)
        self._related = V1ObjectReference(api_version="apps/v1", kind="StatefulSet", namespace=namespace, name=statefulset)
        self._queue: queue.SimpleQueue[Happening | None] = queue.SimpleQueue()
        self._allowed, self._counted_at, self._left_out = float(_BURST), clock(), 0
        self._stopping, self._late = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)
        self._trouble: Code | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Write what waits, for two seconds at most, and let the rest go."""
        self._stopping.set()
        self._queue.put(None)
        self._thread.join(_STOP_SECONDS)
        self._late.set()

    def record(self, happening: Happening) -> None:
        """Hand in an Event; returns at once. Call it from one thread."""
        now = self._clock()
        self._allowed = min(self._allowed + (now - self._counted_at) / _SECONDS_AN_EVENT, _BURST)
        self._counted_at = now
        if self._allowed < 1 or self._queue.qsize() >= _QUEUED:
            self._left_out += 1
            return
        if self._left_out:
            happening = replace(happening, note=f"{happening.note} (Before it, {self._left_out} others were not told.)")
        self._queue.put(happening)
        self._allowed, self._left_out = self._allowed - 1, 0

    # --- in the thread

    def _run(self) -> None:
        while (happening := self._queue.get()) is not None and not self._late.is_set():
            try:
                self._persist(happening)
            except FedlearnError as error:
                if error.code is not self._trouble:
                    _log.warning("events are not written", code=error.code, detail=error.detail, first=happening.name)
                self._trouble = error.code
            except Exception:
                _log.exception("an event is not written", name=happening.name)
            else:
                self._trouble = None

    def _persist(self, happening: Happening) -> None:
        for pause in _PAUSES_SECONDS:
            try:
                self._write(happening)
            except Outage:
                if self._stopping.wait(pause):
                    break
            else:
                return
        self._write(happening)

    def _write(self, happening: Happening) -> None:
        event = EventsV1Event(
            metadata=V1ObjectMeta(name=happening.name, namespace=self._namespace),
            event_time=micro_time(happening.at),
            reporting_controller=_CONTROLLER,
            reporting_instance=self._pod,
            action=happening.action,
            reason=happening.reason,
            regarding=self._regarding,
            related=self._related,
            note=happening.note[:_LONGEST_NOTE],
            type="Warning" if happening.warning else "Normal",
        )
        with asking("to create an event"):
            try:
                self._events.create_namespaced_event(self._namespace, event, _request_timeout=CALL_SECONDS)
            except ApiException as error:
                if error.status != HTTPStatus.CONFLICT:  # a conflict: it has been told already
                    raise


def micro_time(seconds: float) -> datetime:
    """A time as the API wants it: it refuses one without a fraction, which the client leaves out when it is zero."""
    at = datetime.fromtimestamp(seconds, UTC)
    return at if at.microsecond else at.replace(microsecond=1)
