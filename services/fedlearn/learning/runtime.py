"""TensorFlow and Keras, imported quickly and quietly, for training on one core.

What has to be decided before their first import is decided here, so `models` and `training` take `keras` and `tf` from this
module and nobody else imports them. Importing it runs no operation and starts no thread pool: a process may import it and then
fork, and each child trains by itself (`docs/decisions/0003-compiled-training-loop.md` has the figures).
"""

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from fedlearn.core.errors import Code, SetupError
from fedlearn.imports import uncollected

_BANNERS = re.compile(
    rb"oneDNN custom operations are on|All log messages before absl::InitializeLog\(\)|"
    rb"binary is optimized to use available CPU instructions|To enable the following instructions"
)


@contextmanager
def _without_banners() -> Iterator[None]:
    """Hold back what native code prints, and let through all but the banners that no log level turns off."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held_back:
        os.dup2(held_back.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            held_back.seek(0)
            for line in held_back:
                if not _BANNERS.search(line):
                    os.write(2, line)


os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# On by default only where the processor has VNNI. Without it the convolutions take half as long again, and a product with a
# transposed matrix whose width is a power of two, such as the CNN's dense layer backwards, takes ten times as long.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
with _without_banners(), uncollected():
    import keras
    import tensorflow as tf  # after the environment is set

__all__ = ["framework", "keras", "tf", "use_one_core"]


def framework() -> str:
    """What trains, in words, such as `Keras 3.15.1 on TensorFlow 2.21.0`."""
    return f"Keras {keras.__version__} on TensorFlow {tf.__version__}"


def use_one_core() -> None:
    """Let TensorFlow use one thread: processes share the cores, one each, and a batch of ten is too small to be split.

    Call it before the first operation; again is no error.

    Raises:
        SetupError: `service_failed` if TensorFlow has already started more threads.
    """
    threading = tf.config.threading
    try:
        threading.set_intra_op_parallelism_threads(1)
        threading.set_inter_op_parallelism_threads(1)
    except RuntimeError as error:
        sentence = "TensorFlow has started its threads already: call use_one_core() before anything else of it."
        raise SetupError(Code.SERVICE_FAILED, sentence) from error
