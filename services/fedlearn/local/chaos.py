"""Rounds under fire: roles of a real deployment are killed by SIGKILL in chosen phases and started again, while rounds run.

The devices' updates are a function of a seed, so that what each version must be can be computed apart (`chaos_replay`).
"""

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self, TypeVar

import numpy as np

from fedlearn.adapters.database import DatabaseRoundStore
from fedlearn.adapters.operator import OperatorClient
from fedlearn.core.errors import Code, FedlearnError, SetupError
from fedlearn.core.ids import DeviceId, RoundId, TaskId
from fedlearn.core.learning import Examples, Shard
from fedlearn.core.rounds import Phase, Round
from fedlearn.data.shards import write_shard
from fedlearn.local.deployment import Addresses, Deployment, Environment
from fedlearn.local.options import MIN_COHORT
from fedlearn.local.ports import free_port
from fedlearn.local.postgres import Postgres
from fedlearn.local.processes import Service, Services, start_program
from fedlearn.local.seaweed import MODELS, UPDATES
from fedlearn.local.storage import LocalStorage
from fedlearn.protocol.aggregations import Aggregation, FedAvgPlan
from fedlearn.protocol.plans import Plan, TensorSpec, UpdateFormat, exact_ranges
from fedlearn.protocol.tensors import decode_vector, encode_model, unflatten
from fedlearn.protocol.views import Policy

Found = TypeVar("Found")
TASK = TaskId("chaos")
_WEIGHTS = {"server": 0.3, "aggregator": 0.3, "device": 0.25, "storage": 0.15}
PHASES = (Phase.SELECTION, Phase.CONFIGURATION, Phase.REPORTING, Phase.AGGREGATION)
_TRAINING_SECONDS = 0.4
_AIM_SECONDS, _END_SECONDS, _READY_SECONDS = 5.0, 120.0, 60.0
_LOOK_SECONDS, _STOP_SECONDS = 0.004, 20.0
_SAVE_EVERY = 2  # updates, so that partial sums are written in every round
_UPLOAD_SECONDS = 10  # so that the last sweep, which waits until no URL is valid, comes soon


@dataclass(frozen=True, slots=True)
class Kill:
    """One SIGKILL or outage: whose, in which phase of which round, when (UTC seconds), and how long until it was back."""

    name: str
    round: int
    phase: Phase
    at: float
    back_seconds: float

    @property
    def role(self) -> str:
        return self.name.partition("-")[0]


def chaos_plan(aggregation: Aggregation | None = None, update: UpdateFormat | None = None) -> Plan:
    """A plan of 159,010 parameters; no Keras is needed.

    Args:
        aggregation: FedAvg by default.
        update: how updates travel, by default as float32.
    """
    dense = {"module": "keras.layers", "class_name": "Dense", "config": {"units": 10}, "registered_name": None}
    architecture = {"module": "keras", "class_name": "Sequential", "config": {"layers": [dense]}}
    weights = tuple(TensorSpec(shape=shape) for shape in ((784, 200), (200,), (200, 10), (10,)))
    update = update or UpdateFormat(encoding="float32")
    if update.encoding == "int8":  # as in a plan that is made of a model
        update = update.model_copy(update={"exact": exact_ranges(weights)})
    return Plan(
        dataset="mnist", architecture=architecture, weights=weights, update=update, aggregation=aggregation or FedAvgPlan()
    )


class Arena:
    """A deployment whose parts can be killed one by one; a context manager that leaves nothing running.

    Args:
        directory: a new directory for state and logs.
        seed: of the devices' updates.
        device_environment: what the device processes find beside their settings.
        aggregators: how many share each round; they are named aggregator, aggregator-1, and so on.
        postgres: the server's database is a new one of this PostgreSQL, instead of SQLite.
        plan: the task's, as `chaos_plan` makes it.
    """

    def __init__(
        self,
        directory: Path,
        devices: int,
        seed: int,
        device_environment: Environment = MappingProxyType({}),
        *,
        aggregators: int = 1,
        postgres: Postgres | None = None,
        plan: Plan | None = None,
    ) -> None:
        self.aggregators = tuple(f"aggregator-{number}" if number else "aggregator" for number in range(aggregators))
        self.directory, self.devices, self.seed, self.plan = directory, devices, seed, plan or chaos_plan()
        self.storage = LocalStorage(directory / "storage", port=free_port())
        self.postgres = postgres
        self._device_environment = device_environment
        self._services = Services()
        self._running: dict[str, Service] = {}
        self._programs: dict[str, tuple[list[str], Environment, str]] = {}
        self._starts = 0
        self._store: DatabaseRoundStore | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """End all that runs."""
        if self._store is not None:
            self._store.close()
        self._services.stop()
        self.storage.stop()

    def examples(self, device: DeviceId) -> int:
        """How many examples a device trains on: another number each, so that a wrong weight shows."""
        return 10 * (1 + self.shard(device))

    @staticmethod
    def shard(device: DeviceId) -> int:
        """The number of a device's shard."""
        return int(device.partition("/")[0].rpartition("-")[2])

    def _start(self) -> None:
        (self.directory / "logs").mkdir(parents=True)
        self.storage.start()
        more = tuple(free_port() for _ in self.aggregators[1:])
        addresses = Addresses(free_port(), free_port(), self.storage.port, more)
        secrets = {role: self.storage.credentials(role) for role in ("server", "aggregator")}
        self._deployment = deployment = Deployment(self.directory, addresses, secrets)
        server = deployment.server()
        if self.postgres is not None:
            server = {**server, "FEDLEARN_DATABASE_URL": self.postgres.new_database()}
        self._add("server", ["server"], server, addresses.server)
        often = {"FEDLEARN_UPLOAD_SECONDS": str(_UPLOAD_SECONDS), "FEDLEARN_SAVE_EVERY": str(_SAVE_EVERY)}
        for number, name in enumerate(self.aggregators):
            port = (addresses.aggregator, *more)[number]
            self._add(name, ["aggregator"], {**deployment.aggregator(number), **often}, port)
        for index in range(self.devices):
            count = 10 * (1 + index)
            train = Examples(np.zeros((count, 1), np.float32), np.zeros(count, np.int32))
            write_shard(self.directory / "shards" / str(index), Shard(train, Examples(train.features[:5], train.labels[:5])))
            port = free_port()
            device = deployment.device(
                index,
                port=port,
                shards=self.directory / "shards",
                first_shard=index,
                count=1,
                dataset=self.plan.dataset,
                seed=self.seed,
            )
            synthetic = {"FEDLEARN_LEARNER": "synthetic", "FEDLEARN_SYNTHETIC_SECONDS": str(_TRAINING_SECONDS)}
            self._add(f"device-{index}", ["device"], {**device, **synthetic, **self._device_environment}, port)
        for name in ("server", *self.aggregators):  # devices are ready once a check-in is answered, which idle ones wait for
            self._wait_until_ready(name)
        self._store = DatabaseRoundStore(server["FEDLEARN_DATABASE_URL"])

    def _add(self, name: str, arguments: list[str], environment: Environment, port: int) -> None:
        self._programs[name] = arguments, environment, f"http://127.0.0.1:{port}/readyz"
        self._launch(name)

    def _launch(self, name: str) -> None:
        arguments, environment, _ = self._programs[name]
        self._starts += 1
        log = self.directory / "logs" / f"{name}-{self._starts:04d}.log"
        self._running[name] = self._services.add(start_program(name, arguments, environment, log))

    def _wait_until_ready(self, name: str) -> None:
        self._running[name].wait_until_answering(self._programs[name][2], _READY_SECONDS)

    # --- what is done to it

    def submit(self, goal: int) -> None:
        """Begin with the task: rounds without end."""
        vector = np.random.default_rng(self.seed).normal(0, 0.05, self.plan.parameters).astype(np.float32)
        fraction = max(0.5, max(MIN_COHORT, self.plan.aggregation.least_reports) / goal)
        policy = Policy(goal=goal, min_fraction=fraction, selection_timeout_seconds=60, reporting_timeout_seconds=60)
        with self._client() as client:
            client.submit(TASK, self.plan, encode_model(unflatten(vector, self.plan), self.plan), policy=policy)

    def strike(self, name: str, phase: Phase, *, after_seconds: float = 0.0, gently: bool = False) -> Kill:
        """Kill a part when a round has entered a phase, or when none does for a while; returns once the part is back.

        Args:
            gently: by SIGTERM instead of SIGKILL.
        """
        self.aim(phase)
        time.sleep(after_seconds)
        current, at, began = self.current(), time.time(), time.monotonic()
        if name == "storage":
            self.storage.restart()
        else:
            process = self._running[name].process
            os.kill(process.pid, signal.SIGTERM if gently else signal.SIGKILL)
            if not process.wait(_STOP_SECONDS):
                raise SetupError(Code.SERVICE_FAILED, f"The {name} outlives its signal.")
            self._launch(name)
            self._wait_until_ready(name)
        return Kill(name, current.id.number, current.phase, at, time.monotonic() - began)

    def aim(self, phase: Phase) -> None:
        """Wait for a round to enter the phase; not for ever, since a round may be stuck until its deadline by now."""
        before, give_up = self.current(), time.monotonic() + _AIM_SECONDS
        while time.monotonic() < give_up:
            current = self.current()
            if current.phase is phase and (current.id, current.phase) != (before.id, before.phase):
                return
            time.sleep(_LOOK_SECONDS)

    def end(self) -> None:
        """Let the running round end and cancel the task."""
        number = self.current().id.number
        self.wait(lambda: self.current().phase.ended or self.current().id.number > number, "the last round to end")
        with self._client() as client:
            client.cancel(TASK)
        self.wait(lambda: self.current().phase.ended, "the cancelled round to end")

    # --- what is seen of it

    def current(self) -> Round:
        """The latest round, as the database says."""
        found = self.wait(lambda: self.store.latest_round(TASK), "a round")
        assert found is not None
        return found

    def committed(self, after: int) -> Round:
        """Wait for a round after this one to commit."""

        def found() -> Round | None:
            ended = [r for r in self.store.rounds(TASK) if r.phase is Phase.COMMITTED and r.id.number > after]
            return ended[0] if ended else None

        round_ = self.wait(found, "a committed round")
        assert round_ is not None
        return round_

    @property
    def database(self) -> Path:
        """The server's SQLite file."""
        return self.directory / "server.db"

    @property
    def store(self) -> DatabaseRoundStore:
        assert self._store is not None
        return self._store

    def round(self, number: int) -> Round:
        return self.store.round(RoundId(TASK, number))

    def model(self, key: str) -> np.ndarray:
        """A version's weights as one vector."""
        return decode_vector(self.storage.store("aggregator", MODELS).get(key), self.plan)

    def leftovers(self) -> list[str]:
        """What lies in the updates bucket once all sweeps are over."""
        bucket = self.storage.store("aggregator", UPDATES)

        def keys() -> list[str]:
            return [stored.key for stored in bucket.list("")]

        try:
            self.wait(lambda: not keys(), "the sweeps", 6.0 * _UPLOAD_SECONDS)
        except SetupError:
            return keys()
        return []

    @staticmethod
    def wait(condition: Callable[[], Found], what: str, seconds: float = _END_SECONDS) -> Found:
        """Wait until `condition` gives something true, and return it.

        Raises:
            SetupError: `service_failed` when the time is up.
        """
        give_up = time.monotonic() + seconds
        while not (found := condition()):
            if time.monotonic() > give_up:
                raise SetupError(Code.SERVICE_FAILED, f"Waited {seconds:.0f} s in vain for {what}.")
            time.sleep(_LOOK_SECONDS)
        return found

    def _client(self) -> OperatorClient:
        return OperatorClient(self._deployment.addresses.server_url, self._deployment.operator_token())


def fire(arena: Arena, kills: int, rng: random.Random, say: Callable[[Kill], None]) -> list[Kill]:
    """Kill `kills` times, each time a random role in a random phase, shortly after that has begun."""
    done = list[Kill]()
    for _ in range(kills):
        role, phase = rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0], rng.choice(PHASES)
        name = f"device-{rng.randrange(arena.devices)}" if role == "device" else role
        if role == "aggregator" and len(arena.aggregators) > 1:
            name = rng.choice(arena.aggregators)
        after = rng.uniform(0.0, 1.5 * _TRAINING_SECONDS if phase is Phase.REPORTING else 0.01)
        try:
            done.append(arena.strike(name, phase, after_seconds=after))
        except FedlearnError as error:
            raise SetupError(Code.SERVICE_FAILED, f"After kill {len(done) + 1}, of {name}: {error.detail}") from error
        say(done[-1])
        time.sleep(rng.uniform(0.0, 1.0))
    return done
