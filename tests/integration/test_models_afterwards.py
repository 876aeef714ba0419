"""What a person does with versions: roll back, pin, pause the task, export; by the API and by commands."""

import json
from pathlib import Path

import httpx
import numpy as np
import pytest

from fedlearn.adapters.operator import OperatorClient
from fedlearn.core.errors import Code, Refusal
from support.command import PORTS, Run
from support.trial import Trial, step
from support.world import wait_for


def commit(trial: Trial, number: int) -> np.ndarray:
    """Run a round with two devices; the version that it makes."""
    devices = trial.devices("a", "b")
    updates = [trial.update(), trial.update()]
    for device, assignment, update in zip(devices, trial.assign(*devices), updates, strict=True):
        assert assignment.round == number
        trial.bring(device, assignment, update)
    view = trial.reach(number, "committed")
    assert view.model is not None
    made = trial.model(view.model.version)
    assert made == pytest.approx(step(trial.model(view.base_version), updates), abs=1e-6)
    return made


def test_the_next_round_starts_from_a_version_that_was_rolled_back_to(trial: Trial) -> None:
    trial.submit(rounds=None)
    first = commit(trial, 1)
    commit(trial, 2)
    devices = trial.devices("a", "b")
    late = trial.assign(*devices)[0]
    with trial.world.operator() as operator:
        restored = operator.roll_back(trial.name, 1, current=2)
        assert (restored.model.version, restored.parent, restored.round) == (3, 1, None)
        abandoned = trial.reach(3, "abandoned")
        assert abandoned.reason is Code.BASE_SUPERSEDED
        # what was made for the abandoned round goes nowhere
        wait_for(lambda: not devices[0].ask(late, b"x" * 100).is_success, "the abandoned round to take no updates")
        made = commit(trial, 4)
        versions = operator.models(trial.name)
    assert [(v.model.version, v.parent, v.round) for v in versions] == [
        (0, None, None), (1, 0, 1), (2, 1, 2), (3, 1, None), (4, 3, 4)
    ]  # fmt: skip
    assert [(v.contributors, v.examples) for v in versions[1:]] == [(2, 20), (2, 20), (None, None), (2, 20)]
    assert np.array_equal(trial.model(3), first)
    assert not np.array_equal(made, first)


def test_who_has_not_seen_the_newest_version_rolls_nothing_back(trial: Trial) -> None:
    trial.submit(rounds=1)
    commit(trial, 1)
    with trial.world.operator() as operator:
        with pytest.raises(Refusal) as refused:
            operator.roll_back(trial.name, 0, current=0)
        assert refused.value.code is Code.BASE_SUPERSEDED
        assert len(operator.models(trial.name)) == 2


def test_a_label_moves_from_version_to_version_and_is_removed(trial: Trial) -> None:
    trial.submit(rounds=1)
    commit(trial, 1)
    with trial.world.operator() as operator:
        operator.pin(trial.name, 0, "production")
        assert operator.pin(trial.name, 1, "production").labels == ("production",)
        assert [version.labels for version in operator.models(trial.name)] == [(), ("production",)]
        operator.unpin(trial.name, "production")
        assert operator.models(trial.name)[1].labels == ()
        for label in ("5", "Up", "a/b", "-"):
            with pytest.raises(Refusal):
                operator.pin(trial.name, 0, label)


def test_a_paused_task_ends_its_round_and_survives_its_server(trial: Trial) -> None:
    trial.submit(rounds=3)
    with trial.world.operator() as operator:
        devices = trial.devices("a", "b")
        assignments = trial.assign(*devices)
        assert operator.pause(trial.name).state == "paused"
        for device, assignment in zip(devices, assignments, strict=True):
            trial.bring(device, assignment, trial.update())
        trial.reach(1, "committed")
    trial.world.kill("server")
    trial.world.restart("server")
    with trial.world.operator() as operator:
        assert operator.task(trial.name).state == "paused"
        assert len(operator.rounds(trial.name)) == 1
        assert operator.resume(trial.name).state == "running"
        commit(trial, 2)


def test_steering_wants_the_operators_token(trial: Trial) -> None:
    trial.submit(rounds=1)
    base = f"{trial.world.server_url}/v1/tasks/{trial.name}"
    steps = ("POST pause", "POST resume", "POST models/0/rollback", "PUT models/0/labels/a", "DELETE labels/a")
    for method, _, path in (step_.partition(" ") for step_ in steps):
        assert httpx.request(method, f"{base}/{path}", trust_env=False).status_code == 401


@pytest.mark.slow
def test_an_exported_model_loads_in_plain_keras_and_scores_what_fedlearn_says(tmp_path: Path) -> None:
    out = tmp_path / "up"
    options = ["--devices", "2", "--model", "2nn", "--rounds", "2", "--batch-size", "100", "--device-port", "0"]
    run = Run("up", "--out", str(out), *PORTS, *options)
    wait_for(lambda: (out / "up.json").exists() or run.process.poll() is not None, "everything to be up", seconds=120)

    places = json.loads((out / "up.json").read_text())
    environment = {
        "FEDLEARN_SERVER_URL": places["server"],
        "FEDLEARN_OPERATOR_TOKEN": Path(places["operator_token_file"]).read_text(),
        "COLUMNS": "200",
    }

    def fedlearn(*arguments: str) -> str:
        code, printed, errors = Run(*arguments, **environment).end(120)
        assert code == 0, errors
        return printed

    def scored() -> bool:
        versions = operator.models("mnist-2nn")
        return len(versions) == 3 and all(version.evaluation for version in versions)

    with OperatorClient(places["server"]) as operator:
        wait_for(scored, "both rounds to be committed and scored", seconds=90)
    fedlearn("models", "pin", "2", "production")
    said = json.loads(fedlearn("models", "show", "production", "--json"))["evaluation"]
    fedlearn("models", "export", "--version", "production", "--out", str(tmp_path / "model.keras"))
    fedlearn("models", "export", "--version", "production", "--format", "savedmodel", "--out", str(tmp_path / "saved"))
    fedlearn("plot", "--out", str(tmp_path / "curves.png"))
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")

    from fedlearn.data.datasets import CACHE, find
    from fedlearn.data.shards import as_examples
    from fedlearn.learning.runtime import keras, tf, use_one_core

    use_one_core()  # as the tests of `learning/` do, which may follow in this process and can't change it any more

    test = as_examples(find("mnist", cache=CACHE).test)
    model = keras.saving.load_model(tmp_path / "model.keras")
    scores = model.evaluate(test.features, test.labels, batch_size=1000, verbose=0, return_dict=True)
    assert scores["accuracy"] == pytest.approx(said["accuracy"], abs=1e-6)
    assert scores["loss"] == pytest.approx(said["loss"], abs=1e-4)
    saved = tf.saved_model.load(str(tmp_path / "saved"))
    served = saved.serve(tf.constant(test.features[:100])).numpy()
    assert served == pytest.approx(model.predict(test.features[:100], verbose=0), abs=1e-5)
