"""`fedlearn data`: the datasets of this machine."""

# ruff: noqa: PLC0415 - a service that starts does not wait for what it does not use

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedlearn.core.errors import Code, SetupError

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


@app.command("shard")
def shard(
    index: Annotated[int, typer.Option(min=0, help="Which of the shards, from 0.")],
    shards: Annotated[int, typer.Option(min=1, help="Into how many the dataset is divided.")],
    out: Annotated[Path, typer.Option(help="The shard's directory; a shard that is there already stays as it is.")],
    dataset: Annotated[str, typer.Option(help="mnist or fashion-mnist.")] = "mnist",
    partitioner: Annotated[str, typer.Option(help="full, iid, dirichlet, shard or pathological.")] = "iid",
    alpha: Annotated[float, typer.Option(help="Dirichlet's concentration: the smaller, the more skewed.")] = 0.5,
    seed: Annotated[int, typer.Option(min=0, help="The same for all shards, which then divide the dataset among them.")] = 0,
    holdout: Annotated[float, typer.Option(help="The part that the device does not train on.")] = 0.1,
    data_dir: Directory = None,
) -> None:
    """Cut one device's shard of a dataset."""
    import numpy as np

    from fedlearn.data.datasets import CACHE, find
    from fedlearn.data.partitioners import make_partitioner
    from fedlearn.data.shards import cut, read_shard, write_shard

    if (out / "train.npz").exists():  # written last, and whole or not at all
        kept = read_shard(out)
        typer.echo(f"{out} holds a shard already ({len(kept.train):,} + {len(kept.holdout):,} examples), which stays.")
        return
    if index >= shards:
        wrong = f"There is no shard {index} of {shards}: they are counted from 0. Divide the dataset into more."
        raise SetupError(Code.SETTING_INVALID, wrong)
    divided = make_partitioner(partitioner, shards, alpha=alpha)
    source = find(dataset, directory=data_dir, cache=CACHE)
    mine = next(islice(cut(source.train, divided, np.random.default_rng(seed), holdout), index, None))
    write_shard(out, mine)
    typer.echo(f"{out}: shard {index} of {shards} of {dataset}, {len(mine.train):,} + {len(mine.holdout):,} examples.")


def _sizes(dataset: "Dataset") -> str:
    return f"{len(dataset.train):,} + {len(dataset.test):,}"


def _download_with_keras(name: str, directory: Path) -> None:
    from fedlearn.learning.downloads import download

    download(name, directory)
