"""Rounds of the real server and aggregator over the real storage; devices are played step by step."""

import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import httpx
import numpy as np
import pytest

from fedlearn.core.errors import Code
from fedlearn.local.identities import SERVER_AUDIENCE
from support.trial import Trial, mean_metrics, step
from support.world import World, wait_for


def evaluator(world: World) -> httpx.Client:
    return world.client(world.server_url, "fedlearn-evaluator", "evaluator-0", SERVER_AUDIENCE)


def test_rounds_equal_numpys_weighted_mean_in_any_order_of_arrival(trial: Trial) -> None:
    trial.submit(goal=6, rounds=3)
    devices = [*trial.devices("a", "b"), *(trial.device(pod, slot) for pod in ("c", "d") for slot in (0, 1))]
    model, folded, rng = trial.model(0), trial.folded(), np.random.default_rng(3)
    for number in (1, 2, 3):
        assignments = trial.assign(*devices)
        updates = [trial.update(examples=10 + 90 * i) for i in range(len(devices))]
        bodies = [trial.seal(*given) for given in zip(devices, assignments, updates, strict=True)]
        with ThreadPoolExecutor(3) as threads:
            for i in rng.permutation(len(devices)):
                threads.submit(devices[i].upload, assignments[i], bodies[i])
        round_ = trial.reach(number, "committed", "abandoned")
        assert (round_.phase, round_.base_version) == ("committed", number - 1)
        assert round_.examples == sum(update.examples for update in updates)
        assert round_.metrics == pytest.approx(mean_metrics(updates))
        assert {standing for standing, _ in trial.standings(number).values()} == {"reported"}
        model = step(model, updates)
        assert np.abs(trial.model(number) - model).max() < 1e-6
        assert trial.folded() - folded == 6 * number, "each update is counted once"
        wait_for(lambda n=number: trial.world.updates_of(trial.id(n)) == [], "the sweep")
    wait_for(lambda: trial.state() == "completed", "the task to complete")


def test_only_as_many_reports_as_the_goal_are_waited_for_and_the_others_may_stop(trial: Trial) -> None:
    devices = trial.devices("a", "b", "c")
    trial.introduce(*devices)
    trial.submit(goal=2, over_selection=1.5, rounds=1)
    assignments = trial.assign(*devices)
    updates = [trial.update(), trial.update(30)]
    assert devices[2].wanted(assignments[2], wait_seconds=0.1).status_code == 204
    with ThreadPoolExecutor(1) as threads:
        released = threads.submit(devices[2].wanted, assignments[2], wait_seconds=20)
        for device, assignment, update in zip(devices, assignments, updates, strict=False):
            trial.bring(device, assignment, update)
        assert (released.result().status_code, released.result().json()["code"]) == (409, "round_closed")
    assert trial.device("stranger").wanted(assignments[2]).json()["code"] == "not_selected"
    assert trial.reach(1, "committed", "abandoned").phase == "committed"
    assert trial.standings()["c"] == ("released", None)
    assert np.abs(trial.model(1) - step(trial.model(0), updates)).max() < 1e-6


def test_too_few_devices_abandon_a_round_and_the_next_one_starts_by_itself(trial: Trial) -> None:
    trial.submit(rounds=1, selection_timeout_seconds=0.3)
    assert trial.reach(1, "abandoned").reason is Code.TOO_FEW_DEVICES
    devices = trial.devices("a", "b")
    assignments = trial.assign(*devices)
    assert assignments[0].round >= 2
    for device, assignment in zip(devices, assignments, strict=True):
        trial.bring(device, assignment, trial.update())
    assert trial.reach(assignments[0].round, "committed", "abandoned").phase == "committed"


def test_at_its_deadline_a_round_commits_with_the_minimum(trial: Trial) -> None:
    trial.submit(goal=3, min_fraction=0.6, rounds=1, reporting_timeout_seconds=2.5)
    devices = trial.devices("a", "b", "c")
    assignments = trial.assign(*devices)
    updates = [trial.update(), trial.update(70)]
    for device, assignment, update in zip(devices, assignments, updates, strict=False):
        trial.bring(device, assignment, update)
    round_ = trial.reach(1, "committed", "abandoned")
    assert round_.phase == "committed"
    assert round_.phase_seconds["reporting"] >= 2.5
    assert np.abs(trial.model(1) - step(trial.model(0), updates)).max() < 1e-6
    assert trial.standings()["c"] == ("released", None)


def test_below_the_minimum_a_round_is_abandoned_and_the_next_one_starts_from_the_same_model(trial: Trial) -> None:
    trial.submit(rounds=1, reporting_timeout_seconds=2.0)
    a, b = trial.devices("a", "b")
    trial.bring(a, trial.assign(a, b)[0], trial.update())
    assert trial.reach(1, "abandoned").reason is Code.TOO_FEW_REPORTS
    assignments = trial.assign(a, b)
    assert [assignment.round for assignment in assignments] == [2, 2]
    assert {assignment.model.version for assignment in assignments} == {0}
    updates = [trial.update(), trial.update(20)]
    for device, assignment, update in zip((a, b), assignments, updates, strict=True):
        trial.bring(device, assignment, update)
    assert trial.reach(2, "committed", "abandoned").phase == "committed"
    assert np.abs(trial.model(1) - step(trial.model(0), updates)).max() < 1e-6, "nothing of the abandoned round is in it"
    wait_for(lambda: trial.world.updates_of(trial.id(1)) == [], "the abandoned round's sweep")


def test_a_drop_out_ends_the_wait(trial: Trial) -> None:
    trial.submit(goal=3, min_fraction=0.6, rounds=1)
    devices = trial.devices("a", "b", "c")
    assignments = trial.assign(*devices)
    updates = [trial.update(), trial.update(70)]
    for device, assignment, update in zip(devices, assignments, updates, strict=False):
        trial.bring(device, assignment, update)
    trial.wait_for_standing(devices[1], "reported")
    assert devices[2].drop_out(assignments[2], Code.TRAINING_FAILED).status_code == 204
    round_ = trial.reach(1, "committed", "abandoned")
    assert (round_.phase, trial.standings()["c"]) == ("committed", ("dropped", Code.TRAINING_FAILED))
    assert round_.phase_seconds["reporting"] < 10


def test_a_cancelled_task_abandons_its_round_and_takes_nothing_more(trial: Trial) -> None:
    trial.submit(rounds=5)
    a, b = trial.devices("a", "b")
    assignment = trial.assign(a, b)[0]
    body = trial.seal(a, assignment, trial.update())
    trial.cancel()
    round_ = trial.round(1)
    assert (round_.phase, round_.reason, trial.state()) == ("abandoned", Code.TASK_CANCELLED, "cancelled")
    wait_for(lambda: a.ask(assignment, body).status_code == 409, "the aggregator to take no more updates")
    assert a.accept(assignment).json()["code"] == Code.ROUND_CLOSED
    assert a.check_in(wait_seconds=0.2).json()["kind"] == "come_back"


def test_the_evaluators_figure_ends_a_task_at_its_target(trial: Trial) -> None:
    trial.submit(rounds=None, target_accuracy=0.9)
    scoring = evaluator(trial.world)

    def score(version: int, accuracy: float) -> None:
        job = scoring.get("/v1/evaluations/next", params={"dataset": trial.name, "wait_seconds": 20}).json()
        assert (job["task"], job["model"]["version"]) == (trial.name, version)
        assert httpx.get(job["model_url"], trust_env=False).is_success
        answer = scoring.put(f"/v1/evaluations/{trial.name}/{version}", json={"metrics": {"accuracy": accuracy, "loss": 0.5}})
        assert answer.status_code == 204

    devices = trial.devices("a", "b")
    for number, accuracy in ((1, 0.5), (2, 0.95)):
        score(number - 1, accuracy - 0.1)
        for device, assignment in zip(devices, trial.assign(*devices), strict=True):
            assert assignment.round == number
            trial.bring(device, assignment, trial.update())
        trial.reach(number, "committed")
    assert trial.state() == "running"
    score(2, 0.95)
    began = time.monotonic()
    wait_for(lambda: trial.state() == "completed", "the task to complete")
    assert time.monotonic() - began < 2
    with trial.world.operator() as operator:
        assert [version.evaluation["accuracy"] for version in operator.models(trial.name)] == [0.4, 0.85, 0.95]


def test_of_two_figures_for_a_version_the_first_stays(trial: Trial) -> None:
    trial.submit()
    scoring = evaluator(trial.world)
    for accuracy in (0.3, 0.8):
        answer = scoring.put(f"/v1/evaluations/{trial.name}/0", json={"metrics": {"accuracy": accuracy}})
        assert answer.status_code == 204
    with trial.world.operator() as operator:
        assert operator.models(trial.name)[0].evaluation == {"accuracy": 0.3}


def test_a_check_in_whose_caller_hung_up_is_not_selected(trial: Trial) -> None:
    trial.submit(rounds=1)
    gone, a, b = trial.devices("gone", "a", "b")
    with pytest.raises(httpx.ReadTimeout):
        gone.server.post("/v1/checkins", json={"dataset": trial.name, "examples": 10, "wait_seconds": 20}, timeout=0.3)
    time.sleep(1.0)  # until the server has noticed
    assignments = trial.assign(a, b)
    assert [assignment.device for assignment in assignments] == [a.id, b.id]
    assert set(trial.standings()) == {"a", "b"}


def test_an_assignment_is_given_again_before_and_after_it_was_accepted_until_the_device_has_reported(trial: Trial) -> None:
    trial.submit(goal=2, rounds=1)
    a, b = trial.devices("a", "b")
    first, _ = trial.assign(a, b)
    again = a.assignment()
    assert (again.round, again.model) == (first.round, first.model)
    assert a.accept(again).status_code == 204
    restarted = a.assignment()
    assert (restarted.round, restarted.model_url) == (first.round, first.model_url), "the URL is signed once a round"
    assert restarted.seconds_left <= first.seconds_left
    trial.bring(a, restarted, trial.update())
    trial.wait_for_standing(a, "reported")
    assert a.check_in(wait_seconds=0.2).json()["kind"] == "come_back"


def test_a_device_that_has_uploaded_is_not_assigned_the_same_round_again(trial: Trial) -> None:
    trial.submit(goal=2, rounds=1)
    a, b = trial.devices("a", "b")
    assignment, _ = trial.assign(a, b)
    checkin = {"dataset": trial.name, "examples": 10, "uploaded": {"task": trial.name, "round": assignment.round}}
    answer = a.server.post("/v1/checkins", json={**checkin, "wait_seconds": 0.2})
    assert answer.json()["kind"] == "come_back"


def test_a_device_of_another_dataset_is_passed_by(trial: Trial) -> None:
    trial.submit(rounds=1)
    a, b = trial.devices("a", "b")
    foreign = trial.world.device(f"{trial.name}-c", dataset="another")
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(foreign.check_in, 1.0)
        trial.assign(a, b)
        assert waiting.result().json()["kind"] == "come_back"


def test_a_device_that_does_not_meet_the_tasks_demands_is_passed_by(trial: Trial) -> None:
    trial.submit(rounds=1, demands={"charging": True, "min_examples": 10})
    a, b, c = trial.devices("a", "b", "c")
    with ThreadPoolExecutor(1) as threads:
        draining = threads.submit(c.check_in, 3, conditions={"charging": False})
        assignments = trial.assign(a, b)
        assert draining.result().json()["kind"] == "come_back"
    assert assignments[0].demands.charging
    assert c.drop_out(assignments[0], Code.NOT_ELIGIBLE).json()["code"] == Code.NOT_SELECTED
    assert a.drop_out(assignments[0], Code.NOT_ELIGIBLE).status_code == 204
    assert trial.standings()["a"] == ("dropped", "not_eligible")
    trial.cancel()


def test_a_second_check_in_of_a_device_ends_its_first(trial: Trial) -> None:
    device = trial.device("a")
    with ThreadPoolExecutor(1) as threads:
        began = time.monotonic()
        first = threads.submit(device.check_in, 20.0)
        wait_for(lambda: trial.world.metric(trial.world.server_url, "fedlearn_devices_waiting") >= 1, "the check-in")
        device.check_in(wait_seconds=0.1)
        assert first.result().json()["kind"] == "come_back"
        assert time.monotonic() - began < 10


def test_an_assignment_says_all_that_a_device_needs(trial: Trial) -> None:
    trial.submit(rounds=1, reporting_timeout_seconds=60)
    a, b = trial.devices("a", "b")
    assignment, _ = trial.assign(a, b)
    assert 50 < assignment.seconds_left <= 60
    plan = a.server.get(f"/v1/plans/{assignment.plan_digest}")
    assert plan.content == trial.plan.canonical
    body = httpx.get(assignment.model_url, trust_env=False).content
    assert len(body) == assignment.model.size_bytes


def test_the_state_of_a_round_is_followed_by_waiting_for_its_next_change(trial: Trial) -> None:
    trial.submit(rounds=1)
    trial.reach(1, "selection")
    devices = trial.devices("a", "b")
    with trial.world.operator() as operator, ThreadPoolExecutor(3) as threads:
        following = threads.submit(operator.current_round, trial.name, 20.0)
        assigned = [threads.submit(device.assignment) for device in devices]
        assert following.result().phase in ("configuration", "reporting")
        for check_in in assigned:
            check_in.result()


def test_two_tasks_run_side_by_side_and_share_no_device(world: World, make_trial: Callable[..., Trial]) -> None:
    one, other = make_trial(world), make_trial(world)
    other.plan = one.plan.model_copy(update={"evaluation_batch_size": 7})
    devices = one.devices("a", "b", "c", "d")
    for trial in (one, other):
        trial.submit(rounds=1)
    assignments = one.assign(*devices)
    tasks = [assignment.task for assignment in assignments]
    assert sorted(tasks) == sorted([one.name] * 2 + [other.name] * 2)
    for device, assignment in zip(devices, assignments, strict=True):
        trial = one if assignment.task == one.name else other
        trial.bring(device, assignment, trial.update())
    assert [trial.reach(1, "committed", "abandoned").phase for trial in (one, other)] == ["committed"] * 2


def test_a_device_that_has_reported_is_free_for_another_tasks_round(world: World, make_trial: Callable[..., Trial]) -> None:
    one, other = make_trial(world), make_trial(world)
    other.plan = one.plan.model_copy(update={"evaluation_batch_size": 7})
    devices = one.devices("a", "b")
    one.submit(rounds=1)
    assignments = one.assign(*devices)
    one.bring(devices[0], assignments[0], one.update())
    one.wait_for_standing(devices[0], "reported")
    other.submit(rounds=1, goal=2)
    c = one.device("c")
    also = one.assign(devices[0], c)
    assert [assignment.task for assignment in also] == [other.name] * 2
    assert one.round(1).phase == "reporting"
    for device, assignment in zip((devices[0], c), also, strict=True):
        other.bring(device, assignment, other.update())
    one.bring(devices[1], assignments[1], one.update())
    assert [trial.reach(1, "committed", "abandoned").phase for trial in (one, other)] == ["committed"] * 2


def test_nothing_of_an_update_can_be_read_from_the_server(world: World, make_trial: Callable[..., Trial]) -> None:
    trial = make_trial(world, max_examples=10_000_000)
    trial.submit(rounds=1)
    devices, examples, losses = trial.devices("a", "b"), (7331973, 1972617), (0.123454321, 0.987656789)
    bodies = []
    for i, assignment in enumerate(trial.assign(*devices)):
        update = replace(trial.update(examples[i]), metrics={"loss": losses[i]})
        bodies.append(trial.bring(devices[i], assignment, update))
    trial.reach(1, "committed")

    with httpx.Client(base_url=world.server_url, trust_env=False) as client:
        paths = ("", "/rounds", "/rounds/1", "/rounds/current", "/models", "/plan")
        shown = [client.get(f"/v1/tasks/{trial.name}{path}").raise_for_status().text for path in paths]
        shown.append(client.get("/metrics").text)
    directory = world.deployment.directory
    with closing(sqlite3.connect(directory / "server.db")) as database:
        shown += database.iterdump()
    shown += [path.read_text() for path in directory.glob("server*.log")]
    everything = "\n".join(shown)
    assert everything.count(str(sum(examples))) >= 3, "the sum of both is shown: what is looked for would be found"
    for secret in (*map(str, examples), *(str(loss)[:8] for loss in losses), *(body[2000:2016].hex() for body in bodies)):
        assert secret.lower() not in everything.lower()
    contents = (directory / "server.db").read_bytes() + b"".join(path.read_bytes() for path in directory.glob("server.db-*"))
    assert not any(body[2000:2016] in contents for body in bodies)


def test_every_line_of_a_log_is_json_and_names_its_round_and_device(trial: Trial) -> None:
    trial.submit(rounds=1)
    devices = trial.devices("a", "b")
    assignments = trial.assign(*devices)
    assert devices[0].done(assignments[0], b"this was never uploaded").status_code == 202
    trial.wait_for_standing(devices[0], "refused")
    devices[1].drop_out(assignments[1], Code.TRAINING_FAILED)
    trial.reach(1, "abandoned")
    logs = {role: trial.world.logs(role) for role in ("server", "aggregator")}
    for role, lines in logs.items():
        assert all({"event", "level", "time", "service"} <= set(line) for line in lines)
        assert {line["service"] for line in lines} == {role}
    (refused,) = [line for line in logs["aggregator"] if line.get("device") == devices[0].id]
    assert (refused["event"], refused["round"], refused["code"]) == ("update refused", str(trial.id()), Code.UPDATE_MISSING)
    (dropped,) = [line for line in logs["server"] if line.get("device") == devices[1].id]
    assert (dropped["event"], dropped["round"], dropped["code"]) == ("device drops out", str(trial.id()), Code.TRAINING_FAILED)
    phases = [line["phase"] for line in logs["server"] if line["event"] == "phase" and line["round"] == str(trial.id())]
    assert phases == ["selection", "configuration", "reporting"]
