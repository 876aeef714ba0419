"""A person's own model on a running system: the examples, a task file, a notebook's client; with real devices and Keras."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import fedlearn
from fedlearn.cli import main
from support.fleet import devices
from support.world import World

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = pytest.mark.slow

TASK = """
import fedlearn
import keras


def task() -> fedlearn.Task:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax", name="classes")], name="lines")
    model.compile(keras.optimizers.Adam(0.05), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return fedlearn.Task(model=model, dataset="lines", rounds=3, epochs=5, policy=fedlearn.Policy(goal=2, min_fraction=1))
"""


def run(world: World, *arguments: str, seconds: float = 300) -> "subprocess.CompletedProcess[str]":
    """A command as a person types it, who has set the server's address and the operators' token."""
    token = world.deployment.operator_token()
    environment = {**os.environ, "FEDLEARN_SERVER_URL": world.server_url, "FEDLEARN_OPERATOR_TOKEN": token}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds, check=False)


@pytest.fixture(scope="module", autouse=True)
def one_core() -> None:
    """As every process that trains does; the tests of `learning/` may follow in this one, and can't change it any more."""
    from fedlearn.learning.runtime import use_one_core

    use_one_core()


Submit = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def submit(world: World, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Submit:
    """The same command, run by this process, which has TensorFlow already; a process of its own takes seconds to import it."""

    def submit(*arguments: str, token: bool = True) -> "subprocess.CompletedProcess[str]":
        command = ["fedlearn", "tasks", "submit", *arguments]
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", command)
            patch.setenv("FEDLEARN_SERVER_URL", world.server_url)
            if token:
                patch.setenv("FEDLEARN_OPERATOR_TOKEN", world.deployment.operator_token())
            before = signal.getsignal(signal.SIGTERM)
            capfd.readouterr()
            with pytest.raises(SystemExit) as end:
                main()
            signal.signal(signal.SIGTERM, before)
        assert isinstance(end.value.code, int)
        return subprocess.CompletedProcess(command, end.value.code, *capfd.readouterr())

    return submit


class Small(NamedTuple):
    """An example at a small setting: so many devices of at most so many examples, and what it reaches at least."""

    name: str
    devices: int
    most: int
    rounds: int
    least: float
    first_pod: int


@pytest.mark.parametrize(
    "small",
    [
        pytest.param(Small("mnist_non_iid", 5, 300, 3, 0.2, 100), id="MNIST of two digits a device"),
        pytest.param(Small("breast_cancer", 3, 60, 4, 0.85, 200), id="a table"),
        pytest.param(Small("shakespeare", 2, 150, 5, 0.15, 300), id="Shakespeare by role"),
    ],
)
def test_an_example_prints_what_its_model_has_learned(world: World, tmp_path: Path, small: Small) -> None:
    program, count = str(EXAMPLES / f"{small.name}.py"), str(small.devices)
    cut = run(world, program, "shards", str(tmp_path), "--devices", count, "--most", str(small.most))
    assert cut.returncode == 0, cut.stderr
    assert len(list(tmp_path.glob("*/train.npz"))) == small.devices
    with devices(world, tmp_path, small.name.replace("_", "-"), small.devices, first=small.first_pod):
        trained = run(world, program, "train", "--devices", count, "--rounds", str(small.rounds))
    assert trained.returncode == 0, trained.stderr
    assert len(re.findall(rf"^round \d+: {count} reported", trained.stdout, re.MULTILINE)) == small.rounds
    (scores,) = re.findall(r"(\d\.\d{4}) before, (\d\.\d{4}) after", trained.stdout)
    before, after = map(float, scores)
    assert after > max(before, small.least)


class TestATaskFile:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        path = tmp_path / "lines.py"
        path.write_text(TASK)
        return path

    def test_is_checked_without_a_server(self, submit: Submit, file: Path) -> None:
        done = submit(str(file), "--check", "--server", "http://127.0.0.1:9")
        assert (done.returncode, done.stderr) == (0, "")
        assert "can be submitted as lines: 15 parameters, dataset lines" in done.stdout

    def test_is_submitted_once_however_often(self, world: World, file: Path) -> None:
        command = ("-m", "fedlearn", "tasks", "submit", str(file), "--task", "once", "--rounds", "5", "--devices", "7")
        first, again = (run(world, *command) for _ in range(2))
        assert (first.returncode, first.stderr) == (0, "")
        assert first.stdout.startswith("Task once is running: 15 parameters")
        assert again.stdout == "Task once was here already, with the same plan, and is running: nothing was started.\n"
        with world.operator() as operator:
            assert (operator.task("once").rounds, operator.task("once").policy.goal) == (5, 7)
            operator.cancel("once")
        ended = run(world, *command)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout == (
            "Task once was here already, with the same plan, and is cancelled: nothing was started. Another run needs another "
            "name (--task).\n"
        )

    def test_needs_the_operators_token(self, submit: Submit, file: Path) -> None:
        done = submit(str(file), token=False)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert "(--token, or FEDLEARN_OPERATOR_TOKEN)" in done.stderr

    def test_that_is_refused_is_one_sentence_with_its_code(self, submit: Submit, file: Path) -> None:
        file.write_text(TASK.replace("keras.layers.Dense(3", "keras.layers.Lambda(lambda x: x), keras.layers.Dense(3"))
        done = submit(str(file))
        assert done.returncode == 1
        assert "Lambda" in done.stderr
        assert done.stderr.endswith("[layer_not_allowed]\n")
        assert done.stderr.count("\n") == 1


class TestANotebook:
    @pytest.fixture
    def shards(self, tmp_path: Path) -> Path:
        rng = np.random.default_rng(0)
        for index in range(2):
            x = rng.normal(size=(80, 4)).astype(np.float32)
            both = fedlearn.Examples(x, np.argmax(x[:, :3], axis=1).astype(np.int32))
            (shard,) = fedlearn.cut_shards(both, fedlearn.make_partitioner("full", 1), rng)
            fedlearn.write_shard(tmp_path / str(index), shard)
        return tmp_path

    @pytest.fixture
    def client(self, world: World) -> Iterator[fedlearn.Client]:
        with fedlearn.connect(world.server_url, world.deployment.operator_token()) as client:
            yield client

    def test_submits_watches_and_gets_a_keras_model(self, world: World, client: fedlearn.Client, shards: Path) -> None:
        (shards / "lines.py").write_text(TASK.replace('dataset="lines"', 'dataset="lines", name="notebook"'))
        from fedlearn.learning.tasks import load_task

        task = load_task(shards / "lines.py")
        submitted = client.submit(task)
        assert submitted.state == "running"
        assert [known.task for known in client.tasks()].count("notebook") == 1
        with pytest.raises(TimeoutError, match="notebook is running"):
            submitted.wait(timeout_seconds=0.1)
        with devices(world, shards, "lines", 2, first=400):
            rounds = list(submitted.watch(timeout_seconds=120))
        assert [(ended.round, ended.phase) for ended in rounds] == [(1, "committed"), (2, "committed"), (3, "committed")]
        assert submitted.wait(timeout_seconds=1).state == "completed"
        assert [version.model.version for version in submitted.versions()] == [0, 1, 2, 3]
        # the model that comes back is the one that the devices scored, and version 0 is the one that was given
        shard = fedlearn.read_shard(shards / "0")
        x, y = shard.train.features, shard.train.labels
        first, last = submitted.model(0), submitted.model()
        np.testing.assert_array_equal(np.asarray(first(x)), np.asarray(task.model(x)))
        scores = [model.evaluate(x, y, verbose=0, return_dict=True) for model in (first, last)]
        assert scores[1]["loss"] < scores[0]["loss"]
        assert set(scores[1]) == {"loss", "accuracy"}
        for ours, theirs in zip(submitted.weights(3), last.weights, strict=True):
            np.testing.assert_array_equal(ours, theirs.numpy())
        assert len(submitted.rounds()) == 3

    def test_is_told_what_is_not_there(self, world: World, client: fedlearn.Client) -> None:
        with pytest.raises(fedlearn.Refusal) as refusal:
            client.task("nobodys")
        assert refusal.value.code is fedlearn.Code.TASK_UNKNOWN
        with fedlearn.connect("http://127.0.0.1:9") as nobody, pytest.raises(fedlearn.Outage, match="is it up"):
            nobody.tasks()

    def test_finds_server_and_token_in_the_environment(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FEDLEARN_SERVER_URL", world.server_url)
        with fedlearn.connect() as client:
            assert isinstance(client.devices(), fedlearn.FleetView)
