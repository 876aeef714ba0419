"""100, 1,000 and 10,000 devices in held polls at one server process on one core, beside a bare uvicorn app, in one run.

Each device is a pod with a token of its own. All wait; then a task begins whose cohort is a part of them, or all. What counts
is the time from the moment of assignment (the round enters REPORTING; it is saved after that) until the answer is whole at the
client. The clients and all else have the other core. The bare app holds and answers as many polls of the same size, and does
nothing besides: it is the limit that uvicorn sets on this machine.

Aims: 1,300 of 10,000 answered with p99 below 0.5 s, all 10,000 below 4 s, below 600 MB, no error.
"""

import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from deployments import peak_megabytes, random_vector
from fedlearn.adapters.database import DatabaseRoundStore
from fedlearn.adapters.operator import OperatorClient
from fedlearn.core.ids import RoundId, TaskId
from fedlearn.core.rounds import Phase, Standing
from fedlearn.local.chaos import chaos_plan
from fedlearn.local.deployment import Addresses, Deployment
from fedlearn.local.identities import SERVER_AUDIENCE
from fedlearn.local.ports import free_port
from fedlearn.local.processes import Services, start_program
from fedlearn.local.storage import LocalStorage
from fedlearn.protocol.tensors import encode_model, unflatten
from fedlearn.protocol.views import Policy
from polls import Answer, Clients, percentile, post, serve_bare

SIZES = (100, 1_000, 10_000)
COHORT, GOAL = 1_300, 1_000
SERVER_CORE, CLIENT_CORE = 0, 1
HOLD_SECONDS, PATIENCE_SECONDS = 280, 180.0
COHORT_SECONDS, ALL_SECONDS, MEGABYTES = 0.5, 4.0, 600.0
PLAN = chaos_plan()


@dataclass
class Figures:
    """What one server was measured at."""

    devices: int
    hold_cpu_seconds: float = 0.0
    cohort: list[float] = field(default_factory=list)
    all: list[float] = field(default_factory=list)
    all_cpu_seconds: float = 0.0
    megabytes: float = 0.0

    def missed(self) -> list[str]:
        """The aims that it does not reach."""
        reached = {
            f"a cohort's p99 below {COHORT_SECONDS} s": not self.cohort or percentile(self.cohort, 0.99) < COHORT_SECONDS,
            f"all answered with p99 below {ALL_SECONDS} s": percentile(self.all, 0.99) < ALL_SECONDS,
            f"below {MEGABYTES:.0f} MB": self.megabytes < MEGABYTES,
        }
        return [f"{self.devices:,} devices miss an aim: {aim}" for aim, is_reached in reached.items() if not is_reached]

    def row(self, name: str) -> str:
        def both(values: list[float]) -> str:
            return f"{percentile(values, 0.5):6.3f} {percentile(values, 0.99):6.3f}" if values else " " * 13

        held, answered = 1e3 * self.hold_cpu_seconds / self.devices, 1e3 * self.all_cpu_seconds / self.devices
        costs = f"{held:8.2f} {answered:7.2f}"
        return f"{self.devices:7,} {name:9}{costs}   {both(self.cohort)}   {both(self.all)}   {self.megabytes:6.0f}"


def on_core(core: int) -> None:
    """What this thread starts from now on runs there."""
    os.sched_setaffinity(0, {core})


def cpu_seconds(pid: int) -> float:
    """What a process has used of its core so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_for(condition: Callable[[], bool], what: str) -> None:
    give_up = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > give_up:
            raise TimeoutError(f"Waited {PATIENCE_SECONDS:.0f} s in vain for {what}.")
        time.sleep(1.0)  # seldom, since looking takes from the core that is measured


def delays(since: float, answers: dict[int, Answer], count: int, marks: bytes) -> list[float]:
    """How long after `since` each answer was there; all of them must be right."""
    wrong = [answer for answer in answers.values() if answer.status != 200 or marks not in answer.body]
    if wrong or len(answers) != count:
        raise RuntimeError(f"{len(answers)} answers instead of {count}, {len(wrong)} wrong, such as {wrong[:1]}")
    return [answer.at - since for answer in answers.values()]


class Fedlearn:
    """One server process on its core; aggregator and storage on the other. Devices are whoever holds a token."""

    name, marks = "fedlearn", b'"kind":"assignment"'

    def __init__(self, directory: Path, storage: LocalStorage, services: Services) -> None:
        addresses = Addresses(free_port(), free_port(), storage.port)
        secrets = {role: storage.credentials(role) for role in ("server", "aggregator")}
        self._deployment = deployment = Deployment(directory, addresses, secrets)
        self.port, self._url = addresses.server, addresses.server_url
        longest = {"FEDLEARN_MAX_CHECKIN_SECONDS": str(HOLD_SECONDS)}
        aggregator = services.add(
            start_program("aggregator", ["aggregator"], deployment.aggregator(), directory / "aggregator.log")
        )
        on_core(SERVER_CORE)
        environment = {**deployment.server(), **longest}
        server = services.add(start_program("server", ["server"], environment, directory / "server.log"))
        on_core(CLIENT_CORE)
        self.pid, self._http = server.process.pid, httpx.Client(base_url=self._url, trust_env=False, timeout=60)
        server.wait_until_answering(f"{self._url}/readyz")
        aggregator.wait_until_answering(f"{addresses.aggregator_url}/readyz")
        self._store = DatabaseRoundStore(deployment.server()["FEDLEARN_DATABASE_URL"])
        self._tasks = 0

    def requests(self, devices: int) -> dict[int, bytes]:
        issuer = self._deployment.identities.prepare()
        checkin = {"dataset": PLAN.dataset, "examples": 600, "runtime": "light", "wait_seconds": HOLD_SECONDS}
        body = json.dumps(checkin).encode()
        tokens = (issuer.mint("fedlearn-device", f"device-{i}", SERVER_AUDIENCE, 3600) for i in range(devices))
        return {index: post("/v1/checkins", body, token) for index, token in enumerate(tokens)}

    def waiting(self) -> int:
        lines = self._http.get("/metrics").text.splitlines()
        return int(float(next(line.split()[1] for line in lines if line.startswith("fedlearn_devices_waiting "))))

    def release(self, clients: Clients, devices: int) -> tuple[float, dict[int, Answer]]:
        """Begin a task whose first round selects so many; since when, and the answers."""
        self._tasks += 1
        task, goal = f"load-{self._tasks}", GOAL if devices == COHORT else devices
        policy = Policy(goal=goal, over_selection=devices / goal, min_fraction=0.5, reporting_timeout_seconds=3600)
        model = encode_model(unflatten(random_vector(PLAN.parameters, 0), PLAN), PLAN)
        with self._operator() as operator:
            operator.submit(task, PLAN, model, policy=policy)
            answers = clients.collect(devices, PATIENCE_SECONDS)
            round_ = self._store.round(RoundId(TaskId(task), 1))
            if round_.phase is not Phase.REPORTING or round_.count(Standing.SELECTED) != devices:
                raise RuntimeError(f"The round is in {round_.phase} with {round_.count(Standing.SELECTED)} assigned.")
            operator.cancel(task)
        return round_.phase_since, answers

    def _operator(self) -> OperatorClient:
        return OperatorClient(self._url, self._deployment.operator_token())


class Bare:
    """The bare app on the server's core."""

    name, marks = "bare", b"xxx"

    def __init__(self) -> None:
        self.port = free_port()
        spawn = multiprocessing.get_context("spawn")
        self.process = spawn.Process(target=serve_bare, args=(self.port, SERVER_CORE), daemon=True)
        self.process.start()
        assert self.process.pid is not None
        self.pid = self.process.pid
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", trust_env=False, timeout=60)
        wait_for(self._answers, "the bare app")

    def _answers(self) -> bool:
        try:
            return self._http.get("/waiting").is_success
        except httpx.HTTPError:
            return False

    def requests(self, devices: int) -> dict[int, bytes]:
        body = json.dumps({"dataset": "mnist", "examples": 600, "wait_seconds": HOLD_SECONDS}).encode()
        return {index: post("/v1/checkins", body, "x" * 700) for index in range(devices)}

    def waiting(self) -> int:
        return int(self._http.get("/waiting").text)

    def release(self, clients: Clients, devices: int) -> tuple[float, dict[int, Answer]]:
        since = float(self._http.post(f"/release/{devices}").text)
        return since, clients.collect(devices, PATIENCE_SECONDS)


def measure(server: Fedlearn | Bare, devices: int) -> Figures:
    """Hold all, answer a cohort, hold that again, answer all."""
    figures, requests = Figures(devices), server.requests(devices)

    def hold(some: dict[int, bytes]) -> None:
        clients.ask(some)
        wait_for(lambda: server.waiting() == devices, "all check-ins to be held")

    with Clients(server.port, CLIENT_CORE) as clients:
        used = cpu_seconds(server.pid)
        hold(requests)
        figures.hold_cpu_seconds = cpu_seconds(server.pid) - used
        if devices > COHORT:
            since, answers = server.release(clients, COHORT)
            figures.cohort = delays(since, answers, COHORT, server.marks)
            hold({index: requests[index] for index in answers})
        used = cpu_seconds(server.pid)
        figures.all = delays(*server.release(clients, devices), devices, server.marks)
        figures.all_cpu_seconds = cpu_seconds(server.pid) - used
    figures.megabytes = peak_megabytes(server.pid)
    return figures


@contextmanager
def fedlearn(storage: LocalStorage) -> Iterator[Fedlearn]:
    services = Services()
    with tempfile.TemporaryDirectory() as directory:
        try:
            yield Fedlearn(Path(directory), storage, services)
        finally:
            services.stop()


@contextmanager
def bare() -> Iterator[Bare]:
    server = Bare()
    try:
        yield server
    finally:
        server.process.terminate()
        server.process.join(10)


def main() -> None:
    sizes = [int(size) for size in sys.argv[1:]] or list(SIZES)
    on_core(CLIENT_CORE)
    print(f"                  CPU ms per poll  a cohort of {COHORT:,}      all of them")
    print("devices server      held  answered    p50    p99 s      p50    p99 s   peak MB")
    missed = list[str]()
    with tempfile.TemporaryDirectory() as directory, LocalStorage(Path(directory)) as storage:
        for devices in sizes:
            for start in (bare, lambda: fedlearn(storage)):
                with start() as server:
                    figures = measure(server, devices)
                print(figures.row(server.name), flush=True)
                missed += figures.missed() if server.name == "fedlearn" else []
    print("\n".join(missed) or "No connection broke, each answer was right, and every aim is reached.")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
