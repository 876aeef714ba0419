"""int8 is added as it is encoded: to the bits of decoding first, in a quarter of the memory, and as strict about what comes."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fedlearn.adapters.memory import MemoryObjectStore
from fedlearn.aggregator import folding as folding_module
from fedlearn.aggregator import forms
from fedlearn.aggregator.folding import Folding
from fedlearn.aggregator.forms import Decoded, Encoded, Form, form_of
from fedlearn.core.errors import Code, Refusal
from fedlearn.core.ids import DeviceId
from fedlearn.protocol import codecs
from fedlearn.protocol.headers import TAG_BYTES
from fedlearn.protocol.plans import Plan
from support.sealed import SealedRound, updates_of, weighted_mean
from support.world import random_update, small_plan

WINDOW = 1 << 12
EXACT = {
    "nothing exact": (),
    "exact values in several windows": ((0, 3), (100, 101), (WINDOW - 5, WINDOW + 9), (7_840, 7_850)),
}
DEVICE, OTHER = DeviceId("one"), DeviceId("other")


def int8_plan(exact: tuple[tuple[int, int], ...] = ()) -> Plan:
    """Two windows; the second is shorter, and its length is no multiple of four."""
    weights = [{"shape": [7_849]}, {"shape": [1]}]
    return small_plan(weights=weights, update={"encoding": "int8", "window_elements": WINDOW, "exact": exact})


@pytest.fixture(params=EXACT.values(), ids=EXACT.keys())
def sealed(request: pytest.FixtureRequest) -> SealedRound:
    return SealedRound(MemoryObjectStore(), plan=int8_plan(request.param))


def folded(sealed: SealedRound, digests: dict[DeviceId, str], form: type[Form] | None = None) -> Folding:
    folding = Folding(sealed.descriptor, sealed.plan, sealed.key, sealed.store)
    if form is not None:
        folding._form = form(sealed.plan)  # type: ignore[call-arg] - both are made of a plan
        folding._buffers.sizes = folding._buffers.sizes[0], folding._form.size_bytes
    for item in digests.items():
        folding.consider(*item)
    return folding


def test_the_sum_has_the_bits_that_decoding_first_gives(sealed: SealedRound, both: Iterator[None]) -> None:
    updates = updates_of(21)  # eight and eight at once, then four and one
    digests = {device: sealed.bring(device, update) for device, update in updates.items()}
    sums = []
    for _ in both:
        for form in (Encoded, Decoded):
            total = folded(sealed, digests, form).total(digests)
            sums.append(total.mean().tobytes())
            assert total.examples == sum(update.examples for update in updates.values())
    assert len(set(sums)) == 1
    mean = np.frombuffer(sums[0])
    expected = sum(update.examples * update.delta.astype(np.float64) for update in updates.values()) / total.examples
    assert 0 < np.abs(mean - expected).max() < 0.04 / 127, "within the steps of int8"
    for start, stop in sealed.plan.update.exact:
        np.testing.assert_allclose(mean[start:stop], expected[start:stop], rtol=1e-12)


def test_windows_that_are_added_by_several_threads_give_the_same_bits(
    sealed: SealedRound, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = {device: sealed.bring(device, update) for device, update in updates_of(9).items()}
    alone = folded(sealed, digests).total(digests).mean()
    monkeypatch.setattr(folding_module, "_SPLIT_ELEMENTS", 1)
    with ThreadPoolExecutor(4) as threads:
        monkeypatch.setattr(folding_module, "_adders", threads)
        np.testing.assert_array_equal(folded(sealed, digests).total(digests).mean(), alone)


def test_a_plan_of_int8_takes_a_quarter_of_the_memory_and_all_others_what_float32_takes() -> None:
    plan = int8_plan()
    assert isinstance(form_of(plan), Encoded)
    assert plan.parameters < form_of(plan).size_bytes < 1.05 * plan.parameters
    for encoding in ({"encoding": "float16"}, {"encoding": "float32"}, {"encoding": "top_k", "keep_fraction": 0.1}):
        form = form_of(small_plan(update=encoding))
        assert isinstance(form, Decoded)
        assert form.size_bytes == 4 * small_plan().parameters + TAG_BYTES


def test_a_changed_byte_in_any_window_is_refused_and_leaves_the_sum_as_it_is(sealed: SealedRound) -> None:
    good = sealed.bring(DEVICE, random_update(sealed.plan, 1))
    body = sealed.seal(OTHER, random_update(sealed.plan, 2))
    before = folded(sealed, {DEVICE: good}).total({DEVICE: good}).mean()
    for at in (-1, -4000, -7000):
        changed = bytearray(body)
        changed[at] ^= 1
        folding = folded(sealed, {DEVICE: good})
        with pytest.raises(Refusal) as caught:
            folding.consider(OTHER, sealed.upload(OTHER, bytes(changed)))
        assert caught.value.code is Code.UPDATE_TAMPERED
        np.testing.assert_array_equal(folding.total({DEVICE: good}).mean(), before)


@pytest.mark.parametrize("where", ["a scale", "an exact value"])
def test_what_is_not_finite_is_refused(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sealed = SealedRound(MemoryObjectStore(), plan=int8_plan(((0, 3),)))

    def forge(raw: memoryview, most: int) -> bytes:
        floats = np.frombuffer(raw, np.uint8).copy()
        scales = 4 * -(-(WINDOW - 3) // 1024)
        floats[: scales + 12].view("<f4")[0 if where == "a scale" else scales // 4 + 1] = np.inf
        return pack(floats.data, most)

    pack = codecs._pack
    monkeypatch.setattr(codecs, "_pack", forge)
    digest = sealed.bring(DEVICE, random_update(sealed.plan, 1))
    with pytest.raises(Refusal) as caught:
        folded(sealed, {DEVICE: digest})
    assert caught.value.code is Code.UPDATE_NOT_FINITE


def test_places_of_windows_are_aligned_for_the_compiled_loops() -> None:
    form = Encoded(int8_plan(EXACT["exact values in several windows"]))
    assert all(place.start % forms._ALIGNED_BYTES == 0 for place in form._places)


@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "beside"])
def test_float32_is_read_where_it_waits_if_it_can_be_opened_there(in_place: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "OPENS_IN_PLACE", in_place)
    sealed = SealedRound(MemoryObjectStore(), plan=small_plan(update={"encoding": "float32", "window_elements": WINDOW}))
    form, updates = form_of(sealed.plan), updates_of(3)
    memory = np.empty(form.size_bytes, np.uint8)
    room = form.room(memory, 2, 4 * WINDOW)
    assert (room is not None) == in_place
    assert room is None or np.shares_memory(np.frombuffer(room, np.uint8), memory[4 * WINDOW :])
    digests = {device: sealed.bring(device, update) for device, update in updates.items()}
    np.testing.assert_allclose(folded(sealed, digests).total(digests).mean(), weighted_mean(updates), rtol=1e-12)
