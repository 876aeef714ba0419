"""Ten devices learn MNIST with the 2NN of McMahan et al. 2017, and two of them lie: which rule still learns.

Devices train with the real learner. Their updates are sealed, uploaded to an object storage in memory, checked, combined and
published by the aggregator's own parts; only the network and the server are left out. Each device holds 300 examples, IID; a
round is one local epoch at batch 10. Figures are means over seeds, each with a division, a first model and noise of its own;
the liars are the same two.

The attacks: "sign flip" sends -5 times its delta; "scaling" 100 times; "noise" is normal noise of 100 times its length;
"label flip" trains on 9 - label, and claims ten times the examples that it has. FedAvg bears milder ones as well.

    python benchmarks/poisoning.py [--rounds 8] [--examples 300] [--seeds 3] [--out docs/images/poisoning.png]
"""

import argparse
import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drawing import canvas
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
from results import Figure, show, table

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
LOOKS = {
    "FedAvg": ("black", "-", 2.5),
    "median": ("tab:blue", "-", 1.6),
    "trimmed mean": ("tab:orange", "--", 1.6),
    "Krum": ("tab:green", "-", 1.6),
    "Multi-Krum": ("tab:red", "-", 1.6),
    "geometric median": ("tab:purple", "--", 1.6),
    "norm bound": ("tab:brown", ":", 2.0),
}
"""The colour, the line and its width of each."""
CLOSE = (80, 92)
"""The % that the lower row of the picture shows: there are the rules that hold, one upon the other in the upper."""
HONEST, TITLES = "all honest", {"label flip": "label flip, 10 × the examples"}
BROKEN, MOST_LOST = 50.0, 5.0
"""Less than so many % is broken, and so many points less than with all honest is still learned."""
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
    HONEST: None, "sign flip": sign_flip, "scaling": scaling, "noise": noise, "label flip": claim
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
    seed: int

    @classmethod
    def make(cls, examples: int, seed: int) -> "Bench":
        data = fetch("mnist")
        train, test = as_examples(data.train), as_examples(data.test)
        order = np.random.default_rng(seed).permutation(len(train))[: DEVICES * examples]
        shards = [Examples(train.features[part], train.labels[part]) for part in np.array_split(order, DEVICES)]
        flipped = [Examples(shard.features, (9 - shard.labels).astype(np.int32)) for shard in shards]
        model = build("2nn", seed)
        plan = make_plan(model, dataset="mnist", update=name_codec("float32"))
        return cls(KerasLearner(plan), plan, flatten(get_weights(model, plan)), shards, flipped, test, seed)

    def run(self, rule: str, attack: str, rounds: int) -> list[float]:
        """The accuracy after each round; the last one again and again once the aggregator refuses to publish."""
        name, options = RULES[rule]
        aggregation = name_aggregation("fedavg", name, **options)
        plan = Plan.model_validate({**self.base.model_dump(mode="json"), "aggregation": aggregation.model_dump(mode="json")})
        store, rng = MemoryObjectStore(), np.random.default_rng([1, self.seed])
        publisher, body = Publisher(store), encode_model(unflatten(self.first, plan), plan)
        model = Model(version=0, key="first", sha256=hashlib.sha256(body).hexdigest(), size_bytes=len(body))
        store.put(model.key, body)
        accuracies: list[float] = []
        for number in range(1, rounds + 1):
            try:
                model = self.round(number, plan=plan, base=model, attack=attack, store=store, publisher=publisher, rng=rng)
            except Refusal as refusal:
                print(f"{rule}, {attack}, round {number}: {refusal}", file=sys.stderr)
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
                print(f"{attack}, round {number}, {device}: {refusal}", file=sys.stderr)
        counted = folding.counts().folded
        return publisher.publish(descriptor, plan, folding.total(counted), sorted(counted)).model

    def update(
        self, index: int, number: int, *, plan: Plan, vector: np.ndarray, attack: str, rng: np.random.Generator
    ) -> Update:
        poison = ATTACKS[attack] if index in POISONED else None
        shard = (self.flipped if poison is claim else self.shards)[index]
        trained = self.learner.train(unflatten(vector, plan), shard, seed=1_000_000 * self.seed + 100 * number + index)
        honest = Update(flatten(trained) - vector, examples=len(shard))
        return honest if poison is None else poison(honest, rng)


Found = dict[str, dict[str, np.ndarray]]
"""By attack and rule the accuracies in %, a row for each seed, a column for each round."""


def compare(examples: int, rounds: int, seeds: int) -> Found:
    found: Found = {attack: {rule: np.empty((seeds, rounds)) for rule in RULES} for attack in ATTACKS}
    for seed in range(seeds):
        bench = Bench.make(examples, seed)
        for attack, by_rule in found.items():
            for rule, accuracies in by_rule.items():
                accuracies[seed] = 100 * np.array(bench.run(rule, attack, rounds))
    return found


def at_the_end(found: Found) -> dict[str, dict[str, float]]:
    return {attack: {rule: float(accuracies[:, -1].mean()) for rule, accuracies in by.items()} for attack, by in found.items()}


def rows(ends: dict[str, dict[str, float]]) -> list[list[str]]:
    return [[rule, *(f"{by_rule[rule]:.1f}" for by_rule in ends.values())] for rule in RULES]


def aims(ends: dict[str, dict[str, float]]) -> list[Figure]:
    """With liars FedAvg breaks, or they would show nothing, and every other rule holds under all attacks."""
    under = {rule: {attack: by_rule[rule] for attack, by_rule in ends.items() if attack != HONEST} for rule in RULES}
    figures = []
    for rule, by_attack in under.items():
        if rule == "FedAvg":
            best = max(by_attack, key=lambda attack: by_attack[attack])
            figures.append(Figure(f"FedAvg with liars, at its best ({best})", by_attack[best], "%", at_most=BROKEN))
            continue
        worst = min(by_attack, key=lambda attack: by_attack[attack])
        lost = by_attack[worst] - ends[HONEST][rule]
        figures.append(
            Figure(
                f"{rule} with liars, at its worst ({worst}), less what it reaches with all honest",
                lost,
                "points",
                at_least=-MOST_LOST,
            )
        )
    return figures


def draw(found: Found, path: Path) -> None:
    """The mean of the seeds, and from the lowest to the highest; below it once more where the rules that hold lie."""
    with canvas(path, 2, len(found), width=3.1, height=3.4) as axes:
        whole, close = axes[: len(found)], axes[len(found) :]
        for axis, near, (attack, by_rule) in zip(whole, close, found.items(), strict=True):
            for rule, accuracies in by_rule.items():
                _rounds_of(rule, accuracies, axis, near)
            axis.set(ylim=(0, 100))
            axis.set_title(TITLES.get(attack, attack), fontsize="medium")
            near.set(xlabel="round", ylim=CLOSE)
            for one in (axis, near):
                one.xaxis.get_major_locator().set_params(integer=True)
                one.grid(alpha=0.3)
        for axis in (*whole[1:], *close[1:]):
            axis.set_yticklabels([])
        whole[0].set_ylabel("accuracy on the test set, %")
        close[0].set_ylabel(f"the same, from {CLOSE[0]} to {CLOSE[1]} %")
        whole[0].legend(frameon=False, loc="lower center", fontsize="small")


def _rounds_of(rule: str, accuracies: np.ndarray, *axes: Any) -> None:
    (color, style, width), rounds = LOOKS[rule], range(1, accuracies.shape[1] + 1)
    for axis in axes:
        axis.plot(rounds, accuracies.mean(axis=0), style, color=color, linewidth=width, label=rule)
        axis.fill_between(rounds, accuracies.min(axis=0), accuracies.max(axis=0), color=color, alpha=0.12, linewidth=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--examples", type=int, default=300, help="that each device holds (default 300)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a picture of the accuracies round by round")
    given = parser.parse_args()
    use_one_core()
    found = compare(given.examples, given.rounds, given.seeds)
    ends = at_the_end(found)
    lie = f"{len(POISONED)} of {DEVICES} devices lie"
    print(f"Accuracy on the test set in % after {given.rounds} rounds, means of {given.seeds} seeds; {lie}.\n")
    print(table(("rule", *ATTACKS), rows(ends)))
    print(show(aims(ends)))
    if given.out:
        draw(found, given.out)


if __name__ == "__main__":
    main()
