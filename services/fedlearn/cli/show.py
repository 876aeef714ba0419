"""What commands that read a server have in common: options, tables, JSON, and how figures are written."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from fedlearn.adapters.operator import OperatorClient
from fedlearn.core.errors import Code, Refusal

_NO_TERMINAL_WIDTH = 1000
DEFAULT_SERVER = "http://127.0.0.1:8000"
ServerOption = Annotated[str, typer.Option("--server", envvar="FEDLEARN_SERVER_URL", help="The server's address.")]
TokenOption = Annotated[
    str | None, typer.Option("--token", envvar="FEDLEARN_OPERATOR_TOKEN", help="The operators' token.", show_default=False)
]
TaskOption = Annotated[str | None, typer.Option("--task", help="The task's name. Default: the newest task.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def newest_task(client: OperatorClient) -> str:
    """The name of the task that was submitted last.

    Raises:
        Refusal: `task_unknown` when there is none.
    """
    tasks = client.tasks()
    if not tasks:
        raise Refusal(Code.TASK_UNKNOWN, "The server has no task yet: 'fedlearn tasks submit' submits one.")
    return tasks[-1].task


def make_table(*headings: str, right: Sequence[str] = ()) -> Table:
    """An empty table in the commands' style; columns of `right` are for numbers, and names, in the first, are never broken."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, heading in enumerate(headings):
        justify: Literal["left", "right"] = "right" if heading in right else "left"
        table.add_column(heading, overflow="fold", no_wrap=place == 0, justify=justify)
    return table


def print_table(table: Table) -> None:
    """Print to standard output, as wide as the terminal; where there is none, each row in one line, for those who search it."""
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, _NO_TERMINAL_WIDTH)
    console.print(table)


def say(sentence: object) -> None:
    """Print to standard output, unwrapped."""
    Console().print(sentence, soft_wrap=True, highlight=False)


def print_json(found: BaseModel | Sequence[BaseModel] | Mapping[str, Any]) -> None:
    if isinstance(found, BaseModel):
        document: Any = found.model_dump(mode="json")
    elif isinstance(found, Mapping):
        document = found
    else:
        document = [view.model_dump(mode="json") for view in found]
    typer.echo(json.dumps(document, indent=2))


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f} %"


def number(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def seconds(value: float) -> str:
    """A duration as a person says it."""
    if value < 120:
        return f"{value:.2f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"
