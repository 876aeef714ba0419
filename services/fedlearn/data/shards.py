"""What a device holds: cut from a dataset, written to its directory, read back and checked.

A directory has `train.npz` and `holdout.npz`, each with `x` and `y`, or `train.parquet` and `holdout.parquet`. What fedlearn
writes is npz, uncompressed. Nothing is ever unpickled.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedlearn.core.errors import Code, SetupError, cannot_write
from fedlearn.core.learning import Examples, Shard
from fedlearn.data.files import NPZ, Columns, faults_of, read_pair
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


def read_shard(directory: Path, columns: Columns = NPZ) -> Shard:
    """Read a device's shard, ready for a model (see `as_examples`). The hold-out may be empty.

    Raises:
        SetupError: `shard_invalid`, with a sentence on what is wrong with which file.
    """
    train, holdout = (_path(directory, name) for name in ("train", "holdout"))
    parts = [_read(path, columns) for path in (train, holdout)]
    return checked(parts[0], parts[1], f"The shard's file {train}", f"The shard's file {holdout}", columns)


def read_labels(directory: Path, label: str = NPZ.label) -> npt.NDArray[Any]:
    """The labels of a shard, what is held out included, without its features.

    Args:
        label: in Parquet files, the column of labels.

    Raises:
        SetupError: `shard_invalid`.
    """
    paths = [_path(directory, name) for name in ("train", "holdout")]
    return np.concatenate([_read(path, Columns((label,), label), only_labels=True).labels for path in paths])


def checked(train: Examples, holdout: Examples, train_name: str, holdout_name: str, columns: Columns) -> Shard:
    """The shard of these parts, ready for a model.

    Args:
        train_name: how a sentence on `train` begins, as `holdout_name` does for `holdout`.

    Raises:
        SetupError: `shard_invalid`.
    """
    for what, part in ((train_name, train), (holdout_name, holdout)):
        for fault in faults_of(part.features, part.labels, columns.classes):
            raise _invalid(what, fault)
    if not len(train):
        raise _invalid(train_name, "it holds no example")
    if len(holdout):
        for name, here, there in (("x", train.features, holdout.features), ("y", train.labels, holdout.labels)):
            if here.shape[1:] != there.shape[1:]:
                shapes = f"{there.shape[1:]} instead of {here.shape[1:]}"
                raise _invalid(holdout_name, f"its {name} has another shape than what is trained on, {shapes}")
            if here.dtype.kind != there.dtype.kind:
                raise _invalid(holdout_name, f"its {name} is {there.dtype}, and {here.dtype} in what is trained on")
    return Shard(as_examples(train), as_examples(holdout))


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


def _path(directory: Path, name: str) -> Path:
    npz, parquet = directory / f"{name}.npz", directory / f"{name}.parquet"
    if npz.exists() and parquet.exists():
        raise _invalid(f"The shard {directory}", f"it has {npz.name} and {parquet.name}; leave one of them")
    return parquet if parquet.exists() else npz


def _read(path: Path, columns: Columns, *, only_labels: bool = False) -> Examples:
    what = f"The shard's file {path}"
    try:
        return read_pair(path, columns, only_labels=only_labels)
    except FileNotFoundError as error:
        needed = "give a directory with train and holdout, each as .npz or .parquet"
        raise _invalid(what, f"there is no such file; {needed}") from error
    except ValueError as error:
        raise _invalid(what, str(error)) from error


def _invalid(what: str, fault: str) -> SetupError:
    return SetupError(Code.SHARD_INVALID, f"{what} cannot be used: {fault}.")
