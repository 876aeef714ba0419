"""`fedlearn data shard`, on the real MNIST that `make test` has fetched."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
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


def fedlearn_data(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments)


def lines(result: Result) -> list[str]:
    assert result.exit_code == 0, result.output
    return [" ".join(line.split()) for line in result.output.splitlines()]


def refusal(*arguments: str) -> str:
    refused = fedlearn_data(*arguments).exception
    assert isinstance(refused, SetupError)
    return refused.detail


class TestAllShardsAtOnce:
    def test_are_those_that_devices_cut_for_themselves(self, tmp_path: Path) -> None:
        told = lines(fedlearn_data("shard", "--shards", "3", "--seed", "7", "--out", str(tmp_path / "all")))
        assert told[0].endswith("all: 3 shards of mnist, by iid.")
        assert told[1] == "device examples 0 1 2 3 4 5 6 7 8 9"
        assert told[2].startswith("0 20,000 ")
        cut(tmp_path / "alone", 2, "--seed", "7", shards=3)
        here, there = read_shard(tmp_path / "all" / "2"), read_shard(tmp_path / "alone")
        np.testing.assert_array_equal(here.train.features, there.train.features)

    def test_are_drawn(self, tmp_path: Path) -> None:
        picture = tmp_path / "shards.png"
        arguments = ("--sizes", "100,200", "--partitioner", "size", "--out", str(tmp_path / "all"), "--plot", str(picture))
        told = lines(fedlearn_data("shard", *arguments))
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert [line.split()[1] for line in told[2:4]] == ["100", "200"]

    def test_are_not_mixed_with_others(self, tmp_path: Path) -> None:
        (tmp_path / "0").mkdir()
        assert "is not empty" in refusal("shard", "--shards", "3", "--out", str(tmp_path))

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ((), "Say by --shards"),
            (("--partitioner", "natural"), "natural wants --file"),
            (("--partitioner", "size", "--sizes", "1,b"), "no whole numbers"),
            (("--shards", "2", "--file", "typo.parquet"), "no file typo.parquet"),
        ],
        ids=["no number", "natural", "sizes", "file"],
    )
    def test_are_not_cut_from_what_makes_no_sense(self, tmp_path: Path, options: tuple[str, ...], says: str) -> None:
        assert says in refusal("shard", "--out", str(tmp_path / "all"), *options)


class TestAFileOfYourOwn:
    @pytest.fixture
    def table(self, tmp_path: Path) -> Path:
        """Ten visits at each of three clinics."""
        clinics = ["south"] * 10 + ["east"] * 10 + ["north"] * 10
        columns = {"age": range(30), "weight": np.linspace(0, 1, 30), "ill": [0, 1, 2] * 10, "clinic": clinics}
        pq.write_table(pa.table({name: pa.array(values) for name, values in columns.items()}), tmp_path / "visits.parquet")
        return tmp_path / "visits.parquet"

    def test_is_divided_by_who_its_rows_are_of(self, tmp_path: Path, table: Path) -> None:
        declared = ("--file", str(table), "--feature-columns", "age,weight", "--label-column", "ill")
        out = tmp_path / "clinics"
        fedlearn_data("shard", *declared, "--partitioner", "natural", "--id-column", "clinic", "--out", str(out))
        ages = [sorted(read_shard(out / name).train.features[:, 0]) for name in ("0", "1", "2")]
        assert [(len(found), min(found) // 10, max(found) // 10) for found in ages] == [(9, 1, 1), (9, 2, 2), (9, 0, 0)]
        assert lines(fedlearn_data("info", "--shards", str(out)))[1] == "0 10 3 4 3"

    def test_is_cut_by_any_other_partitioner(self, tmp_path: Path, table: Path) -> None:
        declared = ("--file", str(table), "--feature-columns", "age", "--label-column", "ill", "--shards", "2")
        told = lines(fedlearn_data("shard", *declared, "--partitioner", "linear", "--out", str(tmp_path / "all")))
        assert [line.split()[1] for line in told[2:4]] == ["10", "20"]

    def test_may_be_npz(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "own.npz", x=np.ones((8, 2), np.float32), y=np.arange(8) % 2, who=np.array(list("aabbbccc")))
        arguments = ("--file", str(tmp_path / "own.npz"), "--partitioner", "natural", "--id-column", "who")
        told = lines(fedlearn_data("shard", *arguments, "--out", str(tmp_path / "all")))
        assert [line.split()[1] for line in told[2:]] == ["2", "3", "3"]

    def test_with_a_fault_is_refused(self, tmp_path: Path, table: Path) -> None:
        arguments = ("--file", str(table), "--label-column", "clinic", "--feature-columns", "age", "--shards", "2")
        assert "clinic is of type string" in refusal("shard", *arguments, "--out", str(tmp_path / "all"))


class TestWhoHoldsWhat:
    def test_of_a_division_that_is_not_cut_yet(self, tmp_path: Path) -> None:
        picture = tmp_path / "picture.svg"
        told = lines(fedlearn_data("info", "--devices", "100", "--partitioner", "shard", "--plot", str(picture)))
        assert told[-2] == "… and 80 more devices; a device holds from 600 to 600 examples."
        assert "<svg" in picture.read_text()

    def test_of_shards_in_the_order_of_their_numbers(self, tmp_path: Path) -> None:
        for name in ("10", "9"):
            cut(tmp_path / name, int(name), shards=100)
        assert [line.split()[:2] for line in lines(fedlearn_data("info", "--shards", str(tmp_path)))[1:]] == [
            ["9", "600"],
            ["10", "600"],
        ]

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (("--plot", "a.png"), "Say by --shards or --devices"),
            (("--shards", "typo"), "no directories of shards"),
            (("--shards", "a", "--devices", "3"), "--shards or --devices"),
        ],
        ids=["nothing", "no directory", "both"],
    )
    def test_of_nothing_is_refused(self, options: tuple[str, ...], says: str) -> None:
        assert says in refusal("info", *options)
