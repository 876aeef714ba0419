"""A shard from a function of the user's own, named `package.module:function`."""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from fedlearn.core.errors import Code, SetupError
from fedlearn.core.learning import Examples, Shard
from fedlearn.data.files import Columns
from fedlearn.data.shards import checked
from fedlearn.telemetry.logs import log

_log = log(__name__)
_GIVES = "It has to return (features, labels) to train on and (features, labels) to hold out"


def load_shard(loader: str, ordinal: int, columns: Columns) -> Shard:
    """Call the loader with a device's ordinal; it returns `((x, y), (x, y))`, what to train on and what to hold out.

    Raises:
        SetupError: `shard_invalid`, with a sentence on what is wrong. The words of an exception stay in this process's log,
            since they may quote the data.
    """
    called = f"The loader {loader}"
    try:
        function = _find(loader)
    except Exception as error:  # whatever a foreign module does when it is imported
        _log.exception("the loader can't be imported", loader=loader)
        raise _invalid(
            f"{called} can't be imported ({type(error).__name__}): is its package on this device's PYTHONPATH?"
        ) from error
    try:
        given = function(ordinal)
    except Exception as error:
        _log.exception("the loader has failed", loader=loader, ordinal=ordinal)
        raise _invalid(
            f"{called} failed with {type(error).__name__} for device {ordinal}; the device's log says more."
        ) from error
    parts = [_examples(part) for part in given] if isinstance(given, tuple | list) and len(given) == 2 else [None]
    if None in parts:
        raise _invalid(f"{called} gave something else for device {ordinal}. {_GIVES}.")
    train, holdout = (part for part in parts if part is not None)
    return checked(
        train, holdout, f"What {called.lower()} gave to train on", f"What {called.lower()} gave to hold out", columns
    )


def _find(loader: str) -> Callable[[int], Any]:
    module, _, name = loader.partition(":")
    function = getattr(importlib.import_module(module), name)
    if not callable(function):
        raise TypeError(f"{loader} is no function")
    return function  # type: ignore[no-any-return] # whatever it returns is checked


def _examples(part: Any) -> Examples | None:
    if isinstance(part, Examples):
        return part
    if not (isinstance(part, tuple | list) and len(part) == 2):
        return None
    try:
        arrays = [np.asarray(array) for array in part]
    except ValueError:  # rows of unequal length
        return None
    # an empty list has no dtype of its own, and numpy makes it float64
    return Examples(*(array if array.size else array.astype(np.float32) for array in arrays))


def _invalid(sentence: str) -> SetupError:
    return SetupError(Code.SHARD_INVALID, sentence)
