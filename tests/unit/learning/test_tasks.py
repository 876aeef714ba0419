"""A task's file: what it may look like, and how its faults are told."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from fedlearn.core.errors import Code, Refusal, SetupError
from fedlearn.core.learning import Examples, Shard
from fedlearn.data.shards import read_shard, write_shard
from fedlearn.learning.tasks import Task, load_task, task_name
from fedlearn.protocol.eligibility import DeviceDemands
from fedlearn.protocol.tensors import decode_model
from fedlearn.protocol.views import Policy

ROOT = Path(__file__).parents[3]
GUIDE, EXAMPLES = ROOT / "docs" / "bring-your-own-model.md", ROOT / "examples"

GOOD = """
import fedlearn
import keras

def task() -> fedlearn.Task:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation="softmax")], name="small_model_3")
    model.compile(optimizer="sgd", loss="sparse_categorical_crossentropy")
    return fedlearn.Task(model=model, dataset="My Data", rounds=7, policy=fedlearn.Policy(goal=4))
"""


def written(directory: Path, text: str) -> Path:
    path = directory / "my_task.py"
    path.write_text(text)
    return path


def test_a_file_gives_its_task(tmp_path: Path) -> None:
    task = load_task(written(tmp_path, GOOD))
    assert (task.dataset, task.rounds, task.policy.goal, task.title) == ("My Data", 7, 4, "my-data-small-model")


def test_the_guides_task_trains_on_what_a_device_holds_of_mnist(tmp_path: Path) -> None:
    """The page is followed to the letter."""
    from fedlearn.learning.compiled import prepare
    from fedlearn.learning.training import KerasLearner

    (block,) = re.findall(r"```python\n(import fedlearn\nimport keras\n.*?)```", GUIDE.read_text(), re.DOTALL)
    plan, version_0 = prepare(load_task(written(tmp_path, block)))
    raw = Examples(np.full((5, 28, 28), 7, np.uint8), np.arange(5, dtype=np.uint8))
    write_shard(tmp_path / "0", Shard(raw, raw))
    shard = read_shard(tmp_path / "0")
    weights = decode_model(version_0, plan)
    assert len(KerasLearner(plan).train(weights, shard.train, 0)) == len(weights)


@pytest.mark.parametrize("name", ["mnist_non_iid", "breast_cancer", "shakespeare"])
def test_an_examples_file_can_be_submitted_as_it_is(name: str) -> None:
    from fedlearn.learning.compiled import prepare

    path = EXAMPLES / f"{name}.py"
    task = load_task(path)
    assert prepare(task).plan.dataset == task.dataset == name.replace("_", "-")


@pytest.mark.parametrize("kind", [Task, Policy, DeviceDemands], ids=lambda kind: kind.__name__)
def test_the_guide_names_every_setting(kind: type) -> None:
    rows = [line.split("|")[1] for line in GUIDE.read_text().splitlines() if line.startswith("| `")]
    fields = {field.name for field in dataclasses.fields(kind)} if kind is Task else set(kind.model_fields)  # type: ignore[attr-defined]
    assert not fields - set(re.findall(r"`(\w+)`", " ".join(rows)))


def test_what_lies_beside_it_can_be_imported(tmp_path: Path) -> None:
    (tmp_path / "beside_my_task.py").write_text("ROUNDS = 9\n")
    text = "from beside_my_task import ROUNDS\n" + GOOD.replace("rounds=7", "rounds=ROUNDS")
    assert load_task(written(tmp_path, text)).rounds == 9


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("import kerass\n", ("line 1", "kerass"), id="an import that is not there"),
        pytest.param("x = 1\ny = x +\n", ("line 2", "SyntaxError"), id="no Python"),
        pytest.param("\n\nraise ValueError('no data')\n", ("line 3", "ValueError: no data"), id="an exception"),
        pytest.param("import sys\nsys.exit(3)\n", ("line 2", "SystemExit: 3"), id="an exit"),
        pytest.param("x = 1\n", ("no function task()",), id="no task"),
        pytest.param("task = 3\n", ("no function task()",), id="a task that is no function"),
        pytest.param("def task():\n    pass\n", ("returns nothing",), id="a task that returns nothing"),
        pytest.param("def task():\n    return {}\n", ("returns dict", "fedlearn.Task"), id="a task of another type"),
        pytest.param("def task():\n    return 1 / 0\n", ("line 2", "ZeroDivisionError"), id="a task that fails"),
        pytest.param("def task(x):\n    return x\n", ("TypeError", "argument"), id="a task with arguments"),
        pytest.param(
            "import fedlearn\ndef task():\n    return fedlearn.Task(model=1, dataset='x', epoch=1)\n", ("line 3", "epoch"),
            id="an unknown setting",
        ),
        pytest.param("import fedlearn\nfedlearn.Policy(goal=0)\n", ("line 2", "goal"), id="a setting out of range"),
    ],
)  # fmt: skip
def test_a_file_that_gives_no_task_is_refused_with_the_line(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    path = written(tmp_path, text)
    with pytest.raises(Refusal) as refusal:
        load_task(path)
    assert refusal.value.code is Code.TASK_FILE_INVALID
    for word in (str(path), *words):
        assert word in refusal.value.detail
    assert "\n" not in refusal.value.detail


def test_a_file_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="There is no file"):
        load_task(tmp_path / "nowhere.py")


def test_a_file_that_is_no_python_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "task.txt").write_text(GOOD)
    with pytest.raises(Refusal, match=r"\.py"):
        load_task(tmp_path / "task.txt")


@pytest.mark.parametrize(
    ("words", "name"), [("my_task", "my-task"), ("Été 2026!", "t-2026"), ("x" * 80, "x" * 63), ("--a--", "a")]
)
def test_a_tasks_name_is_made_of_what_a_name_may_hold(words: str, name: str) -> None:
    assert task_name(words) == name


def test_a_task_has_the_name_that_it_is_given() -> None:
    assert Task(model=None, dataset="x", name="mine").title == "mine"
