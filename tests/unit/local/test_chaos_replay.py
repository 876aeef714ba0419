"""The replay, which shares no line with what makes rounds, comes to the same; and it tells what is wrong from what is right."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlearn.aggregator.strategies import optimizer_of, rule_of
from fedlearn.core.learning import Examples
from fedlearn.learning.synthetic import SyntheticLearner
from fedlearn.local.chaos import chaos_plan
from fedlearn.local.chaos_replay import Replay, Steps, combined
from fedlearn.protocol.aggregations import name_aggregation
from fedlearn.protocol.plans import Plan, name_codec
from fedlearn.protocol.tensors import unflatten
from support.world import small_plan
from unit.core.test_robust import by_windows
from unit.device.test_outbox import Device

SEED, PARAMETERS = 5, 3001
TOLERANCE = 1e-6  # of the checks after any kills
STATEFUL = ["fedavgm", "fedadagrad", "fedadam", "fedyogi"]


def seed_of(shard: int, number: int) -> int:
    """A device's, of its training in a round."""
    return int.from_bytes(hashlib.sha256(f"{SEED}/{shard}/{number}".encode()).digest()[:4], "big")


def delta_of(plan: Plan, shard: int, number: int) -> np.ndarray:
    weights = unflatten(np.zeros(plan.parameters, np.float32), plan)
    return SyntheticLearner(plan).learn(weights, Examples(np.zeros(3), np.zeros(3)), seed_of(shard, number))


def some_deltas(count: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 1e-3, (count, PARAMETERS))


def begin() -> np.ndarray:
    return np.random.default_rng(1).normal(0, 0.05, PARAMETERS).astype(np.float32)


@pytest.mark.parametrize("strategy", ["fedavg", *STATEFUL])
def test_a_strategy_s_steps_are_the_aggregator_s(strategy: str) -> None:
    plan = name_aggregation(strategy)
    optimizer, steps = optimizer_of(plan), Steps(plan, PARAMETERS)
    weights, state = begin(), {}
    for delta in some_deltas(6):
        expected = weights + steps.of(delta)
        weights, state = (made := optimizer.step(weights, delta, state)).weights, made.state
        np.testing.assert_array_max_ulp(weights, expected.astype(np.float32), maxulp=1)


@pytest.mark.parametrize("strategy", STATEFUL)
@pytest.mark.parametrize("wrong", ["lost", "counted twice", "of the round before"])
def test_moments_that_are_wrong_after_a_crash_show(strategy: str, wrong: str) -> None:
    plan = name_aggregation(strategy)
    optimizer, steps = optimizer_of(plan), Steps(plan, PARAMETERS)
    first, second = some_deltas(2)
    start = optimizer.step(begin(), first, {})
    of_wrong = {
        "lost": {},
        "counted twice": optimizer.step(start.weights, second, start.state).state,
        "of the round before": optimizer.step(begin(), second, {}).state,
    }
    steps.of(first)
    expected = start.weights + steps.of(second)
    assert np.abs(optimizer.step(start.weights, second, start.state).weights - expected).max() < TOLERANCE
    assert np.abs(optimizer.step(start.weights, second, of_wrong[wrong]).weights - expected).max() > 10 * TOLERANCE


@pytest.mark.parametrize(
    "update",
    [
        pytest.param({"encoding": "float32"}, id="float32"),
        pytest.param({"encoding": "float16"}, id="float16"),
        pytest.param({"encoding": "int8", "exact": [[100, 300], [4000, 4200], [7840, 7850]]}, id="int8"),
        pytest.param({"encoding": "top_k", "keep_fraction": 0.05}, id="top_k"),
    ],
)
async def test_what_is_sent_is_what_a_device_sends_to_the_last_bit(tmp_path: Path, update: dict[str, Any]) -> None:
    plan = small_plan(update={"window_elements": 4096, **update})
    device, replay = Device(tmp_path, plan), Replay(plan, SEED)
    for number, counts in enumerate((True, True, False, True, False, False, True), start=1):
        sent = await device.send(delta_of(plan, 2, number), counts=counts, seed=seed_of(2, number))
        if counts:
            assert replay.sent(2, number).tobytes() == sent.tobytes(), f"round {number}"


async def test_a_round_whose_rest_top_k_should_have_kept_shows(tmp_path: Path) -> None:
    plan = small_plan(update={"encoding": "top_k", "keep_fraction": 0.05})
    device, replay = Device(tmp_path, plan), Replay(plan, SEED)
    await device.send(delta_of(plan, 2, 1), seed=seed_of(2, 1))
    sent = await device.send(delta_of(plan, 2, 2), seed=seed_of(2, 2))
    assert np.abs(replay.sent(2, 2) - sent).max() > 10 * TOLERANCE


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        pytest.param("median", {}, id="median"),
        pytest.param("trimmed_mean", {"trim_fraction": 0.29}, id="trimmed mean"),
        pytest.param("krum", {"byzantine": 2}, id="Krum"),
        pytest.param("multi_krum", {"byzantine": 2}, id="Multi-Krum"),
        pytest.param("multi_krum", {"byzantine": 1, "keep": 3}, id="Multi-Krum that keeps three"),
        pytest.param("geometric_median", {}, id="geometric median"),
        pytest.param("geometric_median", {"weighted": True}, id="weighted geometric median"),
        pytest.param("norm_bound", {}, id="norm bound"),
        pytest.param("norm_bound", {"max_norm": 0.03, "weighted": True}, id="weighted norm bound"),
    ],
)
@pytest.mark.parametrize("count", [7, 10])
def test_a_rule_s_delta_is_the_aggregator_s(rule: str, options: dict[str, Any], count: int) -> None:
    plan, examples = name_aggregation("fedavg", rule, **options).rule, 10.0 * np.arange(1, count + 1)
    assert plan is not None
    rows = some_deltas(count).astype(np.float32)
    rows[0] *= 20  # somebody lies
    found = by_windows(rule_of(plan), rows, examples)
    np.testing.assert_allclose(combined(plan, rows.astype(np.float64), examples), found, rtol=1e-6, atol=1e-12)
    assert np.abs(combined(None, rows.astype(np.float64), examples) - found).max() > 10 * TOLERANCE, "it is no mean"


@pytest.mark.parametrize("codec", ["float32", "float16", "int8", "top_k"])
def test_the_replay_is_of_all_parts_and_tells_who_was_in_and_by_which_weight(codec: str) -> None:
    """A round of what `fedlearn chaos` runs; one that counts a device twice, or by another weight, is off."""
    plan = chaos_plan(update=name_codec(codec))
    base = np.random.default_rng(0).normal(0, 0.05, plan.parameters).astype(np.float32)
    rows = [Replay(plan, SEED).sent(shard, 9).astype(np.float64) for shard in (0, 2)]
    mean = base + (10 * rows[0] + 30 * rows[1]) / 40
    assert np.abs(Replay(plan, SEED).after(base, 9, {0: 10, 2: 30}) - mean).max() < TOLERANCE
    for wrong in ({0: 10}, {0: 20, 2: 30}, {0: 10, 1: 20, 2: 30}):
        assert np.abs(Replay(plan, SEED).after(base, 9, wrong) - mean).max() > 10 * TOLERANCE
    assert np.abs(rows[0] - delta_of(plan, 0, 9)).max() < (1e-2 if codec == "top_k" else 1.01 * 2e-3 / 127)
