"""Ten devices learn MNIST with the 2NN of McMahan et al. 2017, and two of them lie: which rule still learns.

Devices train with the real learner. Their updates are sealed, uploaded to an object storage in memory, checked, combined and
published by the aggregator's own parts; only the network and the server are left out. Each device holds `--examples` examples,
IID; a round is one local epoch at batch 10.

    python benchmarks/poisoning.py [--rounds 8] [--examples 300] [--out docs/images/poisoning.png]

The attacks: "sign flip" sends -5 times its delta; "scaling" 100 times; "noise" is normal noise of 100 times its length;
"label flip" trains on 9 - label, and claims ten times the examples that it has.
"""

import argparse
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from fedlearn.adapters.memory import MemoryObjectStore
from fedlearn.aggregator.folding import Folding
from fedlearn.aggregator.layout import Descriptor, update_key
from fedlearn.aggregator.publishing import Publisher
from fedlearn.core.errors import Refusal
from fedlearn.core.ids import DeviceId, RoundId, TaskId
from fedlearn.core.learning import Examples
from fedlearn.core.updates import Update
from fedlearn.data.datasets import fetch
from fedlearn.data.shards import as_examples
from fedlearn.learning.models import build, get_weights, make_plan, use_one_core
from fedlearn.learning.training import KerasLearner
from fedlearn.protocol.aggregations import name_aggregation
from fedlearn.protocol.envelope import UpdateContext, digest_of, seal
from fedlearn.protocol.messages import Model
from fedlearn.protocol.plans import Plan, name_codec
from fedlearn.protocol.sealing import SealingKey
from fedlearn.protocol.tensors import decode_vector, encode_model, flatten, unflatten

DEVICES, POISONED, TASK = 10, (3, 7), TaskId("poisoning")
RULES: dict[str, tuple[str | None, dict[str, object]]] = {
    "FedAvg": (None, {}),
    "median": ("median", {}),
    "trimmed mean": ("trimmed_mean", {"trim_fraction": 0.2}),
    "Krum": ("krum", {"byzantine": 2}),
    "Multi-Krum": ("multi_krum", {"byzantine": 2}),
    "geometric median": ("geometric_median", {}),
    "norm bound": ("norm_bound", {}),
}
Attack = Callable[[Update, np.random.Generator], Update]


def sign_flip(update: Update, _rng: np.random.Generator) -> Update:
    return Update(-5 * update.delta, update.examples)


def scaling(update: Update, _rng: np.random.Generator) -> Update:
    return Update(100 * update.delta, update.examples)


def noise(update: Update, rng: np.random.Generator) -> Update:
    drawn = rng.normal(size=len(update.delta)).astype(np.float32)
    drawn *= 100 * np.linalg.norm(update.delta) / np.linalg.norm(drawn)
    return Update(drawn, update.examples)


def claim(update: Update, _rng: np.random.Generator) -> Update:
    return Update(update.delta, 10 * update.examples)


ATTACKS: dict[str, Attack | None] = {
    "none": None, "sign flip": sign_flip, "scaling": scaling, "noise": noise, "label flip": claim
}  # fmt: skip


@dataclass
class Bench:
    """What all runs share: one compiled learner, the shards, and the test set."""

    learner: KerasLearner
    base: Plan
    first: np.ndarray
    shards: list[Examples]
    flipped: list[Examples]
    test: Examples

    @classmethod
    def make(cls, examples: int) -> "Bench":
        data = fetch("mnist")
        train, test = as_examples(data.train), as_examples(data.test)
        order = np.random.default_rng(0).permutation(len(train))[: DEVICES * examples]
        shards = [Examples(train.features[part], train.labels[part]) for part in np.array_split(order, DEVICES)]
        flipped = [Examples(shard.features, (9 - shard.labels).astype(np.int32)) for shard in shards]
        model = build("2nn", 0)
        plan = make_plan(model, dataset="mnist", update=name_codec("float32"))
        return cls(KerasLearner(plan), plan, flatten(get_weights(model, plan)), shards, flipped, test)

    def run(self, rule: str, attack: str, rounds: int) -> list[float]:
        """The accuracy after each round; the last one again and again once the aggregator refuses to publish."""
        name, options = RULES[rule]
        aggregation = name_aggregation("fedavg", name, **options)
        plan = Plan.model_validate({**self.base.model_dump(mode="json"), "aggregation": aggregation.model_dump(mode="json")})
        store, rng = MemoryObjectStore(), np.random.default_rng(1)
        publisher, body = Publisher(store), encode_model(unflatten(self.first, plan), plan)
        model = Model(version=0, key="first", sha256=hashlib.sha256(body).hexdigest(), size_bytes=len(body))
        store.put(model.key, body)
        accuracies: list[float] = []
        for number in range(1, rounds + 1):
            try:
                model = self.round(number, plan=plan, base=model, attack=attack, store=store, publisher=publisher, rng=rng)
            except Refusal as refusal:
                print(f"{rule}, {attack}, round {number}: {refusal}")
                return accuracies + (rounds - len(accuracies)) * (accuracies or [0.1])[-1:]
            weights = unflatten(decode_vector(store.get(model.key), plan), plan)
            accuracies.append(float(self.learner.evaluate(weights, self.test)["accuracy"]))
        return accuracies

    def round(
        self, number: int, *, plan: Plan, base: Model, attack: str, store: Any, publisher: Publisher, rng: np.random.Generator
    ) -> Model:
        round_id = RoundId(TASK, number)
        key = SealingKey.generate(round_id)
        descriptor = Descriptor(task=TASK, round=number, plan={}, base=base, kid=key.kid, wrapped_key="")
        folding = Folding(descriptor, plan, key, store)
        vector = decode_vector(store.get(base.key), plan)
        for index in range(DEVICES):
            device = DeviceId(f"device-{index}")
            update = self.update(index, number, plan=plan, vector=vector, attack=attack, rng=rng)
            context = UpdateContext(TASK, number, device, plan.digest, base.sha256)
            sealed = seal(update, key=key.public, context=context, format=plan.update)
            digest = digest_of(sealed)
            store.put(update_key(round_id, device, digest), sealed)
            try:
                folding.consider(device, digest)
            except Refusal as refusal:
                print(f"{attack}, round {number}, {device}: {refusal}")
        counted = folding.counts().folded
        return publisher.publish(descriptor, plan, folding.total(counted), sorted(counted)).model

    def update(
        self, index: int, number: int, *, plan: Plan, vector: np.ndarray, attack: str, rng: np.random.Generator
    ) -> Update:
        poison = ATTACKS[attack] if index in POISONED else None
        shard = (self.flipped if poison is claim else self.shards)[index]
        trained = self.learner.train(unflatten(vector, plan), shard, seed=100 * number + index)
        honest = Update(flatten(trained) - vector, examples=len(shard))
        return honest if poison is None else poison(honest, rng)


def draw(found: dict[str, dict[str, list[float]]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(found), figsize=(3.2 * len(found), 3.6), sharey=True)
    for axis, (attack, by_rule) in zip(axes, found.items(), strict=True):
        for rule, accuracies in by_rule.items():
            style = {"color": "black", "linewidth": 2.5} if rule == "FedAvg" else {"linewidth": 1.4}
            axis.plot(range(1, len(accuracies) + 1), [100 * value for value in accuracies], label=rule, **style)
        axis.set(title=attack if attack != "none" else "all honest", xlabel="round", ylim=(0, 100))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy on the test set, %")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncols=len(RULES), frameon=False)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    figure.savefig(path, dpi=110, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--examples", type=int, default=300, help="that each device holds (default 300)")
    parser.add_argument("--out", type=Path, default=Path("docs/images/poisoning.png"))
    options = parser.parse_args()
    use_one_core()
    began, bench = time.monotonic(), Bench.make(options.examples)
    found = {attack: {rule: bench.run(rule, attack, options.rounds) for rule in RULES} for attack in ATTACKS}
    table = Table(title=f"Accuracy in % after {options.rounds} rounds; {len(POISONED)} of {DEVICES} devices lie", box=None)
    table.add_column("rule")
    for attack in ATTACKS:
        table.add_column("all honest" if attack == "none" else attack, justify="right")
    for rule in RULES:
        table.add_row(rule, *(f"{100 * found[attack][rule][-1]:.1f}" for attack in ATTACKS))
    console = Console()
    console.print(table)
    draw(found, options.out)
    console.print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
