"""`fedlearn rounds`: a task's rounds, as they go and afterwards."""

import time
from typing import Annotated

import typer
from rich.console import Console

from fedlearn.adapters.operator import OperatorClient
from fedlearn.cli.show import (
    DEFAULT_SERVER,
    JsonOption,
    ServerOption,
    TaskOption,
    make_table,
    newest_task,
    number,
    percent,
    print_json,
    print_table,
    say,
    seconds,
)
from fedlearn.core.rounds import Phase, Standing
from fedlearn.protocol.problems import CATALOGUE
from fedlearn.protocol.views import ParticipantView, RoundView, VersionView
from fedlearn.reporting.following import Follower
from fedlearn.reporting.history import figures
from fedlearn.reporting.progress import Progress, table

app = typer.Typer(help="Rounds: list them, watch them, explain one.")
WatchOption = Annotated[bool, typer.Option("--watch", help="Show rounds as they go, until the task has ended or Ctrl-C.")]
_LOOK_SECONDS = 2.0
_SCORE_SECONDS, _SCORE_PAUSE_SECONDS = 10.0, 0.2  # the last version's scores come after the task's end
_MEANINGS = {
    Standing.SELECTED: "was selected, and has not answered",
    Standing.ACCEPTED: "has started its part, and has not reported",
    Standing.REPORTED: "its update is in the sum",
    Standing.REFUSED: "its update was refused",
    Standing.DROPPED: "dropped out",
    Standing.RELEASED: "was let go: the round ended its reporting without it",
}


@app.callback(invoke_without_command=True)
def rounds(
    context: typer.Context,
    server: ServerOption = DEFAULT_SERVER,
    task: TaskOption = None,
    as_json: JsonOption = False,
    watch: WatchOption = False,
) -> None:
    """All rounds of a task."""
    if context.invoked_subcommand is None:
        _list(server, task, as_json, watch)


@app.command("list")
def list_rounds(
    server: ServerOption = DEFAULT_SERVER, task: TaskOption = None, as_json: JsonOption = False, watch: WatchOption = False
) -> None:
    """All rounds of a task."""
    _list(server, task, as_json, watch)


def _list(server: str, task: str | None, as_json: bool, watch: bool) -> None:
    with OperatorClient(server) as client:
        name = task or newest_task(client)
        if watch:
            _watch(client, name)
            return
        found = client.rounds(name)
        versions = [] if as_json else client.models(name)
    if as_json:
        print_json(found)
        return
    print_table(table([figures(round_, versions) for round_ in found if round_.phase in ("committed", "abandoned")]))
    for round_ in found:
        if round_.phase not in ("committed", "abandoned"):
            say(f"Round {round_.round} is in {round_.phase} for {seconds(round_.seconds)}.")


@app.command("show")
def show_round(
    number_: Annotated[int, typer.Argument(min=1, metavar="N", help="The round's number.")],
    server: ServerOption = DEFAULT_SERVER,
    task: TaskOption = None,
    as_json: JsonOption = False,
) -> None:
    """Explain a round: who was selected, who reported, who was refused and why, how long each phase took."""
    with OperatorClient(server) as client:
        name = task or newest_task(client)
        found = client.round(name, number_)
        versions = [] if as_json else client.models(name)
    if as_json:
        print_json(found)
        return
    say(_outcome(found))
    for sentence in _result(found, versions):
        say(sentence)
    phases = make_table("phase", "took", right=("took",))
    for phase, took in found.phase_seconds.items():
        phases.add_row(phase, seconds(took))
    if found.phase not in ("committed", "abandoned"):
        phases.add_row(found.phase, f"{seconds(max(0.0, found.seconds - sum(found.phase_seconds.values())))}, so far")
    say("")
    print_table(phases)
    say("")
    if not found.participants:
        say("No device was selected.")
        return
    devices = make_table("device", "stands", "that is")
    for participant in found.participants:
        devices.add_row(participant.device, participant.standing, _meaning(participant))
    print_table(devices)


def _watch(client: OperatorClient, task: str) -> None:
    follower, until = Follower(client, task), 0.0
    with Progress(Console(), client.task(task).rounds) as progress:
        while True:
            picture = follower.look(_LOOK_SECONDS)
            progress.show(picture.running, picture.history)
            if not picture.alive and (picture.scored or time.monotonic() > until):
                break
            if picture.alive:
                until = time.monotonic() + _SCORE_SECONDS
            else:
                time.sleep(_SCORE_PAUSE_SECONDS)
    say(f"Task {task} is {picture.task.state}.")


def _outcome(round_: RoundView) -> str:
    head = f"Round {round_.round} of {round_.task}, which started from version {round_.base_version}"
    if round_.phase == Phase.COMMITTED and round_.model is not None:
        return f"{head}, made version {round_.model.version} in {seconds(round_.seconds)}."
    if round_.phase == Phase.ABANDONED:
        why = "" if round_.reason is None else f" ({round_.reason}): {CATALOGUE[round_.reason].title}"
        return f"{head}, was abandoned after {seconds(round_.seconds)}{why}"
    return f"{head}, is in {round_.phase}, {seconds(round_.seconds)} after it was opened."


def _result(round_: RoundView, versions: list[VersionView]) -> list[str]:
    counts = {standing: sum(p.standing == standing for p in round_.participants) for standing in Standing}
    others = ", ".join(f"{counts[s]} {s}" for s in Standing if counts[s] and s is not Standing.REPORTED)
    said = [
        f"{len(round_.participants)} devices were selected, {counts[Standing.REPORTED]} reported"
        + (f" ({others})." if others else ".")
    ]
    if round_.examples is not None:
        said.append(f"Their updates were trained on {number(round_.examples)} examples.")
    if "accuracy" in round_.metrics:
        said.append(
            f"On the devices' hold-outs version {round_.base_version} is right in {percent(round_.metrics['accuracy'])}."
        )
    mine = next((version for version in versions if version.round == round_.round), None)
    if mine is not None and mine.evaluation and "accuracy" in mine.evaluation:
        said.append(f"On the test set version {mine.model.version} is right in {percent(mine.evaluation['accuracy'])}.")
    return said


def _meaning(participant: ParticipantView) -> str:
    meaning = _MEANINGS[Standing(participant.standing)]
    if participant.code is None:
        return meaning
    return f"{meaning} ({participant.code}): {CATALOGUE[participant.code].title}"
