"""Commands that read and steer a running server, as a person reads them."""

import json

import pytest
from typer.testing import CliRunner, Result

from fedlearn.cli.app import build
from fedlearn.core.errors import Code, FedlearnError
from support.trial import Trial


@pytest.fixture
def told(trial: Trial) -> Trial:
    """A task with a round that one of four devices dropped out of, and one was refused in."""
    trial.submit(rounds=None, goal=4, min_fraction=0.5)
    devices = trial.devices("a", "b", "c", "d")
    assignments = trial.assign(*devices)
    trial.bring(devices[0], assignments[0], trial.update())
    trial.bring(devices[1], assignments[1], trial.update())
    devices[2].drop_out(assignments[2], Code.TRAINING_FAILED)
    devices[3].upload(assignments[3], b"nonsense" * 100)
    trial.reach(1, "committed")
    return trial


class Terminal:
    def __init__(self, trial: Trial) -> None:
        token = trial.world.deployment.operator_token()
        self._runner = CliRunner(
            env={"COLUMNS": "200", "FEDLEARN_SERVER_URL": trial.world.server_url, "FEDLEARN_OPERATOR_TOKEN": token}
        )

    def type(self, *words: str) -> str:
        result: Result = self._runner.invoke(build(), words)
        assert result.exit_code == 0, result.exception or result.output
        return result.output

    def fail(self, *words: str) -> FedlearnError:
        error = self._runner.invoke(build(), words).exception
        assert isinstance(error, FedlearnError)
        return error


def test_a_round_is_explained(told: Trial) -> None:
    terminal = Terminal(told)
    shown = terminal.type("rounds", "show", "1", "--task", told.name)
    assert f"Round 1 of {told.name}, which started from version 0, made version 1 in" in shown
    assert "4 devices were selected, 2 reported (1 refused, 1 dropped)." in shown
    assert "trained on 20 examples" in shown
    lines = {line.split()[0].removeprefix(f"{told.name}-"): line for line in shown.splitlines() if line.strip()}
    for phase in ("selection", "configuration", "reporting", "aggregation"):
        assert lines[phase].rstrip().endswith(" s")
    assert "its update is in the sum" in lines["a"]
    assert "dropped out (training_failed): Training gave no finite weights" in lines["c"]
    assert "its update was refused (update_malformed): The update is no envelope" in lines["d"]
    view = json.loads(terminal.type("rounds", "show", "1", "--task", told.name, "--json"))
    assert view["participants"][2] == {"device": f"{told.name}-c", "standing": "dropped", "code": "training_failed"}


def test_rounds_tasks_versions_and_the_server_are_tables_and_json(told: Trial) -> None:
    terminal, name = Terminal(told), told.name
    assert "committed" in terminal.type("rounds", "--task", name)
    assert "Round 2 is in selection" in terminal.type("rounds", "list", "--task", name)
    assert json.loads(terminal.type("rounds", "--task", name, "--json"))[0]["phase"] == "committed"
    assert f"{name}  running" in terminal.type("tasks", "list")
    assert name in [task["task"] for task in json.loads(terminal.type("tasks", "list", "--json"))]
    assert "round 1" in terminal.type("models", "list", "--task", name)
    shown = terminal.type("models", "show", "1", "--task", name)
    assert "1 ← 0" in shown
    assert "2 devices" in shown
    assert "is ready" in terminal.type("status")
    mine = next(task for task in json.loads(terminal.type("status", "--json"))["tasks"] if task["task"] == name)
    assert (mine["state"], mine["round"], mine["phase"], mine["version"]) == ("running", 2, "selection", 1)


def test_a_task_is_paused_resumed_and_cancelled(told: Trial) -> None:
    terminal, name = Terminal(told), told.name
    assert "paused" in terminal.type("tasks", "pause", name)
    assert told.state() == "paused"
    assert json.loads(terminal.type("tasks", "resume", name, "--json"))["state"] == "running"
    assert "cancelled" in terminal.type("tasks", "cancel", name)
    assert "had ended already" in terminal.type("tasks", "cancel", name) or told.state() == "cancelled"
    assert terminal.fail("tasks", "pause", name).code is Code.TASK_STATE
    assert "is cancelled." in terminal.type("rounds", "--task", name, "--watch")


def test_versions_are_found_by_number_and_label(told: Trial) -> None:
    terminal, task = Terminal(told), ("--task", told.name)
    terminal.type("models", "pin", "0", "first", *task)
    assert "Version 2" in terminal.type("models", "rollback", "first", *task)
    shown = terminal.type("models", "list", *task)
    assert "version 0" in shown
    assert "current" in shown.splitlines()[-1]
    terminal.type("models", "pin", "first", "first", "--remove", *task)
    assert terminal.fail("models", "show", "first", *task).code is Code.MODEL_UNKNOWN
    assert terminal.fail("models", "rollback", "2", *task).code is Code.SETTING_INVALID


def test_failures_are_sentences(told: Trial) -> None:
    terminal = Terminal(told)
    for words in (["rounds", "--task", "nope"], ["models", "list", "--task", "nope"], ["tasks", "pause", "nope"]):
        assert terminal.fail(*words).code is Code.TASK_UNKNOWN
    assert terminal.fail("rounds", "show", "99", "--task", told.name).code is Code.ROUND_UNKNOWN
    gone = terminal.fail("status", "--server", "http://127.0.0.1:9")
    assert gone.code is Code.SERVER_UNREACHABLE
    assert gone.detail.endswith("is it up?")
