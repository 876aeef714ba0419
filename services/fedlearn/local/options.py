"""What a run on one machine is asked to do, checked as a whole before anything is started."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedlearn.config import Port
from fedlearn.core.errors import Code, SetupError


class RunOptions(BaseModel):
    """The options of `fedlearn run`; a field's name is its option's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: Literal["mnist", "fashion-mnist"] = "mnist"
    data_dir: Path | None = None
    model: Literal["2nn", "cnn"] = "2nn"
    devices: Annotated[int, Field(ge=2, le=4096)] = 5
    rounds: Annotated[int, Field(ge=1, le=100_000)] = 5
    partitioner: Literal["full", "iid", "dirichlet", "shard", "pathological"] = "iid"
    alpha: Annotated[float, Field(gt=0, le=1e6)] = 0.5
    epochs: Annotated[int, Field(ge=1, le=1000)] = 1
    batch_size: Annotated[int, Field(ge=1, le=65536)] = 10
    learning_rate: Annotated[float, Field(gt=0, le=100)] = 0.1
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    target_accuracy: Annotated[float | None, Field(gt=0, le=1)] = None
    processes: Annotated[int | None, Field(ge=1, le=1024)] = None
    learner: Literal["keras", "synthetic"] = "keras"
    out: Path | None = None
    summary: Path | None = None
    server_port: Port = 8000
    aggregator_port: Port = 8003
    storage_port: Port = 8333

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.processes is not None and self.processes > self.devices:
            raise ValueError(f"--processes {self.processes} is more than --devices {self.devices}")
        ports = [port for port in (self.server_port, self.aggregator_port, self.storage_port) if port]
        if len(set(ports)) < len(ports):
            raise ValueError("server, aggregator and storage need ports of their own")
        return self


def check_options(**given: object) -> RunOptions:
    """Raises:
    SetupError: `setting_invalid`, naming every faulty option.
    """
    try:
        return RunOptions.model_validate(given)
    except ValidationError as error:
        faults = "; ".join(_fault(e["loc"], e["msg"]) for e in error.errors())
        raise SetupError(Code.SETTING_INVALID, f"{faults}. See 'fedlearn run --help'.") from error


def _fault(location: tuple[int | str, ...], message: str) -> str:
    option = "".join(f"--{part}: ".replace("_", "-") for part in location if isinstance(part, str))
    return option + message.removeprefix("Value error, ")
