"""The processes of a run: started with a log file each, watched, and never left behind.

They are in sessions of their own, so that Ctrl-C reaches the launcher alone and it stops them in order; and each dies with the
launcher, however that ends.
"""

import os
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx

from fedlearn.core.errors import Code, SetupError
from fedlearn.local.child import Child

_POLL_SECONDS = 0.02


class Process(Protocol):
    """What `Child`, `ForkedChild` and `Nursery` have in common."""

    @property
    def pid(self) -> int: ...

    @property
    def running(self) -> bool: ...

    @property
    def status(self) -> int | None:
        """Its exit status, None while it runs."""
        ...

    def wait(self, seconds: float) -> bool: ...

    def terminate(self, seconds: float) -> None: ...


@dataclass(frozen=True, slots=True)
class Service:
    """A process of this run by its name."""

    name: str
    process: Process
    log: Path

    def failure(self) -> SetupError:
        """What is known of a service that has ended by itself."""
        lines = self.log.read_text(errors="replace").strip().splitlines() if self.log.exists() else []
        last = f": {lines[-1][:300]}" if lines else ""
        return SetupError(Code.SERVICE_FAILED, f"The {self.name} has ended by itself{last} (its log: {self.log}).")

    def wait_until_answering(self, url: str, seconds: float = 60.0) -> None:
        """Wait until a GET of `url` succeeds.

        Raises:
            SetupError: `service_failed` when it ends before, or the time is up.
        """
        give_up = time.monotonic() + seconds
        with httpx.Client(trust_env=False, timeout=5) as client:
            while not _answers(client, url):
                if not self.process.running:
                    raise self.failure()
                if time.monotonic() > give_up:
                    late = f"The {self.name} is not ready after {seconds:.0f} s (its log: {self.log})."
                    raise SetupError(Code.SERVICE_FAILED, late)
                time.sleep(_POLL_SECONDS)


def _answers(client: httpx.Client, url: str) -> bool:
    try:
        return client.get(url).is_success
    except httpx.HTTPError:
        return False


def start_program(name: str, arguments: list[str], environment: Mapping[str, str], log: Path) -> Service:
    """Start `python -m fedlearn ROLE` with its settings in the environment: what a container runs, too."""
    program = [sys.executable, "-m", "fedlearn", *arguments]
    return Service(name, Child(program, directory=log.parent, environment={**os.environ, **environment}, log=log), log)


class Services:
    """All processes of a run, in the order in which they were started."""

    def __init__(self) -> None:
        self._services: list[Service] = []

    def add(self, service: Service) -> Service:
        self._services.append(service)
        return service

    def named(self, name: str) -> Service:
        """Raises:
        KeyError: when no service has this name.
        """
        return {service.name: service for service in self._services}[name]

    def check(self) -> None:
        """Raises:
        SetupError: `service_failed` when one has ended by itself.
        """
        for service in self._services:
            if not service.process.running:
                raise service.failure()

    def stop(self, seconds: float = 8.0) -> None:
        """Stop all at once; what does not end in time is killed."""
        services, self._services = self._services, []
        if services:
            with ThreadPoolExecutor(len(services)) as threads:
                list(threads.map(lambda service: service.process.terminate(seconds), reversed(services)))
