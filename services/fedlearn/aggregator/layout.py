"""Where a round's things lie in object storage.

Everything of a round stands below one prefix of the updates bucket, so that what the storage holds is enough to go on after a
crash, and one listing is enough to sweep.
"""

import base64
import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from fedlearn.core.errors import Code, Refusal
from fedlearn.core.ids import MAX_AGGREGATORS, DeviceId, RoundId, TaskId, is_digest
from fedlearn.protocol.messages import Digest, Model, RoundNumber, TaskName

_ROUND = re.compile("([^/]+)/([0-9]{8,10})/")  # as `round_prefix` writes it


class Descriptor(BaseModel):
    """`round.json`: all that the aggregator needs to take part in a round, in a later process as well.

    Args:
        aggregators: how many share the round; each takes the updates of the devices whose `shard_of` is its number.
        wrapped_key: the round's private sealing key, wrapped under the aggregator's identity; deleting it closes the round's
            updates for ever.
        served: the file that devices begin with, and whose digest their updates name; None for the base itself.
    """

    model_config = ConfigDict(frozen=True)

    version: int = 1
    task: TaskName
    round: RoundNumber
    plan: dict[str, Any]
    base: Model
    served: Model | None = None
    aggregators: Annotated[int, Field(ge=1, le=MAX_AGGREGATORS)] = 1
    kid: str
    wrapped_key: Annotated[str, Field(description="base64")]

    @property
    def id(self) -> RoundId:
        return RoundId(TaskId(self.task), self.round)

    @property
    def start(self) -> Model:
        """What devices begin with."""
        return self.served or self.base

    @property
    def wrapped_key_bytes(self) -> bytes:
        """Raises:
        Refusal: `aggregator_key_lost` when it is no base64.
        """
        try:
            return base64.b64decode(self.wrapped_key, validate=True)
        except ValueError as error:
            raise Refusal(Code.AGGREGATOR_KEY_LOST, f"The descriptor of round {self.id} is damaged.") from error


class CloseRecord(BaseModel):
    """`closed.json`, written once: whose updates, by digest, make up the round's result."""

    model_config = ConfigDict(frozen=True)

    version: int = 1
    contributors: dict[DeviceId, Digest]


def round_prefix(round_id: RoundId) -> str:
    return f"{round_id.task}/{round_id.number:08d}/"


def descriptor_key(round_id: RoundId) -> str:
    return round_prefix(round_id) + "round.json"


def close_key(round_id: RoundId) -> str:
    return round_prefix(round_id) + "closed.json"


def updates_prefix(round_id: RoundId) -> str:
    return round_prefix(round_id) + "updates/"


def partials_prefix(round_id: RoundId, shard: int) -> str:
    return f"{round_prefix(round_id)}partials/{shard}/"


def manifest_key(round_id: RoundId, shard: int, number: int) -> str:
    """The key of the manifest of an aggregator's partial sum `number`, from 1; `shard` is which of the round's it is."""
    return f"{partials_prefix(round_id, shard)}{number:08d}.json"


def sum_key(round_id: RoundId, shard: int, number: int, manifest: str, part: int) -> str:
    """The key of one part of that sum; it carries the digest of its manifest, so that two of one number never mix."""
    return f"{partials_prefix(round_id, shard)}{number:08d}-{manifest}/{part:04d}"


def update_key(round_id: RoundId, device: DeviceId, digest: str) -> str:
    """The key of a device's update; it carries the digest, so another update never takes its place."""
    return f"{updates_prefix(round_id)}{device}/{digest}"


def model_key(task: TaskId, number: int, sha256: str) -> str:
    """The key of the model that round `number` publishes (0: what the submitter uploads)."""
    return f"{task}/models/{number:08d}-{sha256}.safetensors"


def served_key(base: str) -> str:
    """The key of a model's copy in float16."""
    return f"{base.removesuffix('.safetensors')}.float16.safetensors"


def state_key(task: TaskId, sha256: str) -> str:
    """The key of a server optimizer's state; the model file that it belongs to names this digest."""
    return f"{task}/states/{sha256}.safetensors"


def read_round(key: str) -> RoundId | None:
    """The round whose thing lies under this key, None for a foreign key."""
    found = _ROUND.match(key)
    return None if found is None else RoundId(TaskId(found[1]), int(found[2]))


def read_update(round_id: RoundId, key: str) -> tuple[DeviceId, str]:
    """The device and the digest in an update's key.

    Raises:
        Refusal: `update_foreign` for a key that is none of this round's updates.
    """
    device, _, digest = key.removeprefix(updates_prefix(round_id)).rpartition("/")
    if not key.startswith(updates_prefix(round_id)) or not device or not is_digest(digest):
        raise Refusal(Code.UPDATE_FOREIGN, f"{key!r} is no update of round {round_id}.")
    return DeviceId(device), digest
