"""What a plan may say about its strategy and its rule, and what is refused."""

import json
from typing import Any

import pytest

from fedlearn.core.errors import Code, Refusal
from fedlearn.protocol.aggregations import Aggregation, name_aggregation, read_options
from fedlearn.protocol.plans import Plan, read_plan
from support.world import small_plan


def plan_with(aggregation: dict[str, Any]) -> Plan:
    return read_plan(json.dumps({**small_plan().model_dump(mode="json"), "aggregation": aggregation}))


def read(aggregation: dict[str, Any]) -> Aggregation:
    return plan_with(aggregation).aggregation


def by_rule(**rule: Any) -> dict[str, Any]:
    return {"strategy": "fedavg", "rule": rule}


@pytest.mark.parametrize(
    ("aggregation", "named"),
    [
        pytest.param({"strategy": "fedbest"}, "fedbest", id="an unknown strategy"),
        pytest.param({"strategy": "fedavg", "momentum": 0.9}, "momentum", id="another strategy's option"),
        pytest.param({"strategy": "fedavgm", "momentum": 1}, "momentum", id="a momentum that forgets nothing"),
        pytest.param({"strategy": "fedadam", "beta_2": -0.1}, "beta_2", id="a negative decay"),
        pytest.param({"strategy": "fedyogi", "tau": 0}, "tau", id="no tau"),
        pytest.param({"strategy": "fedadam", "tau": 1e-30}, "tau", id="a tau whose square is no float32"),
        pytest.param({"strategy": "fedadagrad", "server_learning_rate": 0}, "server_learning_rate", id="no learning rate"),
        pytest.param(by_rule(name="best"), "best", id="an unknown rule"),
        pytest.param(by_rule(trim_fraction=0.1), "name", id="a rule without a name"),
        pytest.param(by_rule(name="trimmed_mean", trim_fraction=0.5), "trim_fraction", id="everything trimmed"),
        pytest.param(by_rule(name="trimmed_mean", trim_fraction=0), "trim_fraction", id="nothing trimmed"),
        pytest.param(by_rule(name="trimmed_mean", trim_fraction=1e-320), "trim_fraction", id="nothing trimmed of any round"),
        pytest.param(by_rule(name="median", trim_fraction=0.1), "trim_fraction", id="another rule's option"),
        pytest.param(by_rule(name="krum", byzantine=-1), "byzantine", id="fewer than no attackers"),
        pytest.param(by_rule(name="krum", keep=3), "keep", id="Krum that keeps several"),
        pytest.param(by_rule(name="multi_krum", keep=1), "keep", id="Multi-Krum that keeps one"),
        pytest.param(by_rule(name="geometric_median", smoothing=0), "smoothing", id="no smoothing"),
        pytest.param(by_rule(name="geometric_median", smoothing=1e-310), "smoothing", id="next to no smoothing"),
        pytest.param(by_rule(name="norm_bound", max_norm=0), "max_norm", id="a bound of nothing"),
        pytest.param(by_rule(name="norm_bound", max_norm=float("inf")), "max_norm", id="a bound that bounds nothing"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_name(aggregation: dict[str, Any], named: str) -> None:
    with pytest.raises(Refusal) as refusal:
        read(aggregation)
    assert refusal.value.code is Code.PLAN_INVALID
    assert named in refusal.value.detail


@pytest.mark.parametrize("strategy", ["fedavg", "fedavgm", "fedadagrad", "fedadam", "fedyogi"])
def test_any_strategy_goes_with_any_rule_and_through_json(strategy: str) -> None:
    for rule in ("median", "trimmed_mean", "krum", "multi_krum", "geometric_median", "norm_bound"):
        plan = plan_with({"strategy": strategy, "rule": {"name": rule}})
        assert read_plan(plan.canonical) == plan


def test_a_plan_that_names_neither_rule_nor_proximal_term_is_the_plan_that_it_always_was() -> None:
    written = json.loads(small_plan().canonical)
    assert written["aggregation"] == {"strategy": "fedavg", "server_learning_rate": 1.0}
    assert written["training"].keys() == {"learning_rate", "momentum", "epochs", "batch_size"}
    assert read({}) == read({"strategy": "fedavg"})


@pytest.mark.parametrize(
    ("rule", "least"),
    [
        pytest.param({"name": "median"}, 1, id="median"),
        pytest.param({"name": "trimmed_mean", "trim_fraction": 0.2}, 5, id="trimmed mean"),
        pytest.param({"name": "trimmed_mean", "trim_fraction": 1e-5}, 100_000, id="trimmed mean of the largest round"),
        pytest.param({"name": "krum", "byzantine": 2}, 7, id="Krum"),
        pytest.param({"name": "multi_krum", "byzantine": 2, "keep": 9}, 11, id="Multi-Krum that keeps many"),
    ],
)
def test_a_rule_knows_how_many_updates_it_needs(rule: dict[str, Any], least: int) -> None:
    assert read(by_rule(**rule)).least_reports == least


@pytest.mark.parametrize("rule", ["krum", "multi_krum", "geometric_median"])
def test_a_rule_that_looks_at_each_pair_of_updates_takes_a_bounded_number_of_them(rule: str) -> None:
    most = read(by_rule(name=rule)).most_reports
    assert most is not None
    assert 8 * most**2 == 128 << 20


@pytest.mark.parametrize("rule", ["median", "trimmed_mean", "norm_bound"])
def test_a_rule_that_keeps_nothing_of_pairs_takes_any_number_of_updates(rule: str) -> None:
    assert read(by_rule(name=rule)).most_reports is None
    assert read({}).most_reports is None


def test_options_in_words_go_to_the_strategy_or_the_rule_that_has_them() -> None:
    named = name_aggregation("fedadam", "trimmed_mean", **read_options(["tau=1e-3", "trim_fraction=0.25"]))
    rule = {"name": "trimmed_mean", "trim_fraction": 0.25}
    assert named == read({"strategy": "fedadam", "tau": 1e-3, "rule": rule})


def test_every_option_of_a_rule_goes_to_a_rule() -> None:
    for rule, options in {
        "trimmed_mean": ["trim_fraction=0.1"],
        "krum": ["byzantine=2"],
        "multi_krum": ["byzantine=2", "keep=4"],
        "geometric_median": ["smoothing=0.1", "iterations=5", "weighted=true"],
        "norm_bound": ["max_norm=3", "weighted=true"],
    }.items():
        named = name_aggregation("fedavg", rule, **read_options(options))
        assert named.rule is not None
        assert named.rule.model_fields_set == {"name", *(option.partition("=")[0] for option in options)}


@pytest.mark.parametrize(
    ("strategy", "rule", "options", "named"),
    [
        pytest.param("fedprox", None, [], "proximal_mu", id="FedProx is for devices"),
        pytest.param("fedavg", None, ["momentum=0.9"], "momentum", id="another strategy's option"),
        pytest.param("fedavg", None, ["byzantine=1"], "rule", id="a rule's option without a rule"),
        pytest.param("fedavg", "krum", ["byzantine"], "name=value", id="an option without a value"),
        pytest.param("fedavg", None, ["strategy=fedadam"], "name=value", id="the strategy once more"),
        pytest.param("fedavg", "krum", ["byzantine=many"], "byzantine", id="no number"),
    ],
)
def test_words_that_do_not_fit_are_refused(strategy: str, rule: str | None, options: list[str], named: str) -> None:
    with pytest.raises(Refusal) as refusal:
        name_aggregation(strategy, rule, **read_options(options))
    assert refusal.value.code is Code.PLAN_INVALID
    assert named in refusal.value.detail
