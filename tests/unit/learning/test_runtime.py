"""What a process sees of the import, so each in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Mapping

import pytest

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


def test_importing_and_training_says_nothing() -> None:
    program = "from fedlearn.learning.runtime import tf, use_one_core; use_one_core(); print(int(tf.constant(1) + 1))"
    done = run(program)
    assert (done.stdout, done.stderr) == ("2\n", "")


def test_what_others_write_meanwhile_is_let_through() -> None:
    program = (
        "import os, sys; from fedlearn.learning import runtime\n"
        "with runtime._without_banners():\n"
        "    os.write(2, b'oneDNN custom operations are on\\na word\\n'); print('another', file=sys.stderr)\n"
        "os.write(2, b'and after\\n')"
    )
    assert run(program).stderr == "a word\nanother\nand after\n"


def test_what_is_written_before_a_failure_is_let_through() -> None:
    program = (
        "import os; from fedlearn.learning import runtime\n"
        "try:\n"
        "    with runtime._without_banners(): os.write(2, b'last words\\n'); raise ImportError\n"
        "except ImportError: pass"
    )
    assert run(program).stderr == "last words\n"


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_keras_is_the_one_on_tensorflow_whatever_the_environment_says(backend: str) -> None:
    done = run("from fedlearn.learning.runtime import keras; print(keras.backend.backend())", {"KERAS_BACKEND": backend})
    assert done.stdout == "tensorflow\n"


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
