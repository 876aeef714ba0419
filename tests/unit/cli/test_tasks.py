from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedlearn.cli.app import build
from fedlearn.core.errors import Code, Refusal
from fedlearn.learning.runtime import use_one_core

FILE = """
import fedlearn
import keras


def task() -> fedlearn.Task:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")], name="lines")
    model.compile("sgd", "sparse_categorical_crossentropy")
    rule = fedlearn.aggregation("fedavg", "multi_krum", byzantine=2)
    return fedlearn.Task(model=model, dataset="lines", aggregation=rule, policy=fedlearn.Policy(goal=4, min_fraction=1))
"""


@pytest.fixture(scope="module", autouse=True)
def one_core() -> None:
    """Before anything else of TensorFlow's: the tests of training come later in this process."""
    use_one_core()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "lines.py"
    path.write_text(FILE)
    return path


def test_a_check_refuses_a_policy_that_the_server_would_refuse(file: Path) -> None:
    error = CliRunner().invoke(build(), ["tasks", "submit", str(file), "--check"]).exception
    assert isinstance(error, Refusal)
    assert error.code is Code.PLAN_INVALID
    assert "needs 7 updates or more; the policy's goal is 4: raise it" in error.detail


def test_a_check_takes_the_devices_that_stand_on_the_command_line(file: Path) -> None:
    result = CliRunner().invoke(build(), ["tasks", "submit", str(file), "--check", "--devices", "7"])
    assert result.exit_code == 0, result.exception
    assert "can be submitted as lines" in result.output
