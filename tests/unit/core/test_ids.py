import pytest

from fedlearn.core.errors import Refusal
from fedlearn.core.ids import RoundId, TaskId, device_id, is_digest, task_id


def test_a_device_is_its_pod_or_a_slot_of_it() -> None:
    assert device_id("fedlearn-device-0") == "fedlearn-device-0"
    assert device_id("fedlearn-device-0", 3) == "fedlearn-device-0/3"


@pytest.mark.parametrize("pod", ["", "Upper", "a/b", "../x", "-a", "a" * 254], ids=repr)
def test_what_is_no_pods_name_names_no_device(pod: str) -> None:
    with pytest.raises(Refusal):
        device_id(pod)


@pytest.mark.parametrize("slot", [-1, 4096])
def test_a_slot_out_of_range_names_no_device(slot: int) -> None:
    with pytest.raises(Refusal):
        device_id("a", slot)


@pytest.mark.parametrize("name", ["", "a_b", "a/b", "..", "-a", "a-", "a" * 64], ids=repr)
def test_a_task_is_named_as_a_dns_label_is(name: str) -> None:
    with pytest.raises(Refusal):
        task_id(name)
    assert task_id("mnist-2nn") == "mnist-2nn"


def test_rounds_are_ordered_by_number() -> None:
    assert RoundId(TaskId("t"), 9) < RoundId(TaskId("t"), 10)


@pytest.mark.parametrize(("text", "is_one"), [("0" * 64, True), ("A" * 64, False), ("0" * 63, False), ("0" * 64 + "\n", False)])
def test_a_digest_is_64_lower_case_hexadecimal_digits(text: str, is_one: bool) -> None:
    assert is_digest(text) is is_one
