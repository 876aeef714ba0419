"""`fedlearn up`: boot everything, say where it is, and stay until it is interrupted."""

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from fedlearn.adapters.operator import OperatorClient
from fedlearn.core.errors import Code, Refusal, SetupError
from fedlearn.local.launcher import Launcher
from fedlearn.local.options import UpOptions
from fedlearn.local.run import MARK, Watch, make_directory, submission
from fedlearn.reporting.history import why_none
from fedlearn.reporting.progress import Progress, table

_READY_SECONDS = 120.0
_LOOK_SECONDS = 0.5
_BY_HAND_SECONDS = 86_400


def up(options: UpOptions, console: Console) -> None:
    """Boot, submit a task if the options have a model, and stay; returns after Ctrl-C, with nothing left running.

    Raises:
        SetupError: for what the user can mend; nothing is left running then either.
        KeyboardInterrupt: when it is interrupted before everything is up.
    """
    directory = make_directory(options.out, may_go_on=True)
    with Launcher(options, directory, lambda sentence: console.print(sentence, soft_wrap=True)) as launcher:
        launcher.boot()
        with launcher.client() as client:
            _wait_for_devices(client, launcher, options.devices)
            model = options.model or ("2nn" if options.manual else None)
            task = f"{options.dataset}-{model}"
            if model is not None:
                console.print("Building the model and submitting the task.")
                launcher.run_learner("submit", _submission(options.model_copy(update={"model": model}), task, launcher))
            if options.manual:
                _wait_for_round(client, launcher, task)
            unfinished = directory / f".{MARK}"
            unfinished.write_text(json.dumps(_addresses(launcher), indent=2) + "\n")
            unfinished.replace(directory / MARK)  # who waits for it reads all of it
            _tell(console, options, launcher, directory)
            try:
                if model is not None and not options.manual:
                    _follow(client, task, options, launcher, console)
                while True:
                    launcher.check()
                    time.sleep(_LOOK_SECONDS)
            except KeyboardInterrupt:
                console.print("Stopping.")
    console.print(f"Stopped. `fedlearn up --out {directory}` with the same options goes on from here.", soft_wrap=True)


def _submission(options: UpOptions, task: str, launcher: Launcher) -> list[str]:
    arguments = submission(options, task, launcher)
    if options.manual:  # a person takes his time, and no round does without one of his devices
        for timeout in ("selection", "reporting", "aggregation"):
            arguments += [f"--{timeout}-timeout-seconds", str(_BY_HAND_SECONDS)]
        arguments += ["--min-fraction", "1.0"]
    return arguments


def _wait_for_devices(client: OperatorClient, launcher: Launcher, devices: int) -> None:
    give_up = time.monotonic() + _READY_SECONDS
    while len(client.devices().devices) < devices:
        launcher.check()
        if time.monotonic() > give_up:
            late = f"Not all devices have checked in after {_READY_SECONDS:.0f} s; their logs are in {launcher.logs}."
            raise SetupError(Code.SERVICE_FAILED, late)
        time.sleep(_LOOK_SECONDS)


def _wait_for_round(client: OperatorClient, launcher: Launcher, task: str) -> None:
    give_up = time.monotonic() + _READY_SECONDS
    while time.monotonic() < give_up:
        launcher.check()
        try:
            if client.current_round(task, wait_seconds=_LOOK_SECONDS).phase in ("reporting", "aggregation"):
                return
        except Refusal as refusal:
            if refusal.code is not Code.ROUND_UNKNOWN:
                raise
    raise SetupError(Code.SERVICE_FAILED, f"No round has begun after {_READY_SECONDS:.0f} s; logs are in {launcher.logs}.")


def _follow(client: OperatorClient, task: str, options: UpOptions, launcher: Launcher, console: Console) -> None:
    with Progress(console, options.rounds) as progress:
        history, _ = Watch(client, task, launcher, progress).until_ended()
    if not console.is_terminal:
        console.print(table(history))
    if (why := why_none(history)) is not None:
        console.print(why, soft_wrap=True, markup=False)
    console.print(f"Task {task} has ended; everything stays up until Ctrl-C.")


def _addresses(launcher: Launcher) -> dict[str, Any]:
    """Where everything is, for programs."""
    assert launcher.deployment is not None
    addresses = launcher.deployment.addresses
    return {
        "server": addresses.server_url,
        "aggregator": addresses.aggregator_url,
        "devices": launcher.device_urls,
        "storage": f"http://127.0.0.1:{addresses.storage}",
        "operator_token_file": str(launcher.deployment.identities.operator_token_file),
    }


def _tell(console: Console, options: UpOptions, launcher: Launcher, directory: Path) -> None:
    assert launcher.deployment is not None
    addresses = launcher.deployment.addresses
    hosted = "" if options.manual else "device process: /healthz, /readyz, /metrics"
    console.print("\nEverything is up.", style="bold")
    shown = [
        ("server", addresses.server_url, f"watch it in a browser; its API: {addresses.server_url}/docs"),
        ("aggregator", addresses.aggregator_url, f"its API: {addresses.aggregator_url}/docs"),
        *((name, url, hosted) for name, url in launcher.device_urls.items()),
        ("storage", f"http://127.0.0.1:{addresses.storage}", "S3; one credential per role"),
    ]
    names, urls = (max(len(row[column]) for row in shown) for column in (0, 1))
    for name, url, what in shown:  # no table: its columns would be cut where the terminal is narrow, or there is none
        console.print(f"{name:<{names}} {url:<{urls}} {what}".rstrip(), soft_wrap=True)
    console.print(f"{'logs':<{names}} {launcher.logs}", soft_wrap=True)
    if options.manual:
        console.print("\nA round by hand, in this order, as often as you like:")
        for name, url in launcher.device_urls.items():
            console.print(f"  {name}: {url}/modeltrain, then {url}/sendstatus, then {url}/sendmodel", soft_wrap=True)
        console.print(f"  aggregator: {addresses.aggregator_url}/aggregate_models", soft_wrap=True)
        console.print(f"  aggregator: {addresses.aggregator_url}/send_model_secagg", soft_wrap=True)
        console.print(f"  server: {addresses.server_url}/send_model_clients", soft_wrap=True)
    token = directory / "keys" / "operator.token"
    console.print(
        "\nReading is open. What changes something, or downloads a model, wants the operators' token; in another terminal:",
        soft_wrap=True,
    )
    console.print(f"  export FEDLEARN_SERVER_URL={addresses.server_url}", soft_wrap=True)
    console.print(f'  export FEDLEARN_OPERATOR_TOKEN="$(cat {token})"', soft_wrap=True)
    console.print("\nCtrl-C ends all of it.", soft_wrap=True)
