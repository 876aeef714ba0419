"""int8 and top-k: each window alone, without bias, within what is due, and nothing unpacked that claims to be more."""

import threading
import tracemalloc
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.core.errors import Code, Refusal
from fedlearn.core.ids import RoundId, TaskId
from fedlearn.core.rounding import BLOCK
from fedlearn.core.sparsity import split
from fedlearn.protocol.codecs import Int8, TopK, padded
from fedlearn.protocol.codecs import _pack as pack
from fedlearn.protocol.headers import MAX_METADATA_BYTES, TAG_BYTES, Layout, read_header
from fedlearn.protocol.sealing import SealingKey
from fedlearn.protocol.windows import Opening, open_vector, seal_vector

KEY = SealingKey.generate(RoundId(TaskId("mnist"), 7))
LARGEST = float(np.finfo(np.float32).max)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def normal(count: int, seed: int = 0) -> np.ndarray:
    return rng(seed).normal(0, 0.01, count).astype(np.float32)


def through(codec: Int8 | TopK, vector: np.ndarray, seed: int = 0) -> np.ndarray:
    out = np.full(len(vector), np.nan, np.float32)
    codec.decode(codec.encode(vector, rng(seed)), out)
    return out


def packed(raw: bytes) -> bytes:
    return pack(raw, 1 << 20)


def refused(code: Code, call: Callable[[], object]) -> None:
    with pytest.raises(Refusal) as refusal:
        call()
    assert refusal.value.code is code


def framed(frame: bytes) -> bytes:
    return len(frame).to_bytes(4, "little") + frame


def frame_of(packed: bytes) -> bytes:
    return packed[4 : 4 + int.from_bytes(packed[:4], "little")]


class TestInt8:
    @given(
        st.lists(
            st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**120), max_value=2.0**120), max_size=40
        )
    )
    def test_no_value_is_further_off_than_a_step_of_its_block(self, values: list[float]) -> None:
        vector = np.array(values, np.float32)
        step = np.nextafter(np.abs(vector).max(initial=0) / np.float32(127), np.float32(np.inf))
        assert (np.abs(through(Int8(), vector).astype(np.float64) - vector) <= 1.00001 * np.float64(step)).all()

    @pytest.mark.parametrize("count", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7], ids=str)
    def test_every_block_has_its_own_scale_and_the_last_may_be_short(self, count: int) -> None:
        vector = normal(count) * (10.0 ** (np.arange(count) // BLOCK)).astype(np.float32)
        for start in range(0, count, BLOCK):
            block = vector[start : start + BLOCK]
            off = np.abs(through(Int8(), vector)[start : start + BLOCK] - block)
            assert off.max() <= 1.001 * np.abs(block).max() / 127

    def test_the_mean_of_many_roundings_is_the_value_itself(self) -> None:
        vector = np.append(rng().uniform(-1, 1, 500), [1.0, -1.0, 0.0, 0.5 / 127, 1e-9]).astype(np.float32)
        times = 4000
        mean = sum(through(Int8(), vector, seed).astype(np.float64) for seed in range(times)) / times
        # a rounding's standard deviation is at most half a step; five of the mean's make a false alarm unlikely in 500 values
        assert np.abs(mean - vector).max() < 5 * 0.5 / 127 / np.sqrt(times)
        # over all values together a bias of a hundredth of a step would show
        assert abs((mean - vector).mean()) < 0.01 / 127

    def test_to_the_nearest_would_lose_what_is_small(self) -> None:
        """The case that rounding by chance is for: a thousand values of a third of a step each."""
        vector = np.append(np.full(1000, 1 / 127 / 3), 1.0).astype(np.float32)
        assert np.isclose(through(Int8(), vector)[:1000].mean(), 1 / 127 / 3, rtol=0.2)

    def test_the_same_seed_rounds_the_same_way_and_another_does_not(self) -> None:
        vector = normal(5000)
        np.testing.assert_array_equal(through(Int8(), vector, 1), through(Int8(), vector, 1))
        assert (through(Int8(), vector, 1) != through(Int8(), vector, 2)).any()

    def test_zeros_stay_zeros_and_the_largest_stays_within_its_bounds(self) -> None:
        vector = np.array([0, 3.0, -3.0, 0], np.float32)
        np.testing.assert_allclose(through(Int8(), vector), vector, rtol=1e-6)
        np.testing.assert_array_equal(through(Int8(), np.zeros(3 * BLOCK, np.float32)), 0)

    @pytest.mark.parametrize("value", [1e-45, -1e-45, 1e-40, 3.4e37], ids=str)
    def test_the_smallest_and_the_largest_numbers_have_a_place(self, value: float) -> None:
        vector = np.array([value, 0], np.float32)
        assert np.isfinite(through(Int8(), vector)).all()

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
    def test_what_is_not_finite_is_refused(self, value: float) -> None:
        refused(Code.UPDATE_NOT_FINITE, lambda: Int8().encode(np.array([1, value], np.float32), rng()))

    @pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf, LARGEST / 3])
    def test_scales_that_give_values_that_are_not_finite_are_refused(self, scale: float) -> None:
        window = packed(np.array([scale], "<f4").tobytes() + b"\4\0")
        refused(Code.UPDATE_NOT_FINITE, lambda: Int8().decode(window, np.zeros(2, np.float32)))

    def test_a_scale_that_may_give_an_infinity_is_taken_where_it_gives_none(self) -> None:
        out = np.zeros(2, np.float32)
        Int8().decode(packed(np.array([LARGEST / 127.5], "<f4").tobytes() + b"\x7f\0"), out)
        assert out[0] == pytest.approx(LARGEST * 127 / 127.5, rel=1e-6)

    def test_an_exact_value_that_is_not_finite_is_refused(self) -> None:
        window = packed(np.array([1, np.nan], "<f4").tobytes() + b"\1")
        refused(Code.UPDATE_NOT_FINITE, lambda: Int8(((0, 1),)).decode(window, np.zeros(2, np.float32)))


class TestTopK:
    @given(st.integers(1, 3000), st.integers(1, 100), st.integers(0, 9))
    def test_what_split_gives_comes_back_bit_by_bit(self, count: int, keep: int, seed: int) -> None:
        sent = split(normal(count, seed), keep)
        np.testing.assert_array_equal(through(TopK(keep), sent), sent)

    def test_a_window_without_values_is_a_few_bytes(self) -> None:
        assert len(TopK(5).encode(np.zeros(1000, np.float32), rng())) < 20
        np.testing.assert_array_equal(through(TopK(5), np.zeros(1000, np.float32)), 0)

    def test_more_values_than_are_kept_are_refused(self) -> None:
        refused(Code.UPDATE_TOO_LARGE, lambda: TopK(2).encode(np.ones(3, np.float32), rng()))

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_a_value_that_is_not_finite_does_not_come_out(self, value: float) -> None:
        window = packed(b"\0" * 4 + np.array([value], "<f2").tobytes())
        refused(Code.UPDATE_NOT_FINITE, lambda: TopK(1).decode(window, np.zeros(2, np.float32)))

    def test_a_value_beyond_float16_is_refused(self) -> None:
        refused(Code.UPDATE_NOT_FINITE, lambda: TopK(2).encode(np.array([1e6], np.float32), rng()))

    @pytest.mark.parametrize(
        ("raw", "code"),
        [
            pytest.param(b"\0" * 5, Code.UPDATE_MALFORMED, id="half a value"),
            pytest.param(b"\x0a\0\0\0\0\0", Code.UPDATE_MALFORMED, id="one beyond the end"),
            pytest.param(b"\xff" * 12, Code.UPDATE_MALFORMED, id="gaps that would wrap around"),
            pytest.param(b"\0" * 18, Code.UPDATE_TOO_LARGE, id="more values than are due"),
        ],
    )
    def test_places_that_are_not_in_the_window_are_refused(self, raw: bytes, code: Code) -> None:
        refused(code, lambda: TopK(2).decode(packed(raw), np.zeros(10, np.float32)))


@pytest.mark.parametrize("codec", [Int8(), TopK(100)], ids=["int8", "top_k"])
class TestFrames:
    OUT = np.zeros(1000, np.float32)

    @pytest.mark.parametrize(
        "frame",
        [
            pytest.param(b"", id="nothing"),
            pytest.param(b"\0\0\0", id="no length"),
            pytest.param(b"\x09\0\0\0no frame", id="shorter than it says"),
            pytest.param(framed(b"no frame"), id="no frame"),
            pytest.param(framed(zstandard.ZstdCompressor().compress(bytes(600))[:-3]), id="cut off"),
            pytest.param(framed(b"\x50\x2a\x4d\x18\x04\0\0\0abcd"), id="a frame to be skipped"),
        ],
    )
    def test_what_does_not_unpack_is_refused(self, codec: Int8 | TopK, frame: bytes) -> None:
        refused(Code.UPDATE_MALFORMED, lambda: codec.decode(frame, self.OUT))

    def test_bytes_after_the_frame_are_refused(self, codec: Int8 | TopK) -> None:
        frame = frame_of(codec.encode(split(normal(1000), 9), rng()))
        refused(Code.UPDATE_MALFORMED, lambda: codec.decode(framed(frame + b"x"), self.OUT.copy()))

    @pytest.mark.parametrize("named", [True, False], ids=["that says so", "that does not"])
    def test_a_bomb_is_refused_before_it_is_unpacked(self, codec: Int8 | TopK, named: bool) -> None:
        bomb = zstandard.ZstdCompressor(write_content_size=named).compress(bytes(100_000_000))
        assert len(bomb) < 10_000
        tracemalloc.start()
        refused(Code.UPDATE_TOO_LARGE, lambda: codec.decode(framed(bomb), self.OUT))
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
        tracemalloc.stop()

    def test_a_frame_that_lies_about_its_size_is_refused(self, codec: Int8 | TopK) -> None:
        """Its header is cut from a small frame, its content from a bomb."""
        small = zstandard.ZstdCompressor().compress(bytes(1004 if isinstance(codec, Int8) else 600))
        bomb = zstandard.ZstdCompressor().compress(bytes(100_000_000))
        header = zstandard.frame_header_size
        forged = framed(small[: header(small)] + bomb[header(bomb) :])
        refused(Code.UPDATE_MALFORMED, lambda: codec.decode(forged, self.OUT))

    def test_several_threads_pack_and_unpack_at_once(self, codec: Int8 | TopK) -> None:
        sent = [split(normal(200_000, seed), 100) for seed in range(4)]
        back: dict[int, np.ndarray] = {}
        threads = [threading.Thread(target=lambda i=i: back.update({i: through(codec, sent[i])})) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        for seed in range(4):
            np.testing.assert_allclose(back[seed], sent[seed], atol=0.001)


class TestPadding:
    @given(st.integers(0, 1 << 40))
    def test_little_is_added(self, length: int) -> None:
        assert length <= padded(length) <= 1.12 * length
        assert padded(padded(length)) == padded(length)

    def test_of_a_million_lengths_a_few_hundred_are_left(self) -> None:
        assert len({padded(length) for length in range(1_000_000)}) < 600

    def test_a_window_that_does_not_compress_is_filled_up_no_further_than_any_may_be(self) -> None:
        noise = rng().uniform(-1, 1, 262_144).astype(np.float32)
        assert len(Int8().encode(noise, rng())) == Int8().longest(262_144) < 1.008 * 262_144

    @given(st.integers(1, 5000), st.integers(0, 9))
    @settings(deadline=None)
    def test_no_window_is_longer_than_the_longest(self, count: int, seed: int) -> None:
        for codec, part in (
            (Int8(), normal(count, seed)),
            (TopK(count), normal(count, seed).astype(np.float16).astype(np.float32)),
        ):
            assert len(codec.encode(part, rng(seed))) <= codec.longest(count)

    def test_updates_that_compress_nearly_alike_are_equally_long(self) -> None:
        assert len({len(Int8().encode(normal(262_144, seed), rng(seed))) for seed in range(5)}) == 1


class TestSealed:
    @settings(max_examples=30)
    @given(
        st.sampled_from(["int8", "top_k"]), st.integers(0, 5000), st.sampled_from([1, 7, 1024, 4000, 6000]), st.integers(0, 9)
    )
    def test_no_vector_is_longer_than_the_layout_says(self, encoding: str, count: int, window: int, seed: int) -> None:
        window = max(window, 1 + count // 100)
        layout = Layout(count, encoding, window, keep=max(1, count // 3))
        vector = split(normal(count, seed), layout.keep) if encoding == "top_k" else normal(count, seed)
        blob = seal_vector(vector, b"1" * 65_536, key=KEY.public, info=b"", layout=layout, rng=rng(seed))
        assert len(blob) <= layout.max_bytes
        _, out = open_vector(blob, key=KEY, info=b"", layout=layout)
        assert np.abs(out - vector).max(initial=0) <= 0.001

    @pytest.mark.parametrize("encoding", ["int8", "top_k"])
    def test_random_codes_that_do_not_pack_are_within_the_bound(self, encoding: str) -> None:
        layout = Layout(300_000, encoding, 262_144, keep=300_000)
        vector = rng().integers(-127, 128, 300_000).astype(np.float32)
        vector[vector == 0] = 1
        blob = seal_vector(vector, b"", key=KEY.public, info=b"", layout=layout)
        assert len(blob) <= layout.max_bytes
        np.testing.assert_allclose(open_vector(blob, key=KEY, info=b"", layout=layout)[1], vector, atol=1.001)

    @pytest.mark.parametrize("encoding", ["int8", "top_k"])
    def test_a_window_decodes_alone(self, encoding: str) -> None:
        layout = Layout(5000, encoding, 2048, keep=100)
        vector = split(normal(5000), 100)
        blob = seal_vector(vector, b"", key=KEY.public, info=b"", layout=layout, rng=rng())
        header = read_header(blob[: layout.header_bytes], layout)
        whole, opening = open_vector(blob, key=KEY, info=b"", layout=layout)[1], Opening(header, key=KEY, info=b"")
        for index in (3, 1, 2):
            start, length = header.span(index)
            out = np.empty(len(layout.elements(index)), np.float32)
            opening.window(index, blob[start : start + length], out)
            np.testing.assert_array_equal(out, layout.cut(whole, index))

    def test_int8_is_about_a_quarter_and_top_k_of_a_hundredth_a_hundredth(self) -> None:
        vector, bare = normal(400_000), 4 * 400_000
        sizes = {
            encoding: len(
                seal_vector(
                    split(vector.copy(), 4000) if encoding == "top_k" else vector,
                    b"",
                    key=KEY.public,
                    info=b"",
                    layout=Layout(400_000, encoding, 262_144, keep=4000),
                )
            )
            for encoding in ("float32", "float16", "int8", "top_k")
        }
        assert bare < sizes["float32"] < 1.01 * bare
        assert bare / 2 < sizes["float16"] < 1.01 * bare / 2
        assert sizes["int8"] < 0.26 * bare
        assert sizes["top_k"] < 0.0125 * bare


class Counted(tuple[tuple[int, int], ...]):
    """Exact ranges that know how often they were gone through."""

    passes = 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        Counted.passes += 1
        return super().__iter__()


class TestExact:
    """Some coordinates of an int8 update stay float32."""

    LAYOUT = Layout(5000, "int8", 2048, exact=((0, 3), (2000, 2100), (4999, 5000)))

    @staticmethod
    def uneven() -> np.ndarray:
        vector = normal(5000)
        for start, stop in TestExact.LAYOUT.exact:
            vector[start:stop] *= np.geomspace(1e-6, 1e6, stop - start, dtype=np.float32)
        return vector

    def test_they_arrive_as_they_were_and_take_no_resolution_from_the_others(self) -> None:
        vector, exact = self.uneven(), np.zeros(5000, bool)
        for start, stop in self.LAYOUT.exact:
            exact[start:stop] = True
        blob = seal_vector(vector, b"{}", key=KEY.public, info=b"", layout=self.LAYOUT, rng=rng())
        assert len(blob) <= self.LAYOUT.max_bytes
        _, out = open_vector(blob, key=KEY, info=b"", layout=self.LAYOUT)
        np.testing.assert_array_equal(out[exact], vector[exact])
        assert np.abs(out - vector)[~exact].max() <= 1.00001 * np.abs(vector[~exact]).max() / 127

    def test_a_window_of_nothing_else_and_one_of_none_open_as_well(self) -> None:
        layout = Layout(3000, "int8", 1000, exact=((900, 2100),))
        vector = normal(3000)
        _, out = open_vector(
            seal_vector(vector, b"{}", key=KEY.public, info=b"", layout=layout, rng=rng()), key=KEY, info=b"", layout=layout
        )
        np.testing.assert_array_equal(out[900:2100], vector[900:2100])
        assert np.abs(out - vector).max() <= 1.00001 * np.abs(vector).max() / 127

    @pytest.mark.parametrize("place", [1, 2050, 4000])
    def test_a_value_that_is_not_finite_is_refused(self, place: int) -> None:
        vector = self.uneven()
        vector[place] = np.nan
        refused(
            Code.UPDATE_NOT_FINITE,
            lambda: seal_vector(vector, b"{}", key=KEY.public, info=b"", layout=self.LAYOUT, rng=rng()),
        )

    def test_compiled_and_by_numpy_a_window_is_the_same_bytes_and_values(self, both: Iterator[None]) -> None:
        vector, codec = normal(5000), Int8(((0, 3), (1000, 1100), (2048, 2060), (2061, 2062), (4990, 5000)))
        made = []
        for _ in both:
            out = np.full(5000, np.nan, np.float32)
            window = codec.encode(vector, rng())
            codec.decode(window, out)
            made.append((bytes(window), out.tobytes()))
        assert made[0] == made[1]

    @pytest.mark.parametrize(
        "exact",
        [
            pytest.param(((0, 3), (2000, 2100), (4999, 5000)), id="here and there"),
            pytest.param(((0, 5000),), id="everywhere"),
            pytest.param(((1024, 2048), (3072, 3073)), id="whole windows"),
            pytest.param(((4100, 4200),), id="in the last"),
            pytest.param((), id="nowhere"),
        ],
    )
    def test_the_bounds_are_those_of_each_window_by_itself(self, exact: tuple[tuple[int, int], ...]) -> None:
        layout, longest = Layout(5000, "int8", 1024, exact=exact), []
        for index in range(1, layout.windows + 1):
            part = layout.elements(index)
            kept = [place for start, stop in exact for place in range(start, stop) if place in part]
            codec = layout.codec_at(index)
            assert isinstance(codec, Int8)
            assert [part.start + place for start, stop in codec.exact for place in range(start, stop)] == kept
            longest.append(codec.longest(len(part)) + TAG_BYTES)
        before = layout.header_bytes, MAX_METADATA_BYTES + TAG_BYTES
        assert layout.max_bytes == sum((*before, *longest))
        assert layout.longest_piece == max(*before, *longest)

    def test_they_are_gone_through_once_for_all_windows(self) -> None:
        exact, before = Counted((1000 * number, 1000 * number + 100) for number in range(50)), Counted.passes
        layout = Layout(50_000, "int8", 1024, exact=exact)
        for _ in range(2):
            assert layout.max_bytes > layout.longest_piece
            for index in range(1, layout.windows + 1):
                layout.codec_at(index)
        assert Counted.passes == before + 1

    def test_one_that_is_nothing_but_exact_has_no_blocks(self) -> None:
        np.testing.assert_array_equal(through(Int8(((0, 2000),)), normal(2000)), normal(2000))
