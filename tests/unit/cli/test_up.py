import inspect

import pytest

from fedlearn.cli.run import run
from fedlearn.cli.up import up
from fedlearn.core.errors import Code, SetupError
from fedlearn.local.options import check_up_options


def test_a_task_of_up_is_told_of_as_one_of_run_is() -> None:
    """By the same options with the same defaults; but for those whose default `--manual` or `--shards` changes."""
    staying, ending = (inspect.signature(command).parameters for command in (up, run))
    same = ending.keys() - {"dataset", "model", "devices", "rounds", "epochs", "out", "summary"}
    assert {name: staying.get(name) for name in same} == {name: ending[name] for name in same}


@pytest.mark.parametrize(
    ("given", "named"),
    [
        pytest.param({"strategy": "fedbest"}, "fedbest", id="an unknown strategy"),
        pytest.param({"robust": "multi_krum", "devices": 4}, "needs 5 --devices", id="too few devices for the rule"),
        pytest.param({"codec": "int8", "keep_fraction": 0.1}, "keep_fraction is of top_k", id="another codec's option"),
    ],
)
def test_a_strategy_or_a_codec_that_cannot_work_is_refused_before_anything_starts(given: dict[str, object], named: str) -> None:
    with pytest.raises(SetupError, match=f"{named}.*See 'fedlearn up --help'") as error:
        check_up_options(model="2nn", **given)
    assert error.value.code is Code.SETTING_INVALID
