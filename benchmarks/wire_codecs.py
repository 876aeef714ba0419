"""What each codec costs and spares: bytes on the wire, error of one update, and accuracy over rounds.

Ten devices learn MNIST or Fashion-MNIST with the 2NN of McMahan et al. 2017 by the real learner; the updates go through the
device's outbox, are sealed, uploaded to an object storage in memory, and opened, checked, folded and published by the
aggregator's own parts. Only the network and the server are left out. Each device holds 1,000 examples, IID; a round is one
local epoch at batch 10. Of each seed all codecs begin with the same weights, and their devices train with the same seeds. The
error of one update is of what arrives in a round against what was trained in it, that of the sum of all that a device has sent.

    python benchmarks/wire_codecs.py [--rounds 20] [--examples 1000] [--seeds 3] [--out docs/images/codecs.png]
"""

import argparse
import asyncio
import hashlib
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from drawing import canvas
from fedlearn.adapters.memory import MemoryObjectStore
from fedlearn.aggregator.folding import Folding
from fedlearn.aggregator.layout import Descriptor, update_key
from fedlearn.aggregator.publishing import Publisher
from fedlearn.core.ids import DeviceId, RoundId, TaskId
from fedlearn.core.learning import Examples
from fedlearn.core.updates import Update
from fedlearn.data.datasets import fetch
from fedlearn.data.shards import as_examples
from fedlearn.device.outbox import Outbox
from fedlearn.device.residuals import Residuals
from fedlearn.learning.models import build, get_weights, make_plan, use_one_core
from fedlearn.learning.training import KerasLearner
from fedlearn.protocol.envelope import UpdateContext, open_update
from fedlearn.protocol.messages import Assignment, Model
from fedlearn.protocol.plans import ModelEncoding, Plan, UpdateFormat, name_codec
from fedlearn.protocol.sealing import SealingKey
from fedlearn.protocol.tensors import decode_model, decode_vector, difference, encode_model, unflatten
from fedlearn.protocol.views import ParticipantView, RoundView, VersionView
from results import Figure, show, table

DEVICES, TASK = 10, TaskId("codecs")
VARIANTS: dict[str, tuple[UpdateFormat, ModelEncoding]] = {
    "float32": (name_codec("float32"), "float32"),
    "float16": (name_codec("float16"), "float32"),
    "int8": (name_codec("int8"), "float32"),
    "int8, model float16": (name_codec("int8"), "float16"),
    "top-k 10 %": (name_codec("top_k", 0.1), "float32"),
    "top-k 1 %": (name_codec("top_k", 0.01), "float32"),
}

LOOKS = {
    "float32": ("black", "-"),
    "float16": ("tab:orange", "-"),
    "int8": ("tab:blue", "-"),
    "int8, model float16": ("tab:cyan", "--"),
    "top-k 10 %": ("tab:purple", "-"),
    "top-k 1 %": ("tab:brown", "-"),
}
"""The colour and the line of each."""
RATIO, ERROR = ".1f", ".3g"
"""How they are written, in the table as in the picture."""
MOST_POINTS_LOST = 0.5
"""By the default codec: no more than the seed alone changes."""


class Server:
    """What a device asks a server for when every round is committed with everybody in it."""

    def __init__(self) -> None:
        self.models: list[Model] = []

    async def versions(self, task: TaskId) -> list[VersionView]:
        return [
            VersionView(
                task=task,
                model=model,
                round=number or None,
                created_at=datetime.now(UTC),
                evaluation=None,
                parent=number - 1 if number else None,
            )
            for number, model in enumerate(self.models)
        ]

    async def round(self, round_id: RoundId) -> RoundView:
        parts = tuple(ParticipantView(device=f"device-{i}", standing="reported", code=None) for i in range(DEVICES))
        return RoundView(
            task=round_id.task,
            round=round_id.number,
            phase="committed",
            reason=None,
            base_version=0,
            opened_at=datetime.now(UTC),
            seconds=0,
            phase_seconds={},
            participants=parts,
            model=None,
            examples=None,
            metrics={},
        )


@dataclass
class Found:
    """Of one variant on one dataset. `errors` are of what arrives in a round against what was trained in it,
    `errors_of_sums` of all that has arrived from a device against all that it has trained.
    """

    accuracies: list[list[float]] = field(default_factory=list)
    up: list[int] = field(default_factory=list)
    down: list[int] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    errors_of_sums: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


class Run:
    """One variant from its first to its last round.

    Args:
        base: the plan but for its codecs.
    """

    def __init__(self, base: Plan, first: np.ndarray, variant: str, directory: Path) -> None:
        update, model_encoding = VARIANTS[variant]
        changes = {"update": update.model_dump(mode="json"), "model_encoding": model_encoding}
        self.plan = Plan.model_validate({**base.model_dump(mode="json"), **changes})
        self.store, self.server = MemoryObjectStore(), Server()
        self.publisher = Publisher(self.store)
        body = encode_model(unflatten(first, self.plan), self.plan)
        self.model = Model(version=0, key="first.safetensors", sha256=hashlib.sha256(body).hexdigest(), size_bytes=len(body))
        self.store.put(self.model.key, body)
        self.server.models.append(self.model)
        played: Any = self.server
        self.trained, self.arrived = np.zeros((DEVICES, self.plan.parameters)), np.zeros((DEVICES, self.plan.parameters))
        self.boxes = [Outbox(played, Residuals(directory / str(index))) for index in range(DEVICES)]

    def round(self, number: int, learner: KerasLearner, shards: list[Examples], seed: int, found: Found) -> np.ndarray:
        """The new model's weights."""
        round_id = RoundId(TASK, number)
        key = SealingKey.generate(round_id)
        served = self.publisher.serve(self.model, self.plan)
        start = served or self.model
        found.down.append(start.size_bytes)
        descriptor = Descriptor(task=TASK, round=number, plan={}, base=self.model, served=served, kid=key.kid, wrapped_key="")
        folding = Folding(descriptor, self.plan, key, self.store)
        weights = decode_model(self.store.get(start.key), self.plan, self.plan.model_encoding)
        for index, shard in enumerate(shards):
            device, own_seed = DeviceId(f"device-{index}"), 1_000_000 * seed + 1000 * number + index
            delta = difference(learner.train(weights, shard, own_seed), weights)
            assignment = Assignment(
                task=TASK,
                round=number,
                device=device,
                plan_digest=self.plan.digest,
                model=start,
                model_url="",
                seconds_left=60,
                ticket="",
            )
            began = time.perf_counter()
            update = Update(delta.copy(), examples=len(shard))
            before = asyncio.run(self.boxes[index].round_before(assignment, self.plan))
            parcel = self.boxes[index].pack(update, key.public, assignment, self.plan, seed=own_seed, before=before)
            found.seconds.append(time.perf_counter() - began)
            found.up.append(len(parcel.body))
            context = UpdateContext(TASK, number, device, self.plan.digest, start.sha256)
            arrived = open_update(parcel.body, key=key, context=context, plan=self.plan).delta
            found.errors.append(float(np.linalg.norm(arrived - delta) / np.linalg.norm(delta)))
            self.trained[index] += delta
            self.arrived[index] += arrived
            self.store.put(update_key(round_id, device, parcel.digest), parcel.body)
            folding.consider(device, parcel.digest)
        counted = folding.counts().folded
        self.model = self.publisher.publish(descriptor, self.plan, folding.total(counted), sorted(counted)).model
        self.server.models.append(self.model)
        vector = decode_vector(self.store.get(self.model.key), self.plan)
        self.store.bucket.objects = {k: v for k, v in self.store.bucket.objects.items() if k == self.model.key}
        return vector


def compare(dataset: str, options: argparse.Namespace) -> dict[str, Found]:
    data = fetch(dataset)
    train, test = as_examples(data.train), as_examples(data.test)
    found = {variant: Found() for variant in VARIANTS}
    for seed in range(options.seeds):
        model = build("2nn", seed)
        plan = make_plan(model, dataset=dataset)
        learner, first = KerasLearner(plan), np.concatenate([w.reshape(-1) for w in get_weights(model, plan)])
        order = np.random.default_rng(seed).permutation(len(train))[: DEVICES * options.examples]
        shards = [Examples(train.features[part], train.labels[part]) for part in np.array_split(order, DEVICES)]
        for variant, of in found.items():
            with tempfile.TemporaryDirectory() as directory:
                run, accuracies = Run(plan, first, variant, Path(directory)), []
                for number in range(1, options.rounds + 1):
                    vector = run.round(number, learner, shards, seed, of)
                    accuracies.append(float(learner.evaluate(unflatten(vector, plan), test)["accuracy"]))
            of.accuracies.append(accuracies)
            lost, whole = np.linalg.norm(run.arrived - run.trained, axis=1), np.linalg.norm(run.trained, axis=1)
            of.errors_of_sums += [float(value) for value in lost / whole]
            print(f"{dataset}, seed {seed}, {variant}: {100 * accuracies[-1]:.2f} %", file=sys.stderr, flush=True)
    return found


def rows(found: dict[str, Found], bare: int) -> list[list[str]]:
    shown = []
    for variant, of in found.items():
        last = [100 * accuracies[-1] for accuracies in of.accuracies]
        numbers = (
            f"{np.mean(of.up) / 1000:.1f} kB",
            f"{bare / np.mean(of.up):{RATIO}} ×",
            f"{np.mean(of.down) / 1000:.1f} kB",
            f"{100 * np.mean(of.errors):{ERROR}} %",
            f"{100 * np.mean(of.errors_of_sums):{ERROR}} %",
            f"{1000 * np.median(of.seconds):.1f} ms",
            f"{np.mean(last):.2f} ({min(last):.2f} to {max(last):.2f})",
        )
        shown.append([variant, *numbers])
    return shown


def aims(dataset: str, found: dict[str, Found], bare: int) -> list[Figure]:
    """What the default codec has to bear: as accurate as float32, in a quarter of the bytes."""
    figures = [
        Figure(f"{dataset}: {variant}, its accuracy less float32's", 100 * gain, "points", at_least=-MOST_POINTS_LOST)
        for variant in ("int8", "int8, model float16")
        for gain in [float(np.mean(_last(found[variant]) - _last(found["float32"])))]
    ]
    return [
        *figures,
        Figure(f"{dataset}: int8, how many times fewer bytes up", bare / float(np.mean(found["int8"].up)), "×", at_least=4),
    ]


def _last(found: Found) -> np.ndarray:
    return np.array(found.accuracies)[:, -1]


def draw(results: dict[str, dict[str, Found]], bare: int, path: Path) -> None:
    with canvas(path, 2, 3, width=4.7, height=3.7) as axes:
        for column, (dataset, found) in enumerate(results.items()):
            _differences(axes[column], found)
            axes[column].set_title(dataset)
            _over_bytes(axes[3 + column], found)
        for axis in (*axes[:2], *axes[3:5]):
            axis.legend(frameon=False, loc="lower right", fontsize="small", labelspacing=0.25)
        ratios = {
            dataset: {variant: bare / float(np.mean(of.up)) for variant, of in found.items()}
            for dataset, found in results.items()
        }
        errors = {
            dataset: {variant: 100 * float(np.mean(of.errors_of_sums)) for variant, of in found.items()}
            for dataset, found in results.items()
        }
        _side_by_side(axes[2], ratios, "times fewer bytes up than bare float32", 0.8, RATIO)
        _side_by_side(axes[5], errors, "error of all that a device has sent, %", 1e-3, ERROR)


def _differences(axis: Any, found: dict[str, Found]) -> None:
    """Accuracy less float32's of the same seed: the mean, and from the lowest to the highest."""
    of_float32 = 100 * np.array(found["float32"].accuracies)
    rounds = np.arange(1, of_float32.shape[1] + 1)
    for variant, of in found.items():
        gain = 100 * np.array(of.accuracies) - of_float32
        color, style = LOOKS[variant]
        axis.plot(rounds, gain.mean(axis=0), style, color=color, label=variant, linewidth=1.6)
        axis.fill_between(rounds, gain.min(axis=0), gain.max(axis=0), color=color, alpha=0.12, linewidth=0)
    axis.set(xlabel="round", ylabel="accuracy less float32's, points", ylim=(-5, 1))
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)


def _over_bytes(axis: Any, found: dict[str, Found]) -> None:
    """Bytes both ways, since a model in float16 spares those that come down."""
    for variant, of in found.items():
        mean, color, style = 100 * np.mean(of.accuracies, axis=0), *LOOKS[variant]
        each = (np.mean(of.up) + np.mean(of.down)) / 1e6
        axis.plot(np.arange(1, len(mean) + 1) * each, mean, style, color=color, label=variant, linewidth=1.6)
    axis.set(xlabel="MB that a device has sent and got", ylabel="accuracy on the test set, %", xscale="log")
    ticks = [tick for tick in (0.5, 1, 2, 5, 10, 20, 50) if axis.get_xlim()[0] <= tick <= axis.get_xlim()[1]]
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.set_ylim(bottom=np.mean(found["float32"].accuracies, axis=0)[0] * 100 - 5)  # the legend stands there
    axis.grid(alpha=0.3)


def _side_by_side(axis: Any, values: dict[str, dict[str, float]], xlabel: str, left: float, form: str) -> None:
    """A bar for each codec and dataset, with its number; nothing is nothing on an axis of logarithms too."""
    height = 0.8 / len(values)
    for index, (dataset, of) in enumerate(values.items()):
        places = np.arange(len(of)) + height * (index - (len(values) - 1) / 2)
        colors = [LOOKS[variant][0] for variant in of]
        drawn = axis.barh(places, list(of.values()), height, color=colors, alpha=1 if index == 0 else 0.5, label=dataset)
        axis.bar_label(drawn, [format(value, form) if value else "" for value in of.values()], padding=3, fontsize="small")
        for place in places[np.array(list(of.values())) == 0]:
            axis.text(1.1 * left, place, "0", va="center", fontsize="small")
    axis.set_yticks(np.arange(len(LOOKS)), list(LOOKS))
    most = max(max(of.values()) for of in values.values())
    axis.set(xscale="log", xlim=(left, 5 * most), xlabel=xlabel)
    axis.set_title(" above, ".join(values) + " below", fontsize="medium")
    axis.invert_yaxis()
    axis.spines[["top", "right"]].set_visible(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--examples", type=int, default=1000, help="that each device holds (default 1000)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each codec (default 3)")
    parser.add_argument("--out", type=Path, help="a picture of all of it")
    options = parser.parse_args()
    use_one_core()
    bare, results = 4 * 199_210, dict[str, dict[str, Found]]()
    for dataset, name in {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST"}.items():
        found = results[name] = compare(dataset, options)
        print(
            f"{name}, after {options.rounds} rounds; accuracy is the mean of {options.seeds} seeds (and from the lowest on).\n"
        )
        headings = ("codec", "up", "fewer", "down", "error of one", "of the sum", "to pack", "accuracy on the test set, %")
        print(table(headings, rows(found, bare)))
        print(show(aims(name, found, bare)), flush=True)
    if options.out:
        draw(results, bare, options.out)


if __name__ == "__main__":
    main()
