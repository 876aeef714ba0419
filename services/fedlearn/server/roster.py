"""Who has checked in lately, and which of two pods of one name is the device. A cache, like the fleet."""

from collections import ChainMap, OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, Protocol, cast

from fedlearn.adapters.identity import Caller
from fedlearn.core.errors import Code, Refusal
from fedlearn.core.ids import DeviceId, device_id
from fedlearn.core.pods import Pod
from fedlearn.core.ports import Clock
from fedlearn.core.rounds import Round
from fedlearn.protocol.messages import CheckIn
from fedlearn.telemetry.logs import log

_log = log(__name__)
_FORGET_SECONDS = 86400.0
_REMEMBERED_PODS = 8
Sight = Literal["none", "watching", "unavailable"]


class Cluster(Protocol):
    """The devices' pods, where there is a cluster around the server."""

    @property
    def sight(self) -> Sight:
        """none: there is no cluster; unavailable: `pods` is what was seen last."""
        ...

    @property
    def pods(self) -> Mapping[str, Pod]:
        """By name. It changes between two steps of the event loop, never within one."""
        ...

    def start(self, on_change: Callable[[], None]) -> None:
        """Begin to watch the pods; `on_change` is called in the running event loop when they have changed."""
        ...

    def stop(self) -> None:
        """It may block for some seconds."""
        ...

    def ended(self, round_: Round) -> None:
        """Tell how a round has ended, as a `RoundListener`."""
        ...


class NoCluster:
    """One machine: devices are processes, and nobody else knows of them."""

    sight: Sight = "none"
    pods: Mapping[str, Pod] = MappingProxyType({})

    def start(self, on_change: Callable[[], None]) -> None:
        pass

    def stop(self) -> None:
        pass

    def ended(self, round_: Round) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Visit:
    """A device's last check-in, and when it was heard of last (seconds since the epoch, UTC)."""

    checkin: CheckIn
    at: float


@dataclass(slots=True)
class _Holder:
    uid: str
    replaced: deque[str] = field(default_factory=lambda: deque(maxlen=_REMEMBERED_PODS))


class Roster:
    """Devices by id, for a day after they were heard of last.

    A device's id is its pod's name, and a StatefulSet gives a name again: the newest pod is the device, and goes on with its
    round; a pod that was replaced is refused. A UID that is new here is the newer one, unless the cluster says that the pod
    that was known is the one that is there.
    """

    def __init__(self, clock: Clock, cluster: Cluster | None = None) -> None:
        self._clock, self._cluster = clock, cluster or NoCluster()
        self._visits: OrderedDict[DeviceId, Visit] = OrderedDict()
        self._elsewhere: Mapping[DeviceId, Visit] = {}
        self._holders: dict[str, _Holder] = {}
        self.on_visit: Callable[[DeviceId], None] = lambda _device: None

    @property
    def visits(self) -> Mapping[DeviceId, Visit]:
        return ChainMap(self._visits, cast("dict[DeviceId, Visit]", self._elsewhere)) if self._elsewhere else self._visits

    def see_elsewhere(self, visits: Mapping[DeviceId, Visit]) -> None:
        """All devices that other replicas have heard of lately."""
        before, self._elsewhere = self._elsewhere, visits
        for device, visit in visits.items():
            if (known := self._visits.get(device)) is not None and known.at < visit.at:
                del self._visits[device]  # it has gone there
            if before.get(device) != visit:
                self.on_visit(device)

    def admit(self, caller: Caller, slot: int | None) -> DeviceId:
        """The device that calls.

        Raises:
            Refusal: `device_replaced` for a pod whose name another one has by now; `bad_request` for a slot out of range.
        """
        device = device_id(caller.pod, slot)
        holder = self._holders.setdefault(caller.pod, _Holder(caller.pod_uid))
        if caller.pod_uid != holder.uid:
            if caller.pod_uid in holder.replaced or self._is_there(caller.pod, holder.uid):
                raise Refusal(
                    Code.DEVICE_REPLACED, f"The pod {caller.pod} of UID {caller.pod_uid} has been replaced by another."
                )
            _log.info("another pod has taken the device's name", device=device, uid=caller.pod_uid, before=holder.uid)
            holder.replaced.append(holder.uid)
            holder.uid = caller.pod_uid
        if (known := self._visits.get(device)) is not None:
            self._note(device, known.checkin)
        return device

    def check_in(self, device: DeviceId, checkin: CheckIn) -> None:
        """Note a check-in of a device that was admitted."""
        known, unfit = self._visits.get(device), checkin.unfit
        if unfit is not None and (known is None or known.checkin.unfit != unfit):
            _log.warning("device is unfit", device=device, code=unfit.code, detail=unfit.detail)
        self._note(device, checkin)
        self._forget()

    def is_leaving(self, device: DeviceId) -> bool:
        """Whether the cluster is about to end the device's pod: it gets no work any more."""
        pod = self._cluster.pods.get(pod_of(device))
        holder = self._holders.get(pod_of(device))
        return pod is not None and pod.state.leaving and (holder is None or holder.uid == pod.uid)

    def _is_there(self, name: str, uid: str) -> bool:
        pod = self._cluster.pods.get(name)
        return self._cluster.sight == "watching" and pod is not None and pod.uid == uid and not pod.state.leaving

    def _note(self, device: DeviceId, checkin: CheckIn) -> None:
        self._visits[device] = Visit(checkin, self._clock())
        self._visits.move_to_end(device)
        self.on_visit(device)

    def _forget(self) -> None:
        limit = self._clock() - _FORGET_SECONDS
        while (oldest := next(iter(self._visits))) and self._visits[oldest].at < limit:
            del self._visits[oldest]
            if not any(pod_of(device) == pod_of(oldest) for device in self._visits):
                self._holders.pop(pod_of(oldest), None)


def pod_of(device: DeviceId) -> str:
    """The name of the pod that hosts this device."""
    return device.partition("/")[0]
