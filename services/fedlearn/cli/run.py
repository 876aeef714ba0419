"""`fedlearn run`."""

# ruff: noqa: PLC0415 - the launcher's parts are not in the services' images

import time
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

STARTED_AT = time.monotonic()


def add_to(app: typer.Typer) -> None:
    """Add `run`."""
    app.command(rich_help_panel="On one machine")(run)


def run(
    dataset: Annotated[str, typer.Option(help="mnist or fashion-mnist.")] = "mnist",
    data_dir: DataDir = None,
    model: Annotated[str, typer.Option(help="2nn or cnn, as in McMahan et al. 2017.")] = "2nn",
    devices: Annotated[int, typer.Option(help="How many devices take part (2 or more).")] = 5,
    rounds: Annotated[int, typer.Option(help="How many rounds to commit.")] = 5,
    partitioner: Partitioner = "iid",
    alpha: Alpha = 0.5,
    epochs: Annotated[int, typer.Option(help="Local epochs a round.")] = 1,
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
    out: Annotated[Path | None, typer.Option(help="A new directory for model, summary and logs. Default: below runs/.")] = None,
    summary: Annotated[Path | None, typer.Option(help="Write the summary (JSON) there. Default: below --out.")] = None,
    server_port: Port = 8000,
    aggregator_port: Port = 8003,
    storage_port: Port = 8333,
) -> None:
    """Boot everything on this machine, train, and exit."""
    from fedlearn.local.options import check_options

    options = check_options(
        dataset=dataset,
        data_dir=data_dir,
        model=model,
        devices=devices,
        rounds=rounds,
        partitioner=partitioner,
        alpha=alpha,
        epochs=epochs,
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
        summary=summary,
        server_port=server_port,
        aggregator_port=aggregator_port,
        storage_port=storage_port,
    )
    with launcher_of("run"):
        from fedlearn.local.run import run as run_task
    done = run_task(options, Console(), STARTED_AT)
    if any(round_.outcome != "committed" for round_ in done.rounds):
        raise typer.Exit(1)
