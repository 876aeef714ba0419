import errno
import os

import pytest

from fedlearn.core.errors import Code, cannot_write


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, Code.DISK_FULL),
        (errno.EDQUOT, Code.DISK_FULL),
        (errno.EACCES, Code.SETTING_INVALID),
        (errno.EROFS, Code.SETTING_INVALID),
        (None, Code.SETTING_INVALID),
    ],
    ids=["full", "quota", "not allowed", "read-only", "unknown"],
)
def test_a_full_disk_is_told_from_a_wrong_place(number: int | None, code: Code) -> None:
    reason = "odd" if number is None else os.strerror(number)
    error = cannot_write("The cache", OSError(reason) if number is None else OSError(number, reason))
    assert error.code is code
    assert error.detail == f"The cache cannot be written: {reason}."
