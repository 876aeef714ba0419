import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.core.errors import Code, SetupError
from fedlearn.data.partitioners import (
    PARTITIONERS,
    DirichletPartitioner,
    FullPartitioner,
    IidPartitioner,
    NaturalIdPartitioner,
    PathologicalPartitioner,
    ShardPartitioner,
    make_partitioner,
)

CLASSES = 10
DIVIDING = [name for name in PARTITIONERS if name != "full"]


def some_labels(count: int, seed: int = 0) -> np.ndarray:
    """Class numbers in a random order, each class about as often."""
    labels = np.arange(count) % CLASSES
    return np.random.default_rng(seed).permutation(labels).astype(np.uint8)


def divided(name: str, labels: np.ndarray, devices: int, seed: int = 0, **parameters: float) -> list[np.ndarray]:
    partitioner = make_partitioner(name, devices, **parameters)  # type: ignore[arg-type] # numbers all
    return partitioner.partition(labels, np.random.default_rng(seed))


@pytest.mark.parametrize("name", DIVIDING)
@settings(deadline=None)
@given(count=st.integers(200, 3000), devices=st.integers(5, 12), seed=st.integers(0, 2**32 - 1))
def test_every_example_goes_to_exactly_one_device_and_none_goes_without(name: str, count: int, devices: int, seed: int) -> None:
    parts = divided(name, some_labels(count), devices, seed, min_partition_size=1)
    assert len(parts) == devices
    assert min(map(len, parts)) >= 1
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(count))


@pytest.mark.parametrize("name", DIVIDING)
def test_the_same_seed_divides_alike_and_another_does_not(name: str) -> None:
    labels = some_labels(1000)
    first, again, other = (divided(name, labels, 7, seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(
    ("name", "shares"),
    [
        ("linear", np.array([1, 2, 3, 4]) / 10),
        ("square", np.array([1, 4, 9, 16]) / 30),
        ("exponential", np.exp([1, 2, 3, 4]) / np.exp([1, 2, 3, 4]).sum()),
    ],
)
@settings(deadline=None)
@given(count=st.integers(50, 3000))
def test_sizes_grow_with_the_devices_number(name: str, shares: np.ndarray, count: int) -> None:
    sizes = [len(part) for part in divided(name, some_labels(count), 4)]
    assert sum(sizes) == count
    assert np.abs(np.array(sizes) - shares * count).max() < 4  # one for everybody comes first
    assert sizes == sorted(sizes)


def test_a_hundred_devices_of_exponential_sizes_have_an_example_each() -> None:
    sizes = [len(part) for part in divided("exponential", some_labels(200), 100)]
    assert (min(sizes), sum(sizes)) == (1, 200)


def test_sizes_that_are_demanded_are_met_and_the_rest_goes_to_nobody() -> None:
    parts = divided("size", some_labels(100), 3, sizes=(50, 7, 20))  # type: ignore[arg-type]
    assert [len(part) for part in parts] == [50, 7, 20]
    assert len(set(np.concatenate(parts).tolist())) == 77


@pytest.mark.parametrize(
    ("sizes", "words"),
    [((50, 60), "at least 110"), ((50,), "1 sizes for 2 devices"), ((50, 0), "size is 0")],
    ids=["too many", "too few sizes", "nothing"],
)
def test_sizes_that_can_not_be_met_are_refused(sizes: tuple[int, ...], words: str) -> None:
    with pytest.raises(SetupError, match=words) as caught:
        divided("size", some_labels(100), 2, sizes=sizes)  # type: ignore[arg-type]
    assert caught.value.code is Code.SETTING_INVALID


def test_full_gives_everything_to_everybody() -> None:
    for part in divided("full", some_labels(100), 3):
        np.testing.assert_array_equal(part, np.arange(100))


@settings(deadline=None)
@given(count=st.integers(50, 500), devices=st.integers(1, 50))
def test_iid_sizes_differ_by_one_at_most(count: int, devices: int) -> None:
    sizes = [len(part) for part in divided("iid", some_labels(count), devices)]
    assert max(sizes) - min(sizes) <= 1


def test_mcmahans_shards_give_100_devices_2_of_200_shards_of_300() -> None:
    labels = some_labels(60_000)
    parts = ShardPartitioner(100, 2).partition(labels, np.random.default_rng(0))
    assert {len(part) for part in parts} == {600}
    assert max(len(np.unique(labels[part])) for part in parts) == 2
    assert min(len(np.unique(labels[part])) for part in parts) == 1  # two shards of one class, now and then


def test_neighbouring_shards_are_dealt_to_different_devices_more_often_than_not() -> None:
    labels = some_labels(60_000)
    parts = ShardPartitioner(100, 2).partition(labels, np.random.default_rng(0))
    assert np.mean([len(np.unique(labels[part])) for part in parts]) > 1.7


@settings(deadline=None)
@given(devices=st.integers(5, 40), classes=st.integers(2, CLASSES), seed=st.integers(0, 2**32 - 1))
def test_pathological_devices_hold_exactly_so_many_classes(devices: int, classes: int, seed: int) -> None:
    labels = some_labels(2000)
    for part in divided("pathological", labels, devices, seed, num_classes_per_partition=classes):
        assert len(np.unique(labels[part])) == classes


def skew(alpha: float, *, self_balancing: bool = True) -> float:
    """How far the devices' shares of classes are from the whole's: mean total variation, 0 (alike) to 0.9 (one class each)."""
    labels, distances = some_labels(5000), []
    for seed in range(10):
        partitioner = DirichletPartitioner(10, alpha, 1, self_balancing)
        for part in partitioner.partition(labels, np.random.default_rng(seed)):
            shares = np.bincount(labels[part], minlength=CLASSES) / len(part)
            distances.append(np.abs(shares - 1 / CLASSES).sum() / 2)
    return float(np.mean(distances))


@pytest.mark.parametrize("self_balancing", [True, False], ids=["balanced", "free"])
def test_dirichlet_grows_more_uneven_as_alpha_falls(self_balancing: bool) -> None:
    skews = [skew(alpha, self_balancing=self_balancing) for alpha in (1000.0, 10.0, 1.0, 0.3)]
    assert skews[0] < 0.05
    assert all(a + 0.05 < b for a, b in itertools.pairwise(skews))


def test_dirichlet_at_a_tiny_alpha_gives_a_device_hardly_more_than_its_turn() -> None:
    labels = some_labels(5000)
    parts = DirichletPartitioner(5, 0.001, 1).partition(labels, np.random.default_rng(0))
    assert max(len(np.unique(labels[part])) for part in parts) <= 4


def test_self_balancing_keeps_the_largest_share_smaller() -> None:
    labels = some_labels(5000)

    def largest(self_balancing: bool) -> float:
        partitioner = DirichletPartitioner(10, 0.3, 1, self_balancing)
        return float(np.mean([max(map(len, partitioner.partition(labels, np.random.default_rng(s)))) for s in range(20)]))

    assert largest(True) < largest(False)


@settings(deadline=None)
@given(least=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
def test_dirichlet_gives_each_device_the_least_that_was_asked_for(least: int, seed: int) -> None:
    parts = DirichletPartitioner(10, 1.0, least).partition(some_labels(2000), np.random.default_rng(seed))
    assert min(map(len, parts)) >= least


def test_the_expected_share_of_a_class_is_the_same_for_every_device() -> None:
    labels = some_labels(1000)
    sizes = [list(map(len, DirichletPartitioner(4, 1.0, 1).partition(labels, np.random.default_rng(s)))) for s in range(300)]
    np.testing.assert_allclose(np.mean(sizes, axis=0), 250, rtol=0.1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: make_partitioner("random", 3), "full, iid, dirichlet, shard, pathological"),
        (lambda: FullPartitioner(0), "num_partitions is 0"),
        (lambda: IidPartitioner(-1), "num_partitions is -1"),
        (lambda: DirichletPartitioner(3, 0.0), "alpha is 0.0"),
        (lambda: DirichletPartitioner(3, float("nan")), "alpha is nan"),
        (lambda: DirichletPartitioner(3, float("inf")), "alpha is inf"),
        (lambda: DirichletPartitioner(3, 1.0, 0), "min_partition_size is 0"),
        (lambda: ShardPartitioner(3, 0), "num_shards_per_partition is 0"),
        (lambda: PathologicalPartitioner(3, 0), "num_classes_per_partition is 0"),
    ],
    ids=["name", "no device", "negative", "alpha 0", "alpha nan", "alpha inf", "least 0", "no shard", "no class"],
)
def test_a_bad_setting_is_refused_by_its_name(make: object, words: str) -> None:
    with pytest.raises(SetupError, match=words) as caught:
        make()  # type: ignore[operator]
    assert caught.value.code is Code.SETTING_INVALID


@pytest.mark.parametrize(
    ("name", "devices", "parameters", "words"),
    [
        ("iid", 101, {}, "100 examples are too few"),
        ("shard", 40, {"num_shards_per_partition": 3}, "at least 120"),
        ("dirichlet", 20, {"min_partition_size": 10}, "at least 200"),
        ("dirichlet", 10, {"min_partition_size": 10, "alpha": 0.3}, "larger alpha"),
        ("pathological", 4, {"num_classes_per_partition": 2}, "cannot hold all 10"),
        ("pathological", 4, {"num_classes_per_partition": 11}, "there are 10 classes"),
        ("pathological", 90, {"num_classes_per_partition": 2}, "use fewer devices"),
    ],
    ids=[
        "more devices than examples",
        "more shards",
        "too small",
        "too uneven",
        "a class unheld",
        "too many classes",
        "class too thin",
    ],
)
def test_labels_that_cannot_be_divided_so_are_refused(
    name: str, devices: int, parameters: dict[str, float], words: str
) -> None:
    with pytest.raises(SetupError, match=words) as caught:
        divided(name, some_labels(100), devices, **parameters)
    assert caught.value.code is Code.SETTING_INVALID


@pytest.mark.parametrize("labels", [np.zeros((5, 2), dtype=np.int32), np.zeros(50, dtype=np.float32)], ids=["2 axes", "floats"])
def test_labels_that_are_no_class_numbers_are_refused(labels: np.ndarray) -> None:
    with pytest.raises(SetupError, match="class numbers"):
        divided("iid", labels, 2)


class TestNaturalIds:
    IDS = np.array([5, 2, 5, 9, 2, 5, 7])
    LABELS = np.zeros((7, 3), np.int32)  # of any shape: they are not looked at

    def parts(self, num_devices: int | None = None, seed: int = 0) -> list[list[int]]:
        divided = NaturalIdPartitioner(self.IDS, num_devices)
        parts = divided.partition(self.LABELS, np.random.default_rng(seed))
        assert len(parts) == divided.num_partitions
        return [sorted(part.tolist()) for part in parts]

    def test_each_id_has_a_device_in_the_order_of_the_ids(self) -> None:
        assert self.parts() == [[1, 4], [0, 2, 5], [6], [3]]

    def test_fewer_devices_hold_several_whole_ids(self) -> None:
        parts = self.parts(2)
        assert sorted(parts[0] + parts[1]) == list(range(7))
        owners = [set(self.IDS[part]) for part in parts]
        assert owners[0].isdisjoint(owners[1])
        assert sorted(map(len, owners)) == [2, 2]
        assert self.parts(2) == parts
        assert any(self.parts(2, seed) != parts for seed in range(1, 6))

    def test_names_are_ids_as_well(self) -> None:
        parts = NaturalIdPartitioner(np.array(["Iago", "Hamlet", "Iago"])).partition(np.zeros(3), np.random.default_rng(0))
        assert [part.tolist() for part in parts] == [[1], [0, 2]]

    @pytest.mark.parametrize("num_devices", [0, 5], ids=["none", "more than ids"])
    def test_devices_that_would_go_without_are_refused(self, num_devices: int) -> None:
        with pytest.raises(SetupError, match="4 ids"):
            NaturalIdPartitioner(self.IDS, num_devices)

    def test_ids_of_other_examples_are_refused(self) -> None:
        with pytest.raises(SetupError, match="ids of 7"):
            NaturalIdPartitioner(self.IDS).partition(np.zeros(6), np.random.default_rng(0))
