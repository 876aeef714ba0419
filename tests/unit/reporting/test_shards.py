import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from fedlearn.core.errors import Code, SetupError
from fedlearn.data.holdings import Holdings
from fedlearn.reporting.shards import draw_holdings


def some_holdings(devices: int, classes: int) -> Holdings:
    counts = np.random.default_rng(0).integers(0, 600, (devices, max(1, classes)))
    return Holdings(tuple(map(str, range(devices))), tuple(range(classes)), counts)


@pytest.mark.parametrize("devices", [1, 2, 100, 1000])
@pytest.mark.parametrize("classes", [0, 1, 10, 62])
def test_however_many_devices_and_classes_there_are_a_light_picture_of_them_is_drawn(
    tmp_path: Path, devices: int, classes: int
) -> None:
    path = tmp_path / "pictures" / "shards.png"
    draw_holdings(some_holdings(devices, classes), path, "mnist")
    picture = imread(path)
    assert 600 <= picture.shape[1] <= 1700
    np.testing.assert_array_equal(picture[0, 0], [1, 1, 1, 1])
    assert 0.4 < picture[..., :3].min(axis=2).mean() < 1, "bars on a white ground"


@pytest.mark.parametrize("name", ["shards.jpg", "shards"])
def test_a_picture_of_another_kind_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SetupError, match=r"\.png, \.svg or \.pdf") as caught:
        draw_holdings(some_holdings(2, 10), tmp_path / name, "mnist")
    assert caught.value.code is Code.SETTING_INVALID


def test_a_place_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(SetupError, match="taken"):
        draw_holdings(some_holdings(2, 10), tmp_path / "taken" / "shards.png", "mnist")


def test_without_matplotlib_it_is_said_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SetupError, match=r"fedlearn\[plots\]"):
        draw_holdings(some_holdings(2, 10), tmp_path / "shards.png", "mnist")
