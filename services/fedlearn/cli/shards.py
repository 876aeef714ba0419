"""`fedlearn data shard` and the tables and pictures of who holds what."""

# ruff: noqa: PLC0415 - a service that starts does not wait for what it does not use

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedlearn.core.errors import Code, SetupError

if TYPE_CHECKING:
    from fedlearn.core.learning import Examples
    from fedlearn.data.holdings import Holdings
    from fedlearn.data.partitioners import Partitioner

_SHOWN_DEVICES, _FIRST_COLUMNS = 20, 20

DatasetOption = Annotated[str, typer.Option(help="mnist or fashion-mnist.")]
PartitionerOption = Annotated[
    str,
    typer.Option(
        help="full, iid, dirichlet, shard, pathological, linear, square, exponential, size; natural for a --file with ids."
    ),
]
AlphaOption = Annotated[float, typer.Option(help="Dirichlet's concentration: the smaller, the more skewed.")]
ClassesOption = Annotated[int, typer.Option(min=1, help="With pathological: how many classes a device holds.")]
SizesOption = Annotated[str, typer.Option(help="With size: how many examples each device has, by commas.")]
SeedOption = Annotated[int, typer.Option(min=0, help="The same for all shards, which then divide the dataset among them.")]
FileOption = Annotated[Path | None, typer.Option(help="Data of your own in place of --dataset: npz with x and y, or parquet.")]
FeaturesOption = Annotated[str, typer.Option(help="In a .parquet --file: the column of features, or several by commas.")]
LabelOption = Annotated[str, typer.Option(help="In a .parquet file: the column of labels.")]
IdOption = Annotated[str, typer.Option(help="With natural: the column, or array, that says whose an example is.")]
Directory = Annotated[Path | None, typer.Option("--data-dir", help="A directory that holds the IDX files.")]
PlotOption = Annotated[Path | None, typer.Option(help="Draw who holds what: a .png, .svg or .pdf.")]


def shard(
    out: Annotated[Path, typer.Option(help="The directory of the shards 0, 1, …; with --index, of the one shard.")],
    shards: Annotated[int | None, typer.Option(min=1, help="Into how many the data is divided.")] = None,
    index: Annotated[
        int | None, typer.Option(min=0, help="Cut this one alone, from 0; one that is there already stays as it is.")
    ] = None,
    dataset: DatasetOption = "mnist",
    partitioner: PartitionerOption = "iid",
    alpha: AlphaOption = 0.5,
    classes_per_device: ClassesOption = 2,
    sizes: SizesOption = "",
    seed: SeedOption = 0,
    holdout: Annotated[float, typer.Option(help="The part that the device does not train on.")] = 0.1,
    file: FileOption = None,
    feature_columns: FeaturesOption = "x",
    label_column: LabelOption = "y",
    id_column: IdOption = "id",
    data_dir: Directory = None,
    plot: PlotOption = None,
) -> None:
    """Cut a dataset into shards, one for each device."""
    import numpy as np

    from fedlearn.data.holdings import holdings_of
    from fedlearn.data.shards import cut, read_labels, read_shard, write_shard

    if index is not None and any((out / f"train.{kind}").exists() for kind in ("npz", "parquet")):
        kept = read_shard(out)  # its file is written last, and whole or not at all
        typer.echo(f"{out} holds a shard already ({len(kept.train):,} + {len(kept.holdout):,} examples), which stays.")
        return
    if index is None and out.is_dir() and any(out.iterdir()):
        raise SetupError(Code.SETTING_INVALID, f"--out {out} is not empty: name a new directory, so that no shards are mixed.")
    if index is not None and shards is not None and index >= shards:
        wrong = f"There is no shard {index} of {shards}: they are counted from 0. Divide the dataset into more."
        raise SetupError(Code.SETTING_INVALID, wrong)
    divided = _partitioner(partitioner, shards, alpha, classes_per_device, sizes, file, id_column)
    name, examples = _examples(dataset, file, feature_columns, label_column, data_dir)
    pieces = cut(examples, divided, np.random.default_rng(seed), holdout)
    if index is not None:
        mine = next(islice(pieces, index, None))
        write_shard(out, mine)
        typer.echo(f"{out}: shard {index} of {shards} of {name}, {len(mine.train):,} + {len(mine.holdout):,} examples.")
        return
    for number, piece in enumerate(pieces):
        write_shard(out / str(number), piece)
    typer.echo(f"{out}: {divided.num_partitions} shards of {name}, by {partitioner}.")
    labels = {str(number): read_labels(out / str(number)) for number in range(divided.num_partitions)}
    show(holdings_of(labels), f"{name}, {divided.num_partitions} devices, {partitioner}", plot)


def holdings_in(directory: Path, label_column: str) -> "Holdings":
    """What the shards below a directory hold, by their names; numbers stand in their order.

    Raises:
        SetupError: `setting_invalid` where there is none; `shard_invalid`.
    """
    from fedlearn.data.holdings import holdings_of
    from fedlearn.data.shards import read_labels

    places = [place for place in directory.iterdir() if place.is_dir()] if directory.is_dir() else []
    if not places:
        raise SetupError(Code.SETTING_INVALID, f"--shards {directory} has no directories of shards.")
    places.sort(key=lambda place: (not place.name.isdecimal(), int(place.name) if place.name.isdecimal() else 0, place.name))
    return holdings_of({place.name: read_labels(place, label_column) for place in places})


def holdings_by(
    partitioner: str, devices: int, dataset: str, alpha: float, classes: int, seed: int, data_dir: Path | None
) -> "Holdings":
    """What so many devices would hold of a dataset."""
    import numpy as np

    from fedlearn.data.holdings import holdings_of

    divided = _partitioner(partitioner, devices, alpha, classes, "", None, "")
    _, examples = _examples(dataset, None, "x", "y", data_dir)
    parts = divided.partition(examples.labels, np.random.default_rng(seed))
    return holdings_of({str(number): examples.labels[part] for number, part in enumerate(parts)})


def show(holdings: "Holdings", title: str, plot: Path | None) -> None:
    """Print who holds what, and draw it if that is asked for."""
    console = Console()
    widest = len(f"{holdings.counts.max(initial=0):,}") + 2
    with_classes = 0 < len(holdings.classes) * widest <= console.width - _FIRST_COLUMNS
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("device", "examples", *(f"{label}" for label in holdings.classes if with_classes)):
        table.add_column(heading, justify="right")
    rows = zip(holdings.devices, holdings.totals, holdings.counts, strict=True)
    for name, total, counts in islice(rows, _SHOWN_DEVICES):
        table.add_row(name, f"{total:,}", *(f"{count:,}" for count in counts if with_classes))
    console.print(table)
    if len(holdings.devices) > _SHOWN_DEVICES:
        sizes = f"from {holdings.totals.min():,} to {holdings.totals.max():,} examples"
        console.print(f"… and {len(holdings.devices) - _SHOWN_DEVICES} more devices; a device holds {sizes}.", soft_wrap=True)
    if plot is not None:
        from fedlearn.reporting.shards import draw_holdings

        draw_holdings(holdings, plot, title)
        console.print(f"Drawn to {plot}.", soft_wrap=True)


def _partitioner(
    name: str, devices: int | None, alpha: float, classes: int, sizes: str, file: Path | None, id_column: str
) -> "Partitioner":
    from fedlearn.data.files import read_column
    from fedlearn.data.partitioners import NaturalIdPartitioner, make_partitioner

    if name == "natural":
        if file is None:
            raise SetupError(Code.SETTING_INVALID, "natural wants --file, whose --id-column says whose an example is.")
        return NaturalIdPartitioner(read_column(file, id_column), devices)
    try:
        numbers = [int(size) for size in sizes.split(",") if size]
    except ValueError as error:
        raise SetupError(Code.SETTING_INVALID, f"--sizes {sizes} are no whole numbers by commas.") from error
    devices = len(numbers) or None if devices is None and name == "size" else devices
    if devices is None:
        raise SetupError(Code.SETTING_INVALID, "Say by --shards into how many the data is divided.")
    return make_partitioner(name, devices, alpha=alpha, num_classes_per_partition=classes, sizes=numbers)


def _examples(dataset: str, file: Path | None, features: str, label: str, data_dir: Path | None) -> tuple[str, "Examples"]:
    from fedlearn.data.datasets import CACHE, find
    from fedlearn.data.files import Columns, read_examples

    if file is None:
        return dataset, find(dataset, directory=data_dir, cache=CACHE).train
    return file.name, read_examples(file, Columns(tuple(features.split(",")), label))
