from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from fedlearn.cli import chaos
from fedlearn.core.errors import Code, SetupError

app = typer.Typer()
chaos.add_to(app)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        pytest.param(["--strategy", "fedbest"], "fedbest", id="an unknown strategy"),
        pytest.param(["--strategy-option", "tau=0.1"], "tau", id="another strategy's option"),
        pytest.param(["--codec", "int4"], "int8", id="an unknown codec"),
        pytest.param(["--codec", "top_k", "--robust", "median"], "weighted mean only", id="a median of zeros"),
        pytest.param(["--robust", "multi_krum"], "needs 6 --devices", id="one device more than the rule needs reports"),
        pytest.param(["--robust", "krum", "--devices", "9"], "a single device's update", id="a rule that publishes one update"),
    ],
)
def test_what_cannot_be_played_is_refused_before_anything_starts(tmp_path: Path, options: list[str], named: str) -> None:
    result = CliRunner().invoke(app, ["--out", str(tmp_path / "out"), *options])
    assert isinstance(result.exception, SetupError)
    assert result.exception.code is Code.SETTING_INVALID
    assert named in str(result.exception)
    assert "fedlearn chaos --help" in str(result.exception)
    assert not (tmp_path / "out").exists()
