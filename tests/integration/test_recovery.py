"""SIGKILL at the moments that matter: the same round commits once, and its model is what it would have been."""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from fedlearn.adapters.database import DatabaseRoundStore
from fedlearn.adapters.keyfiles import make_private_key
from fedlearn.aggregator.publishing import KEPT_BYTES
from fedlearn.core.errors import Code
from fedlearn.core.ids import RoundId
from fedlearn.core.rounds import Phase, Round, Standing
from fedlearn.core.updates import Update
from fedlearn.local.child import Child
from fedlearn.local.processes import Service
from fedlearn.local.seaweed import MODELS
from fedlearn.protocol.messages import Assignment
from fedlearn.protocol.tensors import state_of
from support.trial import Trial, step
from support.world import HandDevice, World, wait_for


@pytest.fixture(autouse=True)
def healthy(world: World) -> Iterator[None]:
    """Whatever a test kills, the next one finds both services."""
    yield
    if dead := [role for role in ("server", "aggregator") if not getattr(world, role).process.running]:
        world.restart(*dead)


def stored(trial: Trial, number: int = 1) -> Round:
    """A round as the database says, whoever runs."""
    store = DatabaseRoundStore(trial.world.environments["server"]["FEDLEARN_DATABASE_URL"])
    try:
        return store.round(trial.id(number))
    finally:
        store.close()


@contextmanager
def paused(world: World, role: str) -> Iterator[None]:
    """A service that does nothing for a while."""
    service: Service = getattr(world, role)
    os.kill(service.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        if service.process.running:
            os.kill(service.process.pid, signal.SIGCONT)


def committed_once_and_exactly(trial: Trial, updates: Sequence[Update]) -> None:
    assert trial.reach(1, "committed", "abandoned").phase == "committed"
    assert np.abs(trial.model(1) - step(trial.model(0), updates)).max() < 1e-6
    assert trial.round(1).examples == sum(update.examples for update in updates)
    wait_for(lambda: trial.state() == "completed", "the task to complete")
    with trial.world.operator() as operator:
        assert [round_.round for round_ in operator.rounds(trial.name)] == [1]
        assert [version.model.version for version in operator.models(trial.name)] == [0, 1]
    wait_for(lambda: trial.world.updates_of(trial.id()) == [], "the sweep")


@pytest.fixture
def three(trial: Trial) -> tuple[list[HandDevice], list[Assignment], list[Update]]:
    """Three devices in round 1, two of which have reported; two are enough if the third drops out."""
    trial.submit(goal=3, min_fraction=0.6, rounds=1)
    devices = trial.devices("a", "b", "c")
    assignments = trial.assign(*devices)
    updates = [trial.update(examples) for examples in (10, 200, 900)]
    for device, assignment, update in zip(devices[:2], assignments, updates, strict=False):
        trial.bring(device, assignment, update)
        trial.wait_for_standing(device, "reported")
    return devices, assignments, updates


Three = tuple[list[HandDevice], list[Assignment], list[Update]]


def test_a_server_killed_in_selection_selects_when_it_is_back(trial: Trial) -> None:
    trial.submit(rounds=1)
    trial.reach(1, "selection")
    a, b = trial.devices("a", "b")
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(a.check_in)
        wait_for(lambda: trial.world.metric(trial.world.server_url, "fedlearn_devices_waiting") == 1, "the check-in")
        trial.world.kill("server")
        with pytest.raises(httpx.HTTPError):
            waiting.result()
    assert stored(trial).phase is Phase.SELECTION
    trial.world.restart("server")
    assignments = trial.assign(a, b)
    assert {assignment.round for assignment in assignments} == {1}
    updates = [trial.update(), trial.update(40)]
    for device, assignment, update in zip((a, b), assignments, updates, strict=True):
        trial.bring(device, assignment, update)
    committed_once_and_exactly(trial, updates)


def test_a_server_killed_while_devices_report_goes_on_with_their_round(trial: Trial, three: Three) -> None:
    devices, assignments, updates = three
    trial.world.kill("server")
    assert stored(trial).phase is Phase.REPORTING
    assert stored(trial).count(Standing.REPORTED) == 2
    trial.bring(devices[2], assignments[2], updates[2])  # to the aggregator, which tells the server when that is back
    trial.world.restart("server")
    committed_once_and_exactly(trial, updates)


def test_devices_get_their_assignment_again_from_a_server_that_is_back(trial: Trial, three: Three) -> None:
    devices, assignments, updates = three
    trial.world.kill("server")
    trial.world.restart("server")
    again = devices[2].assignment()
    assert (again.round, again.model) == (1, assignments[2].model)
    assert devices[2].accept(again).status_code == 204
    trial.bring(devices[2], again, updates[2])
    committed_once_and_exactly(trial, updates)


@pytest.mark.parametrize("heard", [True, False], ids=["close heard", "close not heard"])
def test_a_server_killed_between_close_and_result_gets_it_when_it_is_back(trial: Trial, three: Three, heard: bool) -> None:
    devices, assignments, updates = three
    with paused(trial.world, "aggregator"):
        devices[2].drop_out(assignments[2], Code.TRAINING_FAILED)
        trial.reach(1, "aggregation")
        trial.world.kill("server")
        if not heard:
            trial.world.kill("aggregator")
    assert stored(trial).phase is Phase.AGGREGATION
    trial.world.restart(*(("server",) if heard else ("aggregator", "server")))
    committed_once_and_exactly(trial, updates[:2])


def test_an_aggregator_killed_with_updates_folded_counts_them_again_and_goes_on(trial: Trial, three: Three) -> None:
    devices, assignments, updates = three
    key = devices[2].aggregator.get(f"/v1/rounds/{trial.id()}/sealing-key").json()
    trial.world.kill("aggregator")
    trial.world.restart("aggregator")
    assert devices[2].aggregator.get(f"/v1/rounds/{trial.id()}/sealing-key").json() == key
    trial.bring(devices[2], assignments[2], updates[2])
    committed_once_and_exactly(trial, updates)


def test_an_upload_whose_word_came_while_the_aggregator_was_dead_is_counted(trial: Trial, three: Three) -> None:
    devices, assignments, updates = three
    body = trial.seal(devices[2], assignments[2], updates[2])
    grant = devices[2].ask(assignments[2], body)
    trial.world.kill("aggregator")
    assert devices[2].put(grant, body).status_code == 200
    with pytest.raises(httpx.ConnectError):
        devices[2].done(assignments[2], body)
    trial.world.restart("aggregator")
    committed_once_and_exactly(trial, updates)


def test_an_aggregator_killed_after_its_close_record_publishes_what_that_says(trial: Trial, three: Three) -> None:
    devices, assignments, updates = three
    world, record = trial.world, f"{trial.name}/00000001/closed.json"
    late = trial.seal(devices[2], assignments[2], updates[2])
    url = devices[2].ask(assignments[2], late)
    with ExitStack() as stack:
        with paused(world, "aggregator"):
            devices[2].drop_out(assignments[2], Code.TRAINING_FAILED)
            trial.reach(1, "aggregation")
            for _ in range(5):  # so that the server has sent its word that the round closes
                trial.round(1)
            stack.enter_context(paused(world, "server"))
        wait_for(lambda: record in world.updates_of(trial.id()), "the close record")
        world.kill("aggregator")
        world.kill("server")  # or it would find the result in its socket, if the aggregator came so far
    assert stored(trial).phase is Phase.AGGREGATION
    assert devices[2].put(url, late).status_code == 200, "it lies there now, but the record does not name it"
    world.restart("aggregator", "server")
    committed_once_and_exactly(trial, updates[:2])


def test_both_killed_at_once_finish_their_round(trial: Trial, three: Three) -> None:
    devices, _, updates = three
    for role in ("server", "aggregator"):
        trial.world.kill(role)
    trial.world.restart("server", "aggregator")
    trial.bring(devices[2], devices[2].assignment(), updates[2])
    committed_once_and_exactly(trial, updates)


def test_an_aggregator_that_has_lost_its_key_gives_the_round_up_and_the_next_one_has_another(
    trial: Trial, three: Three, tmp_path: Path
) -> None:
    make_private_key(tmp_path / "other.key.pem")
    trial.world.kill("aggregator")
    trial.world.restart("aggregator", FEDLEARN_IDENTITY_KEY_FILE=str(tmp_path / "other.key.pem"))
    try:
        round_ = trial.reach(1, "committed", "abandoned")
        assert (round_.phase, round_.reason) == ("abandoned", Code.AGGREGATOR_KEY_LOST)
        assert trial.reach(2, "selection").base_version == 0
        lost = [line for line in trial.world.logs("aggregator") if line["event"] == "round has no result"]
        own = [line["code"] for line in lost if line["round"] == str(trial.id())]  # the storage may hold others' rounds
        assert own == [Code.AGGREGATOR_KEY_LOST]
        wait_for(lambda: trial.world.updates_of(trial.id()) == [], "what nobody can open to be swept")
    finally:
        trial.cancel()
        trial.world.kill("aggregator")


@pytest.mark.parametrize("rows", [784, 230_000], ids=["a small model", "a model that is written over its sum"])
def test_an_aggregator_killed_between_state_and_model_publishes_what_it_would_have(
    world: World, make_trial: Callable[..., Trial], rows: int
) -> None:
    """The second round's state of FedAdam lies there, and the model that names it does not."""
    trial = make_trial(world, aggregation={"strategy": "fedadam"}, weights=[{"shape": [rows, 10]}, {"shape": [10]}])
    assert (4 * trial.plan.parameters > KEPT_BYTES) == (rows > 784)
    trial.submit(goal=3, rounds=2)
    devices = trial.devices("a", "b", "c")
    means = []
    for number in (1, 2):
        assignments = trial.assign(*devices)
        assert {assignment.round for assignment in assignments} == {number}
        if number == 2:
            restart_to_die(world, trial.id(2))
        updates = [trial.update(examples) for examples in (10, 200, 900)]
        for device, assignment, update in zip(devices, assignments, updates, strict=True):
            trial.bring(device, assignment, update)
        means.append(np.average([update.delta.astype(np.float64) for update in updates], axis=0, weights=(10, 200, 900)))
        if number == 1:
            trial.reach(1, "committed")
    assert world.aggregator.process.wait(30)
    assert world.aggregator.process.status == -signal.SIGKILL
    assert stored(trial, 2).phase is Phase.AGGREGATION
    states, models = (kept(trial, kind) for kind in ("states", "models"))
    assert (len(states), len(models)) == (2, 2), "a state of each round, version 0, and the first round's"

    world.restart("aggregator")
    assert trial.reach(2, "committed", "abandoned").phase == "committed"
    assert kept(trial, "states") == states, "the second round's has been made again, to the last bit"
    (published,) = kept(trial, "models") - models
    named = state_of(world.store("aggregator", MODELS).get(published))
    assert {f"{trial.name}/states/{named}.safetensors"} < states
    # Reddi et al. 2021, algorithm 2; the moments are kept in float32
    m, v = (0.1 * means[0]).astype(np.float32), (0.99 * np.float32(1e-8) + 0.01 * means[0] ** 2).astype(np.float32)
    m, v = 0.9 * m.astype(np.float64) + 0.1 * means[1], 0.99 * v.astype(np.float64) + 0.01 * means[1] ** 2
    expected = trial.model(1) + 0.003 * m / (np.sqrt(v) + 1e-4)
    np.testing.assert_array_max_ulp(trial.model(2), expected.astype(np.float32), maxulp=1)
    wait_for(lambda: trial.state() == "completed", "the task to complete")
    with world.operator() as operator:
        assert [round_.round for round_ in operator.rounds(trial.name)] == [1, 2]
        assert [version.model.version for version in operator.models(trial.name)] == [0, 1, 2]


def restart_to_die(world: World, round_id: RoundId) -> None:
    """Another aggregator, which dies when it is about to write the model of this round."""
    world.kill("aggregator")
    program = [sys.executable, "-m", "support.mortal_aggregator", str(round_id)]
    log = world.aggregator.log.with_name(f"aggregator-{world.aggregator.process.pid}.log")
    environment = {**os.environ, **world.environments["aggregator"]}
    child = Child(program, directory=Path(__file__).parents[1], environment=environment, log=log)
    world.aggregator = world.services.add(Service("aggregator", child, log))
    world.wait_until_ready()


def kept(trial: Trial, kind: str) -> set[str]:
    """The keys of the task's models or states."""
    return {found.key for found in trial.world.store("aggregator", MODELS).list(f"{trial.name}/{kind}/")}


@pytest.mark.parametrize(
    "aggregation",
    [{"strategy": "fedadam"}, {"strategy": "fedavgm", "rule": {"name": "trimmed_mean", "trim_fraction": 0.34}}],
    ids=["FedAdam", "FedAvgM of a trimmed mean"],
)
def test_a_server_optimizers_moments_outlive_the_aggregator(world: World, aggregation: dict[str, object]) -> None:
    """Two tasks get the same updates; the aggregator is killed in the middle of the second one's second round."""
    found = []
    for name in ("lasting", "killed"):
        trial = Trial(world, f"{name}-{aggregation['strategy']}", aggregation=aggregation)
        trial.submit(goal=3, rounds=2)
        devices = trial.devices("a", "b", "c")
        for number in (1, 2):
            assignments = trial.assign(*devices)
            for device, assignment in zip(devices, assignments, strict=True):
                assert device.accept(assignment).status_code == 204
            for place, (device, assignment) in enumerate(zip(devices, assignments, strict=True)):
                if (name, number, place) == ("killed", 2, 2):
                    world.kill("aggregator")
                    world.restart("aggregator")
                trial.bring(device, assignment, trial.update(examples=10 + place))
            trial.reach(number, "committed")
        found.append(trial.model(2))
    # what was folded first differs between the two, and a float64 sum may show it in its last bit
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6, atol=1e-7)
