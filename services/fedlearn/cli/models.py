"""`fedlearn models`: the versions of a running server's tasks."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedlearn.adapters.operator import OperatorClient
from fedlearn.core.errors import Code, SetupError
from fedlearn.protocol.messages import VersionView
from fedlearn.protocol.tensors import decode_model

app = typer.Typer(help="Model versions of a running server.", no_args_is_help=True)
ServerOption = Annotated[str, typer.Option("--server", envvar="FEDLEARN_SERVER_URL", help="The server's address.")]
TokenOption = Annotated[
    str | None, typer.Option("--token", envvar="FEDLEARN_OPERATOR_TOKEN", help="The operators' token.", show_default=False)
]
TaskOption = Annotated[str | None, typer.Option("--task", help="The task's name. Default: the newest task.")]
DEFAULT_SERVER = "http://127.0.0.1:8000"


@app.command("list")
def list_models(
    server: ServerOption = DEFAULT_SERVER,
    task: TaskOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """All versions of a task's model, with their scores."""
    with OperatorClient(server) as client:
        versions = client.models(task or _newest_task(client))
    if as_json:
        typer.echo(json.dumps([version.model_dump(mode="json") for version in versions], indent=2))
    else:
        Console().print(_table(versions))


@app.command("download")
def download(
    server: ServerOption = DEFAULT_SERVER,
    token: TokenOption = None,
    task: TaskOption = None,
    version: Annotated[int | None, typer.Option(help="Default: the newest version.")] = None,
    out: Annotated[Path, typer.Option(help="*.keras loads in Keras, *.safetensors is the bare weights.")] = Path("model.keras"),
) -> None:
    """Save a version's model as a file."""
    if out.suffix not in (".keras", ".safetensors"):
        raise SetupError(Code.SETTING_INVALID, f"--out {out} must end in .keras or .safetensors.")
    with OperatorClient(server, token) as client:
        name = task or _newest_task(client)
        number = client.models(name)[-1].model.version if version is None else version
        body = client.download(name, number)
        if out.suffix == ".safetensors":
            out.write_bytes(body)
        else:
            from fedlearn.learning.models import save_keras  # noqa: PLC0415 - imports Keras

            plan = client.plan(name)
            save_keras(plan, decode_model(body, plan), out)
    typer.echo(f"Version {number} of {name}: {out}")


def _newest_task(client: OperatorClient) -> str:
    tasks = client.tasks()
    if not tasks:
        raise SetupError(Code.SETTING_INVALID, "The server has no task yet: 'fedlearn run' submits one.")
    return tasks[-1].task


def _table(versions: list[VersionView]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("version", "round", "accuracy", "loss", "bytes", "SHA-256", "created (UTC)"):
        table.add_column(heading)
    for version in versions:
        scores = version.evaluation or {}
        table.add_row(
            str(version.model.version),
            "–" if version.round is None else str(version.round),
            f"{100 * scores['accuracy']:.2f} %" if "accuracy" in scores else "–",
            f"{scores['loss']:.4f}" if "loss" in scores else "–",
            f"{version.model.size_bytes:,}",
            version.model.sha256[:12],
            f"{version.created_at:%Y-%m-%d %H:%M:%S}",
        )
    return table
