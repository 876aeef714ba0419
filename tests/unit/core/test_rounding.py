"""int8's loops: without bias, never beyond a step or 127 of them, and the same bits compiled and by numpy."""

from collections.abc import Iterator
from ctypes import CDLL

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.core import kernels
from fedlearn.core.errors import Code, Refusal
from fedlearn.core.rounding import BLOCK, add_scaled, blocks, draw, round_blocks, scale_blocks

COUNTS = (0, 1, 2, 31, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK - 3, 33 * BLOCK + 5)
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


def vector(kind: str, count: int) -> np.ndarray:
    rng = np.random.default_rng(count)
    values = rng.normal(0, 0.05, count).astype(np.float32)
    if kind == "zeros":
        values[:] = 0
        values[::2] = -0.0
    elif kind == "denormal":
        values = (values * np.float32(1e-39)).astype(np.float32)
    elif kind == "huge":
        values = np.sign(values) * np.finfo(np.float32).max
    elif kind == "wide":
        values = (values * 10.0 ** rng.integers(-30, 30, count)).astype(np.float32)
    elif kind == "blocks of zeros":
        values[BLOCK : 3 * BLOCK] = 0
    return values


def rounded(values: np.ndarray, chances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scales, codes = np.full(blocks(len(values)), np.nan, np.float32), np.full(len(values), -128, np.int8)
    round_blocks(values, chances, scales, codes)
    return scales, codes


def back(scales: np.ndarray, codes: np.ndarray) -> np.ndarray:
    out = np.full(len(codes), np.nan, np.float32)
    scale_blocks(codes, scales, out)
    return out


@pytest.mark.parametrize("kind", ["plain", "zeros", "denormal", "huge", "wide", "blocks of zeros"])
def test_scales_codes_and_values_are_the_same_to_the_last_bit(both: Iterator[None], kind: str) -> None:
    found = []
    for _ in both:
        made = b""
        for count in COUNTS:
            scales, codes = rounded(vector(kind, count), draw(np.random.default_rng(1), count))
            made += scales.tobytes() + codes.tobytes() + back(scales, codes).tobytes()
        found.append(made)
    assert found[0] == found[1]


@pytest.mark.parametrize("first", [0, 1, BLOCK - 1, BLOCK, 3 * BLOCK + 7])
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 7, 8, 9, 15, 21])
def test_adding_in_steps_gives_the_bits_of_values_that_are_scaled_and_then_added(
    both: Iterator[None], rows: int, first: int
) -> None:
    rng = np.random.default_rng(rows)
    for count in COUNTS:
        codes = [rng.integers(-128, 128, count).astype(np.int8) for _ in range(rows)]
        scales = [rng.normal(0, 1, blocks(first + count)).astype(np.float32) ** 9 for _ in range(rows)]
        factors, start = rng.uniform(0.1, 10, rows), rng.normal(0, 1, count)
        values = [np.empty(count, np.float32) for _ in range(rows)]
        expected = start.copy()
        for value, mine, its, factor in zip(values, codes, scales, factors, strict=True):
            scale_blocks(mine, its, value, first)
            expected += factor * value.astype(np.float64)
        for _ in both:
            total = start.copy()
            add_scaled(total, codes, scales, list(factors), first)
            assert total.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("codes", "scales", "first"), [(5, 1, 0), (4, 0, 0), (4, 1, -1), (4, 1, BLOCK)], ids=["codes", "scales", "before", "beyond"]
)
def test_what_does_not_fit_is_not_added(both: Iterator[None], codes: int, scales: int, first: int) -> None:
    for _ in both:
        total = np.zeros(4)
        with pytest.raises(ValueError, match=r"fit|lengths"):
            add_scaled(total, [np.ones(codes, np.int8)], [np.ones(scales, np.float32)], [1.0], first)
        assert not total.any()


@settings(max_examples=200)
@given(st.lists(FINITE, max_size=40), st.lists(st.sampled_from([0, 1, 32767, 32768, 65535]), min_size=40, max_size=40))
def test_every_value_goes_to_one_of_the_steps_beside_it(library: CDLL, given_values: list[float], luck: list[int]) -> None:
    values, chances, found = np.array(given_values, np.float32), np.array(luck, np.uint16)[: len(given_values)], []
    for way in (library, None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kernels, "_library", way)
            scales, codes = rounded(values, chances)
        found.append(scales.tobytes() + codes.tobytes())
        step = scales.astype(np.float64).max(initial=0)
        assert np.abs(codes.astype(int)).max(initial=0) <= 127
        assert (np.abs(codes * step - values) <= 1.00001 * step).all()
    assert found[0] == found[1]


@pytest.mark.parametrize("place", [0.0, 1e-9, -1e-9, 0.25, 1 / 3, -1 / 3, 0.999999, 1, -7.7, 63.99999, 64.3, 126.4, -126.9999])
def test_the_mean_over_all_chances_is_the_value_itself(both: Iterator[None], place: float) -> None:
    """All 65,536 of them, so nothing here is left to chance."""
    values = np.full((65, BLOCK), place / 127, np.float32)
    values[:, 0] = 1
    chances = np.zeros((65, BLOCK), np.uint16)
    chances[:, 1:].flat = np.arange(65 * (BLOCK - 1)) % 65_536
    for _ in both:
        scales, codes = rounded(values.reshape(-1), chances.reshape(-1))
        mean = codes.reshape(65, BLOCK)[:, 1:].reshape(-1)[:65_536].astype(np.float64).mean()
        assert abs(mean - np.float64(values[0, 1] / scales[0])) <= 2**-17 + 2**-25


def test_a_whole_number_of_steps_stays_whatever_the_chance(both: Iterator[None]) -> None:
    steps = np.arange(-126, 127)
    values = np.append(steps / 128, 127 * np.nextafter(np.float32(1 / 128), np.float32(0))).astype(np.float32)
    for _ in both:
        for chance in (0, 1, 32_768, 65_535):
            scales, codes = rounded(values, np.full(len(values), chance, np.uint16))
            assert scales[0] == 1 / 128
            np.testing.assert_array_equal(codes[:-1], steps)


def test_the_largest_stays_within_127_steps_whatever_the_chance(both: Iterator[None]) -> None:
    values = np.geomspace(1e-45, 3.4e38, 5000).astype(np.float32).repeat(BLOCK)
    values[1::2] *= -1
    for _ in both:
        for chance in (0, 65_535):
            _, codes = rounded(values, np.full(len(values), chance, np.uint16))
            assert codes.min() >= -127


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf], ids=["nan", "-nan", "inf", "-inf"])
@pytest.mark.parametrize("place", [0, 5, BLOCK - 1, BLOCK, 40 * BLOCK + 2])
def test_what_is_not_finite_is_refused_wherever_it_is(both: Iterator[None], value: float, place: int) -> None:
    values = vector("plain", 40 * BLOCK + 3)
    values[place] = value
    for _ in both:
        with pytest.raises(Refusal) as refusal:
            rounded(values, np.zeros(len(values), np.uint16))
        assert refusal.value.code is Code.UPDATE_NOT_FINITE


@pytest.mark.parametrize("first", [0, 1, BLOCK - 1, BLOCK, 2 * BLOCK + 7])
@pytest.mark.parametrize("count", [0, 1, 9, BLOCK - 7, BLOCK, 3 * BLOCK - 7, 3 * BLOCK])
def test_a_part_has_the_values_that_it_has_in_the_whole(both: Iterator[None], first: int, count: int) -> None:
    scales, codes = rounded(vector("wide", 6 * BLOCK), draw(np.random.default_rng(1), 6 * BLOCK))
    due = (codes * scales.repeat(BLOCK))[first : first + count]
    for _ in both:
        out = np.full(count, np.nan, np.float32)
        scale_blocks(codes[first : first + count], scales, out, first)
        assert out.tobytes() == due.tobytes()


def test_scales_that_are_not_finite_give_values_that_are_not(both: Iterator[None]) -> None:
    for _ in both:
        for scale in (np.nan, np.inf, np.finfo(np.float32).max):
            values = back(np.array([scale], np.float32), np.array([-128, 2, 127], np.int8))
            assert not np.isfinite(values).any()


def test_arrays_that_c_can_not_read_as_they_are_give_the_same(both: Iterator[None]) -> None:
    values, chances, found = vector("plain", 3000), draw(np.random.default_rng(1), 3000), set()
    unaligned = np.frombuffer(b"-" + values.tobytes(), np.float32, offset=1)
    assert not unaligned.flags.aligned
    for _ in both:
        for of in (values, unaligned, values.repeat(2)[::2], values.astype(">f4"), values.astype(np.float64)):
            scales, codes = rounded(of, chances)
            spread = np.empty(6000, np.float32)[::2]
            scale_blocks(codes, scales.astype(">f4"), spread)
            found.add((scales.tobytes(), codes.tobytes(), spread.tobytes()))
    assert len(found) == 1


def test_lengths_that_do_not_fit_are_no_memory_fault(both: Iterator[None]) -> None:
    values, chances, scales, codes = (np.zeros(n, t) for n, t in ((9, "f4"), (9, "u2"), (1, "f4"), (9, "i1")))
    for _ in both:
        for arrays in (
            (values, chances[1:], scales, codes),
            (values, chances, scales[1:], codes),
            (values, chances, scales, codes[1:]),
        ):
            with pytest.raises(ValueError, match="same lengths"):
                round_blocks(*arrays)
        for out, first in ((values[1:], 0), (values, BLOCK - 8), (values, -1)):
            with pytest.raises(ValueError, match="don't fit"):
                scale_blocks(codes, scales, out, first)


def test_a_seed_draws_the_same_chances_everywhere() -> None:
    """Pinned, since a device's seed decides how its update is rounded."""
    drawn = draw(np.random.Generator(np.random.SFC64([1, 1])), 6)
    raw = np.random.SFC64([1, 1]).random_raw(2)
    assert drawn.tolist() == [int(raw[i // 4]) >> 16 * (i % 4) & 0xFFFF for i in range(6)]
    assert drawn.tolist() == [9610, 46005, 18345, 46492, 42709, 36473]
    assert len(draw(np.random.default_rng(), 0)) == 0
