"""Everything that the console shows, and what has changed of it, as JSON."""

import asyncio
from collections.abc import Iterable, Sequence

from fedlearn import __version__
from fedlearn.core.errors import Code, Refusal
from fedlearn.core.happenings import AuditEntry, Happening
from fedlearn.core.ids import DeviceId, TaskId
from fedlearn.core.ports import RoundSummary, Task
from fedlearn.core.rounds import Round, Standing
from fedlearn.protocol.console import (
    AuditView,
    Changes,
    EventView,
    History,
    Moves,
    Overview,
    Part,
    RoundLine,
    TaskLine,
    Tile,
)
from fedlearn.protocol.messages import timestamp
from fedlearn.protocol.problems import CATALOGUE
from fedlearn.protocol.views import DevicePod, VersionView
from fedlearn.server.console.feed import Gathered
from fedlearn.server.coordinator import Coordinator
from fedlearn.server.roster import Cluster, Roster, pod_of
from fedlearn.server.views import natural, task_view, version_view

MAX_TASKS, MAX_EVENTS, MAX_ROUNDS = 100, 200, 1000
read = asyncio.to_thread


class Console:
    """Looks at everything; what it sent last of rounds and tiles is kept, so that only changes are sent.

    Args:
        shows_labels: whether tiles say how many examples of each label a device holds, where the device has said so.
    """

    def __init__(self, coordinator: Coordinator, roster: Roster, cluster: Cluster, *, shows_labels: bool = False) -> None:
        self._coordinator, self._roster, self._cluster = coordinator, roster, cluster
        self._store, self._clock = coordinator.around.store, coordinator.around.clock
        self._shows_labels = shows_labels
        self._sent_rounds: dict[TaskId, Round] = {}
        self._sent_tiles: dict[DeviceId, Tile] = {}
        self._known: set[DeviceId] = set()

    async def overview(self) -> Overview:
        tasks = (await read(self._store.tasks))[-MAX_TASKS:]
        lines = [await self._task_line(task) for task in tasks]
        happenings = await read(self._store.happenings, MAX_EVENTS)
        rounds, devices, now = self._coordinator.rounds(), self._devices(), self._clock()
        self._known.update(devices)
        return Overview(
            now=timestamp(now),
            release=__version__,
            cluster=self._cluster.sight,
            tasks=tuple(lines),
            rounds=tuple(_live_line(round_, now) for round_ in rounds),
            moves=tuple(_moves(round_, None) for round_ in rounds),
            devices=tuple(self._tile(device) for device in devices),
            events=tuple(event_view(happening, number) for number, happening in happenings),
        )

    async def changes(self, gathered: Gathered) -> Changes:
        tasks = [await self._task_line(await read(self._store.task, task)) for task in sorted(gathered.tasks)]
        versions = [await self._version(task, number) for task, number in sorted(gathered.versions)]
        now = self._clock()
        moves = []
        for round_ in gathered.rounds.values():
            moves.append(_moves(round_, self._sent_rounds.get(round_.id.task)))
            self._sent_rounds[round_.id.task] = round_
        tiles, gone = self._changed_tiles(gathered)
        return Changes(
            now=timestamp(now),
            tasks=tuple(tasks),
            rounds=tuple(_live_line(round_, now) for round_ in gathered.rounds.values()),
            moves=tuple(move for move in moves if move.devices or move.anew),
            devices=tuple(tiles),
            gone=tuple(gone),
            versions=tuple(version for version in versions if version is not None),
            histories=tuple(sorted(gathered.histories)),
            events=tuple(event_view(happening) for happening in reversed(gathered.happenings)),
        )

    async def history(self, task: TaskId) -> History:
        """Raises:
        Refusal: `task_unknown`.
        """
        await read(self._store.task, task)
        rounds = await read(self._store.round_summaries, task, MAX_ROUNDS)
        versions = (await read(self._store.versions, task))[-MAX_ROUNDS:]
        now = self._clock()
        return History(
            rounds=tuple(_line(summary, now, None) for summary in rounds),
            versions=tuple(version_view(version) for version in versions),
        )

    async def _task_line(self, task: Task) -> TaskLine:
        plan = await self._coordinator.plan(task.plan_digest)
        return TaskLine(**dict(task_view(task)), dataset=plan.dataset, parameters=plan.parameters)

    async def _version(self, task: TaskId, number: int) -> VersionView | None:
        try:
            return version_view(await read(self._store.version, task, number))
        except Refusal:
            return None

    def _devices(self) -> list[DeviceId]:
        devices = {*self._roster.visits, *self._coordinator.parts()}
        hosts = {pod_of(device) for device in devices}
        return sorted(devices | {DeviceId(name) for name in self._cluster.pods if name not in hosts}, key=natural)

    def _changed_tiles(self, gathered: Gathered) -> tuple[list[Tile], list[DeviceId]]:
        if not gathered.fleet:
            tiles = [self._tile(device) for device in gathered.devices]
            self._sent_tiles.update({DeviceId(tile.device): tile for tile in tiles})
            self._known.update(gathered.devices)
            return tiles, []
        all_tiles = {device: self._tile(device) for device in self._devices()}
        gone = sorted(self._known - all_tiles.keys())
        changed = [tile for device, tile in all_tiles.items() if self._sent_tiles.get(device) != tile]
        self._sent_tiles, self._known = all_tiles, set(all_tiles)
        return changed, gone

    def _tile(self, device: DeviceId) -> Tile:
        visit, pod = self._roster.visits.get(device), self._cluster.pods.get(pod_of(device))
        checkin = None if visit is None else visit.checkin
        return Tile(
            device=device,
            dataset=None if checkin is None else checkin.dataset,
            examples=None if checkin is None else checkin.examples,
            runtime=None if checkin is None else checkin.runtime,
            last_seen=None if visit is None else timestamp(visit.at),
            pod=None if pod is None else DevicePod(state=pod.state.value, node=pod.node),
            labels=checkin.labels if checkin is not None and self._shows_labels else None,
        )


def event_view(happening: Happening, number: int | None = None) -> EventView:
    return EventView(
        number=number,
        at=timestamp(happening.at),
        kind=happening.kind,
        task=happening.task,
        round=happening.round,
        code=happening.code,
        title=_meaning(happening.code),
        count=happening.count,
        devices=happening.devices,
        detail=happening.detail,
    )


def audit_views(entries: Sequence[tuple[int, AuditEntry]]) -> list[AuditView]:
    return [
        AuditView(
            number=number,
            at=timestamp(entry.at),
            actor=entry.actor,
            action=entry.action,
            task=entry.task,
            outcome=entry.outcome,
        )
        for number, entry in entries
    ]


def _meaning(code: Code | None) -> str:
    return "" if code is None else CATALOGUE[code].title


def _live_line(round_: Round, now: float) -> RoundLine:
    aggregate = round_.aggregate
    summary = RoundSummary(
        id=round_.id,
        phase=round_.phase,
        reason=round_.reason,
        base_version=round_.base.version,
        opened_at=round_.opened_at,
        phase_since=round_.phase_since,
        phase_seconds=round_.phase_seconds,
        standings=_count(participant.standing for participant in round_.participants.values()),
        version=None if aggregate is None else aggregate.model.version,
        examples=None if aggregate is None else aggregate.examples,
        metrics={} if aggregate is None else aggregate.metrics,
    )
    return _line(summary, now, round_.deadline)


def _line(summary: RoundSummary, now: float, deadline: float | None) -> RoundLine:
    ended = summary.phase.ended
    spent = {phase.value: seconds for phase, seconds in summary.phase_seconds.items()}
    if not ended:
        spent[summary.phase.value] = max(0.0, now - summary.phase_since)
    return RoundLine(
        task=summary.id.task,
        round=summary.id.number,
        phase=summary.phase.value,
        reason=summary.reason,
        why=_meaning(summary.reason),
        base_version=summary.base_version,
        opened_at=timestamp(summary.opened_at),
        seconds=max(0.0, (summary.phase_since if ended else now) - summary.opened_at),
        seconds_left=None if ended or deadline is None else max(0.0, deadline - now),
        phase_seconds=spent,
        standings={standing.value: count for standing, count in summary.standings.items()},
        version=summary.version,
        examples=summary.examples,
        metrics=dict(summary.metrics),
    )


def _moves(round_: Round, sent: Round | None) -> Moves:
    anew = sent is None or sent.id != round_.id
    before = {} if sent is None or anew else sent.participants
    moved = {
        device: Part(standing=participant.standing.value, code=participant.code)
        for device, participant in round_.participants.items()
        if before.get(device) != participant
    }
    return Moves(task=round_.id.task, round=round_.id.number, anew=anew, devices=moved)


def _count(standings: Iterable[Standing]) -> dict[Standing, int]:
    counted: dict[Standing, int] = {}
    for standing in standings:
        counted[standing] = counted.get(standing, 0) + 1
    return counted
