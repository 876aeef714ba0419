"""`core.replicas.LeaderLock` in a cluster: a Lease, as Kubernetes' own controllers use it."""

import time
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus

from kubernetes.client import ApiClient, CoordinationV1Api, V1Lease, V1LeaseSpec, V1ObjectMeta
from kubernetes.client.exceptions import ApiException

from fedlearn.adapters.kubernetes.connection import asking
from fedlearn.adapters.kubernetes.events import micro_time
from fedlearn.core.errors import FedlearnError

_CALL_SECONDS = (2.0, 3.0)  # to connect, and for an answer: less than a lease


class LeaseLock:
    """Its account needs `create` on `leases`, and `get` and `update` on this one. Use it from one thread.

    No two machines' clocks are compared: a candidate takes a Lease that it has seen unchanged for as long as the Lease says.

    Args:
        holder: this replica's name, which no other has: its pod's.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        api: ApiClient,
        namespace: str,
        name: str,
        holder: str,
        *,
        lease_seconds: int = 8,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._leases, self._namespace, self._name, self._holder = CoordinationV1Api(api), namespace, name, holder
        self.lease_seconds, self._clock = float(lease_seconds), clock
        self._seen: tuple[str, float] = "", 0.0  # the Lease's revision, and since when it has been that

    def hold(self) -> bool:
        # a second look, since a renewal whose answer was lost is repeated, and refused
        return self._try() or self._try()

    def _try(self) -> bool:
        lease = self._read()
        if lease is None:
            return self._write(V1LeaseSpec(lease_transitions=0), None)
        assert lease.metadata is not None
        spec, revision = lease.spec or V1LeaseSpec(), lease.metadata.resource_version or ""
        if revision != self._seen[0]:
            self._seen = revision, self._clock()
        unchanged_seconds = self._clock() - self._seen[1]
        if spec.holder_identity not in (None, "", self._holder) and unchanged_seconds < (spec.lease_duration_seconds or 0):
            return False
        return self._write(spec, revision)

    def release(self) -> None:
        with suppress(FedlearnError):
            lease = self._read()
            if lease is not None and lease.spec is not None and lease.spec.holder_identity == self._holder:
                lease.spec.holder_identity = ""
                lease.spec.lease_duration_seconds = 1
                self._send(lease)

    def _read(self) -> V1Lease | None:
        with asking("to read the Lease"):
            try:
                return self._leases.read_namespaced_lease(self._name, self._namespace, _request_timeout=_CALL_SECONDS)
            except ApiException as error:
                if error.status != HTTPStatus.NOT_FOUND:
                    raise
                return None

    def _write(self, before: V1LeaseSpec, revision: str | None) -> bool:
        """Make the Lease ours, unless it is no longer of this revision."""
        now, ours = micro_time(time.time()), before.holder_identity == self._holder
        spec = V1LeaseSpec(
            holder_identity=self._holder,
            lease_duration_seconds=int(self.lease_seconds),
            acquire_time=before.acquire_time if ours else now,
            renew_time=now,
            lease_transitions=(before.lease_transitions or 0) + (not ours and revision is not None),
        )
        return self._send(V1Lease(metadata=V1ObjectMeta(name=self._name, resource_version=revision), spec=spec))

    def _send(self, lease: V1Lease) -> bool:
        assert lease.metadata is not None
        with asking("to hold the Lease"):
            try:
                if lease.metadata.resource_version is None:
                    self._leases.create_namespaced_lease(self._namespace, lease, _request_timeout=_CALL_SECONDS)
                else:
                    self._leases.replace_namespaced_lease(self._name, self._namespace, lease, _request_timeout=_CALL_SECONDS)
            except ApiException as error:
                if error.status != HTTPStatus.CONFLICT:
                    raise
                return False  # another replica was first
        return True
