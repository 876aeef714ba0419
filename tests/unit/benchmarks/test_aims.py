"""What counts as a miss where the tables are for people to read."""

import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import devices
import flower
import mcmahan
import poisoning
import sharding
import wire_codecs
from fedlearn.core.ids import DeviceId, shard_of
from flower_programs import Rounds


def ended(seed: int, reached: int | None) -> mcmahan.Outcome:
    return mcmahan.Outcome(seed, reached, [0.9, 0.97], 20.0, ended=True)


@pytest.mark.parametrize(
    ("reached", "value", "missed"),
    [
        pytest.param([50, 51, 87], 51, False, id="sooner than the paper"),
        pytest.param([86, 88, 90], 88, True, id="later than the paper"),
        pytest.param([50, None, None], math.inf, True, id="two of three never got there"),
    ],
)
def test_the_papers_rounds_are_the_aim_of_its_target(reached: list[int | None], value: float, missed: bool) -> None:
    outcomes = [ended(seed, number) for seed, number in enumerate(reached)]
    figure = mcmahan.median("iid", outcomes, 0.97)
    assert (figure.value, figure.missed) == (value, missed)
    assert not mcmahan.median("iid", outcomes, 0.99).aim


def test_the_paper_s_other_division_is_named_as_the_command_line_names_it() -> None:
    assert "`--partitioner shard`" in mcmahan.median("shard", [ended(0, 600)], 0.97).what


@pytest.mark.parametrize(
    ("all_updates", "stored", "aim", "missed"),
    [
        pytest.param(204.0, 43.6, "at most 44 MB", False, id="more updates than the bound, and it was kept"),
        pytest.param(204.0, 44.5, "at most 44 MB", True, id="more updates than the bound, and it was not"),
        pytest.param(26.6, 26.6, "", False, id="all updates are fewer than the bound"),
    ],
)
def test_a_bound_of_the_bucket_that_nothing_could_miss_is_no_aim(
    all_updates: float, stored: float, aim: str, missed: bool
) -> None:
    figure = devices.held_at_most(stored, 44, all_updates)
    assert (figure.aim, figure.missed) == (aim, missed)


class Simulation:
    """Flower's, a second a round."""

    def simulate(self, _clients: int, _rounds: int) -> Rounds:
        return Rounds(1.0, 900.0)


def test_a_simulation_that_is_faster_is_said_to_be_of_both_codecs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seconds = {"int8": 1.2, "float32": 3.0}
    monkeypatch.setattr(flower, "our_rounds", lambda _devices, *, codec, **_other: Rounds(seconds[codec], 200.0))
    beside = flower.Beside(cast(Any, Simulation()), tmp_path)
    beside.simulated()
    of_100 = [figure for figure in beside.figures if figure.what.startswith("seconds of a round of 100")]
    assert [(figure.what, figure.aim, figure.missed, figure.slower) for figure in of_100] == [
        ("seconds of a round of 100, ours (int8) by Flower simulated (float32)", "at most 1 ×", True, False),
        ("seconds of a round of 100, ours (float32) by Flower simulated (float32)", "", False, True),
    ]
    assert all(figure.why for figure in of_100)


def codecs(**accuracies: float) -> dict[str, wire_codecs.Found]:
    """Two seeds of each codec that end at these accuracies."""
    return {
        name: wire_codecs.Found([[0.5, accuracies.get(name.replace(", model ", "_"), 0.96)]] * 2, up=[100])
        for name in wire_codecs.VARIANTS
    }


def test_int8_may_lose_half_a_point_to_float32_and_no_more() -> None:
    good, bad = (wire_codecs.aims("MNIST", codecs(int8=accuracy), 600) for accuracy in (0.956, 0.954))
    assert not any(figure.missed for figure in good)
    assert [figure.what for figure in bad if figure.missed] == ["MNIST: int8, its accuracy less float32's"]


def test_int8_has_to_spare_three_quarters_of_the_bytes() -> None:
    missed = [figure for figure in wire_codecs.aims("MNIST", codecs(), 300) if figure.missed]
    assert [figure.value for figure in missed] == [3.0]


def ends(**changed: float) -> dict[str, dict[str, float]]:
    """All rules at 90 % but FedAvg with liars, which is at 10."""
    found: Any = {attack: dict.fromkeys(poisoning.RULES, 90.0) for attack in poisoning.ATTACKS}
    for attack in found:
        if attack != poisoning.HONEST:
            found[attack]["FedAvg"] = 10.0
    found["noise"] |= changed
    return found


@pytest.mark.parametrize(
    ("changed", "missed"),
    [
        pytest.param({}, [], id="FedAvg breaks, the others hold"),
        pytest.param({"median": 84.9}, ["median with liars, at its worst (noise)"], id="a rule loses more than five points"),
        pytest.param({"median": 85.1}, [], id="a rule loses less"),
        pytest.param({"FedAvg": 60.0}, ["FedAvg with liars, at its best (noise)"], id="the liars do FedAvg no harm"),
    ],
)
def test_liars_have_to_break_fedavg_and_nothing_else(changed: dict[str, float], missed: list[str]) -> None:
    found = poisoning.aims(ends(**changed))
    assert len(found) == len(poisoning.RULES)
    assert [figure.what.partition(", less")[0] for figure in found if figure.missed] == missed


@pytest.mark.parametrize("aggregators", [1, 2, 3])
def test_each_aggregator_takes_as_many_updates_as_the_others(aggregators: int) -> None:
    numbers = sharding.evenly(60, aggregators)
    taken = np.bincount([shard_of(DeviceId(f"device-{number}"), aggregators) for number in numbers])
    assert taken.tolist() == [60 // aggregators] * aggregators
    assert len(set(numbers)) == 60
