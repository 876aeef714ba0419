"""Refusals of plans, strategies and settings, in the words that a person gets."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from fedlearn.config import BackupSettings, load
from fedlearn.core.errors import FedlearnError
from fedlearn.local.options import check_options
from fedlearn.protocol.aggregations import name_aggregation
from fedlearn.protocol.plans import name_codec, read_plan
from support.world import small_plan


def plan_with(**changes: Any) -> Callable[[], object]:
    return lambda: read_plan(json.dumps({**json.loads(small_plan().canonical), **changes}))


@pytest.mark.parametrize(
    ("refused", "said"),
    [
        pytest.param(
            lambda: name_aggregation("fedfoo"),
            "There is no strategy 'fedfoo': use fedavg, fedavgm, fedadagrad, fedadam, fedyogi.",
            id="an unknown strategy",
        ),
        pytest.param(
            lambda: name_aggregation("fedavg", "foo"),
            "There is no robust rule 'foo': use median, trimmed_mean, krum, multi_krum, geometric_median, norm_bound.",
            id="an unknown rule",
        ),
        pytest.param(
            lambda: name_aggregation("fedavg", momentum=0.9),
            "The strategy is not valid: fedavg has no option momentum; it has server_learning_rate.",
            id="another strategy's option",
        ),
        pytest.param(
            lambda: name_aggregation("fedavg", "median", byzantine=1),
            "The strategy is not valid: median has no option byzantine; it has none.",
            id="another rule's option",
        ),
        pytest.param(
            lambda: name_aggregation("fedavg", byzantine=1),
            "byzantine: no strategy has such an option; name the robust rule as well.",
            id="a rule's option without a rule",
        ),
        pytest.param(
            lambda: name_codec("int8", 0.1), "The codec is not valid: keep_fraction is of top_k, not of int8.", id="a sentence"
        ),
        pytest.param(
            lambda: name_codec("top_k", float("nan")),
            "The codec is not valid: keep_fraction must be a number.",
            id="not a number",
        ),
        pytest.param(
            lambda: name_codec("top_k", 0.9), "The codec is not valid: keep_fraction must be at most 0.5.", id="too much"
        ),
        pytest.param(
            lambda: name_codec("int4"),
            "The codec is not valid: encoding must be float32, float16, int8 or top_k.",
            id="an unknown codec",
        ),
        pytest.param(plan_with(metrik=[]), "The plan is not valid: there is no field metrik.", id="a field of no plan"),
        pytest.param(
            plan_with(training={"epoch": 1}), "The plan is not valid: training has no field epoch.", id="a field of no part"
        ),
        pytest.param(
            plan_with(training={"epochs": 1.5}), "The plan is not valid: training.epochs must be a whole number.", id="a half"
        ),
        pytest.param(
            plan_with(training={"optimizer": {"name": "lion"}}),
            "The plan is not valid: training.optimizer: there is no optimizer 'lion': use adam, rmsprop, adagrad.",
            id="an unknown optimizer",
        ),
        pytest.param(
            plan_with(weights=[]),
            "The plan is not valid: weights must have at least 1 item after validation, not 0.",
            id="none",
        ),
        pytest.param(
            plan_with(aggregation={"strategy": "fedavg", "momentum": 1}),
            "The plan is not valid: aggregation.fedavg has no field momentum.",
            id="another strategy's field",
        ),
        pytest.param(
            lambda: check_options(strategy="fedfoo"),
            "There is no strategy 'fedfoo': use fedavg, fedavgm, fedadagrad, fedadam, fedyogi. See 'fedlearn run --help'.",
            id="an option's name",
        ),
        pytest.param(
            lambda: check_options(codec="top_k", keep_fraction=float("nan")),
            "The codec is not valid: keep_fraction must be a number. See 'fedlearn run --help'.",
            id="an option that is no number",
        ),
        pytest.param(
            lambda: check_options(devices=1, model="resnet"),
            "--devices must be at least 2; --model must be 2nn or cnn. See 'fedlearn run --help'.",
            id="two options",
        ),
        pytest.param(
            lambda: load(BackupSettings),
            "These settings are missing or wrong: FEDLEARN_DATABASE_URL is missing; FEDLEARN_STORAGE is missing: see "
            "FEDLEARN_STORAGE__… in docs/settings.md.",
            id="no settings",
        ),
    ],
)
def test_a_refusal_says_what_is_wrong_in_plain_words(
    refused: Callable[[], object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FEDLEARN_DATABASE_URL", raising=False)
    with pytest.raises(FedlearnError) as error:
        refused()
    assert error.value.detail == said
