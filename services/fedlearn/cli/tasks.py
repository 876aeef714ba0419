"""`fedlearn tasks`: submit work to a running server, and wait for it."""

# ruff: noqa: PLC0415 - submitting imports Keras, which the server's image does not hold

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from fedlearn.adapters.operator import OperatorClient
from fedlearn.cli.codecs import CodecOption, KeepOption, ModelEncodingOption
from fedlearn.cli.show import (
    DEFAULT_SERVER,
    JsonOption,
    ServerOption,
    TokenOption,
    make_table,
    percent,
    print_json,
    print_table,
    say,
)
from fedlearn.cli.strategies import ProximalOption, RobustOption, StrategyOption, StrategyOptions, min_fraction_for
from fedlearn.core.errors import Code, Outage, Refusal, SetupError
from fedlearn.protocol.aggregations import check_reports, name_aggregation, read_options
from fedlearn.protocol.plans import LocalTraining, name_codec, read_model_encoding
from fedlearn.protocol.tensors import encode_model
from fedlearn.protocol.views import Policy, VersionView

app = typer.Typer(help="Tasks of a running server.", no_args_is_help=True)
Result = TypeVar("Result")
Patience = Annotated[float, typer.Option("--wait-seconds", help="How long to wait for what does not answer yet.")]
_PAUSE_SECONDS = 1.0


@app.command("submit")
def submit(
    file: Annotated[Path, typer.Argument(help="A Python file with a function task() that returns a fedlearn.Task.")],
    server: ServerOption = DEFAULT_SERVER,
    token: TokenOption = None,
    task: Annotated[str | None, typer.Option(help="The task's name. Default: its own, or the file's.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="How many, instead of the file's.")] = None,
    devices: Annotated[int | None, typer.Option(min=1, help="How many reports finish a round, instead of the file's.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Only check the file; nothing is sent.")] = False,
) -> None:
    """Submit a model of your own as a task, and start it. See docs/bring-your-own-model.md."""
    from fedlearn.client import prepare, use_keras
    from fedlearn.learning.tasks import load_task, task_name

    use_keras()
    wanted = load_task(file)
    name = task or wanted.name or task_name(file.stem)
    plan, version_0 = prepare(wanted)
    said = f"{plan.parameters:,} parameters, dataset {plan.dataset}, plan {plan.digest[:12]}"
    policy = wanted.policy if devices is None else wanted.policy.model_copy(update={"goal": devices})
    if check:
        check_reports(plan.aggregation, policy.domain())  # as the server does when it is submitted
        typer.echo(f"{file} can be submitted as {name}: {said}.")
        return
    with OperatorClient(server, token) as client:
        before = next((known.state for known in client.tasks() if known.task == name), None)
        view = client.submit(
            name,
            plan,
            version_0,
            policy=policy,
            rounds=wanted.rounds if rounds is None else rounds,
            target_accuracy=wanted.target_accuracy,
        )
    if before in (None, "waiting_for_model"):
        typer.echo(f"Task {view.task} is {view.state}: {said}.")
        return
    another = "" if view.state in ("running", "paused") else " Another run needs another name (--task)."
    typer.echo(f"Task {view.task} was here already, with the same plan, and is {view.state}: nothing was started.{another}")


@app.command("submit-builtin", hidden=True)
def submit_builtin(
    task: Annotated[str, typer.Option(help="The task's name.")],
    server: ServerOption = DEFAULT_SERVER,
    token: TokenOption = None,
    dataset: str = "mnist",
    model: Annotated[str, typer.Option(help="2nn or cnn.")] = "2nn",
    devices: Annotated[int, typer.Option(min=1, help="How many reports finish a round.")] = 3,
    rounds: int | None = None,
    epochs: int = 1,
    batch_size: int = 10,
    learning_rate: float = 0.1,
    min_steps_fraction: Annotated[
        float, typer.Option(help="The least part of its steps that a slow device may be given.")
    ] = 1.0,
    seed: int = 0,
    target_accuracy: float | None = None,
    strategy: StrategyOption = "fedavg",
    robust: RobustOption = None,
    strategy_option: StrategyOptions = None,
    proximal_mu: ProximalOption = 0.0,
    codec: CodecOption = "int8",
    keep_fraction: KeepOption = None,
    model_encoding: ModelEncodingOption = "float32",
    over_selection: Annotated[float, typer.Option(help="Devices selected for each report wanted.")] = 1.3,
    min_fraction: Annotated[
        float | None,
        typer.Option(help="Of --devices: fewer reports abandon the round. 0.8, or more where the rule needs more."),
    ] = None,
    selection_timeout_seconds: float = 60.0,
    reporting_timeout_seconds: float = 600.0,
    aggregation_timeout_seconds: float = 600.0,
    overlap_selection: Annotated[
        bool, typer.Option(help="Devices gather for a round while the one before it reports, not only after its commit.")
    ] = True,
    wait_seconds: Patience = 0.0,
) -> None:
    """Build one of the built-in models, submit it as a task and start it. A task that runs already stays as it is."""
    from fedlearn.learning.models import build, get_weights, make_plan

    aggregation = name_aggregation(strategy, robust, **read_options(strategy_option or []))
    training = LocalTraining(
        learning_rate=learning_rate,
        epochs=epochs,
        batch_size=batch_size,
        min_steps_fraction=min_steps_fraction,
        proximal_mu=proximal_mu,
    )
    keras_model = build(model, seed)
    plan = make_plan(
        keras_model,
        dataset=dataset,
        training=training,
        update=name_codec(codec, keep_fraction),
        model_encoding=read_model_encoding(model_encoding),
        aggregation=aggregation,
    )
    version_0 = encode_model(get_weights(keras_model, plan), plan)
    policy = Policy(
        goal=devices,
        over_selection=over_selection,
        min_fraction=min_fraction_for(aggregation, devices) if min_fraction is None else min_fraction,
        selection_timeout_seconds=selection_timeout_seconds,
        reporting_timeout_seconds=reporting_timeout_seconds,
        aggregation_timeout_seconds=aggregation_timeout_seconds,
        overlap_selection=overlap_selection,
    )
    with OperatorClient(server, token) as client:
        view = _patiently(
            lambda: client.submit(task, plan, version_0, policy=policy, rounds=rounds, target_accuracy=target_accuracy),
            wait_seconds,
        )
    typer.echo(f"Task {view.task} is {view.state}: {plan.parameters:,} parameters, plan {plan.digest[:12]}.")


@app.command("wait")
def wait(
    task: Annotated[str, typer.Option(help="The task's name.")],
    server: ServerOption = DEFAULT_SERVER,
    rounds: Annotated[int, typer.Option(min=1, help="How many.")] = 1,
    wait_seconds: Patience = 300.0,
) -> None:
    """Wait until so many rounds of a task are committed."""
    give_up = time.monotonic() + wait_seconds
    with OperatorClient(server) as client:
        while len(committed := _patiently(lambda: _committed(client, task), wait_seconds)) < rounds:
            if time.monotonic() > give_up:
                have = f"{len(committed)} of {rounds} rounds of {task} were committed within {wait_seconds:g} s"
                raise SetupError(Code.SERVICE_FAILED, f"{have}; {_last_round(client, task)}")
            time.sleep(_PAUSE_SECONDS)
    newest = committed[-1]
    have = "1 round" if len(committed) == 1 else f"{len(committed)} rounds"
    typer.echo(f"{have} of {task} committed; round {newest.round} made version {newest.model.version}.")


@app.command("list")
def list_tasks(server: ServerOption = DEFAULT_SERVER, as_json: JsonOption = False) -> None:
    """All tasks of a server."""
    with OperatorClient(server) as client:
        tasks = client.tasks()
        versions = {} if as_json else {task.task: client.models(task.task) for task in tasks}
    if as_json:
        print_json(tasks)
        return
    table = make_table("task", "state", "rounds", "version", "accuracy", "submitted (UTC)", right=("rounds", "version"))
    for task in tasks:
        mine = versions[task.task]
        current = next((v for v in mine if task.model is not None and v.model.version == task.model.version), None)
        scores = (current.evaluation if current is not None else None) or {}
        table.add_row(
            task.task,
            task.state.replace("_", " "),
            f"{sum(version.round is not None for version in mine)}/{task.rounds or '∞'}",
            "–" if task.model is None else str(task.model.version),
            percent(scores.get("accuracy")),
            f"{task.created_at:%Y-%m-%d %H:%M:%S}",
        )
    print_table(table)


TaskArgument = Annotated[str, typer.Argument(metavar="TASK", help="The task's name.")]


@app.command("pause")
def pause(
    task: TaskArgument, server: ServerOption = DEFAULT_SERVER, token: TokenOption = None, as_json: JsonOption = False
) -> None:
    """Let a task's running round end, and start no other until it is resumed."""
    with OperatorClient(server, token) as client:
        view = client.pause(task)
    print_json(view) if as_json else say(f"Task {task} is paused: its running round ends, and no other starts.")


@app.command("resume")
def resume(
    task: TaskArgument, server: ServerOption = DEFAULT_SERVER, token: TokenOption = None, as_json: JsonOption = False
) -> None:
    """Go on with a paused task."""
    with OperatorClient(server, token) as client:
        view = client.resume(task)
    print_json(view) if as_json else say(f"Task {task} is running.")


@app.command("cancel")
def cancel(
    task: TaskArgument, server: ServerOption = DEFAULT_SERVER, token: TokenOption = None, as_json: JsonOption = False
) -> None:
    """End a task for good, and abandon its running round; its versions stay."""
    with OperatorClient(server, token) as client:
        view = client.cancel(task)
    if as_json:
        print_json(view)
    else:
        say(
            f"Task {task} is {view.state}."
            if view.state == "cancelled"
            else f"Task {task} had ended already: it is {view.state}."
        )


def _committed(client: OperatorClient, task: str) -> list[VersionView]:
    try:
        return [version for version in client.models(task) if version.round is not None]
    except Refusal as refusal:
        if refusal.code is Code.TASK_UNKNOWN:  # not submitted yet
            return []
        raise


def _last_round(client: OperatorClient, task: str) -> str:
    try:
        last = client.current_round(task)
    except Refusal as refusal:
        return refusal.detail
    return f"round {last.round} is in {last.phase}" + (f" ({last.reason})." if last.reason else ".")


def _patiently(action: Callable[[], Result], seconds: float) -> Result:
    """Repeat what meets an outage until `seconds` are over."""
    give_up, told = time.monotonic() + seconds, ""
    while True:
        try:
            return action()
        except Outage as outage:
            if time.monotonic() > give_up:
                raise
            if outage.detail != told:
                typer.echo(f"Waiting: {outage.detail}", err=True)
                told = outage.detail
        time.sleep(_PAUSE_SECONDS)
