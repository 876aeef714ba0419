"""One aggregator pinned to a core against two, each pinned to its own, that share a round of sealed updates.

The updates, of the CNN's size, lie in a real storage, which has what the cores leave it: with float32 it needs as much of them
as an aggregator does. Each aggregator is a process that fetches, opens, checks and folds those that are its own. With two, the
second closes its part by a sealed partial sum, and the first merges that into its own: the time is until the first has the
round's mean. Bringing the updates is not timed. GB are of float32, decoded.

    python benchmarks/sharding.py [--updates 80] [--repetitions 3]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from deployments import cnn_plan
from fedlearn.adapters.objects import S3ObjectStore
from fedlearn.adapters.s3 import S3Settings
from fedlearn.aggregator.folding import Folding
from fedlearn.aggregator.layout import Descriptor
from fedlearn.core.errors import Outage
from fedlearn.core.ids import DeviceId
from fedlearn.local.seaweed import UPDATES
from fedlearn.local.storage import LocalStorage
from fedlearn.protocol.plans import read_plan
from fedlearn.protocol.sealing import SealingKey, identity_from_pem, identity_to_pem
from folding import watched
from folding_round import ROUND, WORKERS, SealedUpdates
from results import Figure, show

CORES = sorted(os.sched_getaffinity(0))[:2]
_PAUSE_SECONDS = 0.005


class Turn(NamedTuple):
    """One round: from the word to the mean, and the CPU seconds of the aggregators and of the storage."""

    seconds: float
    cpu: float
    storage_cpu: float


class Aggregator:
    """A process that is pinned to a core, and told what to do in lines of JSON."""

    def __init__(self, core: int, process: "subprocess.Popen[str]") -> None:
        self.core, self._process = core, process

    def kill(self) -> None:
        self._process.kill()

    def tell(self, what: object) -> None:
        assert self._process.stdin is not None
        print(json.dumps(what), file=self._process.stdin, flush=True)

    def hear(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


@contextmanager
def aggregators(count: int) -> Iterator[list[Aggregator]]:
    with ExitStack() as started:
        found = []
        for core in CORES[:count]:
            command = [sys.executable, __file__, "--serve", str(core)]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
            found.append(Aggregator(core, started.enter_context(process)))
        try:
            yield found
            for one in found:
                one.tell(None)
        except BaseException:
            for one in found:
                one.kill()
            raise


def turn(storage: LocalStorage, running: Sequence[Aggregator], updates: int, codec: str) -> Turn:
    """A round of so many updates, which is swept after it."""
    store = storage.store("aggregator", UPDATES)
    sealed = SealedUpdates(cnn_plan(codec), store)
    descriptor = sealed.descriptor.model_copy(update={"aggregators": len(running)})
    digests = sealed.bring(range(updates))
    keys = storage.credentials("aggregator")
    for shard, one in enumerate(running):
        settings = {"endpoint_url": storage.endpoint_url, "access_key": keys.access, "secret_key": keys.secret}
        identity = identity_to_pem(sealed.identity).decode()
        one.tell({"shard": shard, "descriptor": descriptor.model_dump_json(), "identity": identity, "settings": settings})
    for one in running:
        one.hear()
    with watched(storage.pid) as served:
        began = time.perf_counter()
        for one in running:
            one.tell(digests)
        cpu = sum(one.hear() for one in running[::-1])  # the first ends last: it waits for the others' sums
        seconds = time.perf_counter() - began
    store.delete([found.key for found in store.list(f"{ROUND.task}/")])
    return Turn(seconds, cpu, served[0])


def _serve(core: int) -> None:
    os.sched_setaffinity(0, {core})
    while (job := json.loads(input())) is not None:
        descriptor = Descriptor.model_validate_json(job["descriptor"])
        key = SealingKey.unwrap(identity_from_pem(job["identity"].encode()), descriptor.wrapped_key_bytes, ROUND)
        store = S3ObjectStore(UPDATES, S3Settings(**job["settings"]))
        folding = Folding(descriptor, read_plan(json.dumps(descriptor.plan)), key, store, shard=job["shard"])
        store.list("ready")  # so that the client is there
        print(json.dumps("ready"), flush=True)
        digests = {DeviceId(device): digest for device, digest in json.loads(input()).items()}
        before = time.process_time()
        mine = {device: digest for device, digest in digests.items() if folding.mine(device)}
        with ThreadPoolExecutor(WORKERS) as threads:
            list(threads.map(folding.consider, mine.keys(), mine.values()))
        if job["shard"]:
            folding.save(final=True)
        else:
            folding.total({**dict(folding.counts().folded), **_others(folding)}).mean()
        print(json.dumps(time.process_time() - before), flush=True)


def _others(folding: Folding) -> dict[DeviceId, str]:
    while True:
        try:
            return folding.others()
        except Outage:  # they have not closed their part yet
            time.sleep(_PAUSE_SECONDS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=80)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve is not None:
        _serve(given.serve)
        return
    with tempfile.TemporaryDirectory() as directory, LocalStorage(Path(directory)) as storage:
        for codec in ("float32", "int8"):
            turns: dict[int, list[Turn]] = {1: [], 2: []}
            for repetition in range(1 + given.repetitions):
                for count, found in turns.items():
                    with aggregators(count) as running:
                        one = turn(storage, running, given.updates, codec)
                    if repetition:  # the first warms up
                        found.append(one)
            print(show(figures(codec, given.updates, turns)), flush=True)


def figures(codec: str, updates: int, turns: dict[int, list[Turn]]) -> list[Figure]:
    size = updates * 4 * cnn_plan().parameters / 1e9
    found = []
    for count, of in turns.items():
        name = "one aggregator on one core" if count == 1 else "two aggregators, each on its core"
        found += [
            Figure(f"{codec}: {name}, {updates} updates", size / statistics.median(one.seconds for one in of), "GB/s"),
            Figure("CPU of the aggregators", statistics.median(one.cpu for one in of) / size, "s/GB"),
            Figure("CPU of the storage", statistics.median(one.storage_cpu for one in of) / size, "s/GB"),
        ]
    faster = statistics.median(one.seconds / two.seconds for one, two in zip(turns[1], turns[2], strict=True))
    cpu = statistics.median((two.cpu + two.storage_cpu) / len(CORES) / two.seconds for two in turns[2])
    found += [Figure("two by one", faster, "×"), Figure("of both cores' time, by two and their storage", 100 * cpu, "%")]
    return found


if __name__ == "__main__":
    main()
