"""A round of sealed updates in a storage, and a process that folds it while its memory is watched."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from deployments import memory_megabytes
from fedlearn.adapters.objects import S3ObjectStore
from fedlearn.adapters.s3 import S3Settings
from fedlearn.aggregator import gathering, publishing, ring, streaming
from fedlearn.aggregator.buffers import Buffers
from fedlearn.aggregator.folding import LARGE_BYTES, Folding
from fedlearn.aggregator.forms import form_of
from fedlearn.aggregator.layout import Descriptor, update_key
from fedlearn.aggregator.publishing import Publisher
from fedlearn.config import AggregatorSettings
from fedlearn.core.distances import LANES, Products
from fedlearn.core.ids import DeviceId, RoundId, TaskId
from fedlearn.core.ports import ObjectStore
from fedlearn.core.rounds import ModelRef
from fedlearn.core.updates import Update
from fedlearn.local.seaweed import MODELS, UPDATES
from fedlearn.local.storage import LocalStorage
from fedlearn.protocol.envelope import UpdateContext, digest_of, layout_of, seal
from fedlearn.protocol.messages import Model
from fedlearn.protocol.plans import Plan, read_plan
from fedlearn.protocol.sealing import SealingKey, identity_from_pem, identity_to_pem
from fedlearn.protocol.tensors import ModelFile

ROUND = RoundId(TaskId("folding"), 1)
WORKERS: int = AggregatorSettings.model_fields["workers"].default
_LOT = 50
_NO_BASE = ModelRef(0, "folding/models/0.safetensors", "0" * 64, 1)


def ring_megabytes(plan: Plan) -> float:
    """What the engine may take beside twice the model, in MB: updates that are on their way or wait to be added.

    Opened ones in the ring, the file and the base of a model that is not published over its sum, and each worker's piece; of a
    model whose updates have no room in the ring, for each worker two spans of windows and an opened window.
    """
    layout = layout_of(plan)
    if form_of(plan).size_bytes > LARGE_BYTES:
        return WORKERS * (2 * streaming._SPAN_BYTES + 4 * layout.window_elements) / 1e6
    return (ring.BYTES + 2 * publishing.KEPT_BYTES + WORKERS * layout.longest_piece) / 1e6


def robust_megabytes(plan: Plan, count: int) -> float:
    """What a round of so many updates may take by a robust rule, in MB: decision 14's table, and what is on its way."""
    layout = layout_of(plan)
    size, window = 4 * plan.parameters, 4 * min(layout.window_elements, plan.parameters)
    blocks = 2 * min(gathering.BLOCK_BYTES, count * window)
    matrix = Products(count)._sums.nbytes if plan.aggregation.most_reports is not None else 0
    working = min(LANES, os.cpu_count() or 1) * (8 << 20)
    fetched = gathering._FETCHERS * 2 * window
    on_their_way = (WORKERS + 1) * size + WORKERS * layout.longest_piece
    return (2 * size + blocks + matrix + working + fetched + 5_500 * count + on_their_way) / 1e6


class SealedUpdates:
    """A round without a server: its key, and updates of random values that devices might have brought."""

    def __init__(self, plan: Plan, store: ObjectStore, base: ModelRef = _NO_BASE) -> None:
        self.plan, self.store, self.size_bytes = plan, store, 0
        self.identity, self.key = Ed25519PrivateKey.generate(), SealingKey.generate(ROUND)
        self.descriptor = Descriptor(
            task=ROUND.task,
            round=ROUND.number,
            plan=plan.model_dump(mode="json"),
            base=Model.of(base),
            kid=self.key.kid,
            wrapped_key=base64.b64encode(self.key.wrap(self.identity)).decode(),
        )
        self._buffers = Buffers.of(plan)
        self._delta = np.random.default_rng(0).normal(0, 0.05, plan.parameters).astype(np.float32)

    def key_of(self, device: DeviceId, digest: str) -> str:
        return update_key(ROUND, device, digest)

    def folding(self) -> Folding:
        """A round's sum; rounds of the same plan use the same buffers, as an aggregator's do."""
        return Folding(self.descriptor, self.plan, self.key, self.store, buffers=self._buffers)

    def bring(self, numbers: Iterable[int]) -> dict[DeviceId, str]:
        """Seal and store so many devices' updates; each has its own content key, so no two are alike in storage."""
        digests = {}
        for number in numbers:
            device = DeviceId(f"device-{number}")
            context = UpdateContext(ROUND.task, ROUND.number, device, self.plan.digest, self.descriptor.base.sha256)
            body = seal(
                Update(self._delta, 600 + number, 60, {"loss": 0.5}),
                key=self.key.public,
                context=context,
                format=self.plan.update,
            )
            digests[device] = digest_of(body)
            self.size_bytes = len(body)
            self.store.put(self.key_of(device, digests[device]), body)
        return digests


class _Job(NamedTuple):
    """What the process that folds is told, as JSON: it stands on what an aggregator would find in storage."""

    descriptor: str
    identity: str
    endpoint_url: str
    access_key: str
    secret_key: str
    publish: bool


def peak_of(count: int, plan: Plan, *, publish: bool = False) -> float:
    """The peak memory in MB, above that before the first update, of a process that folds so many updates from storage, and that
    publishes the next model if it is told to. A robust rule combines them only then.
    """
    with tempfile.TemporaryDirectory() as directory, LocalStorage(Path(directory)) as storage:
        base = _put_base(plan, storage.store("aggregator", MODELS)) if publish else _NO_BASE
        sealed = SealedUpdates(plan, storage.store("aggregator", UPDATES), base)
        keys = storage.credentials("aggregator")
        identity = identity_to_pem(sealed.identity).decode()
        job = _Job(sealed.descriptor.model_dump_json(), identity, storage.endpoint_url, keys.access, keys.secret, publish)
        command = [sys.executable, __file__]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            told, answers = child.stdin, child.stdout

            def ask(question: object) -> str:
                print(json.dumps(question), file=told, flush=True)
                return answers.readline()

            ask(job)
            for first in range(0, count, _LOT):  # so that the disk holds few
                digests = sealed.bring(range(first, min(first + _LOT, count)))
                ask(digests)
                if plan.aggregation.rule is None:  # else they are read once more
                    sealed.store.delete([sealed.key_of(*item) for item in digests.items()])
            return float(ask({}))


def _put_base(plan: Plan, models: ObjectStore) -> ModelRef:
    file = ModelFile(plan, stateful=False)
    file.weights[:] = 0.0
    body = file.finish(None)
    base = ModelRef(0, "folding/models/0.safetensors", hashlib.sha256(body).hexdigest(), len(body))
    models.put(base.key, body)
    return base


def _fold_for_the_parent() -> None:
    job = _Job(*json.loads(input()))
    descriptor = Descriptor.model_validate_json(job.descriptor)
    key = SealingKey.unwrap(identity_from_pem(job.identity.encode()), descriptor.wrapped_key_bytes, ROUND)
    settings = S3Settings(endpoint_url=job.endpoint_url, access_key=job.access_key, secret_key=job.secret_key)
    store = S3ObjectStore(UPDATES, settings)
    folding = Folding(descriptor, read_plan(json.dumps(descriptor.plan)), key, store)
    store.list("ready")  # so that the client is there before the memory is read for the first time
    print(before := memory_megabytes("VmRSS"), flush=True)
    with ThreadPoolExecutor(WORKERS) as threads:
        while digests := json.loads(input()):
            list(threads.map(lambda item: folding.consider(*item), digests.items()))
            print(len(digests), flush=True)
    if job.publish:
        contributors = folding.counts().folded
        publisher = Publisher(S3ObjectStore(MODELS, settings))
        publisher.publish(descriptor, folding.plan, folding.total(contributors), sorted(contributors))
    print(memory_megabytes("VmHWM") - before, flush=True)


if __name__ == "__main__":
    _fold_for_the_parent()
