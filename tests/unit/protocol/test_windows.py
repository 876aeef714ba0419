import io
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.core.errors import Code, Refusal
from fedlearn.core.ids import RoundId, TaskId
from fedlearn.protocol import windows
from fedlearn.protocol.codecs import Encoding
from fedlearn.protocol.headers import MAX_METADATA_BYTES, TAG_BYTES, Layout, read_header
from fedlearn.protocol.sealing import WRAPPED_BYTES, SealingKey
from fedlearn.protocol.windows import Coming, Opening, open_vector, seal_vector

KEY = SealingKey.generate(RoundId(TaskId("mnist"), 7))
INFO = b"context"
LAYOUT = Layout(parameters=10, encoding="float32", window_elements=4)
TABLE = 44 + WRAPPED_BYTES


def values(count: int = 10, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(count).normal(size=count).astype(dtype)


def sealed(layout: Layout = LAYOUT, metadata: bytes = b"{}", vector: np.ndarray | None = None) -> bytes:
    vector = values(layout.parameters, np.float64 if layout.encoding == "float64" else np.float32) if vector is None else vector
    return seal_vector(vector, metadata, key=KEY.public, info=INFO, layout=layout)


def opened(blob: bytes | memoryview | Coming, layout: Layout = LAYOUT, **given: object) -> tuple[bytes, np.ndarray]:
    return open_vector(blob, **{"key": KEY, "info": INFO, "layout": layout, **given})


def parts(blob: bytes) -> tuple[bytes, list[bytes]]:
    """The header and the sealed windows of an envelope of LAYOUT."""
    header = read_header(blob, LAYOUT)
    spans = [header.span(index) for index in range(1 + LAYOUT.windows)]
    return blob[: LAYOUT.header_bytes], [blob[start : start + length] for start, length in spans]


class TestRoundTrips:
    @given(
        st.sampled_from(["float32", "float16", "float64"]), st.integers(0, 300), st.integers(1, 310), st.binary(max_size=2000)
    )
    def test_a_vector_comes_back_in_its_encoding(self, encoding: str, parameters: int, window: int, metadata: bytes) -> None:
        layout = Layout(parameters, encoding, window)
        vector = values(parameters, np.float64 if encoding == "float64" else np.float32)
        again_metadata, again = opened(sealed(layout, metadata, vector), layout)
        assert again_metadata.startswith(metadata)
        assert again_metadata[len(metadata) :].strip() == b""
        assert again.dtype == vector.dtype
        np.testing.assert_array_equal(again, vector.astype(encoding).astype(vector.dtype))

    def test_every_finite_float32_comes_back_bit_by_bit(self) -> None:
        special = [0.0, -0.0, 3.4e38, -3.4e38, 1.1754944e-38, 1e-45, -1e-45, 1e30, 1.0, np.pi]
        vector = np.array(special, np.float32)
        assert opened(sealed(vector=vector))[1].tobytes() == vector.tobytes()

    def test_a_view_with_strides_is_sealed_in_its_order(self) -> None:
        vector = values(20)[::2]
        np.testing.assert_array_equal(opened(sealed(vector=vector))[1], vector)

    def test_any_kind_of_bytes_opens(self) -> None:
        blob = sealed()
        for kind in (bytes, bytearray, memoryview):
            np.testing.assert_array_equal(opened(kind(blob))[1], values())

    def test_the_given_array_is_filled_and_returned(self) -> None:
        out = np.full(10, 7, np.float32)
        assert opened(sealed(), out=out)[1] is out
        np.testing.assert_array_equal(out, values())

    def test_the_given_array_may_be_a_slice_of_a_larger_one(self) -> None:
        whole = np.full(14, 7, np.float32)
        opened(sealed(), out=whole[2:12])
        np.testing.assert_array_equal(whole, [7, 7, *values(), 7, 7])

    def test_a_window_opens_alone(self) -> None:
        blob, whole = sealed(), np.zeros(10, np.float32)
        header = read_header(blob[: LAYOUT.header_bytes], LAYOUT)
        opening = Opening(header, key=KEY, info=INFO)
        for index in (3, 1, 2):
            start, length = header.span(index)
            opening.window(index, blob[start : start + length], LAYOUT.cut(whole, index))
        np.testing.assert_array_equal(whole, values())
        assert header.total_bytes == len(blob)

    def test_two_sealings_of_the_same_vector_share_no_window(self) -> None:
        (_, first), (_, second) = parts(sealed()), parts(sealed())
        assert not set(first) & set(second)

    def test_equal_windows_are_sealed_differently(self) -> None:
        _, (_, first, second, _) = parts(sealed(vector=np.zeros(10, np.float32)))
        assert first != second

    def test_no_plaintext_is_left_in_it(self) -> None:
        blob = sealed(metadata=b'{"examples": 540}')
        assert b"examples" not in blob
        assert values().tobytes()[:8] not in blob

    @pytest.mark.parametrize("metadata", [b"", b"{}", b'{"examples":123456789}', b" " * 512], ids=len)
    def test_the_length_says_nothing_about_the_metadata(self, metadata: bytes) -> None:
        assert abs(len(sealed(metadata=metadata)) - len(sealed())) in (0, 512)
        assert len(sealed(metadata=b"1")) == len(sealed(metadata=b"1" * 512))

    def test_the_longest_metadata_make_the_longest_envelope(self) -> None:
        assert len(sealed(metadata=b"1" * MAX_METADATA_BYTES)) == LAYOUT.max_bytes
        with pytest.raises(Refusal) as refusal:
            sealed(metadata=b"1" * (MAX_METADATA_BYTES + 1))
        assert refusal.value.code is Code.UPDATE_TOO_LARGE


class TestWhatIsNotSealed:
    @pytest.mark.parametrize("value", [65_520.0, -65_520.0, 1e30, -3.4e38], ids=str)
    @pytest.mark.parametrize("place", [0, 3, 9], ids=str)
    def test_a_value_beyond_float16_is_refused_and_not_clipped(self, value: float, place: int) -> None:
        vector = values()
        vector[place] = value
        with pytest.raises(Refusal) as refusal:
            sealed(replace(LAYOUT, encoding="float16"), vector=vector)
        assert refusal.value.code is Code.UPDATE_NOT_FINITE

    @pytest.mark.parametrize("value", [65_504.0, 65_519.0, 1e-30], ids=str)
    def test_what_float16_can_say_is_sealed(self, value: float) -> None:
        layout = replace(LAYOUT, encoding="float16")
        vector = np.full(10, value, np.float32)
        np.testing.assert_array_equal(opened(sealed(layout, vector=vector), layout)[1], vector.astype(np.float16))

    @pytest.mark.parametrize("place", [0, 5, 9])
    @pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan], ids=str)
    @pytest.mark.parametrize("encoding", ["float32", "float16"])
    def test_what_is_not_finite_does_not_come_out(self, encoding: Encoding, value: float, place: int) -> None:
        layout, vector = replace(LAYOUT, encoding=encoding), values()
        vector[place] = value
        with pytest.raises(Refusal) as refusal:
            opened(sealed(layout, vector=vector), layout)
        assert refusal.value.code is Code.UPDATE_NOT_FINITE

    @pytest.mark.parametrize(
        ("vector", "code"),
        [
            pytest.param(np.zeros(9, np.float32), Code.UPDATE_SHAPE, id="too short"),
            pytest.param(np.zeros((5, 2), np.float32), Code.UPDATE_SHAPE, id="not flat"),
            pytest.param(np.zeros(10, np.float64), Code.UPDATE_DTYPE, id="float64"),
            pytest.param(np.zeros(10, np.int32), Code.UPDATE_DTYPE, id="int32"),
        ],
    )
    def test_a_vector_that_does_not_fit_is_refused(self, vector: np.ndarray, code: Code) -> None:
        with pytest.raises(Refusal) as refusal:
            sealed(vector=vector)
        assert refusal.value.code is code

    @pytest.mark.parametrize("out", [np.zeros(11, np.float32), np.zeros(10, np.float64)], ids=["length", "dtype"])
    def test_it_is_not_opened_into_an_array_that_does_not_fit(self, out: np.ndarray) -> None:
        with pytest.raises(Refusal):
            opened(sealed(), out=out)


class TestTampering:
    def test_every_changed_byte_is_refused(self) -> None:
        blob = sealed()
        for index in range(len(blob)):
            changed = bytearray(blob)
            changed[index] ^= 1 << index % 8
            with pytest.raises(Refusal) as refusal:
                opened(changed)
            if index >= TABLE + 4 * (1 + LAYOUT.windows):
                assert refusal.value.code is Code.UPDATE_TAMPERED

    def test_every_loss_of_bytes_at_the_end_is_refused(self) -> None:
        blob = sealed()
        for length in range(len(blob)):
            with pytest.raises(Refusal) as refusal:
                opened(blob[:length])
            assert refusal.value.code is Code.UPDATE_MALFORMED

    @pytest.mark.parametrize("more", [b"\0", b"\0" * 100, "itself"], ids=["one", "some", "itself"])
    def test_bytes_left_over_are_refused(self, more: bytes | str) -> None:
        blob = sealed()
        with pytest.raises(Refusal) as refusal:
            opened(blob + (blob if isinstance(more, str) else more))
        assert refusal.value.code is Code.UPDATE_MALFORMED

    def test_more_bytes_than_are_due_at_most_are_refused_first(self) -> None:
        with pytest.raises(Refusal) as refusal:
            opened(bytes(LAYOUT.max_bytes + 1))
        assert refusal.value.code is Code.UPDATE_TOO_LARGE

    @pytest.mark.parametrize(
        "rearrange",
        [
            pytest.param(lambda w: [w[0], w[2], w[1], w[3]], id="swapped"),
            pytest.param(lambda w: [w[0], w[1], w[1], w[3]], id="one twice"),
            pytest.param(lambda w: [w[0], w[2], w[2], w[3]], id="the other twice"),
        ],
    )
    def test_windows_out_of_place_are_refused(self, rearrange: Callable[[list[bytes]], list[bytes]]) -> None:
        header, windows = parts(sealed())
        with pytest.raises(Refusal) as refusal:
            opened(header + b"".join(rearrange(windows)))
        assert refusal.value.code is Code.UPDATE_TAMPERED

    @pytest.mark.parametrize("gone", [0, 1, 2, 3], ids=str)
    def test_a_window_that_is_gone_is_missed(self, gone: int) -> None:
        header, windows = parts(sealed())
        del windows[gone]
        with pytest.raises(Refusal) as refusal:
            opened(header + b"".join(windows))
        assert refusal.value.code is Code.UPDATE_MALFORMED

    def test_a_window_of_another_envelope_of_the_same_key_is_refused(self) -> None:
        (header, windows), (_, others) = parts(sealed()), parts(sealed())
        for index in range(4):
            mixed = [*windows[:index], others[index], *windows[index + 1 :]]
            with pytest.raises(Refusal) as refusal:
                opened(header + b"".join(mixed))
            assert refusal.value.code is Code.UPDATE_TAMPERED

    def test_the_header_of_another_envelope_of_the_same_key_is_refused(self) -> None:
        (header, _), (_, windows) = parts(sealed()), parts(sealed())
        with pytest.raises(Refusal) as refusal:
            opened(header + b"".join(windows))
        assert refusal.value.code is Code.UPDATE_TAMPERED

    def test_a_shorter_vector_is_not_made_of_a_longer_one(self) -> None:
        header, windows = parts(sealed())
        short = Layout(8, "float32", 4)
        cut = bytearray(header[: short.header_bytes])
        struct.pack_into("<Q", cut, 16, 8)
        with pytest.raises(Refusal) as refusal:
            opened(bytes(cut) + b"".join(windows[:3]), short)
        assert refusal.value.code is Code.UPDATE_TAMPERED

    def test_another_context_and_another_key_are_refused(self) -> None:
        blob = sealed()
        for wrong in ({"info": b"another"}, {"key": SealingKey.generate(RoundId(TaskId("mnist"), 7))}):
            with pytest.raises(Refusal) as refusal:
                opened(blob, **wrong)
            assert refusal.value.code is Code.UPDATE_TAMPERED

    def test_a_window_in_the_wrong_place_or_of_the_wrong_length_is_refused(self) -> None:
        header, windows = parts(sealed())
        opening = Opening(read_header(header, LAYOUT), key=KEY, info=INFO)
        out = np.zeros(4, np.float32)
        with pytest.raises(Refusal) as tampered:
            opening.window(1, windows[2], out)
        with pytest.raises(Refusal) as malformed:
            opening.window(1, windows[1][:-1], out)
        with pytest.raises(Refusal) as short:
            opening.metadata(windows[1])
        codes = [refusal.value.code for refusal in (tampered, malformed, short)]
        assert codes == [Code.UPDATE_TAMPERED, Code.UPDATE_MALFORMED, Code.UPDATE_MALFORMED]

    @pytest.mark.parametrize("length", [0, 16, 24, 31, 33], ids=str)
    def test_a_content_key_of_another_length_is_refused(self, length: int) -> None:
        """Which only HPKE's own length makes impossible to say in version 1, and `Opening` checks all the same."""
        header = read_header(sealed(), LAYOUT)
        with pytest.raises(Refusal):
            Opening(replace(header, wrapped=KEY.public.wrap(bytes(length), INFO)), key=KEY, info=INFO)


class TestLies:
    """Each of these is told by the header, which anybody may write."""

    @pytest.mark.parametrize(
        ("offset", "format_", "value", "code"),
        [
            pytest.param(0, "<8s", b"FLSEALE\0", Code.UPDATE_MALFORMED, id="magic"),
            pytest.param(8, "<H", 2, Code.UPDATE_MALFORMED, id="version"),
            pytest.param(10, "<B", 0, Code.UPDATE_MALFORMED, id="no encoding"),
            pytest.param(10, "<B", 200, Code.UPDATE_MALFORMED, id="an unknown encoding"),
            pytest.param(10, "<B", 2, Code.UPDATE_DTYPE, id="another encoding"),
            pytest.param(11, "<B", 1, Code.UPDATE_MALFORMED, id="compression"),
            pytest.param(12, "<I", 0, Code.UPDATE_SHAPE, id="windows of nothing"),
            pytest.param(12, "<I", 5, Code.UPDATE_SHAPE, id="other windows"),
            pytest.param(12, "<I", 2**32 - 1, Code.UPDATE_SHAPE, id="huge windows"),
            pytest.param(16, "<Q", 0, Code.UPDATE_SHAPE, id="no parameters"),
            pytest.param(16, "<Q", 9, Code.UPDATE_SHAPE, id="too few parameters"),
            pytest.param(16, "<Q", 11, Code.UPDATE_TOO_LARGE, id="too many parameters"),
            pytest.param(16, "<q", -1, Code.UPDATE_TOO_LARGE, id="negative parameters"),
            pytest.param(16, "<Q", 2**62, Code.UPDATE_TOO_LARGE, id="absurdly many parameters"),
            pytest.param(40, "<I", 0, Code.UPDATE_MALFORMED, id="no wrapped key"),
            pytest.param(40, "<I", WRAPPED_BYTES + 1, Code.UPDATE_MALFORMED, id="a longer wrapped key"),
            pytest.param(40, "<I", 2**32 - 1, Code.UPDATE_MALFORMED, id="a huge wrapped key"),
            pytest.param(TABLE, "<I", 0, Code.UPDATE_MALFORMED, id="no metadata"),
            pytest.param(TABLE, "<I", TAG_BYTES - 1, Code.UPDATE_MALFORMED, id="less than a tag"),
            pytest.param(TABLE, "<i", -1, Code.UPDATE_TOO_LARGE, id="negative metadata"),
            pytest.param(TABLE, "<I", 2**31, Code.UPDATE_TOO_LARGE, id="huge metadata"),
            pytest.param(TABLE + 4, "<I", 0, Code.UPDATE_SHAPE, id="an empty window"),
            pytest.param(TABLE + 4, "<I", 31, Code.UPDATE_SHAPE, id="a shorter window"),
            pytest.param(TABLE + 8, "<I", 33, Code.UPDATE_SHAPE, id="a longer window"),
            pytest.param(TABLE + 12, "<I", 32, Code.UPDATE_SHAPE, id="a last window as long as the others"),
            pytest.param(TABLE + 12, "<i", -1, Code.UPDATE_SHAPE, id="a negative window"),
        ],
    )
    def test_a_lie_is_refused(self, offset: int, format_: str, value: object, code: Code) -> None:
        blob = bytearray(sealed())
        struct.pack_into(format_, blob, offset, value)
        with pytest.raises(Refusal) as refusal:
            read_header(blob, LAYOUT)
        assert refusal.value.code is code

    def test_metadata_that_claim_to_be_shorter_are_refused(self) -> None:
        blob = bytearray(sealed())
        struct.pack_into("<I", blob, TABLE, TAG_BYTES)
        with pytest.raises(Refusal) as refusal:
            opened(blob)
        assert refusal.value.code is Code.UPDATE_MALFORMED

    def test_a_header_for_another_key_names_both(self) -> None:
        blob = bytearray(sealed())
        struct.pack_into("<16s", blob, 24, bytes(16))
        with pytest.raises(Refusal, match=f"sealed to key {'0' * 32}, not to {KEY.kid}") as refusal:
            opened(blob)
        assert refusal.value.code is Code.UPDATE_TAMPERED

    def test_two_lengths_that_agree_in_sum_are_refused(self) -> None:
        blob = bytearray(sealed())
        struct.pack_into("<II", blob, TABLE + 4, 28, 36)
        with pytest.raises(Refusal) as refusal:
            opened(blob)
        assert refusal.value.code is Code.UPDATE_SHAPE

    def test_a_huge_claim_allocates_nothing(self) -> None:
        blob = bytearray(sealed())
        struct.pack_into("<IQ", blob, 12, 1, 2**40)
        tracemalloc.start()
        try:
            with pytest.raises(Refusal):
                opened(blob)
            assert tracemalloc.get_traced_memory()[1] < 100_000
        finally:
            tracemalloc.stop()


class TestMemory:
    LAYOUT = Layout(4_000_000, "float32", 262_144)

    def peak(self, action: Callable[[], object]) -> int:
        tracemalloc.start()
        try:
            action()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize("encoding", ["float32", "float16"])
    def test_sealing_takes_the_envelope_and_a_window_or_two(self, encoding: str) -> None:
        layout, vector = replace(self.LAYOUT, encoding=encoding), values(self.LAYOUT.parameters)
        envelope = layout.max_bytes
        assert self.peak(lambda: sealed(layout, vector=vector)) < envelope + 2 * 4 * layout.window_elements

    @pytest.mark.parametrize("encoding", ["float32", "float16"])
    def test_opening_into_an_array_takes_a_window_or_two(self, encoding: str) -> None:
        layout, out = replace(self.LAYOUT, encoding=encoding), np.empty(self.LAYOUT.parameters, np.float32)
        blob = sealed(layout)
        assert self.peak(lambda: opened(blob, layout, out=out)) < 2 * 4 * layout.window_elements


class TestGarbage:
    @given(st.binary(max_size=3000))
    def test_random_bytes_are_refused_and_nothing_else(self, blob: bytes) -> None:
        with pytest.raises(Refusal):
            opened(blob)

    @given(st.binary(min_size=1, max_size=64), st.data())
    @settings(max_examples=300)
    def test_random_bytes_anywhere_in_an_envelope_are_refused_and_nothing_else(self, noise: bytes, data: st.DataObject) -> None:
        blob = BLOB
        start = data.draw(st.integers(0, len(blob) - len(noise)))
        changed = blob[:start] + noise + blob[start + len(noise) :]
        if changed == blob:
            return
        with pytest.raises(Refusal):
            opened(changed)

    @given(st.binary(min_size=32, max_size=32), st.binary(max_size=1300))
    def test_a_random_header_after_the_magic_is_refused_and_nothing_else(self, fixed: bytes, rest: bytes) -> None:
        with pytest.raises(Refusal):
            opened(b"FLSEALED\x01\x00" + fixed + rest)


BLOB = sealed()


# --- piece by piece


@pytest.mark.parametrize("parameters", [1, 7, 8, 100], ids=lambda count: f"{count} parameters")
def test_a_vector_opens_piece_by_piece_and_no_piece_is_longer_than_its_layout_says(parameters: int) -> None:
    layout = replace(LAYOUT, parameters=parameters)
    vector = np.arange(parameters, dtype=np.float32)
    blob, asked = sealed(layout, vector=vector), list[int]()
    coming = io.BytesIO(blob)

    def take(length: int, _: int) -> bytes:
        asked.append(length)
        return coming.read(length)

    metadata, again = opened(Coming(len(blob), take), layout)
    np.testing.assert_array_equal(again, vector)
    assert metadata.strip() == b"{}"
    assert sum(asked) == len(blob)
    assert max(asked) <= layout.longest_piece


def test_nothing_is_asked_for_of_a_vector_that_is_too_long() -> None:
    def take(length: int, _: int) -> bytes:
        raise AssertionError(length)

    with pytest.raises(Refusal) as refusal:
        opened(Coming(LAYOUT.max_bytes + 1, take), LAYOUT)
    assert refusal.value.code is Code.UPDATE_TOO_LARGE


@pytest.mark.parametrize("encoding", ["float32", "float16", "int8", "top_k"])
def test_a_window_opens_over_what_was_sealed(encoding: Encoding, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = replace(LAYOUT, encoding=encoding, keep=2)
    vector = np.zeros(layout.parameters, np.float32)
    vector[[1, -1]] = 0.5, -1.5
    blob, results = sealed(layout, vector=vector), []
    for in_place in (True, False):  # a build of `cryptography` that can't gives the same
        monkeypatch.setattr(windows, "OPENS_IN_PLACE", in_place)
        coming, piece = io.BytesIO(blob), memoryview(bytearray(layout.longest_piece))

        def take(length: int, _: int, coming: io.BytesIO = coming, piece: memoryview = piece) -> memoryview:
            coming.readinto(piece[:length])
            return piece[:length]

        results.append(opened(Coming(len(blob), take), layout)[1])
    np.testing.assert_array_equal(results[0], opened(blob, layout)[1])
    np.testing.assert_array_equal(*results)


def test_a_window_is_read_where_it_is_opened() -> None:
    assert windows.OPENS_IN_PLACE
    header = read_header(BLOB, LAYOUT)
    opening, memory = Opening(header, key=KEY, info=INFO), np.empty(4 * LAYOUT.parameters + TAG_BYTES, np.uint8)
    out = memory[:-TAG_BYTES].view(np.float32)
    for index in range(1, LAYOUT.windows + 1):
        start, length = header.span(index)
        room = memory.data[4 * LAYOUT.elements(index).start :][:length]
        room[:] = BLOB[start : start + length]
        opening.window(index, room, LAYOUT.cut(out, index))
    np.testing.assert_array_equal(out, opened(BLOB)[1])
    room[0] ^= 1
    with pytest.raises(Refusal) as refusal:
        opening.window(LAYOUT.windows, room, LAYOUT.cut(out, LAYOUT.windows))
    assert refusal.value.code is Code.UPDATE_TAMPERED


@pytest.mark.parametrize("how", ["it is refused", "it opens wrongly"])
def test_a_cipher_that_can_not_open_in_place_is_found_out(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Beside:
        def __init__(self, key: bytes) -> None:
            self.encrypt = AESGCM(key).encrypt

        def decrypt_into(self, nonce: bytes, data: memoryview, associated_data: None, buf: memoryview) -> int:
            if how == "it is refused":
                raise ValueError("the buffers overlap")
            buf[:] = bytes(len(buf))
            return len(buf)

    assert windows._opens_in_place()
    monkeypatch.setattr(windows, "AESGCM", Beside)
    assert not windows._opens_in_place()
