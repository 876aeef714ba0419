import pytest

from fedlearn.core.errors import Code, SetupError
from fedlearn.local.options import check_options


def test_a_strategy_and_a_rule_are_taken_with_their_options() -> None:
    given = {"strategy": "fedyogi", "robust": "multi_krum", "strategy_option": ("byzantine=2", "tau=1e-3"), "devices": 7}
    assert check_options(**given).strategy_option == ("byzantine=2", "tau=1e-3")


def test_int8_is_how_updates_travel_unless_another_codec_is_named() -> None:
    assert check_options().codec == "int8"
    assert check_options(codec="top_k", keep_fraction=0.05, strategy="fedadam").keep_fraction == 0.05


@pytest.mark.parametrize(
    ("given", "named"),
    [
        pytest.param({"codec": "int4"}, "int8", id="an unknown codec"),
        pytest.param({"codec": "float64"}, "float32", id="one of the aggregator's own"),
        pytest.param({"codec": "int8", "keep_fraction": 0.1}, "keep_fraction is of top_k", id="another codec's option"),
        pytest.param({"codec": "top_k", "keep_fraction": 0.0}, "above 0", id="nothing is sent"),
        pytest.param({"codec": "top_k", "keep_fraction": 0.9}, "0.5", id="so much that it saves nothing"),
        pytest.param({"codec": "top_k", "robust": "median", "devices": 9}, "weighted mean only", id="a median of zeros"),
        pytest.param({"codec": "top_k", "robust": "norm_bound"}, "weighted mean only", id="what is cut would be lost"),
        pytest.param({"model_encoding": "int8"}, "--model-encoding", id="an unknown encoding of models"),
    ],
)
def test_a_codec_that_cannot_work_is_refused_before_anything_starts(given: dict[str, object], named: str) -> None:
    with pytest.raises(SetupError, match=named) as error:
        check_options(**given)
    assert error.value.code is Code.SETTING_INVALID


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
