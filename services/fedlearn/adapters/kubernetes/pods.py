"""The pods of a selector as the cluster sees them: listed once, then followed by a watch, in a thread of its own.

The client brings a `SharedInformer`, which does not wait before it tries a cluster that is away again, and waits for ever for
one that has gone without a goodbye; hence the loop here, around the client's own `Watch`.
"""

import random
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from kubernetes.client import ApiClient
from kubernetes.client.exceptions import ApiException
from kubernetes.watch import Watch
from pydantic import BaseModel, Field

from fedlearn.adapters.kubernetes.connection import CALL_SECONDS, asking
from fedlearn.core.errors import Code, FedlearnError, Outage
from fedlearn.core.pods import Pod, PodState
from fedlearn.telemetry.logs import log

if TYPE_CHECKING:
    from kubernetes.client import CoreV1Api

_log = log(__name__)
_WATCH_SECONDS = 120
"""How long one watch lasts; the next goes on where it ended."""
_SILENCE_SECONDS = 15.0
"""A watch that outlasts its time by more than this has lost its cluster."""
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 30.0
_STOP_SECONDS = 2.0
_make_watch: Callable[..., Any] = Watch  # this part of the client is not typed


class PodWatch:
    """Follows pods until it is stopped; its account needs `list` and `watch` on pods of the namespace.

    While the cluster is away, what was seen last stays, and it is asked again with growing pauses.

    Args:
        selector: the labels of the pods, as `kubectl get pods --selector` takes them.
        on_change: called in the watch's thread when `pods` or `watching` has changed.
    """

    def __init__(self, api: ApiClient, namespace: str, selector: str, on_change: Callable[[], None] = lambda: None) -> None:
        self._api, self._namespace, self._selector, self._on_change = api, namespace, selector, on_change
        self._version: str | None = None  # of the cluster's state that `pods` shows
        self._answer: Any = None  # of the watch that is open
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pod watch", daemon=True)
        self._trouble_is_told = False
        self.watching = False
        """Whether what it knows is current."""
        self.pods: Mapping[str, Pod] = {}
        """By name; each change puts a new mapping in the place of the old one."""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._hang_up()
        self._thread.join(_STOP_SECONDS)

    def _hang_up(self) -> None:
        """Wake the thread from a watch in which nothing happens."""
        connection = None if self._answer is None else self._answer.connection
        if connection is not None and connection.sock is not None:
            with suppress(OSError):  # it has ended by itself
                connection.sock.shutdown(socket.SHUT_RDWR)

    # --- in the thread

    def _run(self) -> None:
        from kubernetes.client import CoreV1Api  # noqa: PLC0415 - the client's largest part: up to a second, in this thread

        core, pause = CoreV1Api(self._api), _FIRST_PAUSE_SECONDS
        while not self._stopping.is_set():
            try:
                if self._version is None:
                    self._list(core)
                self._follow(core)
                pause = _FIRST_PAUSE_SECONDS
            except FedlearnError as error:
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
                self._lose(error)
            except Exception as error:
                self._version, pause = None, _LONGEST_PAUSE_SECONDS
                self._lose(Outage(Code.INTERNAL, repr(error)), error)
            self._stopping.wait(pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads retries, protects nothing

    def _list(self, core: "CoreV1Api") -> None:
        with asking("to list pods"):
            answer: Any = core.list_namespaced_pod(
                self._namespace, label_selector=self._selector, _preload_content=False, _request_timeout=CALL_SECONDS
            )
            found = _List.model_validate_json(answer.data)
        self.pods = {item.metadata.name: item.pod() for item in found.items}
        self._version = found.metadata.resource_version
        self._on_change()

    def _follow(self, core: "CoreV1Api") -> None:
        watch = _make_watch(return_type="object")
        with asking("to watch pods"):
            for event in self._events(core, watch):
                self._see(event["type"], event["object"])
                self._version = watch.resource_version

    def _events(self, core: "CoreV1Api", watch: Any) -> Iterator[Mapping[str, Any]]:
        def opened(**given: Any) -> Any:
            answer = core.list_namespaced_pod(self._namespace, label_selector=self._selector, **given)
            self._answer = answer
            if self._stopping.is_set():  # `stop` may have come too early to find it
                self._hang_up()
            self._find()
            return answer

        try:
            yield from watch.stream(
                opened,
                resource_version=self._version,
                allow_watch_bookmarks=True,
                timeout_seconds=_WATCH_SECONDS,
                _request_timeout=(CALL_SECONDS[0], _WATCH_SECONDS + _SILENCE_SECONDS),
            )
        except ApiException as error:
            if error.status != HTTPStatus.GONE:
                raise
            _log.info("the cluster has forgotten where the watch stood: its pods are listed again")
            self._version = None

    def _see(self, kind: str, seen: Any) -> None:
        if kind == "BOOKMARK":  # nothing but the version of a quiet time
            return
        pod, pods = _Item.model_validate(seen).pod(), dict(self.pods)
        if kind != "DELETED":
            pods[pod.name] = pod
        else:
            pods.pop(pod.name, None)
        if pods != self.pods:
            self.pods = pods
            self._on_change()

    def _find(self) -> None:
        if not self.watching:
            self.watching, self._trouble_is_told = True, False
            _log.info("the cluster's pods are watched", namespace=self._namespace, pods=len(self.pods))
            self._on_change()

    def _lose(self, error: FedlearnError, unforeseen: Exception | None = None) -> None:
        if self._stopping.is_set():
            return
        if not self._trouble_is_told:
            self._trouble_is_told = True
            _log.warning("the cluster's pods are not seen", code=error.code, detail=error.detail, exc_info=unforeseen)
        if self.watching:
            self.watching = False
            self._on_change()


class _Metadata(BaseModel):
    name: str
    uid: str
    deletion_timestamp: str | None = Field(None, alias="deletionTimestamp")


class _Spec(BaseModel):
    node_name: str | None = Field(None, alias="nodeName")


class _Condition(BaseModel):
    type: str
    status: str


class _Status(BaseModel):
    phase: str = "Pending"
    conditions: list[_Condition] = []


class _Item(BaseModel):
    """What matters of a pod here; the client's own model takes three times as long to read."""

    metadata: _Metadata
    spec: _Spec
    status: _Status = _Status()

    def pod(self) -> Pod:
        return Pod(self.metadata.name, self.metadata.uid, self._state(), self.spec.node_name)

    def _state(self) -> PodState:
        if self.metadata.deletion_timestamp is not None:
            return PodState.TERMINATING
        if self.status.phase != "Running":
            return _PHASES.get(self.status.phase, PodState.UNKNOWN)
        ready = any(condition.type == "Ready" and condition.status == "True" for condition in self.status.conditions)
        return PodState.READY if ready else PodState.RUNNING


_PHASES = {"Pending": PodState.PENDING, "Succeeded": PodState.ENDED, "Failed": PodState.ENDED}


class _ListMetadata(BaseModel):
    resource_version: str = Field(alias="resourceVersion")


class _List(BaseModel):
    metadata: _ListMetadata
    items: list[_Item]
