"""A task as its author writes it: a compiled Keras model and what is to be done with it; in a notebook, or in a file."""

import re
import sys
import traceback
from dataclasses import dataclass, field
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import ValidationError

from fedlearn.core.errors import Code, FedlearnError, Refusal, SetupError
from fedlearn.protocol.aggregations import Aggregation, FedAvgPlan
from fedlearn.protocol.plans import ModelEncoding, UpdateFormat, faults_of
from fedlearn.protocol.views import Policy


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """A model to be trained by devices that hold a dataset.

    Args:
        model: a Keras model, compiled: its optimizer, loss and metrics are those of the devices, its weights are version 0.
        dataset: what the devices' shards are of; only devices that say the same name are selected.
        name: lower-case letters, digits and hyphens; by default made of the dataset's name and the model's.
        rounds: how many committed rounds complete the task; without it, it runs until it is cancelled.
        epochs: how often a device goes through its shard in one round.
        batch_size: examples of one local step.
        min_steps_fraction: above 0 to 1: the least part of its steps that a slow device may be given; 1 gives everybody all.
        proximal_mu: FedProx's, 0 to 1000: what holds a device near the global model; 0 turns it off.
        target_accuracy: 0 to 1; a version that reaches it on the server's test set completes the task.
        policy: how many devices a round takes, and how long it waits.
        update: how deltas travel; `fedlearn.codec` makes it by name.
        model_encoding: how the model travels to devices.
        aggregation: what the aggregator makes of them.
        evaluation_batch_size: examples that a device scores at once: what bounds its memory.
        max_examples: the most that one device may claim to have trained on.
    """

    model: Any
    dataset: str
    name: str = ""
    rounds: int | None = None
    epochs: int = 1
    batch_size: int = 10
    min_steps_fraction: float = 1.0
    proximal_mu: float = 0.0
    target_accuracy: float | None = None
    policy: Policy = field(default_factory=Policy)
    update: UpdateFormat = field(default_factory=UpdateFormat)
    model_encoding: ModelEncoding = "float32"
    aggregation: Aggregation = field(default_factory=FedAvgPlan)
    evaluation_batch_size: int = 1000
    max_examples: int = 1_000_000

    @property
    def title(self) -> str:
        """`name`, or one made of the dataset's and the model's, without the number that Keras counts on."""
        return self.name or task_name(f"{self.dataset}-{re.sub(r'_[0-9]+$', '', str(self.model.name))}")


def task_name(words: str) -> str:
    """`words` as the name of a task: at most 63 lower-case letters, digits and hyphens."""
    return re.sub("[^a-z0-9]+", "-", words.lower()).strip("-")[:63].strip("-")


def load_task(path: Path) -> Task:
    """Run a Python file and call its `task()`.

    Raises:
        SetupError: `setting_invalid` when there is no such file.
        Refusal: `task_file_invalid`, with the line that failed.
    """
    if not path.is_file():
        raise SetupError(Code.SETTING_INVALID, f"There is no file {path}.")
    module = _run(path)
    make = getattr(module, "task", None)
    if not callable(make):
        raise _invalid(path, "it has no function task(): write 'def task() -> fedlearn.Task:'")
    task = _carefully(path, make)
    if task is None:
        raise _invalid(path, "its task() returns nothing: end it with 'return fedlearn.Task(...)'")
    if not isinstance(task, Task):
        raise _invalid(path, f"its task() returns {type(task).__name__}, where a fedlearn.Task is needed")
    return task


def _run(path: Path) -> ModuleType:
    spec = spec_from_file_location(f"_task_{re.sub('[^0-9A-Za-z_]', '_', path.stem)}", path.resolve())
    if spec is None or spec.loader is None:
        raise _invalid(path, "its name does not end in .py")
    module, loader = module_from_spec(spec), spec.loader
    sys.modules[module.__name__] = module  # dataclasses look themselves up there
    sys.path.insert(0, str(path.resolve().parent))  # as with 'python FILE': what lies beside it can be imported
    try:
        _carefully(path, lambda: loader.exec_module(module))
    except BaseException:
        del sys.modules[module.__name__]
        raise
    return module


def _carefully(path: Path, run: Any) -> Any:
    try:
        return run()
    except FedlearnError:
        raise
    except (Exception, SystemExit) as error:  # anything: it is somebody's program
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path.resolve()]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        where = "" if line is None else f", line {line}"
        words = _words(error)
        raise Refusal(
            Code.TASK_FILE_INVALID, f"{path}{where}: {type(error).__name__}: {words or 'it says nothing more'}."
        ) from error


def _words(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return error.msg
    if isinstance(error, ValidationError):  # of a Policy and the like
        return faults_of(error)
    return str(error).strip().partition("\n")[0]


def _invalid(path: Path, fault: str) -> Refusal:
    return Refusal(Code.TASK_FILE_INVALID, f"{path} cannot be submitted: {fault}.")
