"""What the keys and the descriptors in storage say, whoever has written them."""

import pytest

from fedlearn.adapters.memory import MemoryObjectStore
from fedlearn.aggregator.layout import descriptor_key, read_round, update_key
from fedlearn.core.errors import Code, Refusal
from fedlearn.core.ids import DeviceId, RoundId, TaskId
from support.sealed import SealedRound


@pytest.mark.parametrize("number", [1, 7, 10**8, 2**31])
def test_the_round_is_read_from_the_keys_of_its_things(number: int) -> None:
    round_id = RoundId(TaskId("a-task"), number)
    for key in (descriptor_key(round_id), update_key(round_id, DeviceId("pod/0"), "0" * 64)):
        assert read_round(key) == round_id


@pytest.mark.parametrize(
    "key",
    ["", "ready", "t/00000001", "x/²/y", "x/0000000\u0667/y", "x/7/y", "x/-0000007/y", "/00000007/y", "x/" + "9" * 5000 + "/y"],
)
def test_a_key_that_no_round_has_is_of_none(key: str) -> None:
    assert read_round(key) is None


@pytest.mark.parametrize("damaged", ["a", "not base64!", "schlüssel"])
def test_a_wrapped_key_that_is_no_base64_is_lost(damaged: str) -> None:
    descriptor = SealedRound(MemoryObjectStore()).descriptor.model_copy(update={"wrapped_key": damaged})
    with pytest.raises(Refusal) as refusal:
        _ = descriptor.wrapped_key_bytes
    assert refusal.value.code is Code.AGGREGATOR_KEY_LOST
