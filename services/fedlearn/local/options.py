"""What a run on one machine is asked to do, checked as a whole before anything is started."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedlearn.config import AggregatorSettings, Port
from fedlearn.core.errors import Code, Refusal, SetupError
from fedlearn.core.faults import describe_all
from fedlearn.core.ids import MAX_AGGREGATORS
from fedlearn.protocol.aggregations import Aggregation, name_aggregation, read_options
from fedlearn.protocol.plans import ModelEncoding, UpdateFormat, check_combination, name_codec

MIN_COHORT: int = AggregatorSettings.model_fields["min_cohort"].default

DATASETS = ("mnist", "fashion-mnist")
Model = Literal["2nn", "cnn"]


class MachineOptions(BaseModel):
    """What `fedlearn run` and `fedlearn up` share; a field's name is its option's.

    Args:
        shards: a directory of directories, each a device's own data; None to divide the dataset.
        manual: whether the steps of a round are taken by hand; each device is a process of its own then.
        device_port: of the first device process, see `device_ports`; 0 for any free ones.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: Annotated[str, Field(min_length=1, max_length=200)] = "mnist"
    data_dir: Path | None = None
    shards: Path | None = None
    devices: Annotated[int, Field(ge=2, le=4096)] = 5
    partitioner: Literal["full", "iid", "dirichlet", "shard", "pathological", "linear", "square", "exponential"] = "iid"
    alpha: Annotated[float, Field(gt=0, le=1e6)] = 0.5
    epochs: Annotated[int, Field(ge=1, le=1000)] = 1
    batch_size: Annotated[int, Field(ge=1, le=65536)] = 10
    learning_rate: Annotated[float, Field(gt=0, le=100)] = 0.1
    strategy: str = "fedavg"
    robust: str | None = None
    strategy_option: tuple[str, ...] = ()
    proximal_mu: Annotated[float, Field(ge=0, le=1000)] = 0.0
    codec: str = "int8"
    keep_fraction: float | None = None
    model_encoding: ModelEncoding = "float32"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    target_accuracy: Annotated[float | None, Field(gt=0, le=1)] = None
    processes: Annotated[int | None, Field(ge=1, le=1024)] = None
    aggregators: Annotated[int, Field(ge=1, le=MAX_AGGREGATORS)] = 1
    learner: Literal["keras", "synthetic"] = "keras"
    out: Path | None = None
    server_port: Port = 8000
    aggregator_port: Port = 8003
    storage_port: Port = 8333
    device_port: Port = 0
    manual: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.dataset not in DATASETS and self.shards is None:
            raise ValueError(f"--dataset {self.dataset} is not known: use {' or '.join(DATASETS)}")
        if self.processes is not None and self.processes > self.devices:
            raise ValueError(f"--processes {self.processes} is more than --devices {self.devices}")
        if self.manual and self.processes not in (None, self.devices):
            raise ValueError("--manual has a process for each device: leave --processes out")
        if self.manual and self.aggregators > 1:
            raise ValueError("--manual has one aggregator: leave --aggregators out")
        ports = [port for port in (self.server_port, self.aggregator_port, self.storage_port) if port]
        if len(set(ports)) < len(ports):
            raise ValueError("server, aggregator and storage need ports of their own")
        name_parts(
            self.strategy,
            self.robust,
            self.strategy_option,
            self.codec,
            self.keep_fraction,
            devices=self.devices,
            reports=self.devices,
        )
        return self


class RunOptions(MachineOptions):
    """The options of `fedlearn run`."""

    model: Model = "2nn"
    rounds: Annotated[int, Field(ge=1, le=100_000)] = 5
    summary: Path | None = None


class UpOptions(MachineOptions):
    """The options of `fedlearn up`; without a model there is no task until somebody submits one."""

    model: Model | None = None
    rounds: Annotated[int | None, Field(ge=1, le=100_000)] = None


def check_options(**given: object) -> RunOptions:
    """Raises:
    SetupError: `setting_invalid`, naming every faulty option.
    """
    return _checked(RunOptions, "run", given)


def check_up_options(**given: object) -> UpOptions:
    """As `check_options`; with `shards`, there are as many devices as it has directories.

    Raises:
        SetupError: `setting_invalid`, naming every faulty option.
    """
    if isinstance(shards := given.get("shards"), Path):
        found = len(shard_directories(shards))
        if given.get("devices") not in (None, found):
            wrong = f"--devices {given['devices']}: {shards} holds {found} devices' data; leave --devices out."
            raise SetupError(Code.SETTING_INVALID, wrong)
        given["devices"] = found
    return _checked(UpOptions, "up", {name: value for name, value in given.items() if value is not None})


def shard_directories(shards: Path) -> list[Path]:
    """Each device's directory, in order of name; hidden ones do not count.

    Raises:
        SetupError: `setting_invalid`.
    """
    try:
        return sorted(entry.resolve() for entry in shards.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise SetupError(Code.SETTING_INVALID, f"--shards {shards} can't be read: {error.strerror}.") from error


def device_ports(first: int, processes: int) -> list[int]:
    """The ports of the device processes: `first`, the one after it, and further ones from a hundred above `first` on."""
    if first == 0:
        return [0] * processes
    return [first + index if index < 2 else first + 98 + index for index in range(processes)]


def name_parts(
    strategy: str,
    robust: str | None,
    options: Sequence[str],
    codec: str,
    keep_fraction: float | None,
    *,
    devices: int,
    reports: int,
) -> tuple[Aggregation, UpdateFormat]:
    """What these options say in a plan.

    Args:
        devices: how many there are.
        reports: how many of them finish a round.

    Raises:
        ValueError: when they don't go together, or with so many devices.
    """
    try:
        aggregation = name_aggregation(strategy, robust, **read_options(options))
        update = name_codec(codec, keep_fraction)
        check_combination(update, aggregation)
    except Refusal as refusal:
        raise ValueError(refusal.detail.removesuffix(".")) from refusal
    if aggregation.least_reports > reports:
        raise ValueError(f"--robust {robust} needs {aggregation.least_reports + devices - reports} --devices or more")
    if aggregation.mixed(reports) < MIN_COHORT:
        raise ValueError(f"--robust {robust} publishes a single device's update, which no aggregator here does")
    return aggregation, update


Options = TypeVar("Options", bound=MachineOptions)


def _checked(kind: type[Options], command: str, given: Mapping[str, object]) -> Options:
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        faults = describe_all(error.errors(), _option)
        raise SetupError(Code.SETTING_INVALID, f"{faults}. See 'fedlearn {command} --help'.") from error


def _option(location: tuple[int | str, ...]) -> str:
    return " ".join(f"--{part}".replace("_", "-") for part in location if isinstance(part, str))
