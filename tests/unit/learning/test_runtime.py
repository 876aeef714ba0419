"""What a process sees of the import and of its threads: where it matters, in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Mapping

import pytest

from fedlearn.learning.runtime import _without_banners

CHILDREN = """
import hashlib, multiprocessing, os, sys

def train(queue):
    from fedlearn.core.learning import Examples
    from fedlearn.learning.models import build, get_weights, make_plan, use_one_core
    from fedlearn.learning.training import KerasLearner
    import numpy as np
    use_one_core()
    model = build("2nn", 0)
    plan = make_plan(model, dataset="mine")
    rng = np.random.default_rng(0)
    examples = Examples(rng.random((300, 28, 28, 1), dtype=np.float32), rng.integers(0, 10, 300).astype(np.int32))
    trained = KerasLearner(plan).train(get_weights(model, plan), examples, 0)
    queue.put((os.getppid(), hashlib.sha256(b"".join(w.tobytes() for w in trained)).hexdigest()))

if __name__ == "__main__":
    import fedlearn.learning.training
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=train, args=(queue,)) for _ in range(3)]
    for child in children: child.start()
    answers = [queue.get(timeout=100) for _ in children]
    for child in children: child.join()
    assert {parent for parent, _ in answers} == {os.getpid()}
    train(queue)
    print(len({digest for _, digest in [*answers, queue.get()]}), [child.exitcode for child in children])
"""


def run(program: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("TF_", "KERAS_"))}
    variables.update(environment or {})
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=variables)


def test_importing_and_computing_says_nothing_and_is_on_tensorflow_whatever_the_environment_says() -> None:
    program = (
        "from fedlearn.learning.runtime import keras, tf, use_one_core; use_one_core(); use_one_core()\n"
        "print(int(tf.constant(1) + 1), keras.backend.backend())"
    )
    done = run(program, {"KERAS_BACKEND": "jax"})
    assert (done.stdout, done.stderr) == ("2 tensorflow\n", "")


def test_only_banners_are_held_back(capfd: pytest.CaptureFixture[str]) -> None:
    with _without_banners():
        os.write(2, b"I0000 port.cc:153] oneDNN custom operations are on. You may see\na word\n")
        assert capfd.readouterr().err == ""
    os.write(2, b"and after\n")
    assert capfd.readouterr().err == "a word\nand after\n"


def test_what_is_written_before_a_failure_is_let_through(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with _without_banners():
            os.write(2, b"last words\n")
            raise ImportError

    with pytest.raises(ImportError):
        fail()
    assert capfd.readouterr().err == "last words\n"


def test_a_process_that_has_used_more_cores_already_is_told_so() -> None:
    program = (
        "from fedlearn.learning.runtime import tf, use_one_core; from fedlearn.core.errors import SetupError\n"
        "tf.config.threading.set_intra_op_parallelism_threads(2); tf.constant(1) + 1\n"
        "try: use_one_core()\n"
        "except SetupError as error: print(error.code)"
    )
    assert run(program).stdout == "service_failed\n"


def test_children_forked_after_the_import_train_at_the_same_time_and_alike() -> None:
    assert run(CHILDREN).stdout == "1 [0, 0, 0]\n"
