"""`fedlearn data`: the datasets of this machine."""

# ruff: noqa: PLC0415 - a service that starts does not wait for what it does not use

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedlearn.cli.machine import Partitioner
from fedlearn.cli.shards import (
    AlphaOption,
    ClassesOption,
    DatasetOption,
    Directory,
    LabelOption,
    PlotOption,
    SeedOption,
    holdings_by,
    holdings_in,
    shard,
    show,
)
from fedlearn.core.errors import Code, SetupError

if TYPE_CHECKING:
    from fedlearn.data.datasets import Dataset

app = typer.Typer(help="Datasets: get them, look at them.", no_args_is_help=True)


@app.command("fetch")
def fetch_data(
    dataset: Annotated[str, typer.Argument(help="mnist or fashion-mnist.")] = "mnist", data_dir: Directory = None
) -> None:
    """Get a dataset, and check every file's SHA-256. What is on this machine already is not fetched again."""
    from fedlearn.data.datasets import CACHE, fetch

    found = fetch(dataset, directory=data_dir, cache=CACHE, download_keras=_download_with_keras)
    Console().print(f"{dataset}: {_sizes(found)}, checked, from {found.source}", soft_wrap=True)


@app.command("info")
def info(
    shards: Annotated[Path | None, typer.Option(help="Who holds what of the shards in this directory.")] = None,
    devices: Annotated[int | None, typer.Option(min=1, help="Who would hold what of --dataset, of so many devices.")] = None,
    dataset: DatasetOption = "mnist",
    partitioner: Partitioner = "iid",
    alpha: AlphaOption = 0.5,
    classes_per_device: ClassesOption = 2,
    seed: SeedOption = 0,
    label_column: LabelOption = "y",
    data_dir: Directory = None,
    plot: PlotOption = None,
) -> None:
    """Which datasets are on this machine; with --shards or --devices, who holds what."""
    if shards is not None and devices is not None:
        raise SetupError(Code.SETTING_INVALID, "Give --shards or --devices: shards that are there, or a division of a dataset.")
    if shards is not None:
        show(found := holdings_in(shards, label_column), f"{shards.name}, {len(found.devices)} devices", plot)
    elif devices is not None:
        by = holdings_by(partitioner, devices, dataset, alpha, classes_per_device, seed, data_dir)
        show(by, f"{dataset}, {devices} devices, {partitioner}", plot)
    elif plot is not None:
        raise SetupError(Code.SETTING_INVALID, "Say by --shards or --devices whose data is to be drawn.")
    else:
        _list_datasets(data_dir)


app.command("shard")(shard)


def _list_datasets(data_dir: Path | None) -> None:
    from fedlearn.data.datasets import CACHE, DATASETS, find

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("dataset", "examples", "shape", "classes", "from"):
        table.add_column(heading, overflow="fold")
    for name in DATASETS:
        try:
            found = find(name, directory=data_dir, cache=CACHE)
        except SetupError as error:
            table.add_row(name, "–", "–", "–", error.detail)
            continue
        shape = "×".join(map(str, found.train.features.shape[1:]))
        table.add_row(name, _sizes(found), shape, str(len(set(found.train.labels.tolist()))), str(found.source))
    Console().print(table)


def _sizes(dataset: "Dataset") -> str:
    return f"{len(dataset.train):,} + {len(dataset.test):,}"


def _download_with_keras(name: str, directory: Path) -> None:
    from fedlearn.learning.downloads import download

    download(name, directory)
