"""Files of examples, `.npz` and `.parquet`: read as they are, and looked at for faults. Nothing is ever unpickled."""

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedlearn.core.errors import Code, SetupError
from fedlearn.core.learning import Examples
from fedlearn.data.parquet import read_column as read_parquet_column
from fedlearn.data.parquet import read_columns

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Columns:
    """What a shard's files hold.

    Args:
        features: in a Parquet file, the column of features, or several of one number each.
        label: in a Parquet file, the column of labels.
        classes: how many classes the labels number, from 0; None for labels that are no such numbers, or of any range.
    """

    features: tuple[str, ...] = ("x",)
    label: str = "y"
    classes: int | None = None


NPZ = Columns()


def read_pair(path: Path, columns: Columns, *, only_labels: bool = False) -> Examples:
    """Features and labels of a file, by its ending; with `only_labels` the labels stand in for the features.

    Raises:
        ValueError: the file can't be read; it says why.
        FileNotFoundError: there is none.
    """
    if path.suffix == ".parquet":
        return Examples(*read_columns(path, (columns.label,) if only_labels else columns.features, columns.label))
    return Examples(*_npz(path, "y" if only_labels else "x", "y"))


def read_examples(path: Path, columns: Columns = NPZ) -> Examples:
    """All examples of one `.npz` or `.parquet` file, as they are there.

    Raises:
        SetupError: `data_missing` or `data_corrupt`.
    """
    if not path.is_file():
        raise SetupError(Code.DATA_MISSING, f"There is no file {path}.")
    try:
        examples = read_pair(path, columns)
        for fault in faults_of(examples.features, examples.labels, columns.classes):
            raise ValueError(fault)
    except ValueError as error:
        raise SetupError(Code.DATA_CORRUPT, f"The file {path} cannot be used: {error}.") from error
    return examples


def read_column(path: Path, name: str) -> Array:
    """One column, or array, of a file, of any kind that can be told apart: names, numbers.

    Raises:
        SetupError: `data_missing` or `data_corrupt`.
    """
    if not path.is_file():
        raise SetupError(Code.DATA_MISSING, f"There is no file {path}.")
    try:
        return read_parquet_column(path, name) if path.suffix == ".parquet" else _npz(path, name)[0]
    except ValueError as error:
        raise SetupError(Code.DATA_CORRUPT, f"The file {path} cannot be used: {error}.") from error


def faults_of(x: Array, y: Array, classes: int | None) -> Iterator[str]:
    """What makes features and labels of no use to any model, in words."""
    for name, array in (("x", x), ("y", y)):
        if array.ndim == 0:
            yield f"{name} is a single number"
        elif array.dtype != np.float32 and not np.issubdtype(array.dtype, np.integer):
            yield f"{name} is {array.dtype}, where float32 or an integer type is needed"
        elif array.dtype == np.float32 and not np.isfinite(array).all():
            yield f"{name} holds NaN or infinity"
        elif 0 in array.shape[1:]:
            yield f"{name} has the shape {array.shape}, which holds no value"
    if len(x) != len(y):
        yield f"x has {len(x)} examples and y has {len(y)}"
    if classes is not None and y.dtype == np.float32:
        yield f"y is float32, where class numbers from 0 to {classes - 1} are needed"
    elif classes is not None and len(y) and not 0 <= int(y.min()) <= int(y.max()) < classes:
        yield f"y has labels from {y.min()} to {y.max()}, where there are classes from 0 to {classes - 1}"


def _npz(path: Path, *names: str) -> list[Array]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return [arrays[name] for name in names]
    except KeyError as error:
        raise ValueError(f"it must hold {' and '.join(names)}, each an array") from error
    except FileNotFoundError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, TypeError, AttributeError) as error:
        raise ValueError(f"it is no readable npz file ({error})") from error
