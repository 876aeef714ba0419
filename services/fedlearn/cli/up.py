"""`fedlearn up`."""

# ruff: noqa: PLC0415 - the launcher's parts are not in the services' images

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedlearn.cli.codecs import CodecOption, KeepOption, ModelEncodingOption
from fedlearn.cli.machine import (
    Aggregators,
    Alpha,
    BatchSize,
    DataDir,
    Learner,
    LearningRate,
    Partitioner,
    Port,
    Processes,
    Seed,
    TargetAccuracy,
    launcher_of,
)
from fedlearn.cli.strategies import ProximalOption, RobustOption, StrategyOption, StrategyOptions


def add_to(app: typer.Typer) -> None:
    """Add `up`."""
    app.command(rich_help_panel="On one machine")(up)


def up(
    manual: Annotated[
        bool, typer.Option("--manual", help="Take the steps of a round by hand, by URLs that are shown.")
    ] = False,
    devices: Annotated[int | None, typer.Option(help="How many devices there are (2 or more). Default: 5.")] = None,
    dataset: Annotated[str, typer.Option(help="mnist or fashion-mnist; with --shards any name.")] = "mnist",
    data_dir: DataDir = None,
    partitioner: Partitioner = "iid",
    alpha: Alpha = 0.5,
    shards: Annotated[
        Path | None, typer.Option(help="Divide nothing: each directory in there is one device's own data.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="2nn or cnn: train it at once. Default: no task (--manual: 2nn).")] = None,
    rounds: Annotated[int | None, typer.Option(help="With --model: how many rounds. Default: 5 (--manual: no end).")] = None,
    epochs: Annotated[int | None, typer.Option(help="Local epochs a round. Default: 1 (--manual: 2).")] = None,
    batch_size: BatchSize = 10,
    learning_rate: LearningRate = 0.1,
    strategy: StrategyOption = "fedavg",
    robust: RobustOption = None,
    strategy_option: StrategyOptions = None,
    proximal_mu: ProximalOption = 0.0,
    codec: CodecOption = "int8",
    keep_fraction: KeepOption = None,
    model_encoding: ModelEncodingOption = "float32",
    seed: Seed = 0,
    target_accuracy: TargetAccuracy = None,
    processes: Processes = None,
    aggregators: Aggregators = 1,
    learner: Learner = "keras",
    out: Annotated[
        Path | None, typer.Option(help="For logs and state; one that `up` has left goes on. Default: below runs/.")
    ] = None,
    server_port: Port = 8000,
    aggregator_port: Port = 8003,
    storage_port: Port = 8333,
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
        rounds=5 if rounds is None and model is not None and not manual else rounds,
        epochs=(2 if manual else 1) if epochs is None else epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        strategy=strategy,
        robust=robust,
        strategy_option=tuple(strategy_option or ()),
        proximal_mu=proximal_mu,
        codec=codec,
        keep_fraction=keep_fraction,
        model_encoding=model_encoding,
        seed=seed,
        target_accuracy=target_accuracy,
        processes=processes,
        aggregators=aggregators,
        learner=learner,
        out=out,
        server_port=server_port,
        aggregator_port=aggregator_port,
        storage_port=storage_port,
        device_port=device_port,
    )
    with launcher_of("up"):
        from fedlearn.local.up import up as stay_up
    stay_up(options, Console())
