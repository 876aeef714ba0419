"""Three servers on one PostgreSQL: whichever a caller asks, rounds go on, and they outlive the one that leads them."""

import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from fedlearn.core.errors import Code, Refusal
from fedlearn.core.updates import Update
from fedlearn.local.postgres import Postgres
from fedlearn.local.storage import LocalStorage
from fedlearn.protocol.messages import Assignment
from support.replicas import Replicas
from support.trial import Trial, step
from support.world import HandDevice, wait_for

LEASE_SECONDS = 3
MakeTrial = Callable[..., Trial]


@pytest.fixture(scope="module")
def servers(storage: LocalStorage, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    made = Replicas.start(tmp_path_factory.mktemp("replicas"), storage, postgres.new_database(), 3, LEASE_SECONDS)
    yield made
    made.stop()


@pytest.fixture(autouse=True)
def _three(servers: Replicas) -> Iterator[None]:
    """Whatever a test ends, the next one finds three servers."""
    ports = {int(url.rpartition(":")[2]) for url in servers.servers}
    yield
    for port in ports - {int(url.rpartition(":")[2]) for url in servers.servers}:
        servers.add(port)


@pytest.fixture
def trial(servers: Replicas, make_trial: MakeTrial) -> Trial:
    return make_trial(servers.world)


def at_each(servers: Replicas, trial: Trial, *names: str) -> list[HandDevice]:
    """Devices of which each talks to another server."""
    return [servers.device(trial, name, url) for name, url in zip(names, servers.servers, strict=False)]


def report(trial: Trial, devices: list[HandDevice], assignments: list[Assignment]) -> list[Update]:
    updates = [trial.update(10 * (i + 1)) for i in range(len(devices))]
    for device, assignment, update in zip(devices, assignments, updates, strict=True):
        trial.bring(device, assignment, update)
    return updates


def committed_exactly(trial: Trial, updates: list[Update]) -> None:
    assert trial.reach(1, "committed", "abandoned").phase == "committed"
    assert np.abs(trial.model(1) - step(trial.model(0), updates)).max() < 1e-6


def test_devices_that_wait_at_any_server_are_selected_for_one_round(servers: Replicas, trial: Trial) -> None:
    trial.submit(goal=3, rounds=1)
    devices = at_each(servers, trial, "a", "b", "c")
    assignments = trial.assign(*devices)
    assert {assignment.round for assignment in assignments} == {1}
    for device, assignment in zip(devices, assignments, strict=True):
        assert device.accept(assignment).status_code == 204
        assert device.wanted(assignment).status_code == 204
    committed_exactly(trial, report(trial, devices, assignments))
    wait_for(lambda: trial.state() == "completed", "the task to complete")


def test_a_check_in_held_at_a_follower_is_answered_as_soon_as_the_leader_assigns_work(servers: Replicas, trial: Trial) -> None:
    devices = [servers.device(trial, f"d{i}", servers.followers()[i % 2]) for i in range(4)]

    def check_in(device: HandDevice) -> tuple[Assignment, float]:
        return device.assignment(30.0), time.time()

    with ThreadPoolExecutor(4) as threads:
        held = [threads.submit(check_in, device) for device in devices]
        wait_for(lambda: len(servers.waiting(trial)) == 4, "all check-ins to be held")
        trial.submit(goal=4, rounds=1)
        answers = [answer.result(10) for answer in held]
    assert len({assignment.device for assignment, _ in answers}) == 4
    round_ = trial.round()
    assigned_at = round_.opened_at.timestamp() + round_.phase_seconds["selection"] + round_.phase_seconds["configuration"]
    assert max(answered_at for _, answered_at in answers) - assigned_at < 1.0


def test_a_device_that_is_asked_elsewhere_gets_its_assignment_again(servers: Replicas, trial: Trial) -> None:
    trial.submit(goal=2, rounds=1)
    devices = at_each(servers, trial, "a", "b")
    trial.assign(*devices)
    for url in servers.servers:
        again = servers.device(trial, "a", url).assignment(0.0)
        assert (again.round, again.device) == (1, devices[0].id)


def test_a_device_that_is_not_in_the_round_is_told_so_by_every_server(servers: Replicas, trial: Trial) -> None:
    trial.submit(goal=2, rounds=1)
    assignments = trial.assign(*at_each(servers, trial, "a", "b"))
    for url in servers.servers:
        answer = servers.device(trial, "stranger", url).wanted(assignments[0])
        assert (answer.status_code, answer.json()["code"]) == (403, Code.NOT_SELECTED)


def test_who_reports_is_told_everywhere_when_the_round_has_ended(servers: Replicas, trial: Trial) -> None:
    trial.submit(goal=2, rounds=1)
    devices = at_each(servers, trial, "a", "b")
    assignments = trial.assign(*devices)
    with ThreadPoolExecutor(3) as threads:
        waiting = [threads.submit(servers.device(trial, "a", url).wanted, assignments[0], 20.0) for url in servers.servers]
        report(trial, devices, assignments)
        for answer in waiting:
            assert answer.result(20).json()["code"] == Code.ROUND_CLOSED


def test_operators_may_ask_any_server(servers: Replicas, trial: Trial) -> None:
    trial.submit(goal=2, rounds=3)
    token = {"Authorization": f"Bearer {servers.world.deployment.operator_token()}"}

    def post(url: str, action: str) -> str:
        answer = httpx.post(f"{url}/v1/tasks/{trial.name}/{action}", headers=token, trust_env=False, timeout=20)
        assert answer.is_success, answer.text
        return str(answer.json()["state"])

    for url in servers.servers:
        assert post(url, "pause") == "paused"
        assert post(url, "resume") == "running"
    assert post(servers.followers()[0], "cancel") == "cancelled"
    trial.reach(1, "abandoned")
    refused = httpx.post(f"{servers.followers()[0]}/v1/tasks/{trial.name}/pause", trust_env=False, timeout=20)
    assert refused.status_code == 401


def test_a_follower_shows_the_devices_and_the_rounds_of_all(servers: Replicas, trial: Trial) -> None:
    trial.submit(goal=2, rounds=1)
    trial.assign(*at_each(servers, trial, "a", "b"))
    for url in servers.servers:

        def shown(url: str = url) -> bool:
            devices = httpx.get(f"{url}/v1/devices", trust_env=False).json()["devices"]
            mine = [d for d in devices if d["device"].startswith(trial.name)]
            return len(mine) == 2 and all(d["part"] and d["dataset"] == trial.name for d in mine)

        wait_for(shown, f"{url} to show both devices", 15.0)


def test_the_leader_dies_and_the_same_round_commits(servers: Replicas, trial: Trial) -> None:
    trial.submit(goal=3, rounds=1)
    devices = [servers.device(trial, name, servers.followers()[i % 2]) for i, name in enumerate("abc")]
    assignments = trial.assign(*devices)
    first = trial.update(10)
    trial.bring(devices[0], assignments[0], first)
    trial.wait_for_standing(devices[0], "reported")
    leader = servers.leader()
    assert leader is not None
    servers.kill(leader.address)
    began = time.monotonic()
    servers.next_leader(leader.epoch)
    assert time.monotonic() - began < 5.0
    assert devices[1].accept(assignments[1]).status_code == 204
    updates = [first, *report(trial, devices[1:], assignments[1:])]
    reader = servers.followers()[0]
    wait_for(lambda: round_at(reader, trial)["phase"] in ("committed", "abandoned"), "the round to end")
    assert round_at(reader, trial)["phase"] == "committed"
    assert round_at(reader, trial)["examples"] == sum(update.examples for update in updates)


def round_at(url: str, trial: Trial) -> dict[str, object]:
    found: dict[str, object] = httpx.get(f"{url}/v1/tasks/{trial.name}/rounds/1", trust_env=False, timeout=20).json()
    return found


def test_a_leader_that_was_stopped_beyond_its_lease_writes_nothing_when_it_wakes_up(servers: Replicas, trial: Trial) -> None:
    trial.submit(goal=2, rounds=1)
    leader = servers.leader()
    assert leader is not None
    devices = [servers.device(trial, name, servers.followers()[i]) for i, name in enumerate("ab")]
    assignments = trial.assign(*devices)
    servers.signal(leader.address, signal.SIGSTOP)
    try:
        began = time.monotonic()
        new = servers.next_leader(leader.epoch)
        assert LEASE_SECONDS / 2 < time.monotonic() - began < 3 * LEASE_SECONDS
        assert new.address != leader.address
        with pytest.raises(Refusal) as caught:
            servers.store.fenced(leader.epoch).end_task(trial.id().task, "failed")
        assert caught.value.code is Code.NOT_LEADER
        assert devices[0].accept(assignments[0]).status_code == 204
    finally:
        servers.signal(leader.address, signal.SIGCONT)
    # it follows now: what it is asked for it passes on to the new leader
    woken = servers.device(trial, "b", leader.address)
    assert woken.accept(assignments[1]).status_code == 204
    report(trial, devices, assignments)
    wait_for(lambda: round_at(leader.address, trial)["phase"] == "committed", "the round to commit")
    assert servers.leading() == new.address


def test_a_leader_that_missed_a_deadline_while_it_was_stopped_changes_nothing_when_it_wakes(
    servers: Replicas, trial: Trial
) -> None:
    trial.submit(goal=2, rounds=1, selection_timeout_seconds=5)  # nobody comes: whoever leads abandons the round then
    opened = wait_for(lambda: servers.store.latest_round(trial.id().task), "the round")
    leader = servers.leader()
    assert leader is not None
    servers.signal(leader.address, signal.SIGSTOP)
    try:
        new = servers.next_leader(leader.epoch)
        assert opened.deadline is not None
        time.sleep(max(0.0, opened.deadline - time.time()) + 0.5)
        abandoned = wait_for(lambda: (r := servers.store.round(trial.id())).phase.ended and r, "its end under the new leader")
    finally:
        servers.signal(leader.address, signal.SIGCONT)

    def given_up() -> bool:
        return any(line["event"] == "the lead is lost" for line in servers.logs(leader.address))

    wait_for(given_up, "the woken server to notice")
    assert servers.leading() == new.address
    assert servers.store.round(trial.id()) == abandoned
    assert abandoned.reason is Code.TOO_FEW_DEVICES


def test_a_leader_that_is_asked_to_stop_hands_over_at_once(servers: Replicas, trial: Trial) -> None:
    trial.submit(goal=2, rounds=1)
    devices = [servers.device(trial, name, url) for name, url in zip("ab", servers.followers(), strict=True)]
    assignments = trial.assign(*devices)
    leader = servers.leader()
    assert leader is not None
    began = time.monotonic()
    servers.signal(leader.address, signal.SIGTERM)
    servers.next_leader(leader.epoch)
    assert time.monotonic() - began < 5.0
    assert servers.servers.pop(leader.address).process.wait(20)
    report(trial, devices, assignments)
    reader = next(iter(servers.servers))
    wait_for(lambda: round_at(reader, trial)["phase"] == "committed", "the round to commit")
