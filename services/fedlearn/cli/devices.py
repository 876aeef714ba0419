"""`fedlearn devices`: the fleet of a running server, and how many devices a cluster keeps."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedlearn.adapters.operator import OperatorClient
from fedlearn.cli.show import DEFAULT_SERVER, ServerOption, make_table, print_table
from fedlearn.core.errors import Code, SetupError
from fedlearn.protocol.views import DeviceView, FleetView

app = typer.Typer(help="Devices: list them, change how many there are.")
_MOST_DEVICES = 100_000


@app.callback(invoke_without_command=True)
def list_devices(
    context: typer.Context,
    server: ServerOption = DEFAULT_SERVER,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """All devices of a server: what they do, and where their pods are."""
    if context.invoked_subcommand is not None:
        return
    with OperatorClient(server) as client:
        fleet = client.devices()
    if as_json:
        typer.echo(json.dumps(fleet.model_dump(mode="json"), indent=2))
        return
    print_table(_table(fleet))
    if fleet.cluster == "unavailable":
        Console(stderr=True).print(
            "The cluster does not answer the server: pods are shown as they were seen last.", soft_wrap=True
        )


@app.command("scale")
def scale_devices(
    devices: Annotated[int, typer.Argument(min=0, max=_MOST_DEVICES, metavar="N", help="How many devices there are to be.")],
    namespace: Annotated[str | None, typer.Option(help="Default: the kubeconfig's, or this pod's.")] = None,
    release: Annotated[str, typer.Option(help="The Helm release whose devices are meant.")] = "fedlearn",
    statefulset: Annotated[str | None, typer.Option(help="The devices' StatefulSet itself, in place of --release.")] = None,
    kubeconfig: Annotated[
        Path | None, typer.Option(help="Default: $KUBECONFIG; in a pod its own account; ~/.kube/config.")
    ] = None,
    context: Annotated[str | None, typer.Option(help="A context of the kubeconfig. Default: its current one.")] = None,
) -> None:
    """Change how many devices a cluster keeps. Newcomers join the next round; those that go drop out of theirs at once."""
    from fedlearn.adapters.kubernetes.connection import connect  # noqa: PLC0415 - one machine does without the client
    from fedlearn.adapters.kubernetes.scale import find_statefulset, scale  # noqa: PLC0415

    if kubeconfig is not None and not kubeconfig.is_file():
        raise SetupError(Code.SETTING_INVALID, f"--kubeconfig {kubeconfig} is no file.")
    connection = connect(kubeconfig, context)
    try:
        where = namespace or connection.namespace
        labels = f"app.kubernetes.io/instance={release},app.kubernetes.io/component=device"
        scaled = scale(connection, where, statefulset or find_statefulset(connection, where, labels), devices)
    finally:
        connection.close()
    typer.echo(f"StatefulSet {scaled.namespace}/{scaled.statefulset}: {scaled.before} → {scaled.wanted} devices.")


def _table(fleet: FleetView) -> Table:
    now = datetime.now(UTC)
    headings = ["device", "does", "examples", "seen", "runtime"]
    if fleet.cluster != "none":
        headings[2:2] = ["pod", "node"]
    table = make_table(*headings, right=("examples",))
    for device in fleet.devices:
        cells = [device.device, _does(device), _count(device.examples), _ago(device.last_seen, now), device.runtime or "–"]
        if fleet.cluster != "none":
            cells[2:2] = ["–", "–"] if device.pod is None else [device.pod.state, device.pod.node or "–"]
        table.add_row(*cells)
    return table


def _does(device: DeviceView) -> str:
    if device.unfit is not None:
        return f"unfit: {device.unfit.detail}"
    if device.part is not None:
        return f"{device.part.standing} in {device.part.task}/{device.part.round}"
    return "waits" if device.waiting else "–"


def _count(examples: int | None) -> str:
    return "–" if examples is None else f"{examples:,}"


def _ago(then: datetime | None, now: datetime) -> str:
    if then is None:
        return "never"
    seconds = max(0.0, (now - then).total_seconds())
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
