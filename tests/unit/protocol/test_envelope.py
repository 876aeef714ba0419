import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlearn.core.errors import Code, Refusal
from fedlearn.core.ids import RoundId, TaskId
from fedlearn.core.updates import Update, check_claims
from fedlearn.protocol.envelope import (
    UpdateContext,
    digest_of,
    layout_of,
    open_envelope,
    open_metadata,
    open_update,
    read_header,
    seal,
)
from fedlearn.protocol.plans import Plan, TensorSpec, read_plan
from fedlearn.protocol.sealing import SealingKey
from fedlearn.protocol.windows import seal_vector


@pytest.fixture(scope="module")
def blob(update: Update, key: SealingKey, context: UpdateContext, plan: Plan) -> bytes:
    return seal(update, key=key.public, context=context, format=plan.update)


def test_how_updates_of_a_plan_are_cut_is_worked_out_once(plan: Plan) -> None:
    assert layout_of(plan) is layout_of(read_plan(plan.canonical))


class TestRoundTrips:
    def test_an_update_comes_back_as_it_was(
        self, blob: bytes, update: Update, key: SealingKey, context: UpdateContext, plan: Plan
    ) -> None:
        again = open_update(blob, key=key, context=context, plan=plan)
        np.testing.assert_array_equal(again.delta, update.delta)
        assert replace(again, delta=update.delta) == update
        check_claims(again, max_examples=plan.max_examples, figures=plan.figures)

    def test_float16_takes_half_the_bytes_and_rounds(
        self, update: Update, blob: bytes, key: SealingKey, context: UpdateContext, make_plan: Callable[..., Plan]
    ) -> None:
        plan = make_plan("float16")
        half = seal(update, key=key.public, context=context, format=plan.update)
        assert len(blob) - len(half) == 2 * plan.parameters
        again = open_update(half, key=key, context=context, plan=plan)
        assert again.delta.dtype == np.float32
        np.testing.assert_allclose(again.delta, update.delta, rtol=2**-11, atol=2**-25)
        check_claims(again, max_examples=plan.max_examples, figures=plan.figures)

    def test_no_envelope_is_longer_than_the_plan_says(self, blob: bytes, plan: Plan) -> None:
        assert len(blob) <= layout_of(plan).max_bytes

    def test_one_buffer_serves_update_after_update(
        self, blob: bytes, update: Update, key: SealingKey, context: UpdateContext, plan: Plan
    ) -> None:
        buffer = np.empty(plan.parameters, np.float32)
        for sign in (1, -1):
            one = seal(replace(update, delta=sign * update.delta), key=key.public, context=context, format=plan.update)
            again = open_update(one, key=key, context=context, plan=plan, out=buffer)
            assert again.delta is buffer
            np.testing.assert_array_equal(buffer, sign * update.delta)

    def test_an_envelope_is_known_by_its_header(
        self, blob: bytes, update: Update, key: SealingKey, context: UpdateContext, plan: Plan
    ) -> None:
        digest, layout = digest_of(blob), layout_of(plan)
        assert digest == hashlib.sha256(blob[: layout.header_bytes]).hexdigest()
        assert digest == read_header(blob, layout, digest).digest.hex()
        np.testing.assert_array_equal(open_update(blob, key=key, context=context, plan=plan, digest=digest).delta, update.delta)
        other = seal(update, key=key.public, context=context, format=plan.update)
        assert digest_of(other) != digest, "each envelope has a content key of its own"
        for refused in (
            lambda: open_update(other, key=key, context=context, plan=plan, digest=digest),
            lambda: read_header(other, layout, digest),
        ):
            with pytest.raises(Refusal) as caught:
                refused()
            assert caught.value.code is Code.UPDATE_DIGEST

    def test_what_begins_with_no_whole_header_has_no_digest(self, blob: bytes, plan: Plan) -> None:
        nothing = bytearray(blob)
        nothing[12:16] = bytes(4)  # windows of no coordinate
        for wrong in (b"", blob[:43], blob[: layout_of(plan).header_bytes - 1], b"x" + blob[1:], bytes(nothing)):
            with pytest.raises(Refusal) as caught:
                digest_of(wrong)
            assert caught.value.code is Code.UPDATE_MALFORMED

    def test_a_window_of_an_envelope_is_read_by_ranges(
        self, blob: bytes, update: Update, key: SealingKey, context: UpdateContext, plan: Plan
    ) -> None:
        layout = layout_of(plan)
        header = read_header(blob[: layout.header_bytes], layout)
        opening = open_envelope(header, key=key, context=context)
        start, length = header.span(0)
        assert open_metadata(opening, blob[start : start + length], context).examples == update.examples
        start, length = header.span(2)
        out = np.empty(len(layout.elements(2)), np.float32)
        opening.window(2, blob[start : start + length], out)
        np.testing.assert_array_equal(out, update.delta[1024:2048])

    @given(
        examples=st.integers(0, 2**53),
        holdout=st.integers(0, 2**53),
        metrics=st.dictionaries(
            st.text(min_size=1, max_size=100), st.floats(allow_nan=False, allow_infinity=False), max_size=20
        ),
    )
    def test_whatever_an_update_says_of_itself_comes_back(self, examples: int, holdout: int, metrics: dict[str, float]) -> None:
        update = Update(np.ones(3, np.float32), examples, holdout, metrics)
        again = open_update(sealed(update), key=KEY, context=CONTEXT, plan=PLAN)
        assert (again.examples, again.holdout_examples, again.metrics) == (examples, holdout, metrics)


KEY = SealingKey.generate(RoundId(TaskId("mnist"), 7))
PLAN = Plan(dataset="mnist", architecture={}, weights=(TensorSpec(shape=(3,)),))
CONTEXT = UpdateContext("mnist", 7, "fedlearn-device-0/3", PLAN.digest, "b" * 64)


def sealed(update: Update) -> bytes:
    return seal(update, key=KEY.public, context=CONTEXT, format=PLAN.update)


def sealed_saying(metadata: bytes) -> bytes:
    """An envelope whose every tag is good, with these bytes as its metadata."""
    return seal_vector(np.ones(3, np.float32), metadata, key=KEY.public, info=CONTEXT.info, layout=layout_of(PLAN))


class TestOtherContexts:
    @pytest.mark.parametrize(
        "other",
        [
            pytest.param({"device": "fedlearn-device-0/4"}, id="another slot"),
            pytest.param({"device": "fedlearn-device-0"}, id="no slot"),
            pytest.param({"round": 8}, id="another round"),
            pytest.param({"task": "fashion"}, id="another task"),
            pytest.param({"plan_digest": "0" * 64}, id="another plan"),
            pytest.param({"base_sha256": "0" * 64}, id="another base"),
        ],
    )
    def test_an_update_opens_in_its_own_context_only(
        self, blob: bytes, key: SealingKey, context: UpdateContext, plan: Plan, other: dict[str, Any]
    ) -> None:
        with pytest.raises(Refusal) as refusal:
            open_update(blob, key=key, context=replace(context, **other), plan=plan)
        assert refusal.value.code is Code.UPDATE_TAMPERED

    def test_no_two_contexts_have_the_same_info(self) -> None:
        """Fields that run into one another would let one device's update pass for another's."""
        one = UpdateContext("a", 1, 'b","plan":"c', "d", "e")
        two = UpdateContext("a", 1, "b", 'c","x":"d', "e")
        assert one.info != two.info

    def test_another_rounds_key_does_not_open_it(self, blob: bytes, context: UpdateContext, plan: Plan) -> None:
        with pytest.raises(Refusal) as refusal:
            open_update(blob, key=KEY, context=context, plan=plan)
        assert refusal.value.code is Code.UPDATE_TAMPERED


class TestOtherPlans:
    @pytest.mark.parametrize(
        ("form", "code"),
        [
            pytest.param({"update": {"encoding": "float16"}}, Code.UPDATE_DTYPE, id="another encoding"),
            pytest.param({"update": {"window_elements": 2048}}, Code.UPDATE_SHAPE, id="other windows"),
            pytest.param({"weights": [{"shape": [2]}]}, Code.UPDATE_TOO_LARGE, id="a smaller model"),
            pytest.param({"weights": [{"shape": [4]}]}, Code.UPDATE_SHAPE, id="a larger model"),
        ],
    )
    def test_an_update_of_another_form_is_refused(self, form: dict[str, Any], code: Code) -> None:
        blob = sealed(Update(np.ones(3, np.float32), 5))
        assert open_update(blob, key=KEY, context=CONTEXT, plan=PLAN).examples == 5
        with pytest.raises(Refusal) as refusal:
            open_update(blob, key=KEY, context=CONTEXT, plan=Plan.model_validate({**PLAN.model_dump(), **form}))
        assert refusal.value.code is code


class TestMetadata:
    GOOD = {"base": "b" * 64, "examples": 5, "holdout_examples": 2, "metrics": {"loss": 0.5}}  # noqa: RUF012

    def test_the_metadata_are_the_documented_json(self) -> None:
        again = open_update(sealed_saying(json.dumps(self.GOOD).encode()), key=KEY, context=CONTEXT, plan=PLAN)
        assert (again.examples, again.holdout_examples, again.metrics) == (5, 2, {"loss": 0.5})

    def test_an_update_of_another_base_is_refused_as_such(self) -> None:
        blob = sealed_saying(json.dumps({**self.GOOD, "base": "c" * 64}).encode())
        with pytest.raises(Refusal) as refusal:
            open_update(blob, key=KEY, context=CONTEXT, plan=PLAN)
        assert refusal.value.code is Code.UPDATE_BASE

    @pytest.mark.parametrize(
        "changes",
        [
            pytest.param({"examples": -1}, id="negative examples"),
            pytest.param({"examples": 1.5}, id="examples in halves"),
            pytest.param({"examples": True}, id="a truth for a number"),
            pytest.param({"examples": "5"}, id="a text for a number"),
            pytest.param({"examples": 10**400}, id="absurdly many examples"),
            pytest.param({"examples": None}, id="no examples"),
            pytest.param({"holdout_examples": -1}, id="negative hold-out"),
            pytest.param({"metrics": {"loss": "low"}}, id="a metric in words"),
            pytest.param({"metrics": {"": 1.0}}, id="a metric without a name"),
            pytest.param({"metrics": {"x" * 101: 1.0}}, id="a long name"),
            pytest.param({"metrics": {str(i): 1.0 for i in range(101)}}, id="too many metrics"),
            pytest.param({"metrics": [1.0]}, id="a list of metrics"),
            pytest.param({"base": "B" * 64}, id="no digest"),
            pytest.param({"weight": 100}, id="a field too many"),
        ],
    )
    def test_other_metadata_are_refused(self, changes: dict[str, Any]) -> None:
        with pytest.raises(Refusal) as refusal:
            open_update(sealed_saying(json.dumps({**self.GOOD, **changes}).encode()), key=KEY, context=CONTEXT, plan=PLAN)
        assert refusal.value.code is Code.UPDATE_MALFORMED

    @pytest.mark.parametrize(
        "raw", [b"", b"null", b"[]", b"{", b"\xff", b"[" * 60_000, b"1" * 60_000], ids=lambda raw: repr(raw[:4])
    )
    def test_metadata_that_are_no_object_are_refused(self, raw: bytes) -> None:
        with pytest.raises(Refusal) as refusal:
            open_update(sealed_saying(raw), key=KEY, context=CONTEXT, plan=PLAN)
        assert refusal.value.code is Code.UPDATE_MALFORMED

    @given(st.binary(max_size=1500) | st.text(max_size=300).map(str.encode))
    def test_random_metadata_are_refused_and_nothing_else(self, raw: bytes) -> None:
        with pytest.raises(Refusal):
            open_update(sealed_saying(raw), key=KEY, context=CONTEXT, plan=PLAN)

    @pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
    def test_a_metric_that_is_not_finite_gets_no_further_than_the_validation(self, value: str) -> None:
        blob = sealed_saying(json.dumps(self.GOOD).replace("0.5", value).encode())
        with pytest.raises(Refusal) as refusal:
            check_claims(open_update(blob, key=KEY, context=CONTEXT, plan=PLAN), max_examples=10, figures=PLAN.figures)
        assert refusal.value.code is Code.UPDATE_NOT_FINITE


class TestWhatIsNotSealed:
    @pytest.mark.parametrize(
        ("changes", "code"),
        [
            pytest.param({"metrics": {"loss": float("nan")}}, Code.UPDATE_NOT_FINITE, id="NaN"),
            pytest.param({"metrics": {"loss": float("inf")}}, Code.UPDATE_NOT_FINITE, id="infinity"),
            pytest.param({"metrics": {str(i): 1.0 for i in range(101)}}, Code.UPDATE_MALFORMED, id="too many metrics"),
            pytest.param({"examples": -1}, Code.UPDATE_MALFORMED, id="negative examples"),
            pytest.param({"delta": np.ones(3)}, Code.UPDATE_DTYPE, id="float64"),
            pytest.param({"delta": np.ones((3, 1), np.float32)}, Code.UPDATE_SHAPE, id="not flat"),
        ],
    )
    def test_what_no_aggregator_would_take_is_refused_at_once(self, changes: dict[str, Any], code: Code) -> None:
        update = Update(np.ones(3, np.float32), 5, 2, {"loss": 0.5})
        with pytest.raises(Refusal) as refusal:
            sealed(replace(update, **changes))
        assert refusal.value.code is code

    def test_metrics_of_numpy_are_numbers_too(self) -> None:
        update = Update(np.ones(3, np.float32), 5, 2, {"loss": np.float32(0.5)})
        assert open_update(sealed(update), key=KEY, context=CONTEXT, plan=PLAN).metrics == {"loss": 0.5}
