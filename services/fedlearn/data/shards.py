"""What a device holds: cut from a dataset, written to its directory, read back and checked.

A directory has `train.npz` and `holdout.npz`, uncompressed, each with `x` and `y`. Nothing is ever unpickled.
"""

import os
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedlearn.core.errors import Code, SetupError, cannot_write
from fedlearn.core.learning import Examples, Shard
from fedlearn.data.partitioners import Indices, Partitioner


def as_images(features: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Grey values 0 to 255, shape (n, h, w) or (n, h, w, channels), as float32 from 0 to 1, shape (n, h, w, channels)."""
    images = features[..., np.newaxis] if features.ndim == 3 else features
    return np.divide(images, np.float32(255), dtype=np.float32)


def as_examples(raw: Examples) -> Examples:
    """What a model takes: uint8 features are images (`as_images`), others stay; integer labels become int32."""
    features = as_images(raw.features) if raw.features.dtype == np.uint8 else raw.features
    labels = raw.labels.astype(np.int32) if np.issubdtype(raw.labels.dtype, np.integer) else raw.labels
    return Examples(features, labels)


def cut(
    examples: Examples, partitioner: Partitioner, rng: np.random.Generator, holdout_fraction: float = 0.1
) -> Iterator[Shard]:
    """Divide a dataset into one raw shard a device, each made when it is asked for: all of them may not fit into memory.

    A device holds out `holdout_fraction` of its examples, rounded, drawn at random; at least one stays to train on.

    Raises:
        SetupError: `setting_invalid`.
    """
    if not 0 <= holdout_fraction < 1:
        raise SetupError(Code.SETTING_INVALID, f"holdout_fraction is {holdout_fraction}; it must be from 0 to below 1.")
    parts = partitioner.partition(examples.labels, rng)
    mixed = [rng.permutation(part) for part in parts]  # now, so that it matters to nobody when the shards are made
    return (_shard(examples, part, min(round(len(part) * holdout_fraction), len(part) - 1)) for part in mixed)


def label_counts(examples: Examples) -> dict[str, int] | None:
    """How many examples there are of each label; None where labels are no single integers."""
    if examples.labels.ndim != 1 or not np.issubdtype(examples.labels.dtype, np.integer):
        return None
    labels, counts = np.unique(examples.labels, return_counts=True)
    return {str(label): int(count) for label, count in zip(labels, counts, strict=True)}


def write_shard(directory: Path, shard: Shard) -> None:
    """Write a shard; each of its two files is there whole or not at all.

    Raises:
        SetupError: `disk_full`, or `setting_invalid` when the directory cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, examples in (("holdout", shard.holdout), ("train", shard.train)):
            _write(directory / f"{name}.npz", examples)
    except OSError as error:
        raise cannot_write(f"The shard {directory}", error) from error


def read_shard(directory: Path) -> Shard:
    """Read a device's shard, ready for a model (see `as_examples`). The hold-out may be empty.

    Raises:
        SetupError: `shard_invalid`, with a sentence on what is wrong with which file.
    """
    shard = Shard(*(as_examples(_read(directory / f"{name}.npz")) for name in ("train", "holdout")))
    if not len(shard.train):
        raise _invalid(directory / "train.npz", "it holds no example")
    if len(shard.holdout) and shard.holdout.features.shape[1:] != shard.train.features.shape[1:]:
        raise _invalid(directory / "holdout.npz", "its features have another shape than those of train.npz")
    return shard


def _shard(examples: Examples, part: Indices, held_out: int) -> Shard:
    # in order, so that the copy walks forward through the dataset; training shuffles anyway
    holdout, train = np.sort(part[:held_out]), np.sort(part[held_out:])
    return Shard(*(Examples(examples.features[chosen], examples.labels[chosen]) for chosen in (train, holdout)))


def _write(path: Path, examples: Examples) -> None:
    descriptor, unfinished = tempfile.mkstemp(dir=path.parent, prefix=".writing-", suffix=".npz")
    try:
        with os.fdopen(descriptor, "wb") as file:
            np.savez(file, allow_pickle=False, x=examples.features, y=examples.labels)
        Path(unfinished).replace(path)
    finally:
        Path(unfinished).unlink(missing_ok=True)


def _read(path: Path) -> Examples:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            x, y = arrays["x"], arrays["y"]
    except FileNotFoundError as error:
        raise _invalid(path, "there is no such file; give --shards a directory with train.npz and holdout.npz") from error
    except KeyError as error:
        raise _invalid(path, "it must hold two arrays, x and y") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, TypeError, AttributeError) as error:
        raise _invalid(path, f"it is no readable npz file ({error})") from error
    for fault in _faults(x, y):
        raise _invalid(path, fault)
    return Examples(x, y)


def _faults(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> Iterator[str]:
    for name, array in (("x", x), ("y", y)):
        if array.ndim == 0:
            yield f"{name} is a single number"
        elif array.dtype != np.float32 and not np.issubdtype(array.dtype, np.integer):
            yield f"{name} is {array.dtype}, where float32 or an integer type is needed"
        elif array.dtype == np.float32 and not np.isfinite(array).all():
            yield f"{name} holds NaN or infinity"
    if x.ndim and y.ndim and len(x) != len(y):
        yield f"x has {len(x)} examples and y has {len(y)}"


def _invalid(path: Path, fault: str) -> SetupError:
    return SetupError(Code.SHARD_INVALID, f"The shard's file {path} cannot be used: {fault}.")
