"""`fedlearn run`: boot everything, train, tell, and leave a model and a summary behind."""

import shutil
import time
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from fedlearn.adapters.operator import OperatorClient
from fedlearn.core.errors import Code, Outage, SetupError
from fedlearn.local.launcher import Launcher
from fedlearn.local.options import RunOptions, UpOptions
from fedlearn.protocol.views import VersionView
from fedlearn.reporting.curves import draw_curves, is_available
from fedlearn.reporting.following import Follower
from fedlearn.reporting.history import RoundFigures, Summary, why_none
from fedlearn.reporting.progress import Progress, table

_STATE = ("storage", "shards", "state", "keys", "server.db", "server.db-wal", "server.db-shm")
MARK = "up.json"
"""The addresses of everything that `fedlearn up` has started; a later one may go on where it lies."""
_SUBMITTED = (
    "dataset", "model", "devices", "rounds", "epochs", "batch_size", "learning_rate", "strategy", "robust", "proximal_mu",
    "codec", "keep_fraction", "model_encoding", "seed", "target_accuracy",
)  # fmt: skip
_ABANDONED_IN_A_ROW = 3
_WATCH_SECONDS = 1.0
_LEAST_PAUSE_SECONDS = 0.1
_SERVER_PATIENCE_SECONDS = 60.0
_NEEDED_BYTES = 500_000_000


def run(options: RunOptions, console: Console, started_at: float) -> Summary:
    """Run a task from nothing to its end.

    Args:
        started_at: `time.monotonic()` at the command's start.

    Raises:
        SetupError: for what the user can mend; nothing is left running.
    """
    directory = make_directory(options.out)
    curves = directory / "curves.png"
    # whatever devices train by, the model is built and saved by Keras
    with Progress(console, options.rounds) as progress, Launcher(options, directory, progress.say, forks=True) as launcher:
        launcher.boot()
        progress.say("Building the model and submitting the task.")
        task = f"{options.dataset}-{options.model}"
        launcher.run_learner("submit", submission(options, task, launcher))
        with launcher.client() as client:
            history, versions = Watch(client, task, launcher, progress).until_ended()
            newest = versions[-1]
            path = directory / "model.keras"
            progress.say("Saving the model.")
            save = ["models", "download", "--server", _url(launcher), "--task", task, "--out", str(path)]
            launcher.run_learner("save", save, meanwhile=lambda: _draw(history, curves, task, options))
    trained = any(figures.outcome == "committed" for figures in history)
    evaluation = (newest.evaluation if trained else None) or {}
    summary = Summary(
        dataset=options.dataset,
        model=options.model,
        devices=options.devices,
        partitioner=options.partitioner,
        seed=options.seed,
        rounds=history,
        final_accuracy=evaluation.get("accuracy"),
        final_loss=evaluation.get("loss"),
        model_path=path,
        model_version=newest.model.version,
        seconds=round(time.monotonic() - started_at, 3),
    )
    summary_path = options.summary or directory / "summary.json"
    summary_path.write_text(summary.model_dump_json(indent=2) + "\n")
    _forget_state(directory)
    _tell(console, summary, summary_path)
    if curves.exists():
        console.print(f"The curves: {curves}", soft_wrap=True)
    return summary


class Watch:
    """Follows a task through the server's API until it has ended and every version is scored."""

    def __init__(self, client: OperatorClient, task: str, launcher: Launcher, progress: Progress) -> None:
        self._client, self._task = client, task
        self._launcher, self._progress = launcher, progress
        self._follower = Follower(client, task)

    def until_ended(self) -> tuple[list[RoundFigures], list[VersionView]]:
        """The rounds' figures and all versions.

        Raises:
            SetupError: `service_failed` when a service has ended by itself, or the server does not answer for a minute.
        """
        answered_at = time.monotonic()
        while True:
            self._launcher.check()
            try:
                picture = self._follower.look(_WATCH_SECONDS)
            except Outage as outage:
                if time.monotonic() - answered_at > _SERVER_PATIENCE_SECONDS:
                    raise SetupError(Code.SERVICE_FAILED, outage.detail) from outage
                time.sleep(_WATCH_SECONDS)
                continue
            answered_at = time.monotonic()
            self._progress.show(picture.running, picture.history)
            if not picture.alive and all(version.evaluation is not None for version in picture.versions):
                return picture.history, picture.versions
            if picture.alive and _hopeless(picture.history):
                self._client.cancel(self._task)
            time.sleep(_LEAST_PAUSE_SECONDS)


def _hopeless(history: list[RoundFigures]) -> bool:
    last = history[-_ABANDONED_IN_A_ROW:]
    return len(last) == _ABANDONED_IN_A_ROW and all(figures.outcome == "abandoned" for figures in last)


def submission(options: RunOptions | UpOptions, task: str, launcher: Launcher) -> list[str]:
    """The command that submits the options' task."""
    arguments = ["tasks", "submit-builtin", "--server", _url(launcher), "--task", task]
    for name in _SUBMITTED:
        value = getattr(options, name)
        if value is not None:
            arguments += [f"--{name.replace('_', '-')}", str(value)]
    for option in options.strategy_option:
        arguments += ["--strategy-option", option]
    return arguments


def _url(launcher: Launcher) -> str:
    assert launcher.deployment is not None
    return launcher.deployment.addresses.server_url


def make_directory(out: Path | None, *, may_go_on: bool = False) -> Path:
    """A new directory, or with `may_go_on` one that `fedlearn up` has left.

    Raises:
        SetupError: `setting_invalid`, `disk_full`.
    """
    directory = out or Path("runs") / datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        occupied = any(directory.iterdir()) and not (may_go_on and (directory / MARK).is_file())
    except OSError as error:
        raise SetupError(Code.SETTING_INVALID, f"--out {directory} can't be used: {error.strerror}.") from error
    if occupied:
        raise SetupError(Code.SETTING_INVALID, f"--out {directory} is not empty: choose another directory, or remove it.")
    free = shutil.disk_usage(directory).free
    if free < _NEEDED_BYTES:
        short = (
            f"{free / 1e6:.0f} MB are free at {directory}, a run needs {_NEEDED_BYTES / 1e6:.0f} MB: make room, or use --out."
        )
        raise SetupError(Code.DISK_FULL, short)
    return directory.resolve()


def _draw(history: list[RoundFigures], path: Path, task: str, options: RunOptions) -> None:
    if is_available():
        draw_curves(history, path, f"{task}, {options.devices} devices, {options.partitioner}")


def _forget_state(directory: Path) -> None:
    """What only the run itself needed: shards, keys, and the storage's and the server's files."""
    for name in _STATE:
        path = directory / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _tell(console: Console, summary: Summary, summary_path: Path) -> None:
    if not console.is_terminal:
        console.print(table(summary.rounds))
    if (why := why_none(summary.rounds)) is not None:
        console.print(why, soft_wrap=True, markup=False)
    else:
        accuracy = "unknown" if summary.final_accuracy is None else f"{100 * summary.final_accuracy:.2f} %"
        console.print(
            f"Accuracy on the test set: {accuracy} after {len(summary.rounds)} rounds, {summary.seconds:.1f} s in all."
        )
    version = f"version {summary.model_version}" + ("" if why is None else ", untrained")
    console.print(f"The model ({version}): {summary.model_path}", soft_wrap=True)
    console.print(f"The summary: {summary_path}; logs: {summary.model_path.parent / 'logs'}", soft_wrap=True)
