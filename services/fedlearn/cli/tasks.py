"""`fedlearn tasks`: submit work to a running server."""

# ruff: noqa: PLC0415 - imports Keras

from typing import Annotated

import typer

from fedlearn.adapters.operator import OperatorClient
from fedlearn.cli.models import DEFAULT_SERVER, ServerOption, TokenOption
from fedlearn.protocol.messages import Policy
from fedlearn.protocol.plans import LocalTraining
from fedlearn.protocol.tensors import encode_model

app = typer.Typer(help="Tasks of a running server.", no_args_is_help=True)


@app.callback()
def tasks() -> None:
    """Tasks of a running server."""


@app.command("submit-builtin")
def submit_builtin(
    task: Annotated[str, typer.Option(help="The task's name.")],
    server: ServerOption = DEFAULT_SERVER,
    token: TokenOption = None,
    dataset: str = "mnist",
    model: Annotated[str, typer.Option(help="2nn or cnn.")] = "2nn",
    devices: Annotated[int, typer.Option(help="How many reports finish a round.")] = 3,
    rounds: int | None = None,
    epochs: int = 1,
    batch_size: int = 10,
    learning_rate: float = 0.1,
    seed: int = 0,
    target_accuracy: float | None = None,
) -> None:
    """Build one of the built-in models, submit it as a task and start it."""
    from fedlearn.learning.models import build, get_weights, make_plan

    training = LocalTraining(learning_rate=learning_rate, epochs=epochs, batch_size=batch_size)
    keras_model = build(model, seed)
    plan = make_plan(keras_model, dataset=dataset, training=training)
    with OperatorClient(server, token) as client:
        view = client.submit(
            task,
            plan,
            encode_model(get_weights(keras_model, plan), plan),
            policy=Policy(goal=devices),
            rounds=rounds,
            target_accuracy=target_accuracy,
        )
    typer.echo(f"Task {view.task} is {view.state}: {plan.parameters:,} parameters, plan {plan.digest[:12]}.")
