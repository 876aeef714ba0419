"""One task of a test's own in a world that tests share: its name, dataset and devices are nobody else's."""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from fedlearn.core.errors import Code, Refusal
from fedlearn.core.ids import RoundId, TaskId
from fedlearn.core.updates import Update
from fedlearn.protocol.messages import Assignment
from fedlearn.protocol.plans import Plan
from fedlearn.protocol.views import RoundView
from support.world import HandDevice, World, random_update, small_plan, wait_for


class Trial:
    """A task, and devices that only it selects.

    Args:
        name: the task's name, which no other test of this world has.
        plan: changes of the plan.
    """

    def __init__(self, world: World, name: str, **plan: Any) -> None:
        self.world, self.name = world, name
        self.plan: Plan = small_plan(dataset=name, **plan)
        self._seed = 0

    def submit(self, **how: Any) -> None:
        """Submit the task; a goal of 2 that all have to reach, unless `how` says otherwise."""
        self.world.submit(self.name, self.plan, **{"goal": 2, "min_fraction": 1.0, "over_selection": 1.0, **how})

    def device(self, name: str, slot: int | None = None) -> HandDevice:
        return self.world.device(f"{self.name}-{name}", slot, self.name)

    def devices(self, *names: str) -> list[HandDevice]:
        return [self.device(name) for name in names]

    def introduce(self, *devices: HandDevice) -> None:
        """Let the server know that these devices are about to come, so that it waits for them."""
        for device in devices:
            assert device.check_in(wait_seconds=0).json()["kind"] == "come_back"

    def assign(self, *devices: HandDevice) -> list[Assignment]:
        """Check in all these devices at once; the assignment of each."""
        with ThreadPoolExecutor(len(devices)) as threads:
            return list(threads.map(lambda device: device.assignment(), devices))

    def update(self, examples: int = 10) -> Update:
        """A random update, another one each time."""
        self._seed += 1
        return random_update(self.plan, self._seed, examples)

    def seal(self, device: HandDevice, assignment: Assignment, update: Update, /, **context: Any) -> bytes:
        return device.sealed(assignment, update, self.plan, **context)

    def bring(self, device: HandDevice, assignment: Assignment, update: Update) -> bytes:
        """The whole way of a device's update; returns what was uploaded."""
        body = self.seal(device, assignment, update)
        device.upload(assignment, body)
        return body

    def id(self, number: int = 1) -> RoundId:
        return RoundId(TaskId(self.name), number)

    def round(self, number: int = 1) -> RoundView:
        return self.world.round(self.name, number)

    def reach(self, number: int, *phases: str) -> RoundView:
        return self.world.wait_for_phase(self.name, number, *phases)

    def standings(self, number: int = 1) -> dict[str, tuple[str, str | None]]:
        """Standing and code of each participant, by the device's name without the task's."""
        prefix = f"{self.name}-"
        return {p.device.removeprefix(prefix): (p.standing, p.code) for p in self.round(number).participants}

    def wait_for_standing(self, device: HandDevice, standing: str, number: int = 1) -> str | None:
        """Wait until a device stands so, and return its code."""
        name = device.id.removeprefix(f"{self.name}-")
        wait_for(lambda: self.standings(number)[name][0] == standing, f"{device.id} to be {standing}")
        return self.standings(number)[name][1]

    def model(self, version: int) -> np.ndarray:
        return self.world.model(self.name, version, self.plan)

    def folded(self) -> float:
        return self.counted("folded")

    def counted(self, result: str) -> float:
        return self.world.metric(self.world.aggregator_url, f'fedlearn_updates_total{{result="{result}"}}')

    def state(self) -> str:
        with self.world.operator() as operator:
            return operator.task(self.name).state

    def cancel(self) -> None:
        """A test that failed before it submitted its task has none to cancel, and its own failure to tell."""
        with self.world.operator() as operator:
            try:
                operator.cancel(self.name)
            except Refusal as refusal:
                if refusal.code is not Code.TASK_UNKNOWN:
                    raise


def step(base: np.ndarray, updates: Iterable[Update]) -> np.ndarray:
    """What FedAvg makes of a model and these updates: numpy's weighted mean, in float64."""
    updates = list(updates)
    deltas = [update.delta.astype(np.float64) for update in updates]
    return (base + np.average(deltas, axis=0, weights=[update.examples for update in updates])).astype(np.float32)


def mean_metrics(updates: Iterable[Update]) -> Mapping[str, float]:
    """The hold-out figures as means weighted by the number of held-out examples."""
    updates = list(updates)
    weights = [update.holdout_examples for update in updates]
    return {name: float(np.average([u.metrics[name] for u in updates], weights=weights)) for name in updates[0].metrics}
