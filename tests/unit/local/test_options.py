import pytest

from fedlearn.core.errors import Code, SetupError
from fedlearn.local.options import check_options


def test_a_strategy_and_a_rule_are_taken_with_their_options() -> None:
    given = {"strategy": "fedyogi", "robust": "multi_krum", "strategy_option": ("byzantine=2", "tau=1e-3"), "devices": 7}
    assert check_options(**given).strategy_option == ("byzantine=2", "tau=1e-3")


@pytest.mark.parametrize(
    ("given", "named"),
    [
        pytest.param({"strategy": "fedbest"}, "fedbest", id="an unknown strategy"),
        pytest.param({"strategy_option": ("momentum=0.9",)}, "momentum", id="another strategy's option"),
        pytest.param({"robust": "multi_krum", "devices": 4}, "needs 5 --devices", id="too few devices for the rule"),
        pytest.param({"robust": "krum", "devices": 9}, "a single device's update", id="a rule that publishes one update"),
        pytest.param({"proximal_mu": -1}, "--proximal-mu", id="a term that pushes away"),
    ],
)
def test_a_strategy_that_cannot_work_is_refused_before_anything_starts(given: dict[str, object], named: str) -> None:
    with pytest.raises(SetupError, match=named) as error:
        check_options(**given)
    assert error.value.code is Code.SETTING_INVALID
