"""How a command that can't do its work ends: a sentence that says what to type, and the code."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedlearn import cli
from fedlearn.cli.app import build
from fedlearn.core.errors import Code, Refusal, SetupError
from support.played_api import Answer, PlayedApi, played_api


@pytest.fixture
def api(tmp_path: Path) -> Iterator[PlayedApi]:
    with played_api(tmp_path) as api:
        yield api


@pytest.mark.parametrize("words", [["rounds"], ["rounds", "show", "1"], ["models", "list"]], ids=" ".join)
def test_without_any_task_the_newest_one_is_unknown(api: PlayedApi, words: list[str]) -> None:
    api.answer("GET tasks", Answer(body=[]))
    error = CliRunner(env={"FEDLEARN_SERVER_URL": api.url}).invoke(build(), words).exception
    assert isinstance(error, Refusal)
    assert error.code is Code.TASK_UNKNOWN


def test_a_missing_token_is_told_of_with_the_option_that_gives_one(
    api: PlayedApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sentence = "This call needs a token: send 'Authorization: Bearer <token>'."
    problem = {"type": "about:blank", "title": "Who are you?", "status": 401, "detail": sentence, "code": "unauthenticated"}
    api.answer("POST pause", Answer(401, problem))
    monkeypatch.setattr("sys.argv", ["fedlearn", "tasks", "pause", "mine", "--server", api.url])
    monkeypatch.setattr("signal.signal", lambda *_: None)  # the test run's own stays
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err == f"fedlearn: {sentence} (--token, or FEDLEARN_OPERATOR_TOKEN) [unauthenticated]\n"


def test_parquet_without_pyarrow_is_a_fault_of_the_machine_and_not_of_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    words = ["data", "shard", "--shards", "2", "--out", str(tmp_path / "out"), "--file", str(tmp_path / "x.parquet")]
    error = CliRunner().invoke(build(), words).exception
    assert isinstance(error, SetupError)
    assert error.code is Code.SETTING_INVALID
    assert "fedlearn[parquet]" in error.detail
