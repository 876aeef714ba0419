"""Folding updates that lie in a storage, beside bare GETs of the same objects."""

import http.client
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from deployments import cnn_plan
from fedlearn.adapters.s3 import S3Settings, s3_client
from fedlearn.local.seaweed import UPDATES
from fedlearn.local.storage import LocalStorage
from fedlearn.protocol.envelope import layout_of
from folding_round import WORKERS, SealedUpdates
from results import Figure
from turns import CORES, Contender, take_turns, watched

GETS, BY_BOTO3, OUR_GETS, FOLDS = (
    f"bare GETs of the same objects, {WORKERS} at once",
    f"GETs of the same objects by boto3, {WORKERS} at once",
    "our GETs, folding nothing",
    "fetch, open, check and fold",
)
LEAST_OF_BARE = 80.0
"""The aim, % of bare GETs."""
APART = "storage and reader on a core of their own"
SHARED = "the storage runs on the same cores: what opening and adding takes is taken from it"


def from_storage(count: int, repetitions: int) -> list[Figure]:
    """Where the storage has the same cores; and, where there are two, with the storage on one and who reads on the other."""
    with tempfile.TemporaryDirectory() as directory, LocalStorage(Path(directory)) as storage:
        readers = Readers(storage, count)
        bare, boto3, ours, fold = readers.bare(), readers.by_boto3(), readers.ours(), readers.fold()
        with watched(storage.pid) as served:
            take_turns((bare, boto3, ours, fold), repetitions)
        figures = [
            Figure(GETS, bare.rate, "GB/s"),
            Figure("CPU of bare GETs, without the storage's", bare.cpu_per_gigabyte, "s/GB"),
            Figure(BY_BOTO3, boto3.rate, "GB/s"),
            Figure("CPU of boto3's GETs", boto3.cpu_per_gigabyte, "s/GB"),
            Figure(OUR_GETS, ours.rate, "GB/s"),
            Figure("CPU of our GETs", ours.cpu_per_gigabyte, "s/GB"),
            Figure(FOLDS, fold.rate, "GB/s"),
            Figure(f"{FOLDS}, of bare GETs", 100 * fold.share_of(bare), "%", at_least=LEAST_OF_BARE, why=SHARED),
            Figure(f"{FOLDS}, of boto3's GETs", 100 * fold.share_of(boto3), "%", at_least=LEAST_OF_BARE),
            Figure(f"{FOLDS}, of our GETs", 100 * fold.share_of(ours), "%"),
            Figure(f"CPU to {FOLDS}", fold.cpu_per_gigabyte, "s/GB"),
            Figure("CPU of the storage, the mean of these four", served[0] / (4 * (1 + repetitions) * bare.size / 1e9), "s/GB"),
        ]
        if CORES == 1:
            return figures
        bare, fold = readers.bare(), readers.fold()
        with apart(storage.pid):
            take_turns((bare, fold), repetitions)
    return [
        *figures,
        Figure(f"{GETS}, {APART}", bare.rate, "GB/s"),
        Figure(f"{FOLDS}, {APART}", fold.rate, "GB/s"),
        Figure(f"{FOLDS}, {APART}, of bare GETs", 100 * fold.share_of(bare), "%", at_least=LEAST_OF_BARE),
    ]


class Readers:
    """Who reads `count` sealed updates of the CNN's size out of a storage, each by as many threads as an aggregator has."""

    def __init__(self, storage: LocalStorage, count: int) -> None:
        keys, plan = storage.credentials("aggregator"), cnn_plan()
        self._client = s3_client(S3Settings(storage.endpoint_url, access_key=keys.access, secret_key=keys.secret))
        self._store = storage.store("aggregator", UPDATES)
        self._sealed = SealedUpdates(plan, self._store)
        self._digests = self._sealed.bring(range(count))
        self._keys = [self._sealed.key_of(*item) for item in self._digests.items()]
        self._urls = [self._store.sign_get(key, seconds=3600) for key in self._keys]
        self._piece_bytes = layout_of(plan).longest_piece

    def bare(self) -> Contender:
        """Nothing but GETs, each thread's over one connection of Python's client, into memory that is there already."""
        return self._contender("bare", lambda: _by_shares(self._get_bare, self._urls))

    def by_boto3(self) -> Contender:
        """What a program gets that reads objects as boto3's own documentation does."""
        return self._contender("boto3", lambda: _by_shares(self._get_by_boto3, self._keys))

    def ours(self) -> Contender:
        """The same by our client, piece by piece."""
        return self._contender("ours", lambda: _by_shares(self._get, self._keys))

    def fold(self) -> Contender:
        return self._contender("fold", self._fold)

    def _contender(self, name: str, action: Callable[[], object]) -> Contender:
        return Contender(name, action, len(self._keys) * self._sealed.size_bytes)

    def _get_bare(self, urls: Sequence[str]) -> None:
        target, buffer = urlsplit(urls[0]), memoryview(bytearray(self._sealed.size_bytes))
        connection = http.client.HTTPConnection(target.hostname or "", target.port)
        for url in urls:
            parts = urlsplit(url)
            connection.request("GET", f"{parts.path}?{parts.query}")
            answer, got = connection.getresponse(), 0
            while got < len(buffer):
                got += answer.readinto(buffer[got:])
            answer.read()
        connection.close()

    def _get_by_boto3(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._client.get_object(Bucket=UPDATES, Key=key)["Body"].read()

    def _get(self, keys: Sequence[str]) -> None:
        piece = memoryview(bytearray(self._piece_bytes))
        for key in keys:
            with self._store.reading(key) as source:
                for start in range(0, source.size, len(piece)):
                    source.fill(piece[: source.size - start])

    def _fold(self) -> None:
        folding = self._sealed.folding()
        with ThreadPoolExecutor(WORKERS) as threads:
            list(threads.map(lambda item: folding.consider(*item), self._digests.items()))
        folded = folding.counts().folded
        assert folded.keys() == self._digests.keys()
        folding.total(folded)  # those that wait to be added together are added now


def _by_shares(read: Callable[[Sequence[str]], None], names: Sequence[str]) -> None:
    with ThreadPoolExecutor(WORKERS) as threads:
        list(threads.map(read, [names[number::WORKERS] for number in range(WORKERS)]))


@contextmanager
def apart(pid: int) -> Iterator[None]:
    """Within it a process has the first of this one's cores alone, and this one the second."""
    cores = os.sched_getaffinity(0)
    first, second, *_ = sorted(cores)
    try:
        _pin(pid, {first})
        _pin(os.getpid(), {second})
        yield
    finally:
        _pin(pid, cores)
        _pin(os.getpid(), cores)


def _pin(pid: int, cores: set[int]) -> None:
    for thread in Path(f"/proc/{pid}/task").iterdir():  # those that come later have the cores of who starts them
        os.sched_setaffinity(int(thread.name), cores)
