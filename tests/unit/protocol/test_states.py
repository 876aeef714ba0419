"""A server optimizer's state as a file: safetensors' own bytes, read and written where they lie."""

import numpy as np
import pytest
from safetensors.numpy import load, save

from fedlearn.core.errors import Code, Refusal
from fedlearn.protocol.states import StateFile
from support.world import small_plan

PLAN = small_plan()
NAMES = [("first_moment",), ("first_moment", "second_moment"), ("second_moment", "first_moment")]


def vectors_of(names: tuple[str, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {name: rng.normal(size=PLAN.parameters).astype(np.float32) for name in names}


def written(names: tuple[str, ...]) -> StateFile:
    file, vectors = StateFile(PLAN, names), vectors_of(names)
    for start in range(0, PLAN.parameters, 1000):
        part = slice(start, start + 1000)
        file.write(part, {name: vector[part] for name, vector in vectors.items()})
    return file


@pytest.mark.parametrize("names", NAMES, ids=" ".join)
def test_its_bytes_are_those_that_safetensors_writes(names: tuple[str, ...]) -> None:
    body = bytes(written(names).finish())
    assert body == save(vectors_of(names)), "so that a state which an earlier release has written is still read"
    assert {name: vector.tobytes() for name, vector in load(body).items()} == {
        name: vector.tobytes() for name, vector in vectors_of(names).items()
    }


@pytest.mark.parametrize("names", NAMES, ids=" ".join)
def test_what_was_written_is_read_without_a_copy(names: tuple[str, ...]) -> None:
    body, file = written(names).finish(), StateFile(PLAN, names)
    file.memory[:] = body
    for name, vector in file.read().items():
        np.testing.assert_array_equal(vector, vectors_of(names)[name])
        assert np.shares_memory(vector, np.frombuffer(file.memory, np.uint8))
        assert vector.flags.aligned


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(save({"first_moment": np.zeros(PLAN.parameters, np.int32)}), id="another dtype"),
        pytest.param(save({"other_moments": np.zeros(PLAN.parameters, np.float32)}), id="another name"),
        pytest.param(save({"first_moment": np.zeros(PLAN.parameters - 1, np.float32)}), id="another shape"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_a_file_of_something_else_is_refused(body: bytes) -> None:
    file = StateFile(PLAN, ("first_moment",))
    length = min(len(body), len(file.memory))
    file.memory[:] = bytes(len(file.memory))
    file.memory[:length] = body[:length]
    with pytest.raises(Refusal) as refusal:
        file.read()
    assert refusal.value.code is Code.MODEL_MISMATCH
