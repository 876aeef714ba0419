"""How a dataset is divided among devices, by the names of flwr-datasets, on index arrays.

Every partitioner but `FullPartitioner` gives each example to exactly one device at most (`SizePartitioner` may leave some), and
no device goes without.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fedlearn.core.errors import Code, SetupError

Indices = npt.NDArray[np.intp]
Labels = npt.NDArray[Any]

PARTITIONERS = ("full", "iid", "dirichlet", "shard", "pathological", "linear", "square", "exponential")
"""Those that a number of devices is enough for; beside them `make_partitioner` knows `size`."""


class Partitioner(Protocol):
    """A way to divide a dataset among devices."""

    @property
    def num_partitions(self) -> int:
        """How many devices there are."""
        ...

    def partition(self, labels: Labels, rng: np.random.Generator) -> list[Indices]:
        """The indices of each device's examples; the same generator state gives the same ones.

        Args:
            labels: class numbers, shape (n,).

        Raises:
            SetupError: `setting_invalid` when these labels cannot be divided so.
        """
        ...


def make_partitioner(
    name: str,
    num_partitions: int,
    *,
    alpha: float = 0.5,
    min_partition_size: int = 10,
    self_balancing: bool = True,
    num_shards_per_partition: int = 2,
    num_classes_per_partition: int = 2,
    sizes: Sequence[int] = (),
) -> Partitioner:
    """The partitioner of that name, one of `PARTITIONERS` or `size`; settings that it does not have are ignored.

    Raises:
        SetupError: `setting_invalid`.
    """
    makers: Mapping[str, Callable[[], Partitioner]] = {
        "full": lambda: FullPartitioner(num_partitions),
        "iid": lambda: IidPartitioner(num_partitions),
        "dirichlet": lambda: DirichletPartitioner(num_partitions, alpha, min_partition_size, self_balancing),
        "shard": lambda: ShardPartitioner(num_partitions, num_shards_per_partition),
        "pathological": lambda: PathologicalPartitioner(num_partitions, num_classes_per_partition),
        "linear": lambda: LinearPartitioner(num_partitions),
        "square": lambda: SquarePartitioner(num_partitions),
        "exponential": lambda: ExponentialPartitioner(num_partitions),
        "size": lambda: SizePartitioner(tuple(sizes)),
    }
    if name not in makers:
        raise _invalid(f"There is no partitioner {name!r}: use one of {', '.join(makers)}.")
    if name == "size" and len(sizes) != num_partitions:
        raise _invalid(f"There are {len(sizes)} sizes for {num_partitions} devices: give one for each.")
    return makers[name]()


@dataclass(frozen=True, slots=True)
class FullPartitioner:
    """Every device holds everything, as in the original project's walk-through."""

    num_partitions: int

    def __post_init__(self) -> None:
        _at_least(1, num_partitions=self.num_partitions)

    def partition(self, labels: Labels, rng: np.random.Generator) -> list[Indices]:  # noqa: ARG002 - the protocol's
        _check_labels(labels, 1)
        return [np.arange(len(labels))] * self.num_partitions


@dataclass(frozen=True, slots=True)
class IidPartitioner:
    """A random division into parts whose sizes differ by one at most."""

    num_partitions: int

    def __post_init__(self) -> None:
        _at_least(1, num_partitions=self.num_partitions)

    def partition(self, labels: Labels, rng: np.random.Generator) -> list[Indices]:
        _check_labels(labels, self.num_partitions)
        return np.array_split(rng.permutation(len(labels)), self.num_partitions)


@dataclass(frozen=True, slots=True)
class DirichletPartitioner:
    """Each class is divided by proportions drawn from Dirichlet(alpha): the smaller alpha, the more uneven.

    Hsu et al. 2019, "Measuring the effects of non-identical data distribution"; with `self_balancing`, as in Yurochkin et al.
    2019, a device that has its average share already gets nothing of the classes that follow.

    Args:
        min_partition_size: drawn again until every device has as many examples.
    """

    num_partitions: int
    alpha: float = 0.5
    min_partition_size: int = 10
    self_balancing: bool = True

    def __post_init__(self) -> None:
        _at_least(1, num_partitions=self.num_partitions, min_partition_size=self.min_partition_size)
        if not 0 < self.alpha < float("inf"):
            raise _invalid(f"alpha is {self.alpha}; it must be above 0.")

    def partition(self, labels: Labels, rng: np.random.Generator) -> list[Indices]:
        _check_labels(labels, self.num_partitions * self.min_partition_size)
        for _ in range(_DRAWS):
            parts = self._draw(labels, rng)
            if min(map(len, parts)) >= self.min_partition_size:
                return parts
        sentence = (
            f"No division by Dirichlet({self.alpha}) gave each of {self.num_partitions} devices {self.min_partition_size}"
        )
        raise _invalid(f"{sentence} examples in {_DRAWS} draws: use a larger alpha or fewer devices.")

    def _draw(self, labels: Labels, rng: np.random.Generator) -> list[Indices]:
        pieces: list[list[Indices]] = [[] for _ in range(self.num_partitions)]
        sizes = np.zeros(self.num_partitions, dtype=np.intp)
        for label in rng.permutation(np.unique(labels)):
            members = rng.permutation(np.flatnonzero(labels == label))
            shares = rng.dirichlet(np.full(self.num_partitions, self.alpha))
            if self.self_balancing:
                shares = _balanced(shares, sizes < len(labels) / self.num_partitions, rng)
            cuts = np.rint(np.cumsum(shares)[:-1] * len(members)).astype(np.intp)
            for device, piece in enumerate(np.split(members, cuts)):
                pieces[device].append(piece)
                sizes[device] += len(piece)
        return [np.concatenate(piece) for piece in pieces]


_DRAWS = 200


def _balanced(
    shares: npt.NDArray[np.float64], hungry: npt.NDArray[np.bool_], rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """The shares of those that have less than their average; whoever is left over, if all of theirs are nil."""
    kept = np.where(hungry, shares, 0.0)
    if not kept.any():
        kept[rng.choice(np.flatnonzero(hungry))] = 1.0
    kept /= kept.sum()
    return kept


@dataclass(frozen=True, slots=True)
class ShardPartitioner:
    """Sorted by label, cut into equal shards, dealt at random. With 2 a device this is the pathological division of McMahan et
    al. 2017, section 3, where 100 devices hold 2 of 200 shards of 300.
    """

    num_partitions: int
    num_shards_per_partition: int = 2

    def __post_init__(self) -> None:
        _at_least(1, num_partitions=self.num_partitions, num_shards_per_partition=self.num_shards_per_partition)

    def partition(self, labels: Labels, rng: np.random.Generator) -> list[Indices]:
        shards = self.num_partitions * self.num_shards_per_partition
        _check_labels(labels, shards)
        cut = np.array_split(np.argsort(labels, kind="stable"), shards)
        dealt = rng.permutation(shards).reshape(self.num_partitions, self.num_shards_per_partition)
        return [np.concatenate([cut[shard] for shard in hand]) for hand in dealt]


@dataclass(frozen=True, slots=True)
class PathologicalPartitioner:
    """Each device holds exactly `num_classes_per_partition` classes, drawn at random; a class is divided evenly among those who
    hold it, and someone holds it.
    """

    num_partitions: int
    num_classes_per_partition: int = 2

    def __post_init__(self) -> None:
        _at_least(1, num_partitions=self.num_partitions, num_classes_per_partition=self.num_classes_per_partition)

    def partition(self, labels: Labels, rng: np.random.Generator) -> list[Indices]:
        _check_labels(labels, self.num_partitions)
        owners = self._owners(len(classes := np.unique(labels)), rng)
        pieces: list[list[Indices]] = [[] for _ in range(self.num_partitions)]
        for label, holders in zip(classes, owners, strict=True):
            members = rng.permutation(np.flatnonzero(labels == label))
            if len(members) < len(holders):
                raise _invalid(
                    f"{len(holders)} devices hold class {label}, which has {len(members)} examples: use fewer devices."
                )
            for device, piece in zip(holders, np.array_split(members, len(holders)), strict=True):
                pieces[device].append(piece)
        return [np.concatenate(piece) for piece in pieces]

    def _owners(self, classes: int, rng: np.random.Generator) -> list[list[int]]:
        """For each class the devices that hold it; a device takes the classes that the fewest others have taken so far."""
        each = self.num_classes_per_partition
        if each > classes:
            raise _invalid(f"num_classes_per_partition is {each}, but there are {classes} classes.")
        if each * self.num_partitions < classes:
            raise _invalid(f"{self.num_partitions} devices of {each} classes cannot hold all {classes}: use more of either.")
        owners: list[list[int]] = [[] for _ in range(classes)]
        for device in range(self.num_partitions):
            order = rng.permutation(classes)
            for label in sorted(order, key=lambda candidate: len(owners[candidate]))[:each]:
                owners[label].append(device)
        return owners


@dataclass(frozen=True, slots=True)
class LinearPartitioner:
    """At random, with sizes as 1 to 2 to 3 and so on, a device's number from 1."""

    num_partitions: int

    def __post_init__(self) -> None:
        _at_least(1, num_partitions=self.num_partitions)

    def partition(self, labels: Labels, rng: np.random.Generator) -> list[Indices]:
        return _of_sizes(labels, np.arange(1.0, self.num_partitions + 1), rng)


@dataclass(frozen=True, slots=True)
class SquarePartitioner:
    """At random, with sizes as the squares of 1, 2, 3 and so on."""

    num_partitions: int

    def __post_init__(self) -> None:
        _at_least(1, num_partitions=self.num_partitions)

    def partition(self, labels: Labels, rng: np.random.Generator) -> list[Indices]:
        return _of_sizes(labels, np.arange(1.0, self.num_partitions + 1) ** 2, rng)


@dataclass(frozen=True, slots=True)
class ExponentialPartitioner:
    """At random, with sizes as e, e^2, e^3 and so on: the last device has more than half of all."""

    num_partitions: int

    def __post_init__(self) -> None:
        _at_least(1, num_partitions=self.num_partitions)

    def partition(self, labels: Labels, rng: np.random.Generator) -> list[Indices]:
        return _of_sizes(labels, np.exp(np.arange(1.0, self.num_partitions + 1) - self.num_partitions), rng)


@dataclass(frozen=True, slots=True)
class SizePartitioner:
    """At random, each device with as many examples as it is said to have; what is left over goes to nobody."""

    partition_sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        _at_least(1, num_partitions=len(self.partition_sizes))
        for size in self.partition_sizes:
            _at_least(1, size=size)

    @property
    def num_partitions(self) -> int:
        return len(self.partition_sizes)

    def partition(self, labels: Labels, rng: np.random.Generator) -> list[Indices]:
        _check_labels(labels, sum(self.partition_sizes))
        return np.split(rng.permutation(len(labels)), np.cumsum(self.partition_sizes))[:-1]


def _of_sizes(labels: Labels, weights: npt.NDArray[np.float64], rng: np.random.Generator) -> list[Indices]:
    """A random division by these weights; everybody has one example, and the others go by largest remainders."""
    devices = len(weights)
    _check_labels(labels, devices)
    exact = weights / weights.sum() * (len(labels) - devices)
    sizes = np.floor(exact).astype(np.intp)
    left = len(labels) - devices - int(sizes.sum())
    sizes[np.argsort(sizes - exact, kind="stable")[:left]] += 1
    return np.split(rng.permutation(len(labels)), np.cumsum(sizes + 1)[:-1])


@dataclass(frozen=True, eq=False)
class NaturalIdPartitioner:
    """By who an example is from: a device holds everything of its people, speakers or sites, and nothing of others.

    Args:
        ids: whose each example is, shape (n,).
        num_devices: among how many devices the ids are dealt, at random and as evenly as may be. Default: one for each id.
    """

    ids: npt.NDArray[Any]
    num_devices: int | None = None

    def __post_init__(self) -> None:
        owners = len(np.unique(self.ids))
        if self.num_devices is not None and not 1 <= self.num_devices <= owners:
            raise _invalid(f"{self.num_devices} devices cannot share {owners} ids, of which none is divided.")

    @property
    def num_partitions(self) -> int:
        return self.num_devices or len(np.unique(self.ids))

    def partition(self, labels: Labels, rng: np.random.Generator) -> list[Indices]:
        if len(labels) != len(self.ids):
            raise _invalid(f"There are {len(labels)} examples, and ids of {len(self.ids)}.")
        owners, whose = np.unique(self.ids, return_inverse=True)
        examples = np.split(np.argsort(whose, kind="stable"), np.cumsum(np.bincount(whose))[:-1])
        if self.num_devices is None:
            return examples  # in the order of the ids, so that each is found again
        hands = np.array_split(rng.permutation(len(owners)), self.num_devices)
        return [np.concatenate([examples[owner] for owner in hand]) for hand in hands]


def _check_labels(labels: Labels, examples: int) -> None:
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise _invalid(f"The labels are {labels.dtype} of shape {labels.shape}; to be divided they must be class numbers.")
    if len(labels) < examples:
        raise _invalid(f"{len(labels)} examples are too few: so many devices of such a size take at least {examples}.")


def _at_least(least: int, **settings: int) -> None:
    for name, value in settings.items():
        if value < least:
            raise _invalid(f"{name} is {value}; it must be at least {least}.")


def _invalid(sentence: str) -> SetupError:
    return SetupError(Code.SETTING_INVALID, sentence)
