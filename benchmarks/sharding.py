"""One aggregator pinned to a core against two, each pinned to its own, that share a round of sealed updates.

Each aggregator is a process that opens, checks and folds those updates, of the CNN's size, that are its own; with two, each
has half of them. The second closes its part by a sealed partial sum, and the first merges that into its own, asking for it as
the aggregator does: the time is until the first has the round's mean. GB are of float32, decoded.

"From storage" they fetch the updates from a real storage, which has what these two cores leave it, and needs as much of them as
an aggregator does. "From memory" each has its updates before the clock starts, and only the partial sum goes through the
storage: that is what a second aggregator gains where the storage has cores of its own. The rest of a round, from the first's
last update on, is the same however many updates there are.

    python benchmarks/sharding.py [--updates 160] [--held 320] [--repetitions 3]
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

from deployments import cnn_plan
from fedlearn.adapters.http import persist
from fedlearn.adapters.objects import S3ObjectStore
from fedlearn.adapters.s3 import S3Settings
from fedlearn.adapters.sources import Held
from fedlearn.aggregator.folding import Folding
from fedlearn.aggregator.layout import Descriptor, partials_prefix, update_key
from fedlearn.core.ids import DeviceId, shard_of
from fedlearn.core.ports import ObjectStore, Source
from fedlearn.local.seaweed import UPDATES
from fedlearn.local.storage import LocalStorage
from fedlearn.protocol.plans import read_plan
from fedlearn.protocol.sealing import SealingKey, identity_from_pem, identity_to_pem
from folding_round import ROUND, WORKERS, SealedUpdates
from results import Figure, show
from turns import watched

CORES = sorted(os.sched_getaffinity(0))[:2]
WHYS = {
    "storage": "the storage runs on the same two cores, so what a second aggregator computes with is taken from the storage",
    "memory": "the second's sum is sealed, stored, waited for and merged, which takes too long for so few updates",
}
"""Where updates come from, and why a second aggregator may gain less than it should."""


Digests = dict[DeviceId, str]


class Turn(NamedTuple):
    """One round: from the word to the mean, of that from the first's last update on, and the CPU seconds of the aggregators and
    of the storage.
    """

    seconds: float
    rest: float
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


class Beforehand(S3ObjectStore):
    """A storage of which some objects are in memory already, and are deleted nowhere."""

    def __init__(self, settings: S3Settings) -> None:
        super().__init__(UPDATES, settings)
        self._held: dict[str, bytes] = {}

    def hold(self, keys: Sequence[str]) -> None:
        self._held = {key: self.get(key) for key in keys}

    @contextmanager
    def reading(self, key: str) -> Iterator[Source]:
        with nullcontext(Held(self._held[key])) if key in self._held else super().reading(key) as source:
            yield source

    def delete(self, keys: Sequence[str]) -> None:
        super().delete([key for key in keys if key not in self._held])


def evenly(updates: int, aggregators: int) -> list[int]:
    """So many numbers of devices, of which each aggregator takes as many as the others."""
    most, found = updates // aggregators, defaultdict[int, list[int]](list)
    numbers = count()
    while sum(map(len, found.values())) < most * aggregators:
        number = next(numbers)
        mine = found[shard_of(DeviceId(f"device-{number}"), aggregators)]
        mine += [number] if len(mine) < most else []
    return sorted(chain.from_iterable(found.values()))


def turn(storage: LocalStorage, running: Sequence[Aggregator], sealed: SealedUpdates, digests: Digests, place: str) -> Turn:
    """A round of these updates; what it adds to the storage is deleted after it."""
    descriptor = sealed.descriptor.model_copy(update={"aggregators": len(running)})
    keys = storage.credentials("aggregator")
    job = {
        "descriptor": descriptor.model_dump_json(),
        "identity": identity_to_pem(sealed.identity).decode(),
        "settings": {"endpoint_url": storage.endpoint_url, "access_key": keys.access, "secret_key": keys.secret},
        "digests": digests,
        "place": place,
    }
    for shard, one in enumerate(running):
        one.tell({**job, "shard": shard})
    for one in running:
        one.hear()
    with watched(storage.pid) as served:
        began = time.perf_counter()
        for one in running:
            one.tell("go")
        answers = [running[0].hear()]
        seconds = time.perf_counter() - began
        answers += [one.hear() for one in running[1:]]  # they still delete what their sum counts
    sums = [found.key for shard in range(1, len(running)) for found in sealed.store.list(partials_prefix(ROUND, shard))]
    sealed.store.delete(sums)
    assert answers[0]["updates"] == len(digests)
    return Turn(seconds, answers[0]["rest"], sum(answer["cpu"] for answer in answers), served[0])


def take_turns(storage: LocalStorage, codec: str, place: str, updates: int, repetitions: int) -> dict[int, list[Turn]]:
    """Of one and of two aggregators; the updates come anew for each turn if the second deletes its own."""
    store, turns = storage.store("aggregator", UPDATES), dict[int, list[Turn]]()
    sealed, numbers, digests = SealedUpdates(cnn_plan(codec), store), evenly(updates, len(CORES)), Digests()
    for repetition in range(1 + repetitions):
        for aggregating in (1, 2):
            digests = digests if digests and place == "memory" else sealed.bring(numbers)
            with aggregators(aggregating) as running:
                one = turn(storage, running, sealed, digests, place)
            if place == "storage":
                sweep(store)
            if repetition:  # the first warms up
                turns.setdefault(aggregating, []).append(one)
    sweep(store)
    return turns


def sweep(store: ObjectStore) -> None:
    store.delete([found.key for found in store.list(f"{ROUND.task}/")])


def _serve(core: int) -> None:
    os.sched_setaffinity(0, {core})
    while (job := json.loads(input())) is not None:
        descriptor = Descriptor.model_validate_json(job["descriptor"])
        key = SealingKey.unwrap(identity_from_pem(job["identity"].encode()), descriptor.wrapped_key_bytes, ROUND)
        store = Beforehand(S3Settings(**job["settings"]))
        folding = Folding(descriptor, read_plan(json.dumps(descriptor.plan)), key, store, shard=job["shard"])
        digests = {DeviceId(device): digest for device, digest in job["digests"].items()}
        mine = {device: digest for device, digest in digests.items() if folding.mine(device)}
        store.list("ready")  # so that the client is there
        if job["place"] == "memory":
            store.hold([update_key(ROUND, *item) for item in mine.items()])
        print(json.dumps("ready"), flush=True)
        input()
        before = time.process_time()
        with ThreadPoolExecutor(WORKERS) as threads:
            list(threads.map(folding.consider, mine.keys(), mine.values()))
        folded = time.perf_counter()
        if job["shard"]:
            folding.save(final=True)
        else:
            mine = {**dict(folding.counts().folded), **asyncio.run(_others(folding))}
            folding.total(mine).mean()
        cpu, rest = time.process_time() - before, time.perf_counter() - folded
        print(json.dumps({"cpu": cpu, "rest": rest, "updates": len(mine)}), flush=True)


async def _others(folding: Folding) -> dict[DeviceId, str]:
    return await persist(lambda: asyncio.to_thread(folding.others.contributors))  # with the aggregator's own pauses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=160, help="from storage")
    parser.add_argument("--held", type=int, default=320, help="updates from memory")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve is not None:
        _serve(given.serve)
        return
    with tempfile.TemporaryDirectory() as directory, LocalStorage(Path(directory)) as storage:
        for codec in ("float32", "int8"):
            for place, updates in {"storage": given.updates, "memory": given.held}.items():
                turns = take_turns(storage, codec, place, updates, given.repetitions)
                print(show(figures(codec, place, updates, turns)), flush=True)


def figures(codec: str, place: str, updates: int, turns: dict[int, list[Turn]]) -> list[Figure]:
    size, what = updates * 4 * cnn_plan().parameters / 1e9, f"{codec} from {place}"
    found = []
    for number, of in turns.items():
        name = "one aggregator on one core" if number == 1 else "two aggregators, each on its core"
        short = "one aggregator" if number == 1 else "two aggregators"
        found += [
            Figure(f"{what}: {name}, {updates} updates", size / statistics.median(one.seconds for one in of), "GB/s"),
            Figure(f"{what}: CPU of {short}", statistics.median(one.cpu for one in of) / size, "s/GB"),
            Figure(f"{what}: CPU of the storage, {short}", statistics.median(one.storage_cpu for one in of) / size, "s/GB"),
        ]
    faster = statistics.median(one.seconds / two.seconds for one, two in zip(turns[1], turns[2], strict=True))
    cpu = statistics.median((two.cpu + two.storage_cpu) / len(CORES) / two.seconds for two in turns[2])
    found += [
        Figure(
            f"{what}: two aggregators, from the first's last update on", statistics.median(two.rest for two in turns[2]), "s"
        ),
        Figure(f"{what}: how fast it is, two by one", faster, "×", at_least=1.0, why=WHYS[place]),
        Figure(f"{what}: of both cores' time, used by two aggregators and their storage", 100 * cpu, "%"),
    ]
    return found


if __name__ == "__main__":
    main()
