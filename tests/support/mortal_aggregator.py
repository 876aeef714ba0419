"""`fedlearn aggregator` that kills itself when it is about to write the model of a certain round.

python -m support.mortal_aggregator TASK/ROUND
"""

import os
import signal
import sys

from fedlearn.adapters.objects import S3ObjectStore
from fedlearn.aggregator.layout import model_key
from fedlearn.cli import main
from fedlearn.core.ids import TaskId


def doom(task: TaskId, number: int) -> None:
    put, doomed = S3ObjectStore.put, model_key(task, number, "").removesuffix(".safetensors")

    def put_or_die(self: S3ObjectStore, key: str, body: bytes | memoryview, *, sha256: str | None = None) -> None:
        if key.startswith(doomed):
            os.kill(os.getpid(), signal.SIGKILL)
        put(self, key, body, sha256=sha256)

    S3ObjectStore.put = put_or_die  # type: ignore[method-assign] - it is what dies here


if __name__ == "__main__":
    name, _, round_number = sys.argv[1].rpartition("/")
    doom(TaskId(name), int(round_number))
    sys.argv[1:] = ["aggregator"]
    main()
