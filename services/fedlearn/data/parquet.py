"""Examples in a Parquet file: one column of labels, and one of features or several of one number each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedlearn.core.errors import Code, SetupError

Array = npt.NDArray[Any]


def read_columns(path: Path, features: Sequence[str], label: str) -> tuple[Array, Array]:
    """The features and labels of a file; floats become float32, whatever their width.

    One column of features may hold lists, all of one length, or lists of lists: its array has their shape behind the number of
    rows. Of several columns each holds one number a row, and together they are float32, shape (n, columns).

    Raises:
        ValueError: what is wrong with the file, in words that quote none of its values.
        SetupError: `setting_invalid` where pyarrow is not installed.
        FileNotFoundError: there is no such file.
    """
    table = _table(path, (*features, label))
    labels = _array(label, table.column(label).combine_chunks())
    arrays = [_array(name, table.column(name).combine_chunks()) for name in features]
    if len(arrays) == 1:
        return arrays[0], labels
    lists = [name for name, array in zip(features, arrays, strict=True) if array.ndim != 1]
    if lists:
        raise ValueError(f"the column {lists[0]} holds lists; of several feature columns each holds one number a row")
    return np.column_stack(arrays).astype(np.float32), labels


def read_column(path: Path, name: str) -> Array:
    """One column without missing values, of any kind.

    Raises:
        ValueError: what is wrong with it.
        SetupError: `setting_invalid` where pyarrow is not installed.
    """
    column = _table(path, (name,)).column(name)
    if column.null_count:
        raise ValueError(f"the column {name} has missing values")
    array: Array = column.to_numpy()
    return array


def _table(path: Path, columns: Sequence[str]) -> Any:
    try:
        import pyarrow as pa  # noqa: PLC0415 - an extra: only who has such files needs it
        import pyarrow.parquet as pq  # noqa: PLC0415
    except ImportError as error:
        raise SetupError(Code.SETTING_INVALID, "To read Parquet pyarrow is needed: pip install 'fedlearn[parquet]'.") from error
    try:
        names = pq.read_schema(path).names
        missing = [name for name in columns if name not in names]
        if missing:
            raise ValueError(f"it has no column {' and no column '.join(missing)}; its columns are {', '.join(names)}")
        return pq.read_table(path, columns=list(dict.fromkeys(columns)))
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"it is no readable Parquet file ({type(error).__name__})") from error


def _array(name: str, column: Any) -> Array:
    """The column as an array; lists are unpacked level by level."""
    import pyarrow as pa  # noqa: PLC0415

    shape, values = [len(column)], column
    while True:
        if values.null_count:
            raise ValueError(f"the column {name} has missing values")
        if not (
            pa.types.is_list(values.type) or pa.types.is_large_list(values.type) or pa.types.is_fixed_size_list(values.type)
        ):
            break
        lengths = values.value_lengths().unique()
        if len(lengths) > 1:
            raise ValueError(f"the lists in the column {name} differ in length")
        shape.append(lengths[0].as_py() if len(lengths) else 0)
        values = values.flatten()
    kind = values.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise ValueError(f"the column {name} is of type {kind}, where numbers are needed")
    array: Array = values.to_numpy(zero_copy_only=False)
    if pa.types.is_floating(kind):
        with np.errstate(over="ignore"):  # what float32 can't hold becomes infinite, which is refused as such
            array = array.astype(np.float32, copy=False)
    return array.reshape(shape)
