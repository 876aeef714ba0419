"""A past for a task, written into the database of a server that is down: rounds as they would have gone, with their figures."""

import math
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedlearn.adapters.database import DatabaseRoundStore
from fedlearn.core.errors import Code
from fedlearn.core.happenings import between
from fedlearn.core.ids import DeviceId, RoundId, TaskId
from fedlearn.core.rounds import Aggregate, Participant, Phase, Round, Standing, start
from support.world import World

ROUND_SECONDS = 20.0


def give_past(world: World, task: str, devices: Sequence[str], rounds: int) -> None:
    """Kill the server, write a past of the task into its database, and start it again."""
    world.kill("server")
    store = DatabaseRoundStore(world.environments["server"]["FEDLEARN_DATABASE_URL"])
    write_past(store, TaskId(task), [DeviceId(device) for device in devices], rounds, time.time())
    store.close()
    world.restart("server")


def write_past(store: DatabaseRoundStore, task: TaskId, devices: Sequence[DeviceId], rounds: int, now: float) -> None:
    """Let the task's open round and the next ones end, the last of them just before `now`; every tenth is abandoned."""
    rng = np.random.default_rng(7)
    at = now - rounds * ROUND_SECONDS - 30
    round_ = store.latest_round(task)
    for step in range(rounds):
        current = store.task(task)
        assert current.model is not None
        if round_ is None or round_.phase.ended:
            number = 1 if round_ is None else round_.id.number + 1
            round_ = start(RoundId(task, number), current.policy, current.model, at)
            store.add_round(round_)
        round_ = _end(store, (replace(round_, base=current.model, opened_at=at), round_), devices, step, rng)
        at += ROUND_SECONDS
    for version in store.versions(task)[:-1]:
        store.evaluate(task, version.ref.version, _figures(version.ref.version, 0.004, rng))


def _end(
    store: DatabaseRoundStore, rounds: tuple[Round, Round], devices: Sequence[DeviceId], step: int, rng: np.random.Generator
) -> Round:
    """End a round that is stored otherwise than it would have been opened."""
    opened, stored = rounds
    at = opened.opened_at
    abandoned = step % 10 == 6
    standings = {device: Participant(Standing.REPORTED) for device in devices}
    if step % 4 == 3:
        standings[devices[step % len(devices)]] = Participant(Standing.REFUSED, Code.UPDATE_NOT_FINITE)
    for device in devices[: len(devices) - 2] if abandoned else devices[: int(rng.random() < 0.2)]:
        standings[device] = Participant(Standing.DROPPED, Code.DEVICE_STOPPING)
    seconds = {Phase.SELECTION: 0.6, Phase.CONFIGURATION: 0.1, Phase.REPORTING: 14 + 4 * rng.random(), Phase.AGGREGATION: 0.4}
    ended = replace(opened, participants=standings, phase_seconds=seconds, phase_since=at + sum(seconds.values()))
    if abandoned:
        del seconds[Phase.AGGREGATION]
        ended = replace(ended, phase=Phase.ABANDONED, reason=Code.TOO_FEW_REPORTS)
        store.save_round(ended, stored, between(stored, ended, at + 15))
        return ended
    version = replace(opened.base, version=opened.base.version + 1)  # the same bytes: a device can go on from them
    figures = _figures(opened.base.version, 0.012, rng)
    reported = ended.devices(Standing.REPORTED)
    ended = replace(
        ended,
        phase=Phase.COMMITTED,
        aggregate=Aggregate(version, frozenset(reported), 180 * len(reported), figures),
    )
    store.commit(ended, stored, at + ROUND_SECONDS, between(stored, ended, at + 15))
    return ended


def _figures(version: int, noise: float, rng: np.random.Generator) -> dict[str, float]:
    """What a model's figures might look like after so many rounds."""
    accuracy = 0.975 - 0.87 * math.exp(-version / 9) + noise * float(rng.normal())
    return {"accuracy": min(0.999, max(0.05, accuracy)), "loss": max(0.02, 2.3 * math.exp(-version / 8) + 0.09 + noise)}
