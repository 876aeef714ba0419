import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.core.errors import Code, SetupError
from fedlearn.core.learning import Examples, Shard
from fedlearn.data.files import Columns
from fedlearn.data.partitioners import FullPartitioner, IidPartitioner
from fedlearn.data.shards import as_examples, as_images, cut, read_shard, write_shard


def some_examples(count: int) -> Examples:
    """Images of 4 x 4, each with its own number in its corner."""
    images = np.random.default_rng(0).integers(0, 256, (count, 4, 4), dtype=np.uint8)
    images[:, 0, 0], images[:, 0, 1] = np.arange(count) % 256, np.arange(count) // 256
    return Examples(images, (np.arange(count) % 10).astype(np.uint8))


def numbers(examples: Examples) -> list[int]:
    images = examples.features.astype(int)
    return sorted(images[:, 0, 0] + 256 * images[:, 0, 1])


@settings(deadline=None)
@given(count=st.integers(10, 600), devices=st.integers(1, 10), fraction=st.floats(0, 0.99))
def test_cutting_loses_nothing_and_holds_out_what_is_not_trained_on(count: int, devices: int, fraction: float) -> None:
    shards = list(cut(some_examples(count), IidPartitioner(devices), np.random.default_rng(0), fraction))
    assert len(shards) == devices
    everything = sorted(n for shard in shards for part in (shard.train, shard.holdout) for n in numbers(part))
    assert everything == list(range(count))
    for shard in shards:
        size = len(shard.train) + len(shard.holdout)
        assert len(shard.train) >= 1
        assert len(shard.holdout) == min(round(size * fraction), size - 1)


def test_features_stay_with_their_labels() -> None:
    examples = some_examples(100)
    for shard in cut(examples, IidPartitioner(4), np.random.default_rng(3)):
        for part in (shard.train, shard.holdout):
            np.testing.assert_array_equal(part.features[:, 0, 0] % 10, part.labels)


def test_devices_that_hold_everything_hold_out_different_examples() -> None:
    first, second = cut(some_examples(100), FullPartitioner(2), np.random.default_rng(0))
    assert numbers(first.holdout) != numbers(second.holdout)
    assert len(first.train) == len(second.train) == 90


def test_the_same_seed_cuts_alike() -> None:
    first, again = (
        [numbers(s.train) for s in cut(some_examples(50), IidPartitioner(3), np.random.default_rng(5))] for _ in "ab"
    )
    assert first == again


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_a_holdout_fraction_out_of_range_is_refused(fraction: float) -> None:
    with pytest.raises(SetupError, match="holdout_fraction") as caught:
        cut(some_examples(10), IidPartitioner(2), np.random.default_rng(0), fraction)
    assert caught.value.code is Code.SETTING_INVALID


def test_grey_images_become_floats_from_0_to_1_with_a_channel() -> None:
    images = as_images(np.array([[[0, 255], [51, 1]]], dtype=np.uint8))
    assert (images.shape, images.dtype) == ((1, 2, 2, 1), np.float32)
    np.testing.assert_array_equal(images[0, :, :, 0], np.array([[0, 1], [0.2, 1 / 255]], dtype=np.float32))


def test_images_with_channels_keep_them() -> None:
    assert as_images(np.zeros((2, 4, 4, 3), dtype=np.uint8)).shape == (2, 4, 4, 3)


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.int64])
def test_features_that_are_no_images_stay_as_they_are(dtype: type) -> None:
    features = np.ones((3, 5), dtype=dtype)
    assert as_examples(Examples(features, np.zeros(3, dtype=np.uint8))).features is features


@pytest.mark.parametrize(("labels", "becomes"), [(np.uint8, np.int32), (np.int64, np.int32), (np.float32, np.float32)])
def test_class_numbers_become_int32_and_targets_stay_float32(labels: type, becomes: type) -> None:
    assert as_examples(Examples(np.ones((3, 5), np.float32), np.zeros(3, dtype=labels))).labels.dtype == becomes


def test_a_shard_that_is_written_is_read_back_ready_for_a_model(tmp_path: Path) -> None:
    (shard,) = cut(some_examples(20), IidPartitioner(1), np.random.default_rng(0))
    write_shard(tmp_path / "0", shard)
    read = read_shard(tmp_path / "0")
    np.testing.assert_array_equal(read.train.features, as_images(shard.train.features))
    np.testing.assert_array_equal(read.holdout.labels, shard.holdout.labels)
    assert (len(read.train), len(read.holdout)) == (18, 2)
    assert sorted(path.name for path in (tmp_path / "0").iterdir()) == ["holdout.npz", "train.npz"]


def test_a_shard_may_hold_nothing_out(tmp_path: Path) -> None:
    (shard,) = cut(some_examples(20), IidPartitioner(1), np.random.default_rng(0), 0.0)
    write_shard(tmp_path, shard)
    assert len(read_shard(tmp_path).holdout) == 0


def test_a_shard_can_be_replaced(tmp_path: Path) -> None:
    for shard in cut(some_examples(20), IidPartitioner(2), np.random.default_rng(0)):
        write_shard(tmp_path, shard)
    np.testing.assert_array_equal(read_shard(tmp_path).train.labels, shard.train.labels)


def test_a_write_that_fails_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    (shard,) = cut(some_examples(20), IidPartitioner(1), np.random.default_rng(0))
    write_shard(tmp_path, shard)
    objects = np.array([object()])
    with pytest.raises(ValueError, match="pickle"):
        write_shard(tmp_path, Shard(shard.train, Examples(objects, objects)))
    assert len(read_shard(tmp_path).train) == 18
    assert sorted(path.name for path in tmp_path.iterdir()) == ["holdout.npz", "train.npz"]


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    (shard,) = cut(some_examples(20), IidPartitioner(1), np.random.default_rng(0))
    with pytest.raises(SetupError, match="taken") as caught:
        write_shard(tmp_path / "taken", shard)
    assert caught.value.code is Code.SETTING_INVALID


ONES, LABELS = np.ones((4, 3), dtype=np.float32), np.zeros(4, dtype=np.int32)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": ONES}, "x and y"),
        ({"x": ONES, "y": LABELS[:3]}, "x has 4 examples and y has 3"),
        ({"x": ONES[:0], "y": LABELS[:0]}, "no example"),
        ({"x": ONES.astype(np.float64), "y": LABELS}, "x is float64"),
        ({"x": ONES, "y": np.array(list("abcd"))}, "y is <U1"),
        ({"x": np.float32(3), "y": LABELS}, "single number"),
        ({"x": ONES * np.float32("nan"), "y": LABELS}, "NaN"),
        ({"x": ONES, "y": np.full(4, np.inf, np.float32)}, "infinity"),
        ({"x": ONES[:, :0], "y": LABELS}, "holds no value"),
        ({"x": ONES, "y": LABELS + 3}, "labels from 3 to 3, where there are classes from 0 to 2"),
        ({"x": ONES, "y": LABELS - 1}, "labels from -1 to -1"),
        ({"x": ONES, "y": LABELS.astype(np.float32)}, "class numbers from 0 to 2"),
    ],
    ids=["no y", "lengths", "empty", "float64", "text", "scalar", "nan", "infinity", "width", "above", "below", "no classes"],
)
def test_a_train_file_with_a_fault_is_refused_by_the_fault(tmp_path: Path, arrays: dict[str, np.ndarray], words: str) -> None:
    np.savez(tmp_path / "holdout.npz", x=ONES, y=LABELS)
    np.savez(tmp_path / "train.npz", **arrays)  # type: ignore[arg-type] # the arrays by their names
    with pytest.raises(SetupError, match=words) as caught:
        read_shard(tmp_path, Columns(classes=3))
    assert caught.value.code is Code.SHARD_INVALID
    assert "train.npz" in caught.value.detail


def test_a_missing_file_is_refused_with_what_must_be_there(tmp_path: Path) -> None:
    np.savez(tmp_path / "train.npz", x=ONES, y=LABELS)
    with pytest.raises(SetupError, match=r"holdout\.npz.*no such file") as caught:
        read_shard(tmp_path)
    assert caught.value.code is Code.SHARD_INVALID


@pytest.mark.parametrize(
    "content", [b"", b"not a zip", pickle.dumps([1, 2]), b"PK\x03\x04 cut"], ids=["empty", "text", "pickle", "cut"]
)
def test_a_file_that_is_no_npz_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "train.npz").write_bytes(content)
    with pytest.raises(SetupError, match="no readable npz") as caught:
        read_shard(tmp_path)
    assert caught.value.code is Code.SHARD_INVALID


def test_a_bare_npy_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "train.npz").open("wb") as file:
        np.save(file, ONES)
    with pytest.raises(SetupError, match="no readable npz"):
        read_shard(tmp_path)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "train.npz", x=np.array([{"a": 1}] * 4, dtype=object), y=LABELS)
    with pytest.raises(SetupError, match="allow_pickle") as caught:
        read_shard(tmp_path)
    assert caught.value.code is Code.SHARD_INVALID


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (np.ones((4, 7), np.float32), LABELS, r"its x has another shape .* \(7,\) instead of \(3,\)"),
        (ONES, np.zeros((4, 1), np.int32), "its y has another shape"),
        (ONES.astype(np.int32), LABELS, "its x is int32, and float32"),
    ],
    ids=["features", "labels", "dtype"],
)
def test_a_holdout_of_another_form_is_refused(tmp_path: Path, x: np.ndarray, y: np.ndarray, words: str) -> None:
    np.savez(tmp_path / "train.npz", x=ONES, y=LABELS)
    np.savez(tmp_path / "holdout.npz", x=x, y=y)
    with pytest.raises(SetupError, match=words) as caught:
        read_shard(tmp_path)
    assert caught.value.code is Code.SHARD_INVALID
    assert "holdout.npz" in caught.value.detail
