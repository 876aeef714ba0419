import numpy as np
import pytest

from fedlearn.data.idx import read_idx


def test_a_file_as_its_publisher_wrote_it_is_read() -> None:
    array = read_idx(bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 6]))
    np.testing.assert_array_equal(array, [[1, 2, 3], [4, 5, 6]])


def test_a_file_of_no_images_is_read() -> None:
    assert read_idx(bytes([0, 0, 8, 3, 0, 0, 0, 0, 0, 0, 0, 28, 0, 0, 0, 28])).shape == (0, 28, 28)


def test_reading_copies_nothing() -> None:
    content = bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9])
    assert np.shares_memory(read_idx(content), np.frombuffer(content, dtype=np.uint8))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0",
        b"PK\x03\x04" + bytes(20),
        bytes([0, 0, 13, 1, 0, 0, 0, 1, 0, 0, 0, 0]),
        bytes([0, 0, 8, 3, 0, 0, 0, 1]),
        bytes([0, 0, 8, 1, 0, 0, 0, 3, 1, 2]),
        bytes([0, 0, 8, 1, 0, 0, 0, 1, 1, 2]),
    ],
    ids=["empty", "two bytes", "a zip", "floats", "header cut", "body cut", "body too long"],
)
def test_anything_else_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"IDX|bytes"):
        read_idx(content)
