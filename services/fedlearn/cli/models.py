"""`fedlearn models`: the versions of a running server's tasks."""

# ruff: noqa: PLC0415 - files in Keras' formats need Keras, the rest does not wait for it

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedlearn.adapters.operator import OperatorClient
from fedlearn.cli.show import (
    DEFAULT_SERVER,
    JsonOption,
    ServerOption,
    TaskOption,
    TokenOption,
    make_table,
    newest_task,
    number,
    percent,
    print_json,
    print_table,
    say,
)
from fedlearn.core.errors import Code, Refusal, SetupError
from fedlearn.protocol.tensors import decode_model
from fedlearn.protocol.views import VersionView

app = typer.Typer(help="Model versions of a running server.", no_args_is_help=True)
VersionArgument = Annotated[str, typer.Argument(metavar="VERSION", help="A number or a label.")]
VersionOption = Annotated[str | None, typer.Option("--version", help="A number or a label. Default: the task's model.")]


class Format(StrEnum):
    KERAS = "keras"
    SAVEDMODEL = "savedmodel"


@app.command("list")
def list_models(server: ServerOption = DEFAULT_SERVER, task: TaskOption = None, as_json: JsonOption = False) -> None:
    """All versions of a task's model: where they come from, what is in them, their scores and labels."""
    with OperatorClient(server) as client:
        name = task or newest_task(client)
        versions, current = client.models(name), client.task(name).model
    if as_json:
        print_json(versions)
    else:
        print_table(_table(versions, None if current is None else current.version))


@app.command("show")
def show(
    version: VersionArgument, server: ServerOption = DEFAULT_SERVER, task: TaskOption = None, as_json: JsonOption = False
) -> None:
    """One version: its way from version 0, who contributed, its digest and scores."""
    with OperatorClient(server) as client:
        name = task or newest_task(client)
        versions = client.models(name)
        found = _find(client, name, version)
    if as_json:
        print_json(found)
        return
    by_number = {view.model.version: view for view in versions}
    line, parent = [str(found.model.version)], found.parent
    while parent is not None:
        line.append(str(parent))
        parent = by_number[parent].parent
    say(f"Version {found.model.version} of {name}" + (f" ({', '.join(found.labels)})" if found.labels else ""))
    rows = make_table("", "")
    rows.show_header = False
    rows.add_row("comes from", _origin(found))
    rows.add_row("lineage", " ← ".join(line))
    rows.add_row("contributors", number(found.contributors) + (" devices" if found.contributors else ""))
    rows.add_row("examples", number(found.examples))
    rows.add_row("on the test set", _scores(found))
    rows.add_row("SHA-256", found.model.sha256)
    rows.add_row("bytes", f"{found.model.size_bytes:,}")
    rows.add_row("created (UTC)", f"{found.created_at:%Y-%m-%d %H:%M:%S}")
    Console().print(rows, soft_wrap=True)


@app.command("download")
def download(
    server: ServerOption = DEFAULT_SERVER,
    token: TokenOption = None,
    task: TaskOption = None,
    version: VersionOption = None,
    out: Annotated[Path, typer.Option(help="*.keras loads in Keras, *.safetensors is the bare weights.")] = Path("model.keras"),
) -> None:
    """Save a version's model as a file."""
    if out.suffix not in (".keras", ".safetensors"):
        raise SetupError(Code.SETTING_INVALID, f"--out {out} must end in .keras or .safetensors.")
    with OperatorClient(server, token) as client:
        name = task or newest_task(client)
        wanted = _find(client, name, version).model.version
        if out.suffix == ".safetensors":
            out.write_bytes(client.download(name, wanted))
        else:
            _write(client, name, wanted, Format.KERAS, out)
    typer.echo(f"Version {wanted} of {name}: {out}")


@app.command("export")
def export(
    server: ServerOption = DEFAULT_SERVER,
    token: TokenOption = None,
    task: TaskOption = None,
    version: VersionOption = None,
    format: Annotated[  # noqa: A002 - the option's name
        Format, typer.Option(help="keras: a file that loads in plain Keras. savedmodel: a directory for TensorFlow Serving.")
    ] = Format.KERAS,
    out: Annotated[Path | None, typer.Option(help="Default: named after task and version.")] = None,
) -> None:
    """Write a version in a format that others read."""
    with OperatorClient(server, token) as client:
        name = task or newest_task(client)
        found = _find(client, name, version)
        wanted = found.model.version
        path = out or Path(f"{name}-{wanted}" + (".keras" if format is Format.KERAS else ""))
        if format is Format.KERAS and path.suffix != ".keras":
            raise SetupError(Code.SETTING_INVALID, f"--out {path} must end in .keras.")
        _write(client, name, wanted, format, path)
    say(f"Version {wanted} of {name}, on the test set {_scores(found)}: {path}")


@app.command("pin")
def pin(
    version: VersionArgument,
    label: Annotated[str, typer.Argument(help="A name such as production; it leaves the version that had it.")],
    server: ServerOption = DEFAULT_SERVER,
    token: TokenOption = None,
    task: TaskOption = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take the label from the version.")] = False,
) -> None:
    """Give a version a label, by which commands find it."""
    with OperatorClient(server, token) as client:
        name = task or newest_task(client)
        found = _find(client, name, version)
        if remove:
            if label not in found.labels:
                raise SetupError(Code.SETTING_INVALID, f"Version {found.model.version} of {name} has no label {label}.")
            client.unpin(name, label)
            say(f"Version {found.model.version} of {name} is {label} no longer.")
        else:
            client.pin(name, found.model.version, label)
            say(f"Version {found.model.version} of {name} is {label}.")


@app.command("rollback")
def rollback(
    version: VersionArgument, server: ServerOption = DEFAULT_SERVER, token: TokenOption = None, task: TaskOption = None
) -> None:
    """Make an earlier version the task's model again: the next round starts from it. Nothing is overwritten."""
    with OperatorClient(server, token) as client:
        name = task or newest_task(client)
        chosen = _find(client, name, version).model.version
        known = client.task(name)
        current = known.model
        if current is not None and current.version == chosen:
            raise SetupError(Code.SETTING_INVALID, f"Version {chosen} is the model of {name} already.")
        restored = client.roll_back(name, chosen, None if current is None else current.version)
    say(f"Version {restored.model.version} of {name} has the bytes of version {chosen} and is the task's model.")
    if known.state in ("running", "paused"):
        say("The next round starts from it; one that ran on the model before is abandoned as base_superseded.")


def _find(client: OperatorClient, task: str, wanted: str | None) -> VersionView:
    """The version of this number or label; for None the task's model.

    Raises:
        Refusal: `model_unknown`.
    """
    versions = client.models(task)
    if wanted is None:
        current = client.task(task).model
        wanted = "0" if current is None else str(current.version)
    for version in versions:
        if wanted == str(version.model.version) or wanted in version.labels:
            return version
    raise Refusal(Code.MODEL_UNKNOWN, f"Task {task} has no model version {wanted}: 'fedlearn models list' shows all.")


def _write(client: OperatorClient, task: str, version: int, format: Format, path: Path) -> None:  # noqa: A002
    from fedlearn.learning.models import export_savedmodel, save_keras

    plan = client.plan(task)
    weights = decode_model(client.download(task, version), plan)
    (save_keras if format is Format.KERAS else export_savedmodel)(plan, weights, path)


def _origin(version: VersionView) -> str:
    if version.round is not None:
        return f"round {version.round}, which started from version {version.parent}"
    return "its submitter" if version.parent is None else f"a rollback to version {version.parent}"


def _scores(version: VersionView) -> str:
    figures = version.evaluation
    if not figures:
        return "not scored"
    named = (f"{name} {percent(value) if name == 'accuracy' else number(value, 4)}" for name, value in figures.items())
    return ", ".join(named)


def _table(versions: list[VersionView], current: int | None) -> Table:
    headings = ("version", "from", "devices", "examples", "accuracy", "SHA-256", "created", "labels")
    table = make_table(*headings, right=("version", "devices", "examples", "accuracy"))
    for version in versions:
        scores = version.evaluation or {}
        origin = f"round {version.round}" if version.round is not None else "–"
        if version.round is None and version.parent is not None:
            origin = f"version {version.parent}"
        labels = [*version.labels, *(["current"] if version.model.version == current else [])]
        table.add_row(
            str(version.model.version),
            origin,
            number(version.contributors),
            number(version.examples),
            percent(scores.get("accuracy")),
            version.model.sha256[:8],
            f"{version.created_at:%m-%d %H:%M}Z",
            " ".join(labels),
        )
    return table
