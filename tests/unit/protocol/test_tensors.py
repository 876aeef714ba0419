import json
import struct
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load

from fedlearn.core.errors import Code, Refusal
from fedlearn.protocol.plans import Plan, TensorSpec
from fedlearn.protocol.tensors import (
    ModelFile,
    check_header,
    decode_model,
    decode_vector,
    difference,
    encode_model,
    flatten,
    header_bytes,
    tensor_name,
    unflatten,
)


def weights_of(plan: Plan) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.normal(size=spec.shape).astype(np.float32).reshape(spec.shape) for spec in plan.weights]


def with_header(header: object, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def header_of(body: bytes) -> tuple[dict[str, object], bytes]:
    (length,) = struct.unpack_from("<Q", body)
    return json.loads(body[8 : 8 + length]), body[8 + length :]


def test_a_model_comes_back_as_it_was(plan: Plan) -> None:
    weights = weights_of(plan)
    for weight, again in zip(weights, decode_model(encode_model(weights, plan), plan), strict=True):
        assert again.shape == weight.shape
        assert again.dtype == np.float32
        np.testing.assert_array_equal(again, weight)


def test_decoding_copies_nothing(plan: Plan) -> None:
    body = encode_model(weights_of(plan), plan)
    whole = np.frombuffer(body, np.uint8)
    assert all(np.shares_memory(weight, whole) for weight in decode_model(body, plan))
    assert np.shares_memory(decode_vector(body, plan), whole)


def test_the_file_is_one_that_safetensors_reads(plan: Plan) -> None:
    weights = weights_of(plan)
    tensors = load(encode_model(weights, plan))
    assert sorted(tensors) == [tensor_name(index) for index in range(len(weights))]
    for index, weight in enumerate(weights):
        np.testing.assert_array_equal(tensors[tensor_name(index)], weight)


def test_the_files_data_are_the_flat_vector(plan: Plan) -> None:
    weights = weights_of(plan)
    np.testing.assert_array_equal(decode_vector(encode_model(weights, plan), plan), flatten(weights))


def test_more_than_ten_weights_keep_their_order(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(shapes=((2,),) * 120)
    weights = [np.full(2, index, np.float32) for index in range(120)]
    assert [weight[0] for weight in decode_model(encode_model(weights, plan), plan)] == list(range(120))


def test_the_same_weights_give_the_same_bytes(plan: Plan) -> None:
    assert encode_model(weights_of(plan), plan) == encode_model(weights_of(plan), plan)


@pytest.mark.parametrize("state", [None, "a" * 64], ids=["no state", "a state"])
def test_a_file_whose_weights_are_written_where_they_lie_has_the_same_bytes(plan: Plan, state: str | None) -> None:
    vector = flatten(weights_of(plan))
    file = ModelFile(plan, stateful=state is not None)
    file.weights[:] = vector
    assert file.finish(state) == encode_model(unflatten(vector, plan), plan, state)


def test_weights_that_are_not_contiguous_are_stored_in_their_order(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(shapes=((3, 2),))
    weight = np.arange(6, dtype=np.float32).reshape(2, 3).T
    np.testing.assert_array_equal(decode_model(encode_model([weight], plan), plan)[0], weight)


def test_empty_weights_are_weights_too(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(shapes=((0, 4), (3,), (0,)))
    weights = [np.empty((0, 4), np.float32), np.ones(3, np.float32), np.empty(0, np.float32)]
    assert [w.shape for w in decode_model(encode_model(weights, plan), plan)] == [(0, 4), (3,), (0,)]


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda w: w[:-1], id="one too few"),
        pytest.param(lambda w: [*w, w[0]], id="one too many"),
        pytest.param(lambda w: [w[0].T, *w[1:]], id="another shape"),
        pytest.param(lambda w: [w[0].astype(np.float64), *w[1:]], id="another dtype"),
        pytest.param(lambda w: [w[0].astype(">f4"), *w[1:]], id="another byte order"),
    ],
)
def test_weights_that_do_not_fit_the_plan_are_not_encoded(plan: Plan, spoil: Callable[..., list[np.ndarray]]) -> None:
    with pytest.raises(Refusal) as refusal:
        encode_model(spoil(weights_of(plan)), plan)
    assert refusal.value.code is Code.MODEL_MISMATCH


def rename(header: dict[str, object]) -> dict[str, object]:
    return {name.replace("00001", "1"): entry for name, entry in header.items()}


def change(name: str, **fields: object) -> Callable[[dict[str, object]], dict[str, object]]:
    return lambda header: {**header, name: {**header[name], **fields}}


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda h: {k: v for k, v in h.items() if k != "00002"}, id="a tensor is missing"),
        pytest.param(lambda h: {**h, "00009": h["00000"]}, id="a tensor too many"),
        pytest.param(rename, id="another name"),
        pytest.param(change("00000", shape=[50, 30]), id="another shape"),
        pytest.param(change("00000", dtype="I32"), id="another dtype"),
        pytest.param(change("00001", data_offsets=[0, 200]), id="overlapping offsets"),
        pytest.param(change("00001", data_offsets=[6000, 6196]), id="too short"),
        pytest.param(change("00001", data_offsets=[-200, 0]), id="negative offsets"),
        pytest.param(change("00001", data_offsets="here"), id="offsets that are none"),
        pytest.param(lambda h: {**h, "00001": None}, id="a tensor that is none"),
        pytest.param(lambda h: {**h, "__metadata__": {"plan": "0" * 64}}, id="another plan"),
        pytest.param(lambda h: {k: v for k, v in h.items() if k != "__metadata__"}, id="no plan"),
        pytest.param(lambda h: {**h, "__metadata__": []}, id="metadata that are none"),
        pytest.param(list, id="a list"),
        pytest.param(lambda _: b"{", id="no JSON"),
        pytest.param(lambda _: b"\xff\xfe", id="no text"),
        pytest.param(lambda _: b"[" * 700, id="a deep nest"),
    ],
)
def test_a_file_of_another_form_is_refused(plan: Plan, spoil: Callable[..., object]) -> None:
    header, data = header_of(encode_model(weights_of(plan), plan))
    assert decode_model(with_header(header, data), plan), "the file as it was is good"
    with pytest.raises(Refusal) as refusal:
        decode_model(with_header(spoil(header), data), plan)
    assert refusal.value.code is Code.MODEL_MISMATCH


def test_a_file_of_a_plan_that_differs_in_its_training_alone_is_refused(plan: Plan) -> None:
    body = encode_model(weights_of(plan), plan)
    other = Plan.model_validate({**plan.model_dump(), "max_examples": 5})
    with pytest.raises(Refusal, match="digest"):
        decode_model(body, other)


def test_a_file_that_is_cut_off_or_goes_on_is_refused(plan: Plan) -> None:
    body = encode_model(weights_of(plan), plan)
    for length in [*range(400), *range(400, len(body), 97), len(body) - 1]:
        with pytest.raises(Refusal) as refusal:
            decode_model(body[:length], plan)
        assert refusal.value.code is Code.MODEL_MISMATCH
    with pytest.raises(Refusal):
        decode_model(body + b"\0", plan)


def test_a_header_that_claims_to_be_huge_is_refused_unread(plan: Plan) -> None:
    with pytest.raises(Refusal, match="claims"):
        check_header(struct.pack("<Q", 2**60) + b" " * 100, 2**61, plan)


def test_the_header_alone_tells_whether_a_file_fits(plan: Plan) -> None:
    body = encode_model(weights_of(plan), plan)
    start = check_header(body[: header_bytes(plan)], len(body), plan)
    assert len(body) - start == 4 * plan.parameters
    with pytest.raises(Refusal):
        check_header(body[: header_bytes(plan)], len(body) - 4, plan)


@pytest.mark.parametrize("count", [1, 9, 10, 1000], ids=str)
def test_header_bytes_are_enough_for_any_number_of_weights(make_plan: Callable[..., Plan], count: int) -> None:
    plan = make_plan(shapes=((1, 1, 1, 1, 1, 1, 1, 1),) * count)
    body = encode_model(weights_of(plan), plan)
    check_header(body[: header_bytes(plan)], len(body), plan)


def test_header_bytes_are_enough_for_the_largest_numbers(make_plan: Callable[..., Plan]) -> None:
    shapes = ((499_999_999,), *((2**31, 2**31, 2**31, 2**31, 2**31, 2**31, 2**31, 0),) * 50)
    plan, size = make_plan(shapes=shapes), 4 * 499_999_999
    entries = {
        tensor_name(index): {"dtype": "F32", "shape": list(shape), "data_offsets": [0 if index == 0 else size, size]}
        for index, shape in enumerate(shapes)
    }
    prefix = with_header({"__metadata__": {"plan": plan.digest}, **entries}, b"")
    assert check_header(prefix[: header_bytes(plan)], len(prefix) + size, plan) == len(prefix)


def test_flatten_and_unflatten_undo_each_other(plan: Plan) -> None:
    vector = np.arange(plan.parameters, dtype=np.float32)
    weights = unflatten(vector, plan)
    assert [weight.shape for weight in weights] == [spec.shape for spec in plan.weights]
    assert all(np.shares_memory(weight, vector) for weight in weights)
    np.testing.assert_array_equal(flatten(weights), vector)


def test_a_vector_of_another_length_is_not_unflattened(plan: Plan) -> None:
    with pytest.raises(Refusal) as refusal:
        unflatten(np.zeros(plan.parameters + 1, np.float32), plan)
    assert refusal.value.code is Code.MODEL_MISMATCH


_PLAN = Plan(dataset="mnist", architecture={}, weights=(TensorSpec(shape=(3,)),))
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["__metadata__", "00000", "x"]), inner, max_size=3)
    ),
)


@given(st.binary(max_size=300))
def test_random_bytes_are_refused_and_nothing_else(body: bytes) -> None:
    with pytest.raises(Refusal):
        decode_model(body, _PLAN)


@given(_json, st.binary(max_size=20))
def test_random_headers_are_refused_and_nothing_else(header: object, data: bytes) -> None:
    with pytest.raises(Refusal):
        decode_model(with_header(header, data), _PLAN)


def test_a_copy_in_float16_is_half_as_large_and_is_read_as_float32(plan: Plan) -> None:
    weights = weights_of(plan)
    body = encode_model(weights, plan, encoding="float16")
    assert len(body) < len(encode_model(weights, plan)) * 0.6
    again = decode_model(body, plan, "float16")
    for weight, found, plain in zip(weights, again, load(body).values(), strict=True):
        assert found.dtype == np.float32
        assert plain.dtype == np.float16
        np.testing.assert_array_equal(found, weight.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize(("written", "read"), [("float32", "float16"), ("float16", "float32")])
def test_a_model_in_another_encoding_than_is_due_is_refused(plan: Plan, written: str, read: str) -> None:
    body = encode_model(weights_of(plan), plan, encoding=written)  # type: ignore[arg-type]
    with pytest.raises(Refusal) as refusal:
        decode_model(body, plan, read)  # type: ignore[arg-type]
    assert refusal.value.code is Code.MODEL_MISMATCH


def test_a_weight_beyond_float16_is_refused_and_not_made_infinite(plan: Plan) -> None:
    weights = weights_of(plan)
    weights[0].reshape(-1)[0] = 70_000
    with pytest.raises(Refusal) as refusal:
        encode_model(weights, plan, encoding="float16")
    assert refusal.value.code is Code.MODEL_MISMATCH


def test_a_difference_is_what_is_left_of_two_models(plan: Plan) -> None:
    weights, base = weights_of(plan), [weight * 0.5 for weight in weights_of(plan)]
    np.testing.assert_array_equal(difference(weights, base), flatten(weights) - flatten(base))
