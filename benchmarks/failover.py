"""What the death of the server that leads costs: three servers on a real PostgreSQL, rounds of real processes, SIGKILL.

Run it as `PYTHONPATH=tests python benchmarks/failover.py [--kills 20] [--leases 5] [--stops 3] [--polls 20]`. Devices train
synthetically for 0.4 s. The figures:
- the leader is killed in each phase in turn: until another has begun its epoch, and until that has written to a round; what
  became of the round; and whether each version is the mean of its devices' updates, each counted once;
- the same with a Kubernetes Lease instead of PostgreSQL's advisory lock, which a dead leader does not let go of: the API that
  keeps the Lease is the tests' own;
- the leader is stopped (SIGSTOP) beyond its lease: until another leads, and whether what it writes when it wakes is refused;
- check-ins held at servers that don't lead: from the moment at which the leader has saved an assignment to its answer.
"""

import argparse
import itertools
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fedlearn.adapters.database import DatabaseRoundStore
from fedlearn.adapters.operator import OperatorClient
from fedlearn.core.ids import RoundId, TaskId
from fedlearn.core.replicas import Leader
from fedlearn.core.rounds import Phase, Round
from fedlearn.local.chaos import TASK, Arena
from fedlearn.local.chaos_checks import faults, orphans, outcome
from fedlearn.local.deployment import Environment
from fedlearn.local.ports import free_port
from fedlearn.local.postgres import Postgres, find_programs
from fedlearn.local.storage import LocalStorage
from fedlearn.protocol.messages import Assignment
from fedlearn.protocol.plans import Plan
from fedlearn.protocol.tensors import encode_model, unflatten
from fedlearn.protocol.views import Policy
from support.balancer import Balancer
from support.leases import LeaseApi
from support.played_api import played
from support.replicas import Replicas
from support.trial import Trial
from support.world import HandDevice, wait_for

DEVICES, SERVERS, WAIT_SECONDS = 5, 3, 60.0
PHASES = (Phase.SELECTION, Phase.CONFIGURATION, Phase.REPORTING, Phase.AGGREGATION)


class Servers(Arena):
    """An arena with several servers, which the others reach as by a Service."""

    def __init__(self, directory: Path, database_url: str, server_environment: Environment | None = None) -> None:
        super().__init__(directory, DEVICES, seed=0)
        self._server_environment = server_environment or {}
        self._database_url, self._balancer = database_url, Balancer()
        self.urls: dict[str, str] = {}

    def _start(self) -> None:
        super()._start()
        self.store.close()
        self._store = DatabaseRoundStore(self._database_url)
        self.wait(self.store.leader, "a leader")

    def _add(self, name: str, arguments: list[str], environment: Environment, port: int) -> None:
        if name != "server":
            super()._add(name, arguments, {**environment, "FEDLEARN_SERVER_URL": self._balancer.url}, port)
            return
        for index in range(SERVERS):
            mine = port if index == 0 else free_port()
            given = {"FEDLEARN_DATABASE_URL": self._database_url, "FEDLEARN_PORT": str(mine)}
            server = "server" if index == 0 else f"server-{index}"
            self.urls[f"http://127.0.0.1:{mine}"] = server
            super()._add(server, arguments, {**environment, **given, **self._server_environment}, mine)
        self._balancer.targets = [("127.0.0.1", int(url.rpartition(":")[2])) for url in self.urls]

    def _client(self) -> OperatorClient:
        return OperatorClient(self._balancer.url, self._deployment.operator_token())

    def stop(self) -> None:
        super().stop()
        self._balancer.close()

    def leader(self) -> Leader:
        leader = self.store.leader()
        assert leader is not None
        return leader

    def hit(self, phase: Phase) -> Round:
        """The round that has just entered this phase."""
        self.aim(phase)
        return self.current()

    def send(self, leader: Leader, number: signal.Signals) -> None:
        os.kill(self._running[self.urls[leader.address]].process.pid, number)

    def after(self, leader: Leader) -> tuple[float, float]:
        """How many seconds until another leads, and until it has written to a round."""
        began, before = time.monotonic(), self.current()
        self.wait(lambda: self.leader().epoch > leader.epoch, "another leader", WAIT_SECONDS)
        led = time.monotonic() - began
        self.wait(lambda: self.current() != before, "a change of the round", WAIT_SECONDS)
        return led, time.monotonic() - began

    def again(self, leader: Leader) -> None:
        """Start the dead leader's server again, and wait until it follows."""
        name = self.urls[leader.address]
        assert self._running[name].process.wait(20)
        self._launch(name)
        self._wait_until_ready(name)

    def submit_idle(self, name: str) -> Round:
        """A task that no device takes part in; its first round, which has yet to be abandoned."""
        plan = Plan.model_validate({**self.plan.model_dump(mode="json"), "dataset": name})
        vector = np.zeros(plan.parameters, np.float32)
        policy = Policy(goal=2, min_fraction=1.0, selection_timeout_seconds=12)
        with self._client() as client:
            client.submit(name, plan, encode_model(unflatten(vector, plan), plan), policy=policy)
        found = self.wait(lambda: self.store.latest_round(TaskId(name)), "the idle task's round")
        assert found is not None
        return found

    def wait_for_end_of(self, number: int) -> None:
        self.wait(lambda: self.round(number).phase.ended, "the round to end", WAIT_SECONDS)

    def cancel(self, task: TaskId) -> None:
        with self._client() as client:
            client.cancel(task)

    def refused(self, leader: Leader) -> int:
        """How many writes of its the fence has refused, by the log of its server."""
        lines = self._running[self.urls[leader.address]].log.read_text().splitlines()
        return sum(json.loads(line).get("code") == "not_leader" for line in lines)


def kill(servers: Servers, kills: int, lock: str) -> None:
    led, gone_on, became = [], [], Counter[str]()
    hit: list[tuple[Phase, RoundId]] = []
    for phase in itertools.islice(itertools.cycle(PHASES), kills):
        round_, leader = servers.hit(phase), servers.leader()
        servers.send(leader, signal.SIGKILL)
        seconds = servers.after(leader)
        led.append(seconds[0])
        gone_on.append(seconds[1])
        hit.append((round_.phase, round_.id))
        print(
            f"{round_.id} in {round_.phase}: another leads after {seconds[0]:.2f} s, writes after {seconds[1]:.2f} s",
            flush=True,
        )
        servers.again(leader)
        time.sleep(0.5)
    last = hit[-1][1]
    servers.wait(lambda: servers.round(last.number).phase.ended, "the last round that was hit to end", WAIT_SECONDS)
    for phase, round_id in hit:
        became[f"{phase}: {outcome(servers.round(round_id.number))}"] += 1
    print(f"\n{kills} SIGKILLs of the leader of {SERVERS} servers, {lock}:")
    for name, figures in (("another leads", led), ("a round goes on", gone_on)):
        print(f"  {name} after {statistics.median(figures):.2f} s (median), {max(figures):.2f} s (worst)")
    for what, count in sorted(became.items()):
        print(f"  {count} x {what}")


def stop(servers: Servers, stops: int) -> None:
    """The deadline of a task without devices passes meanwhile: when the stopped leader wakes, it wants to abandon its round."""
    print(f"\n{stops} SIGSTOPs of the leader, each until its lease was over and another led:")
    for turn in range(stops):
        idle = servers.submit_idle(f"idle-{turn}")
        round_, leader = servers.hit(Phase.REPORTING), servers.leader()
        servers.send(leader, signal.SIGSTOP)
        try:
            seconds = servers.after(leader)
            assert idle.deadline is not None
            time.sleep(max(0.0, idle.deadline - time.time()) + 1.0)
        finally:
            servers.send(leader, signal.SIGCONT)
        new = servers.leader()
        time.sleep(3.0)
        assert servers.leader() == new, "the woken server took the lead back"
        servers.wait_for_end_of(round_.id.number)
        servers.cancel(idle.id.task)
        print(
            f"  another leads after {seconds[0]:.2f} s; writes of the woken one that the fence has refused: "
            f"{servers.refused(leader)}; the round: {outcome(servers.round(round_.id.number))}",
            flush=True,
        )


def _wait_until_held(replicas: Replicas, trial: Trial, count: int) -> None:
    wait_for(lambda: len(replicas.waiting(trial)) == count, "all check-ins to be held")


def poll(replicas: Replicas, polls: int) -> None:
    late: list[float] = []

    def check_in(device: HandDevice) -> float:
        Assignment.model_validate_json(device.check_in(30.0).content)
        return time.time()

    for turn in range(polls):
        trial = Trial(replicas.world, f"polls-{turn}")
        devices = [replicas.device(trial, f"d{i}", replicas.followers()[i % 2]) for i in range(4)]
        with ThreadPoolExecutor(4) as threads:
            held = [threads.submit(check_in, device) for device in devices]
            _wait_until_held(replicas, trial, len(devices))
            trial.submit(goal=4, rounds=1)
            answered = [answer.result(30) for answer in held]
        round_ = trial.round()
        saved = round_.opened_at.timestamp() + round_.phase_seconds["selection"] + round_.phase_seconds["configuration"]
        late += [at - saved for at in answered]
        trial.cancel()
    figures = [1000 * figure for figure in late]
    print(
        f"\n{len(figures)} check-ins held at followers: answered {statistics.median(figures):.0f} ms (median), "
        f"{max(figures):.0f} ms (worst) after the leader had saved the assignment"
    )


def check(servers: Servers) -> None:
    servers.end()
    wrong, rounds = faults(servers), servers.store.rounds(TASK)
    print(f"\n{len(rounds)} rounds in all: {dict(Counter(outcome(round_) for round_ in rounds))}")
    print("\n".join(wrong) or "Each version is the mean of its devices' updates, each counted once (to 1e-6).", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("kills", 20), ("leases", 5), ("stops", 3), ("polls", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    programs = find_programs()
    if programs is None:
        sys.exit("There is no PostgreSQL server here.")
    postgres = Postgres(programs)
    try:
        postgres.start()
        with tempfile.TemporaryDirectory(prefix="failover-") as place:
            directory = Path(place)
            if asked.kills or asked.stops:
                with Servers(directory / "rounds", postgres.new_database()) as servers:
                    servers.submit(goal=DEVICES - 1)
                    if asked.kills:
                        kill(servers, asked.kills, "advisory lock")
                    stop(servers, asked.stops)
                    check(servers)
            if asked.leases:
                with played(LeaseApi(directory)) as api:
                    lease = {
                        "KUBECONFIG": str(api.kubeconfig()),
                        "FEDLEARN_REPLICA__LEASE": "fedlearn-server",
                        "FEDLEARN_CLUSTER__POD_NAME": "server",
                    }
                    with Servers(directory / "leases", postgres.new_database(), lease) as servers:
                        servers.submit(goal=DEVICES - 1)
                        kill(servers, asked.leases, "Lease of 8 s")
                        check(servers)
            print(f"Processes left: {orphans(directory)}", flush=True)
            if asked.polls:
                with LocalStorage(directory / "storage") as storage:
                    replicas = Replicas.start(directory / "polls", storage, postgres.new_database(), SERVERS, lease_seconds=8)
                    try:
                        poll(replicas, asked.polls)
                    finally:
                        replicas.stop()
    finally:
        postgres.remove()


if __name__ == "__main__":
    main()
