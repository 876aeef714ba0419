from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedlearn.core.errors import Code, SetupError
from fedlearn.core.learning import Shard
from fedlearn.data.files import Columns
from fedlearn.data.shards import read_shard

LABELS = pa.array([0, 1, 0], pa.int64())
PLAIN = Columns()


def shard(directory: Path, columns: Columns = PLAIN, **arrays: Any) -> Shard:
    """A shard whose two files have these columns."""
    for name in ("train", "holdout"):
        pq.write_table(pa.table({"y": LABELS, **arrays}), directory / f"{name}.parquet")
    return read_shard(directory, columns)


def fault(directory: Path, columns: Columns = PLAIN, **arrays: Any) -> str:
    with pytest.raises(SetupError) as caught:
        shard(directory, columns, **arrays)
    assert caught.value.code is Code.SHARD_INVALID
    return caught.value.detail


def test_a_column_of_lists_gives_rows_of_features(tmp_path: Path) -> None:
    read = shard(tmp_path, x=pa.array([[1.5, 2], [3, 4], [5, 6]], pa.list_(pa.float64())))
    np.testing.assert_array_equal(read.train.features, np.array([[1.5, 2], [3, 4], [5, 6]], np.float32))
    assert (read.train.features.dtype, read.train.labels.dtype, read.train.labels.tolist()) == (np.float32, np.int32, [0, 1, 0])


@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.list_(pa.uint8())), pa.list_(pa.list_(pa.uint8(), 2), 2), pa.large_list(pa.list_(pa.uint8()))],
    ids=["lists", "fixed", "large"],
)
def test_lists_of_lists_of_bytes_are_images(tmp_path: Path, kind: Any) -> None:
    read = shard(tmp_path, x=pa.array([[[0, 51], [102, 255]]] * 3, kind))
    assert read.train.features.shape == (3, 2, 2, 1)
    assert read.train.features[1, :, :, 0].tolist() == np.array([[0, 0.2], [0.4, 1]], np.float32).tolist()


def test_a_slice_of_a_column_is_read_as_that_slice(tmp_path: Path) -> None:
    rows = pa.array([[i, i] for i in range(10)], pa.list_(pa.int32()))
    read = shard(tmp_path, x=rows.slice(4, 3))
    assert read.train.features.tolist() == [[4, 4], [5, 5], [6, 6]]


def test_several_columns_stand_side_by_side_in_the_order_that_is_declared(tmp_path: Path) -> None:
    columns = Columns(("income", "age"), "bought")
    arrays = {"age": pa.array([1, 2, 3]), "income": pa.array([0.5, 1, 2]), "bought": pa.array([1.0, 2, 3])}
    read = shard(tmp_path, columns, **arrays)
    assert read.train.features.tolist() == [[0.5, 1], [1, 2], [2, 3]]
    assert (read.train.features.dtype, read.train.labels.dtype) == (np.float32, np.float32)


def test_many_row_groups_are_one_shard(tmp_path: Path) -> None:
    table = pa.table({"x": pa.array([[float(i)] for i in range(100)]), "y": pa.array([0] * 100)})
    for name in ("train", "holdout"):
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=7)
    assert read_shard(tmp_path).train.features[:, 0].tolist() == list(range(100))


@pytest.mark.parametrize(
    ("arrays", "columns", "words"),
    [
        ({"z": LABELS}, Columns(), "no column x; its columns are y, z"),
        ({"x": pa.array([[1.0], [2, 3], [4]])}, Columns(), "differ in length"),
        ({"x": pa.array([[1.0], None, [4]])}, Columns(), "missing values"),
        ({"x": pa.array([[1.0], [None], [4]])}, Columns(), "missing values"),
        ({"x": pa.array(["secret", "b", "c"])}, Columns(), "of type string"),
        ({"x": pa.array([[1.0, float("nan")]] * 3)}, Columns(), "NaN"),
        ({"x": pa.array([[1e300]] * 3)}, Columns(), "infinity"),
        ({"x": pa.array([[]] * 3, pa.list_(pa.float32()))}, Columns(), "holds no value"),
        ({"x": LABELS, "z": pa.array([[1.0]] * 3)}, Columns(("x", "z")), "z holds lists"),
        ({"x": LABELS}, Columns(classes=1), "labels from 0 to 1"),
    ],
    ids=["no column", "ragged", "no row", "no value", "text", "nan", "too large", "empty lists", "lists beside", "classes"],
)
def test_what_is_wrong_with_a_column_is_said(tmp_path: Path, arrays: dict[str, Any], columns: Columns, words: str) -> None:
    detail = fault(tmp_path, columns, **arrays)
    assert words in detail
    assert "train.parquet" in detail
    assert "secret" not in detail


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not Parquet at all, but text"])
def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "train.parquet").write_bytes(content)
    with pytest.raises(SetupError, match="no readable Parquet") as caught:
        read_shard(tmp_path)
    assert caught.value.code is Code.SHARD_INVALID


def test_one_of_two_files_of_a_name_has_to_go(tmp_path: Path) -> None:
    np.savez(tmp_path / "train.npz", x=np.ones((3, 1), np.float32), y=np.zeros(3, np.int32))
    assert "leave one of them" in fault(tmp_path, x=LABELS)
