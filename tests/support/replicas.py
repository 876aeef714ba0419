"""Several real servers on one real PostgreSQL, an aggregator, and hands to stop each of them."""

import json
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedlearn.adapters.database import DatabasePresences, DatabaseRoundStore
from fedlearn.core.replicas import Leader
from fedlearn.local.identities import SERVER_AUDIENCE
from fedlearn.local.ports import free_port
from fedlearn.local.processes import Service, start_program
from fedlearn.local.storage import LocalStorage
from support.balancer import Balancer
from support.trial import Trial
from support.world import HandDevice, World, wait_for


@dataclass
class Replicas:
    """The servers by their URLs. The world's aggregator calls them by one address, as devices do by a Service."""

    world: World
    store: DatabaseRoundStore
    balancer: Balancer
    directory: Path
    environment: Mapping[str, str]
    servers: dict[str, Service] = field(default_factory=dict)

    @classmethod
    def start(cls, directory: Path, storage: LocalStorage, database_url: str, count: int, lease_seconds: int) -> "Replicas":
        balancer = Balancer()
        settings = {"FEDLEARN_DATABASE_URL": database_url, "FEDLEARN_REPLICA__LEASE_SECONDS": str(lease_seconds)}
        world = World.start(directory, storage, {"FEDLEARN_SERVER_URL": balancer.url}, settings)
        made = cls(world, DatabaseRoundStore(database_url), balancer, directory, world.environments["server"])
        made.servers[world.server_url] = world.server
        for _ in range(count - 1):
            made.add(free_port())
        wait_for(made.leader, "a leader")
        return made

    def add(self, port: int) -> None:
        """One more server, or one again."""
        url = f"http://127.0.0.1:{port}"
        log = self.directory / f"server-{port}-{len(list(self.directory.glob('*.log')))}.log"
        started = start_program("server", ["server"], {**self.environment, "FEDLEARN_PORT": str(port)}, log)
        self.servers[url] = self.world.services.add(started)
        started.wait_until_answering(f"{url}/readyz")
        self._balance()

    def _balance(self) -> None:
        self.balancer.targets = [("127.0.0.1", int(url.rpartition(":")[2])) for url in self.servers]

    def leader(self) -> Leader | None:
        return self.store.leader()

    def leading(self) -> str:
        """The URL of the server that leads."""
        leader = self.leader()
        assert leader is not None
        return leader.address

    def followers(self) -> list[str]:
        return [url for url in self.servers if url != self.leading()]

    def next_leader(self, epoch: int, seconds: float = 20.0) -> Leader:
        """Wait for the leader of a later epoch."""

        def later() -> Leader | None:
            leader = self.leader()
            return leader if leader is not None and leader.epoch > epoch else None

        found: Leader = wait_for(later, f"a leader after epoch {epoch}", seconds)
        return found

    def kill(self, url: str) -> None:
        process = self.servers.pop(url).process
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait(10)
        self._balance()

    def signal(self, url: str, number: signal.Signals) -> None:
        os.kill(self.servers[url].process.pid, number)

    def device(self, trial: Trial, name: str, url: str) -> HandDevice:
        """A device of the trial that talks to this server."""
        device = trial.device(name)
        device.server = self.world.client(url, "fedlearn-device", device.pod, SERVER_AUDIENCE)
        return device

    def waiting(self, trial: Trial) -> list[str]:
        """The trial's devices whose check-ins are held, at any server."""
        known = DatabasePresences(self.store.database).elsewhere("nobody")
        return [presence.device for presence in known if presence.waiting and presence.device.startswith(trial.name)]

    def logs(self, url: str) -> list[dict[str, Any]]:
        """All that a running server has logged."""
        return [json.loads(line) for line in self.servers[url].log.read_text().splitlines()]

    def stop(self) -> None:
        self.store.close()
        self.world.stop()
        self.balancer.close()
