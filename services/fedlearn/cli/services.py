"""One service each, from its settings: what the images run. A role's code is imported only by its own command."""

# ruff: noqa: PLC0415 - the server's and the aggregator's images hold no TensorFlow, the device's no database

import os
from pathlib import Path
from typing import Annotated

import typer

from fedlearn.config import AggregatorSettings, DeviceSettings, EvaluatorSettings, ServerSettings, load
from fedlearn.imports import uncollected

Host = Annotated[str | None, typer.Option(help="The address to listen on. [env: FEDLEARN_HOST]")]
PortOption = Annotated[int | None, typer.Option(help="The port to listen on. [env: FEDLEARN_PORT]")]


def add_to(app: typer.Typer) -> None:
    """Add `server`, `aggregator`, `device` and `evaluator`."""
    for command in (server, aggregator, device, evaluator):
        app.command(rich_help_panel="Services, from FEDLEARN_* settings")(command)


def server(host: Host = None, port: PortOption = None) -> None:
    """Start the main server: tasks, fleet, rounds, model versions."""
    with uncollected():
        from fedlearn.server.app import main

    main(load(ServerSettings, host=host, port=port))


def aggregator(host: Host = None, port: PortOption = None) -> None:
    """Start the secure aggregator: opens and folds updates, publishes models."""
    # it divides its work among the cores itself; threads of BLAS that wait for each other cost 20 times what they do
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when numpy is imported
    with uncollected():
        from fedlearn.aggregator.app import main

    main(load(AggregatorSettings, host=host, port=port))


def device(
    host: Host = None,
    port: PortOption = None,
    count: Annotated[int | None, typer.Option(help="Host so many devices in this process. [env: FEDLEARN_COUNT]")] = None,
    shards: Annotated[Path | None, typer.Option(help="Where its shards are. [env: FEDLEARN_SHARDS]")] = None,
) -> None:
    """Start a device, or a process that hosts several."""
    with uncollected():
        from fedlearn.device.app import main

    main(load(DeviceSettings, host=host, port=port, count=count, shards=shards))


def evaluator(host: Host = None, port: PortOption = None) -> None:
    """Start the evaluator: scores each version on the test set."""
    with uncollected():
        from fedlearn.device.evaluator import main

    main(load(EvaluatorSettings, host=host, port=port))
