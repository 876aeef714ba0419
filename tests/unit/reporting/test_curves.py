from pathlib import Path

import pytest

from fedlearn.core.errors import Code, SetupError
from fedlearn.reporting import curves
from fedlearn.reporting.history import RoundFigures


def a_round(number: int, accuracy: float | None) -> RoundFigures:
    return RoundFigures(
        round=number,
        outcome="abandoned" if accuracy is None else "committed",
        selected=2,
        reported=2,
        rejected=0,
        examples=20,
        accuracy=accuracy,
        loss=None if accuracy is None else 1 - accuracy,
        federated_accuracy=accuracy,
        seconds=1.0,
    )


@pytest.mark.parametrize(
    "rounds",
    [
        pytest.param([], id="no round"),
        pytest.param([a_round(1, 0.5)], id="one round"),
        pytest.param([a_round(1, 0.5), a_round(2, None), a_round(3, 0.7)], id="an abandoned one between"),
        pytest.param([a_round(1, None)], id="none but an abandoned one"),
    ],
)
def test_rounds_become_a_picture(rounds: list[RoundFigures], tmp_path: Path) -> None:
    curves.draw_curves(rounds, tmp_path / "curves.png", "a task")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["curves.xyz", "nowhere/curves.png"])
def test_a_place_of_no_use_is_a_sentence(name: str, tmp_path: Path) -> None:
    with pytest.raises(SetupError) as error:
        curves.draw_curves([a_round(1, 0.5)], tmp_path / name, "a task")
    assert error.value.code is Code.SETTING_INVALID


def test_a_missing_matplotlib_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "is_available", lambda: False)
    with pytest.raises(SetupError, match=r"fedlearn\[plots\]"):
        curves.draw_curves([], tmp_path / "curves.png", "a task")
