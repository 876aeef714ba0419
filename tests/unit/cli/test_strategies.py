from typing import Any

import pytest

from fedlearn.cli.strategies import min_fraction_for
from fedlearn.core.policy import RoundPolicy
from fedlearn.protocol.aggregations import name_aggregation


@pytest.mark.parametrize(
    ("rule", "options", "devices", "closes_with"),
    [
        pytest.param(None, {}, 10, 8, id="mean"),
        pytest.param("multi_krum", {"byzantine": 1}, 10, 8, id="enough as it is"),
        pytest.param("multi_krum", {"byzantine": 2}, 7, 7, id="all of them"),
        pytest.param("multi_krum", {"byzantine": 1}, 4, 4, id="too few in any case"),
    ],
)
def test_a_built_in_task_s_rounds_close_with_no_fewer_than_its_rule_needs(
    rule: str | None, options: dict[str, Any], devices: int, closes_with: int
) -> None:
    fraction = min_fraction_for(name_aggregation("fedavg", rule, **options), devices)
    assert RoundPolicy(goal=devices, min_fraction=fraction).minimum == closes_with


@pytest.mark.parametrize("devices", range(11, 40))
def test_no_rounding_takes_a_report_away(devices: int) -> None:
    aggregation = name_aggregation("fedavg", "multi_krum", byzantine=4)
    assert RoundPolicy(goal=devices, min_fraction=min_fraction_for(aggregation, devices)).minimum >= 11
