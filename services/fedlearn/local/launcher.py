"""Everything on one machine: the storage, the three services, the evaluator and the devices, booted side by side."""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from fedlearn.adapters.operator import OperatorClient
from fedlearn.core.errors import Code, SetupError
from fedlearn.data.datasets import CACHE, DATASETS, Dataset, find
from fedlearn.data.partitioners import make_partitioner
from fedlearn.data.shards import cut, write_shard
from fedlearn.local.deployment import Addresses, Deployment
from fedlearn.local.nursery import Nursery
from fedlearn.local.options import MachineOptions, device_ports, shard_directories
from fedlearn.local.ports import free_port
from fedlearn.local.processes import Process, Service, Services, start_program
from fedlearn.local.storage import LocalStorage

Say = Callable[[str], None]


class Launcher:
    """A running deployment; a context manager that leaves nothing running.

    Args:
        directory: for logs and state; an empty or new one, or that of an earlier launcher with the same options, which goes on.
        say: takes a sentence on what is being done.
        forks: whether what learns, and `run_learner`, come from a nursery. Default: where devices train by Keras.
    """

    def __init__(self, options: MachineOptions, directory: Path, say: Say, *, forks: bool | None = None) -> None:
        self._options, self._say = options, say
        self._forks = options.learner == "keras" if forks is None else forks
        self.directory = directory.resolve()  # its processes run in other directories
        self.logs = self.directory / "logs"
        self._services = Services()
        self._storage: LocalStorage | None = None
        self._nursery: Nursery | None = None
        self.deployment: Deployment | None = None
        self.device_urls: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def boot(self) -> None:
        """Start everything but the task; devices check in as soon as they can.

        Raises:
            SetupError: with the one sentence that the user needs.
        """
        options = self._options
        self.logs.mkdir(parents=True, exist_ok=True)
        manual = {"FEDLEARN_MANUAL": "true"} if options.manual else {}
        addresses = Addresses(
            free_port(options.server_port),
            free_port(options.aggregator_port),
            free_port(options.storage_port),
            tuple(free_port() for _ in range(options.aggregators - 1)),
        )
        if self._forks:
            self._nursery = Nursery(self.logs / "nursery.log")
        dataset = None if self._has_shards else find(options.dataset, directory=options.data_dir, cache=CACHE)
        self._storage = LocalStorage(self.directory / "storage", port=addresses.storage)
        secrets = {role: self._storage.credentials(role) for role in ("server", "aggregator")}
        self.deployment = deployment = Deployment(self.directory, addresses, secrets)
        with ThreadPoolExecutor(1) as threads:
            what = "" if options.shards else f"; dividing {options.dataset} among {options.devices} devices"
            self._say(f"Starting object storage, server and aggregator{what}.")
            shards = threads.submit(self._prepare_shards, dataset)
            server = self._program("server", {**deployment.server(), **manual})
            aggregators = [
                self._program("aggregator", {**deployment.aggregator(number), **manual}, number)
                for number in range(options.aggregators)
            ]
            self._storage.start()  # in this thread: Ctrl-C must find it started or not, never being started by another
            shards.result()
        evaluator = "the evaluator and " if self._is_scored else ""
        self._say(f"Starting {evaluator}{self.processes} device processes.")
        self._start_learners(deployment)
        server.wait_until_answering(f"{addresses.server_url}/readyz")
        for aggregator, url in zip(aggregators, addresses.aggregator_urls, strict=True):
            aggregator.wait_until_answering(f"{url}/readyz")

    @property
    def processes(self) -> int:
        """How many processes host the devices: one per core unless the options say otherwise."""
        if self._options.manual:
            return self._options.devices
        return self._options.processes or min(self._options.devices, os.cpu_count() or 1)

    @property
    def _is_scored(self) -> bool:
        return self._options.dataset in DATASETS  # of others nobody has a test set

    def client(self) -> OperatorClient:
        """An operator's client of this deployment's server."""
        assert self.deployment is not None
        return OperatorClient(self.deployment.addresses.server_url, self.deployment.operator_token())

    def check(self) -> None:
        """Raises:
        SetupError: `service_failed` when something has ended by itself.
        """
        self._services.check()
        if self._storage is not None and not self._storage.running:
            raise SetupError(Code.STORAGE_FAILED, "The object storage has ended by itself; its log is in the run's directory.")

    def run_learner(self, name: str, arguments: list[str], meanwhile: Callable[[], None] = lambda: None) -> None:
        """Run a `fedlearn` command that needs Keras, and wait for its end.

        Args:
            meanwhile: what is done while it runs.

        Raises:
            SetupError: `service_failed` when it fails.
        """
        assert self.deployment is not None
        token = {"FEDLEARN_OPERATOR_TOKEN": self.deployment.operator_token()}
        service = self._learner(name, arguments, token)
        meanwhile()
        while not service.process.wait(0.05):
            self.check()
        if service.process.status != 0:
            raise service.failure()

    def pid(self, name: str) -> int:
        """The process of the service of this name."""
        return self._services.named(name).process.pid

    @property
    def storage(self) -> LocalStorage:
        assert self._storage is not None
        return self._storage

    def stop(self) -> None:
        """Stop all that was started."""
        self._services.stop()
        if self._nursery is not None:
            self._nursery.terminate(1.0)
        if self._storage is not None:
            self._storage.stop()

    # --- the parts

    def _program(self, role: str, environment: Mapping[str, str], number: int = 0) -> Service:
        name = f"{role}-{number}" if number else role
        return self._services.add(start_program(name, [role], environment, self.logs / f"{name}.log"))

    def _start_learners(self, deployment: Deployment) -> None:
        options = self._options
        learner = {"FEDLEARN_LEARNER": options.learner}
        if self._is_scored:
            evaluator = deployment.evaluator(port=free_port(), dataset=options.dataset, data_dir=options.data_dir)
            self._services.add(self._learner("evaluator", ["evaluator"], {**evaluator, **learner}))
        by_hand = {"FEDLEARN_MANUAL": "true"} if options.manual else {}
        first, ports = 0, device_ports(options.device_port, self.processes)
        for index, count in enumerate(_shares(options.devices, self.processes)):
            port, number = free_port(ports[index]), index + 1 if options.manual else index
            device = deployment.device(
                number,
                port=port,
                shards=self.directory / "shards",
                first_shard=first,
                count=None if options.manual else count,
                dataset=options.dataset,
                seed=options.seed,
            )
            self._services.add(self._learner(f"device-{number}", ["device"], {**device, **learner, **by_hand}))
            self.device_urls[f"device-{number}"] = f"http://127.0.0.1:{port}"
            first += count

    def _learner(self, name: str, arguments: list[str], environment: Mapping[str, str]) -> Service:
        log = self.logs / f"{name}.log"
        if self._nursery is None:
            return start_program(name, arguments, environment, log)
        process: Process = self._nursery.start(arguments, environment, log)
        return Service(name, process, log)

    @property
    def _has_shards(self) -> bool:
        """Whether devices have data of their own, or that which an earlier launcher has divided."""
        last = self.directory / "shards" / str(self._options.devices - 1)
        return self._options.shards is not None or (last / "train.npz").exists()

    def _prepare_shards(self, dataset: Dataset | None) -> None:
        options, shards = self._options, self.directory / "shards"
        if options.shards is not None:
            shards.mkdir(exist_ok=True)
            for index, mine in enumerate(shard_directories(options.shards)):
                if not (shards / str(index)).exists():
                    (shards / str(index)).symlink_to(mine)
        elif dataset is not None:
            rng = np.random.default_rng(options.seed)
            partitioner = make_partitioner(options.partitioner, options.devices, alpha=options.alpha)
            for index, shard in enumerate(cut(dataset.train, partitioner, rng)):
                write_shard(shards / str(index), shard)


def _shares(devices: int, processes: int) -> list[int]:
    """`devices` as evenly as may be over `processes`."""
    return [devices // processes + (index < devices % processes) for index in range(processes)]
