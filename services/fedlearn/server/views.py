"""How the server shows what it keeps."""

import re

from fedlearn.core.ids import DeviceId, RoundId
from fedlearn.core.pods import Pod
from fedlearn.core.ports import Clock, ModelVersion, Task
from fedlearn.core.rounds import Round, Standing
from fedlearn.protocol.messages import Model, timestamp
from fedlearn.protocol.views import (
    DevicePart,
    DevicePod,
    DeviceView,
    FleetView,
    ParticipantView,
    Policy,
    RoundView,
    TaskView,
    VersionView,
)
from fedlearn.server.coordinator import Coordinator
from fedlearn.server.roster import Cluster, Roster, Visit, pod_of


def task_view(task: Task) -> TaskView:
    return TaskView(
        task=task.id,
        state=task.state,
        plan_digest=task.plan_digest,
        policy=Policy.of(task.policy),
        rounds=task.rounds,
        target_accuracy=task.target_accuracy,
        created_at=timestamp(task.created_at),
        model=None if task.model is None else Model.of(task.model),
    )


def round_view(round_: Round, clock: Clock) -> RoundView:
    aggregate = round_.aggregate
    until = round_.phase_since if round_.phase.ended else clock()
    return RoundView(
        task=round_.id.task,
        round=round_.id.number,
        phase=round_.phase,
        reason=round_.reason,
        base_version=round_.base.version,
        opened_at=timestamp(round_.opened_at),
        seconds=max(0.0, until - round_.opened_at),
        phase_seconds={phase.value: seconds for phase, seconds in round_.phase_seconds.items()},
        participants=tuple(
            ParticipantView(device=device, standing=participant.standing, code=participant.code)
            for device, participant in sorted(round_.participants.items())
        ),
        model=None if aggregate is None else Model.of(aggregate.model),
        examples=None if aggregate is None else aggregate.examples,
        metrics={} if aggregate is None else dict(aggregate.metrics),
    )


def version_view(version: ModelVersion) -> VersionView:
    return VersionView(
        task=version.task,
        model=Model.of(version.ref),
        round=version.round,
        created_at=timestamp(version.created_at),
        evaluation=None if version.evaluation is None else dict(version.evaluation),
        parent=version.parent,
        contributors=version.contributors,
        examples=version.examples,
        labels=version.labels,
    )


def fleet_view(coordinator: Coordinator, roster: Roster, cluster: Cluster) -> FleetView:
    """Every device that has checked in, takes part or has a pod, in the order that a person would put them."""
    fleet, parts, visits = coordinator.around.fleet, coordinator.parts(), roster.visits
    devices = {*visits, *parts}
    hosts = {pod_of(device) for device in devices}
    devices |= {DeviceId(name) for name in cluster.pods if name not in hosts}
    views = (
        _device_view(device, fleet.holds(device), parts.get(device), visits.get(device), cluster.pods.get(pod_of(device)))
        for device in sorted(devices, key=natural)
    )
    return FleetView(cluster=cluster.sight, devices=tuple(views))


def _device_view(
    device: DeviceId, waiting: bool, part: tuple[RoundId, Standing] | None, visit: Visit | None, pod: Pod | None
) -> DeviceView:
    return DeviceView(
        device=device,
        waiting=waiting,
        part=None if part is None else DevicePart(task=part[0].task, round=part[0].number, standing=part[1].value),
        dataset=None if visit is None else visit.checkin.dataset,
        examples=None if visit is None or visit.checkin.unfit is not None else visit.checkin.examples,
        runtime=None if visit is None else visit.checkin.runtime,
        unfit=None if visit is None else visit.checkin.unfit,
        last_seen=None if visit is None else timestamp(visit.at),
        pod=None if pod is None else DevicePod(state=pod.state.value, node=pod.node),
    )


def natural(device: DeviceId) -> list[tuple[int, str]]:
    """A key to sort by: device-2 comes before device-10."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", device)]
