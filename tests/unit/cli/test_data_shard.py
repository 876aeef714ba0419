"""`fedlearn data shard`, on the real MNIST that `make test` has fetched."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from fedlearn.cli.data import app
from fedlearn.core.errors import Code, SetupError
from fedlearn.data.shards import read_shard


def cut(out: Path, index: int, *options: str, shards: int = 10) -> Result:
    arguments = ["shard", "--index", str(index), "--shards", str(shards), "--out", str(out), *options]
    return CliRunner().invoke(app, arguments)


def test_devices_that_cut_for_themselves_divide_the_dataset_among_them(tmp_path: Path) -> None:
    for index in range(3):
        assert "5,400 + 600" not in cut(tmp_path / str(index), index, "--seed", "7", "--holdout", "0", shards=3).output
    found = [read_shard(tmp_path / str(index)).train for index in range(3)]
    assert [len(train) for train in found] == [20_000] * 3
    images = {image.tobytes() for train in found for image in train.features}
    assert len(images) == 60_000
    labels = np.concatenate([train.labels for train in found])
    assert np.bincount(labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


def test_the_part_that_is_held_out_is_as_large_as_demanded(tmp_path: Path) -> None:
    assert "4,800 + 1,200 examples" in cut(tmp_path / "shard", 0, "--holdout", "0.2").output


def test_a_shard_that_is_there_stays(tmp_path: Path) -> None:
    cut(tmp_path / "shard", 0)
    before = (tmp_path / "shard" / "train.npz").read_bytes()
    again = cut(tmp_path / "shard", 5, "--seed", "1", shards=20)
    assert "which stays" in again.output
    assert (tmp_path / "shard" / "train.npz").read_bytes() == before


def test_one_that_was_left_unfinished_is_cut_again(tmp_path: Path) -> None:
    cut(tmp_path / "shard", 0)
    (tmp_path / "shard" / "train.npz").unlink()
    assert "which stays" not in cut(tmp_path / "shard", 0).output
    assert len(read_shard(tmp_path / "shard").train) == 5400


@pytest.mark.parametrize(
    ("index", "options", "says"),
    [
        (10, (), "no shard 10 of 10"),
        (0, ("--dataset", "cifar"), "no dataset 'cifar'"),
        (0, ("--partitioner", "fair"), "no partitioner 'fair'"),
        (0, ("--holdout", "1"), "from 0 to below 1"),
    ],
    ids=["index", "dataset", "partitioner", "holdout"],
)
def test_what_can_t_be_cut_is_said_in_a_sentence(tmp_path: Path, index: int, options: tuple[str, ...], says: str) -> None:
    refused = cut(tmp_path / "shard", index, *options).exception
    assert isinstance(refused, SetupError)
    assert says in refused.detail
    assert refused.code is Code.SETTING_INVALID
    assert not (tmp_path / "shard").exists()
