import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fedlearn.core.errors import Code, SetupError
from fedlearn.data.files import Columns
from fedlearn.data.loaders import load_shard

PLAIN = Columns()
MODULE = """
import numpy as np
from fedlearn.core.learning import Examples

def some(n):
    return np.arange(3 * n, dtype=np.float32).reshape(n, 3), np.arange(n) % 2

def good(ordinal):
    return some(4 + ordinal), some(2)

def as_examples(ordinal):
    return Examples(*some(4)), Examples(*some(2))

def in_lists(ordinal):
    return [[[1, 2], [3, 4]], [0, 1]], [[], []]

def four(ordinal):
    return (*some(4), *some(2))

def ragged(ordinal):
    return ([[1], [2, 3]], [0, 1]), some(2)

def nothing(ordinal):
    pass

def doubles(ordinal):
    x, y = some(4)
    return (x.astype(np.float64), y), some(2)

def fails(ordinal):
    raise LookupError("the patient's name")

number = 3
"""


@pytest.fixture(autouse=True)
def _package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "hospital").mkdir()
    (tmp_path / "hospital" / "records.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in ("hospital", "hospital.records"):
        sys.modules.pop(name, None)


def fault(function: str, columns: Columns = PLAIN) -> str:
    with pytest.raises(SetupError) as caught:
        load_shard(function, 3, columns)
    assert caught.value.code is Code.SHARD_INVALID
    return caught.value.detail


def test_a_loader_gives_what_to_train_on_and_what_to_hold_out_for_an_ordinal() -> None:
    shard = load_shard("hospital.records:good", 3, Columns())
    assert (len(shard.train), len(shard.holdout)) == (7, 2)
    np.testing.assert_array_equal(shard.train.features[1], [3, 4, 5])
    assert shard.train.labels.dtype == np.int32


@pytest.mark.parametrize(("function", "sizes"), [("as_examples", (4, 2)), ("in_lists", (2, 0))])
def test_a_loader_may_give_examples_or_lists(function: str, sizes: tuple[int, int]) -> None:
    shard = load_shard(f"hospital.records:{function}", 0, Columns())
    assert (len(shard.train), len(shard.holdout)) == sizes


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("hospital.typo:good", "ModuleNotFoundError"),
        ("hospital.records:typo", "AttributeError"),
        ("hospital.records:number", "TypeError"),
        ("hospital.records:four", "has to return"),
        ("hospital.records:nothing", "has to return"),
        ("hospital.records:ragged", "has to return"),
        ("hospital.records:doubles", "to train on cannot be used: x is float64"),
        ("hospital.records:fails", "LookupError for device 3"),
    ],
)
def test_what_is_wrong_with_a_loader_is_said_in_a_sentence(function: str, words: str) -> None:
    detail = fault(function)
    assert words in detail
    assert function in detail
    assert "patient" not in detail, "an exception's words may quote the data"


def test_labels_beyond_the_classes_are_refused() -> None:
    assert "classes from 0 to 0" in fault("hospital.records:good", Columns(classes=1))
