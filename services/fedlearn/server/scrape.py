"""What the server counts anew whenever its metrics are read."""

from collections import Counter

from fedlearn.core.ids import DeviceId
from fedlearn.core.rounds import Standing
from fedlearn.server.coordinator import Coordinator
from fedlearn.server.roster import Cluster, Roster
from fedlearn.telemetry.metrics import server as metrics

_AT_WORK = {Standing.SELECTED: "selected", Standing.ACCEPTED: "working"}


def show_fleet(coordinator: Coordinator, roster: Roster, cluster: Cluster) -> None:
    """The devices and their pods, by state; of several replicas, the leader counts those of all."""
    if not coordinator.leads:
        metrics.show_fleet({}, {})
        return
    parts, fleet = coordinator.parts(), coordinator.around.fleet

    def state(device: DeviceId) -> str:
        part = parts.get(device)
        if part is not None and part[1] in _AT_WORK:
            return _AT_WORK[part[1]]
        return "waiting" if fleet.holds(device) else "away"

    devices = Counter(state(device) for device in {*roster.visits, *parts})
    metrics.show_fleet(devices, Counter(pod.state for pod in cluster.pods.values()))
