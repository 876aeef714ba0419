"""`fedlearn data`: the datasets of this machine."""

# ruff: noqa: PLC0415 - a service that starts does not wait for what it does not use

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedlearn.core.errors import SetupError

if TYPE_CHECKING:
    from fedlearn.data.datasets import Dataset

app = typer.Typer(help="Datasets: get them, look at them.", no_args_is_help=True)
Directory = Annotated[Path | None, typer.Option("--data-dir", help="A directory that holds the IDX files.")]


@app.command("fetch")
def fetch_data(
    dataset: Annotated[str, typer.Argument(help="mnist or fashion-mnist.")] = "mnist", data_dir: Directory = None
) -> None:
    """Get a dataset, and check every file's SHA-256. What is on this machine already is not fetched again."""
    from fedlearn.data.datasets import CACHE, fetch

    found = fetch(dataset, directory=data_dir, cache=CACHE, download_keras=_download_with_keras)
    Console().print(f"{dataset}: {_sizes(found)}, checked, from {found.source}", soft_wrap=True)


@app.command("info")
def info(data_dir: Directory = None) -> None:
    """Which datasets are on this machine, and what is in them."""
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
