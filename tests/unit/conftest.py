import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from ctypes import CDLL
from pathlib import Path

import pytest

from fedlearn.core import kernels

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> CDLL:
    """The C file is compiled here, so what is tested is what stands there."""
    if shutil.which("cc") is None:
        pytest.skip("there is no compiler")
    out = tmp_path_factory.mktemp("kernels")
    build = [sys.executable, "setup.py", "--quiet", "build_ext", "--build-lib", out, "--build-temp", out / "objects"]
    strict = {**os.environ, "CFLAGS": "-Wall -Wextra -Wpedantic -Werror"}
    subprocess.run(build, cwd=ROOT, env=strict, check=True)
    (built,) = (out / "fedlearn" / "core").iterdir()
    return kernels.load(str(built))


@pytest.fixture
def both(library: CDLL, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two turns for a loop: the first compiled, the second by numpy."""

    def turns() -> Iterator[None]:
        for way in (library, None):
            monkeypatch.setattr(kernels, "_library", way)
            yield

    return turns()
