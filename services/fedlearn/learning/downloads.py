"""Keras' own download of a dataset, for machines with internet; `fedlearn.data.datasets.fetch` takes it as a callable."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedlearn.core.errors import Code, SetupError
from fedlearn.learning.runtime import keras

_MODULES = {"mnist": "mnist", "fashion-mnist": "fashion_mnist"}


def download(name: str, directory: Path) -> None:
    """Download a dataset and write it as the four raw IDX files that its publishers gave.

    Raises:
        SetupError: `data_missing` when Keras has no such dataset or cannot reach it.
    """
    if name not in _MODULES:
        raise SetupError(Code.DATA_MISSING, f"Keras has no dataset {name!r}.")
    try:
        (x, y), (x_test, y_test) = getattr(keras.datasets, _MODULES[name]).load_data()
    except Exception as error:  # Keras turns what urllib says into a bare Exception
        raise SetupError(Code.DATA_MISSING, f"Keras could not download {name}: {error}") from error
    for file, array in (
        ("train-images-idx3-ubyte", x),
        ("train-labels-idx1-ubyte", y),
        ("t10k-images-idx3-ubyte", x_test),
        ("t10k-labels-idx1-ubyte", y_test),
    ):
        _write(directory / file, np.asarray(array, dtype=np.uint8))


def _write(path: Path, array: npt.NDArray[np.uint8]) -> None:
    """As `fedlearn.data.idx` reads it."""
    path.write_bytes(bytes((0, 0, 8, array.ndim)) + np.array(array.shape, dtype=">u4").tobytes() + array.tobytes())
