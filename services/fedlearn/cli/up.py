"""`fedlearn up`."""

# ruff: noqa: PLC0415 - the launcher's parts are not in the services' images

import signal
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console

from fedlearn.core.errors import Code, SetupError


def add_to(app: typer.Typer) -> None:
    """Add `up`."""
    app.command(rich_help_panel="On one machine")(up)


def up(
    manual: Annotated[
        bool, typer.Option("--manual", help="Take the steps of a round by hand, by URLs that are shown.")
    ] = False,
    devices: Annotated[int | None, typer.Option(help="How many devices there are (2 or more). Default: 5.")] = None,
    dataset: Annotated[str, typer.Option(help="mnist or fashion-mnist; with --shards any name.")] = "mnist",
    data_dir: Annotated[Path | None, typer.Option(help="A directory that holds the dataset's IDX files.")] = None,
    partitioner: Annotated[str, typer.Option(help="full, iid, dirichlet, shard or pathological.")] = "iid",
    alpha: Annotated[float, typer.Option(help="Dirichlet's concentration: the smaller, the more skewed.")] = 0.5,
    shards: Annotated[
        Path | None, typer.Option(help="Divide nothing: each directory in there is one device's own data.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="2nn or cnn: train it at once. Default: no task (--manual: 2nn).")] = None,
    rounds: Annotated[int | None, typer.Option(help="With --model: how many rounds. Default: 5 (--manual: no end).")] = None,
    epochs: Annotated[int | None, typer.Option(help="Local epochs a round. Default: 1 (--manual: 2).")] = None,
    batch_size: Annotated[int, typer.Option(help="Examples a local step.")] = 10,
    learning_rate: Annotated[float, typer.Option(help="The devices' learning rate.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Makes model, shards and training repeatable.")] = 0,
    target_accuracy: Annotated[float | None, typer.Option(help="End the task as soon as a version reaches it.")] = None,
    processes: Annotated[int | None, typer.Option(help="Processes that host the devices. Default: one per core.")] = None,
    learner: Annotated[str, typer.Option(help="keras, or synthetic: random updates, to try the system alone.")] = "keras",
    out: Annotated[
        Path | None, typer.Option(help="For logs and state; one that `up` has left goes on. Default: below runs/.")
    ] = None,
    server_port: Annotated[int, typer.Option(help="0: any free one.")] = 8000,
    aggregator_port: Annotated[int, typer.Option(help="0: any free one.")] = 8003,
    storage_port: Annotated[int, typer.Option(help="0: any free one.")] = 8333,
    device_port: Annotated[
        int, typer.Option(help="The first device's; then the next, then from 100 above on. 0: free ones.")
    ] = 8001,
) -> None:
    """Boot everything on this machine, say where it is, and stay until Ctrl-C."""
    from fedlearn.local.options import check_up_options

    options = check_up_options(
        manual=manual,
        devices=devices,
        dataset=dataset,
        data_dir=data_dir,
        partitioner=partitioner,
        alpha=alpha,
        shards=shards,
        model=model,
        rounds=rounds if rounds or model is None or manual else 5,
        epochs=epochs or (2 if manual else 1),
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        target_accuracy=target_accuracy,
        processes=processes,
        learner=learner,
        out=out,
        server_port=server_port,
        aggregator_port=aggregator_port,
        storage_port=storage_port,
        device_port=device_port,
    )
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        from fedlearn.local.up import up as stay_up
    except ModuleNotFoundError as error:
        missing = f"'fedlearn up' needs {error.name}: install fedlearn[local,learning]."
        raise SetupError(Code.SETTING_INVALID, missing) from error
    stay_up(options, Console())


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
