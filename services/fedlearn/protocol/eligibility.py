"""A device's conditions and a task's demands, as they cross the wire."""

from dataclasses import asdict
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from fedlearn.core.eligibility import Conditions, Demands


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DeviceConditions(_Part):
    """How a device is at the moment; see `core.eligibility.Conditions`."""

    idle: bool = True
    charging: bool = True
    unmetered: bool = True
    free_memory_bytes: Annotated[int | None, Field(ge=0, description="None where it is not known.")] = None

    @classmethod
    def of(cls, conditions: Conditions) -> "DeviceConditions":
        return cls(**asdict(conditions))

    def domain(self) -> Conditions:
        return Conditions(**self.model_dump())


class DeviceDemands(_Part):
    """What a task wants of a device; see `core.eligibility.Demands`."""

    idle: bool = False
    charging: bool = False
    unmetered: bool = False
    min_free_memory_bytes: Annotated[int, Field(ge=0, le=2**50)] = 0
    min_examples: Annotated[int, Field(ge=0, le=100_000_000)] = 0
    runtime: Annotated[str, Field(max_length=200, description="What the device's runtime contains.")] = ""

    @classmethod
    def of(cls, demands: Demands) -> "DeviceDemands":
        return cls(**asdict(demands))

    def domain(self) -> Demands:
        return Demands(**self.model_dump())
