"""How a large update is cut, and what its upload is bound to."""

import hashlib

import pytest

from fedlearn.protocol.parts import PART_BYTES, SINGLE_BYTES, digests_of, part_sizes


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


@pytest.mark.parametrize("size", [0, 1, PART_BYTES + 1, SINGLE_BYTES])
def test_what_goes_in_one_piece_has_one_digest(size: int) -> None:
    body = b"\1" * size
    assert digests_of(body) == (sha256(body),)


@pytest.mark.parametrize("size", [SINGLE_BYTES + 1, SINGLE_BYTES + PART_BYTES])
def test_what_is_larger_has_one_for_each_part(size: int) -> None:
    body = bytes(range(251)) * (size // 251 + 1)
    body, start, due = body[:size], 0, list[str]()
    for length in part_sizes(size):
        due.append(sha256(body[start : start + length]))
        start += length
    assert digests_of(body) == tuple(due)
