from pathlib import Path

import numpy as np
import pytest

from fedlearn.core.errors import Code, SetupError
from fedlearn.data.idx import read_idx
from fedlearn.learning.downloads import download
from fedlearn.learning.runtime import keras


def test_what_keras_has_is_written_as_the_publishers_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (9, 28, 28), dtype=np.uint8), rng.integers(0, 10, 9, dtype=np.uint8)
    monkeypatch.setattr(keras.datasets.fashion_mnist, "load_data", lambda: ((x[:6], y[:6]), (x[6:], y[6:])))
    download("fashion-mnist", tmp_path)
    for name, expected in (
        ("train-images-idx3-ubyte", x[:6]),
        ("train-labels-idx1-ubyte", y[:6]),
        ("t10k-images-idx3-ubyte", x[6:]),
        ("t10k-labels-idx1-ubyte", y[6:]),
    ):
        np.testing.assert_array_equal(read_idx((tmp_path / name).read_bytes()), expected)


def test_no_internet_is_said_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_data() -> None:
        raise Exception("URL fetch failure: None -- no route to host")

    monkeypatch.setattr(keras.datasets.mnist, "load_data", load_data)
    with pytest.raises(SetupError, match="no route to host") as caught:
        download("mnist", tmp_path)
    assert caught.value.code is Code.DATA_MISSING


def test_a_dataset_that_keras_does_not_have_is_named(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="'shakespeare'") as caught:
        download("shakespeare", tmp_path)
    assert caught.value.code is Code.DATA_MISSING
