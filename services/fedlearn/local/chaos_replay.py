"""What versions must be, from a seed and from who was in: formulas of numpy, and nothing of what makes rounds.

They are written down once more from docs/strategies.md, docs/codecs.md and docs/envelope.md.
"""

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fedlearn.protocol import aggregations as plans
from fedlearn.protocol.plans import Plan, UpdateFormat

Floats = npt.NDArray[np.float64]
Vector = npt.NDArray[np.float32]

_PIECE = 1 << 18  # weights, the synthetic learner's: each piece of a delta is noise from a place of its own
_SCALE = 1e-3
_BLOCK = 1024  # int8: so many values share a scale


class Replay:
    """A task's committed rounds in their order, since moments, and what `top_k` has not sent, go from one to the next.

    Args:
        seed: of the devices' updates.
    """

    def __init__(self, plan: Plan, seed: int) -> None:
        self._plan, self._seed = plan, seed
        noise = np.random.Generator(np.random.SFC64(0)).random(2 * _PIECE, dtype=np.float32) - np.float32(0.5)
        self._noise = noise * np.float32(math.sqrt(12) * _SCALE)
        self._kept: dict[int, Vector] = {}
        self._steps = Steps(plan.aggregation, plan.parameters)

    def after(self, base: Vector, number: int, examples: Mapping[int, int]) -> Floats:
        """The next version of `base`, as round `number` makes it.

        Args:
            examples: of each contributor, by the number of its shard.
        """
        rows = np.stack([self.sent(shard, number) for shard in examples]).astype(np.float64)
        return base + self._steps.of(combined(self._plan.aggregation.rule, rows, np.array(list(examples.values()), np.float64)))

    def sent(self, shard: int, number: int) -> Vector:
        """What the aggregator reads of this shard's update; of `top_k` once a round, in which it counts."""
        seed = int.from_bytes(hashlib.sha256(f"{self._seed}/{shard}/{number}".encode()).digest()[:4], "big")
        delta, update = self._delta(seed), self._plan.update
        if update.encoding == "float16":
            return delta.astype(np.float16).astype(np.float32)
        if update.encoding == "int8":
            return rounded(delta, update, seed)
        if update.keep_fraction is not None:
            delta += self._kept.get(shard, np.float32(0))
            sent = largest(delta, max(1, round(update.keep_fraction * delta.size)))
            self._kept[shard] = delta - sent
            return sent
        return delta

    def _delta(self, seed: int) -> Vector:
        rng, left = np.random.Generator(np.random.SFC64(seed)), self._plan.parameters
        pieces = []
        while left > 0:
            first = rng.integers(_PIECE)
            pieces.append(self._noise[first : first + min(left, _PIECE)])
            left -= _PIECE
        return np.concatenate(pieces)


# --- codecs


def rounded(delta: Vector, update: UpdateFormat, seed: int) -> Vector:
    """`int8` and back, the chances being those of a device whose training has this seed."""
    chances = np.random.SFC64([seed, 1])
    read, exact = delta.copy(), np.zeros(delta.size, bool)
    for start, stop in update.exact:
        exact[start:stop] = True
    for start in range(0, delta.size, update.window_elements):
        places = start + np.flatnonzero(~exact[start : start + update.window_elements])
        drawn = chances.random_raw(math.ceil(places.size / 4)).astype("<u8").view("<u2")[: places.size]
        for first in range(0, places.size, _BLOCK):
            block = places[first : first + _BLOCK]
            most = np.abs(delta[block]).max()
            scale = np.nextafter(most / np.float32(127), np.float32(np.inf))
            chance = (drawn[first : first + _BLOCK].astype(np.float32) + np.float32(0.5)) / np.float32(65536)
            read[block] = np.floor(delta[block] / scale + chance) * scale if most > 0 else 0
    return read


def largest(delta: Vector, keep: int) -> Vector:
    """`top_k` and back: the `keep` largest magnitudes as float16, of equal ones the first; all else is 0."""
    places = np.argsort(-np.abs(delta), kind="stable")[:keep]
    sent = np.zeros_like(delta)
    sent[places] = delta[places].astype(np.float16)
    return sent


# --- rules: rows of shape (updates, parameters), examples of shape (updates,)


def combined(rule: plans.Rule | None, rows: Floats, examples: Floats) -> Floats:
    """The delta that a rule makes of a round's updates; None is the weighted mean."""
    alike, by_examples = np.full(len(rows), 1 / len(rows)), examples / examples.sum()
    made: Floats
    match rule:
        case None:
            made = by_examples @ rows
        case plans.MedianPlan():
            made = np.median(rows, axis=0)
        case plans.TrimmedMeanPlan(trim_fraction=fraction):
            cut = math.floor(round(fraction * len(rows), 9))
            made = np.sort(rows, axis=0)[cut : len(rows) - cut].mean(axis=0)
        case plans.KrumPlan(byzantine=liars):
            made = rows[_by_score(rows, liars)[0]]
        case plans.MultiKrumPlan(byzantine=liars, keep=keep):
            made = rows[_by_score(rows, liars)[: keep or len(rows) - liars]].mean(axis=0)
        case plans.NormBoundPlan(max_norm=most, weighted=weighted):
            made = (by_examples if weighted else alike) @ _cut(rows, most)
        case plans.GeometricMedianPlan(weighted=weighted):
            made = _geometric_median(rows, by_examples if weighted else alike, rule)
    return made


def _by_score(rows: Floats, liars: int) -> npt.NDArray[np.intp]:
    """Blanchard et al. 2017, section 3: first those whose n - f - 2 nearest others are nearest."""
    distances = np.array([np.sort(((rows - row) ** 2).sum(axis=1)) for row in rows])  # of each row its own, 0, is the first
    return np.argsort(distances[:, 1 : len(rows) - liars - 1].sum(axis=1), kind="stable")


def _cut(rows: Floats, most: float | None) -> Floats:
    """Each row cut to this length, or to the median of their lengths."""
    lengths = np.linalg.norm(rows, axis=1)
    bound = np.median(lengths) if most is None else most
    cut: Floats = rows / np.maximum(1, lengths / bound)[:, np.newaxis]
    return cut


def _geometric_median(rows: Floats, shares: Floats, rule: plans.GeometricMedianPlan) -> Floats:
    """Pillutla et al. 2022, algorithm 2, from the mean of the rows cut to their median length."""
    middle, factors = shares @ _cut(rows, None), np.zeros(len(rows))
    for _ in range(rule.iterations):
        before, factors = factors, shares / np.maximum(rule.smoothing, np.linalg.norm(rows - middle, axis=1))
        factors /= factors.sum()
        middle = factors @ rows
        if np.allclose(factors, before, rtol=1e-9, atol=0):
            break
    return middle


# --- strategies


class Steps:
    """A strategy's steps, one after the other, with the moments between them as they are kept: in float32."""

    def __init__(self, plan: plans.Aggregation, parameters: int) -> None:
        self._plan = plan
        self._first: Floats = np.zeros(parameters)
        self._second: Floats = np.full(parameters, _in_float32(getattr(plan, "tau", 0.0) ** 2))

    def of(self, d: Floats) -> Floats:
        """What is added to the weights after a round's delta, d."""
        plan, m, v = self._plan, self._first, self._second
        match plan:
            case plans.FedAvgPlan():
                return plan.server_learning_rate * d
            case plans.FedAvgMPlan():
                m = plan.momentum * m + d
                self._first = _in_float32(m)
                return plan.server_learning_rate * m
            case plans.FedAdagradPlan():
                v = v + d**2
            case plans.FedAdamPlan():
                v = plan.beta_2 * v + (1 - plan.beta_2) * d**2
            case plans.FedYogiPlan():
                v = v - (1 - plan.beta_2) * d**2 * np.sign(v - d**2)
        m = plan.beta_1 * m + (1 - plan.beta_1) * d
        self._first, self._second = _in_float32(m), _in_float32(v)
        return plan.server_learning_rate * m / (np.sqrt(v) + plan.tau)


def _in_float32(values: Any) -> Any:
    return np.asarray(values, np.float32).astype(np.float64)
