"""Federated learning, native to Kubernetes.

What stands in `__all__` is the public interface, for notebooks and for task files; `docs/bring-your-own-model.md` shows it. A
name is imported when it is first used, so `import fedlearn` costs nothing and brings no TensorFlow.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedlearn.client import Client, SubmittedTask, connect
    from fedlearn.core.errors import Code, FedlearnError, Outage, Refusal, SetupError
    from fedlearn.core.learning import Examples, Shard
    from fedlearn.data.datasets import find as find_dataset
    from fedlearn.data.partitioners import NaturalIdPartitioner, Partitioner, make_partitioner
    from fedlearn.data.shards import as_examples, read_shard, write_shard
    from fedlearn.data.shards import cut as cut_shards
    from fedlearn.learning.tasks import Task
    from fedlearn.protocol.aggregations import name_aggregation as aggregation
    from fedlearn.protocol.plans import UpdateFormat
    from fedlearn.protocol.plans import name_codec as codec
    from fedlearn.protocol.views import FleetView, Policy, RoundView, TaskView, VersionView

__all__ = [
    "Client",
    "Code",
    "Examples",
    "FedlearnError",
    "FleetView",
    "NaturalIdPartitioner",
    "Outage",
    "Partitioner",
    "Policy",
    "Refusal",
    "RoundView",
    "SetupError",
    "Shard",
    "SubmittedTask",
    "Task",
    "TaskView",
    "UpdateFormat",
    "VersionView",
    "__version__",
    "aggregation",
    "as_examples",
    "codec",
    "connect",
    "cut_shards",
    "find_dataset",
    "make_partitioner",
    "read_shard",
    "write_shard",
]

__version__ = "0.1.0"

_ROOMS = {
    "fedlearn.client": ("Client", "SubmittedTask", "connect"),
    "fedlearn.core.errors": ("Code", "FedlearnError", "Outage", "Refusal", "SetupError"),
    "fedlearn.core.learning": ("Examples", "Shard"),
    "fedlearn.data.datasets": ("find_dataset",),
    "fedlearn.data.partitioners": ("NaturalIdPartitioner", "Partitioner", "make_partitioner"),
    "fedlearn.data.shards": ("as_examples", "cut_shards", "read_shard", "write_shard"),
    "fedlearn.learning.tasks": ("Task",),
    "fedlearn.protocol.aggregations": ("aggregation",),
    "fedlearn.protocol.plans": ("UpdateFormat", "codec"),
    "fedlearn.protocol.views": ("FleetView", "Policy", "RoundView", "TaskView", "VersionView"),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}
_THERE = {"aggregation": "name_aggregation", "codec": "name_codec", "cut_shards": "cut", "find_dataset": "find"}
"""Names that need their room to be understood are longer here."""


def __getattr__(name: str) -> Any:
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'fedlearn' has no attribute {name!r}")
    value = getattr(import_module(_ROOM_OF[name]), _THERE.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
