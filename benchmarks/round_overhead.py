"""A round of 10 devices in 10 processes without training, beside the bare way of the same bytes, in turns in one run.

The bare way: ten processes GET the model, make and seal a random delta and PUT it, all at once; one process with two threads
GETs, opens and folds each as it arrives. It has the same storage, envelope and sum, and no server, no aggregator, no database,
no identity, no next model.
"""

import hashlib
import multiprocessing
import statistics
import time
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from typing import Any, NamedTuple

from deployments import cnn_plan, random_vector, seconds_from_round_to_round, synthetic
from fedlearn.adapters.transfer import SignedTransfer
from fedlearn.core.aggregation import WeightedSum
from fedlearn.core.ids import RoundId, TaskId
from fedlearn.core.learning import Examples
from fedlearn.core.updates import Update, check_claims
from fedlearn.learning.synthetic import SyntheticLearner
from fedlearn.protocol.envelope import UpdateContext, open_update, seal
from fedlearn.protocol.sealing import SealingKey, SealingPublicKey
from fedlearn.protocol.tensors import decode_model, encode_model, unflatten
from results import Figure, show

DEVICES, ROUNDS, TURNS = 10, 8, 4
PLAN = cnn_plan()
BASE = "0" * 64


def context(device: str) -> UpdateContext:
    return UpdateContext(task="bare", round=1, device=device, plan_digest=PLAN.digest, base_sha256=BASE)


class Ends(NamedTuple):
    """A device process's ends of the queues."""

    jobs: "Queue[Any]"
    grants: "Queue[Any]"
    uploaded: "Queue[Any]"
    barrier: Barrier


def device(index: int, public: bytes, ends: Ends) -> None:
    """GET, make a delta, seal, PUT: what a device does in a round, and nothing else."""
    key, transfer, learner = SealingPublicKey(public), SignedTransfer(), SyntheticLearner(PLAN)
    examples = Examples(random_vector(1, 0), random_vector(1, 0))
    name = f"device-{index}"
    while (job := ends.jobs.get()) is not None:
        url, sha256, size, seed = job
        ends.barrier.wait()
        weights = decode_model(transfer.fetch(url, sha256=sha256, size_bytes=size), PLAN)
        delta = learner.learn(weights, examples, seed)
        sealed = seal(Update(delta, examples=1), key=key, context=context(name), format=PLAN.update)
        ends.uploaded.put((name, hashlib.sha256(sealed).hexdigest(), len(sealed)))
        transfer.store(ends.grants.get(), sealed)
        ends.uploaded.put((name, None, None))


class Bare:
    """Ten device processes and a folding one over the deployment's own storage."""

    def __init__(self, launcher: Any) -> None:
        forked = multiprocessing.get_context("spawn")
        self.models = launcher.storage.store("aggregator", "fedlearn-models")
        self.updates = launcher.storage.store("aggregator", "fedlearn-updates")
        self.key = SealingKey.generate(RoundId(TaskId("bare"), 1))
        self.body = encode_model(unflatten(random_vector(PLAN.parameters, 0), PLAN), PLAN)
        self.models.put("bare/model", self.body)
        self.barrier, self.uploaded = forked.Barrier(DEVICES + 1), forked.Queue()
        self.jobs = [forked.Queue() for _ in range(DEVICES)]
        self.grants = [forked.Queue() for _ in range(DEVICES)]
        self.processes = [
            forked.Process(
                target=device,
                args=(i, self.key.public.raw, Ends(self.jobs[i], self.grants[i], self.uploaded, self.barrier)),
                daemon=True,
            )
            for i in range(DEVICES)
        ]
        for process in self.processes:
            process.start()

    def turn(self, number: int) -> float:
        """Seconds until ten updates are folded."""
        url, sha256 = self.models.sign_get("bare/model", seconds=600), hashlib.sha256(self.body).hexdigest()
        for index, jobs in enumerate(self.jobs):
            jobs.put((url, sha256, len(self.body), number * DEVICES + index))
        total, keys = WeightedSum(PLAN.parameters), dict[str, str]()
        self.barrier.wait()
        began = time.perf_counter()
        with ThreadPoolExecutor(2) as threads:
            folds = list[Future[None]]()
            while len(folds) < DEVICES:
                name, digest, size = self.uploaded.get()
                if digest is None:
                    folds.append(threads.submit(self._fold, total, name, keys[name]))
                    continue
                keys[name] = f"bare/{number}/{name}/{digest}"
                grant = self.updates.sign_put(keys[name], size_bytes=size, sha256=digest, seconds=600)
                self.grants[int(name.removeprefix("device-"))].put(grant)
            for fold in folds:
                fold.result()
        seconds = time.perf_counter() - began
        self.updates.delete(list(keys.values()))
        return seconds

    def _fold(self, total: WeightedSum, name: str, key: str) -> None:
        body = self.updates.get(key)
        update = open_update(body, key=self.key, context=context(name), plan=PLAN)
        check_claims(update, max_examples=PLAN.max_examples, figures=PLAN.figures)
        total.fold(update)

    def stop(self) -> None:
        for jobs in self.jobs:
            jobs.put(None)
        for process in self.processes:
            process.join(10)


def main() -> None:
    rounds, bare_turns = list[float](), list[float]()
    with synthetic(DEVICES, DEVICES) as deployment:
        bare = Bare(deployment.launcher)
        bare.turn(0)
        for turn in range(TURNS):
            views = deployment.run(f"overhead-{turn}", DEVICES, ROUNDS)
            if lost := [(view.round, view.reason) for view in views if view.phase != "committed"]:
                print(f"Not committed, and left out: {lost}.", flush=True)
                views = [view for view in views if view.phase == "committed"]
            rounds += seconds_from_round_to_round(views)
            bare_turns += [bare.turn(1 + turn * ROUNDS + i) for i in range(ROUNDS - 2)]
        bare.stop()
    megabytes = 4 * PLAN.parameters / 1e6
    bare_seconds, seconds = statistics.median(bare_turns), statistics.median(rounds)
    figures = [
        Figure(f"bare data path, {DEVICES} processes, {megabytes:.2f} MB of random float32 each", bare_seconds, "s"),
        Figure("bare data path, the longest of its turns", max(bare_turns), "s"),
        Figure(f"a whole round, {DEVICES} devices, the same bytes", seconds, "s"),
        Figure("a whole round, the longest of them", max(rounds), "s"),
        Figure("a whole round by the bare data path", seconds / bare_seconds, "×", at_most=1.5),
    ]
    print(show(figures))


if __name__ == "__main__":
    main()
