"""`fedlearn status`: a server at a glance."""

from typing import Any

import typer

from fedlearn.adapters.operator import OperatorClient
from fedlearn.cli.show import (
    DEFAULT_SERVER,
    JsonOption,
    ServerOption,
    make_table,
    number,
    percent,
    print_json,
    print_table,
    say,
)
from fedlearn.core.errors import Code, Outage, Refusal
from fedlearn.protocol.views import RoundView, TaskView, VersionView


def add_to(app: typer.Typer) -> None:
    """Add `status`."""
    app.command(rich_help_panel="A running server")(status)


def status(server: ServerOption = DEFAULT_SERVER, as_json: JsonOption = False) -> None:
    """A server at a glance: its tasks, their rounds and models, and its devices."""
    with OperatorClient(server) as client:
        ready = _unready(client)
        tasks = [_of_task(client, task) for task in client.tasks()]
        fleet = client.devices().devices
    waiting, working = sum(d.waiting for d in fleet), sum(d.part is not None for d in fleet)
    if as_json:
        devices = {"known": len(fleet), "waiting": waiting, "in_a_round": working}
        print_json({"server": server, "ready": ready is None, "why_not": ready, "tasks": tasks, "devices": devices})
        return
    say(f"The server at {server} is " + ("ready." if ready is None else f"not ready: {ready}"))
    say(f"{len(fleet)} devices: {waiting} wait for work, {working} are in a round.")
    if not tasks:
        say("It has no task: 'fedlearn tasks submit' submits one.")
        return
    table = make_table("task", "state", "round", "phase", "reported", "version", "accuracy", "loss", right=("version", "loss"))
    for task in tasks:
        table.add_row(
            task["task"],
            task["state"],
            "–" if task["round"] is None else f"{task['round']}/{task['rounds'] or '∞'}",
            task["phase"] or "–",
            "–" if task["reported"] is None else f"{task['reported']}/{task['selected']}",
            "–" if task["version"] is None else str(task["version"]),
            percent(task["accuracy"]),
            number(task["loss"], 4),
        )
    print_table(table)


def _unready(client: OperatorClient) -> str | None:
    """Why the server can't do its job now; None if it can. One that does not answer at all is the caller's failure."""
    try:
        client.ready()
    except Outage as outage:
        if outage.code is Code.SERVER_UNREACHABLE:
            raise
        return outage.detail
    return None


def _of_task(client: OperatorClient, task: TaskView) -> dict[str, Any]:
    round_ = _round(client, task.task)
    versions = client.models(task.task) if task.model is not None else []
    current = next((v for v in versions if task.model is not None and v.model.version == task.model.version), None)
    standings = [] if round_ is None else [participant.standing for participant in round_.participants]
    return {
        "task": task.task,
        "state": task.state,
        "rounds": task.rounds,
        "round": None if round_ is None else round_.round,
        "phase": None if round_ is None else round_.phase,
        "selected": None if round_ is None else len(standings),
        "reported": None if round_ is None else standings.count("reported"),
        "version": None if current is None else current.model.version,
        **_scores(current),
    }


def _scores(version: VersionView | None) -> dict[str, float | None]:
    scores = (version.evaluation if version is not None else None) or {}
    return {"accuracy": scores.get("accuracy"), "loss": scores.get("loss")}


def _round(client: OperatorClient, task: str) -> RoundView | None:
    try:
        return client.current_round(task)
    except Refusal as refusal:
        if refusal.code is not Code.ROUND_UNKNOWN:
            raise
        return None
