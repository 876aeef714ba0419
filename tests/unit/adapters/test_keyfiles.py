import stat
from pathlib import Path

import pytest

from fedlearn.adapters.keyfiles import load_private_key, load_public_key, make_private_key, save_public_key
from fedlearn.core.errors import Code, SetupError


def test_a_key_is_loaded_as_it_was_made(tmp_path: Path) -> None:
    made = make_private_key(tmp_path / "key.pem")
    assert load_private_key(tmp_path / "key.pem").private_bytes_raw() == made.private_bytes_raw()


def test_only_its_owner_reads_a_private_key(tmp_path: Path) -> None:
    make_private_key(tmp_path / "key.pem")
    assert stat.S_IMODE((tmp_path / "key.pem").stat().st_mode) == 0o600


def test_nothing_else_is_left_beside_the_key(tmp_path: Path) -> None:
    make_private_key(tmp_path / "key.pem")
    assert [path.name for path in tmp_path.iterdir()] == ["key.pem"]


def test_a_key_that_is_there_is_never_replaced(tmp_path: Path) -> None:
    make_private_key(tmp_path / "key.pem")
    before = (tmp_path / "key.pem").read_bytes()
    with pytest.raises(SetupError) as error:
        make_private_key(tmp_path / "key.pem")
    assert error.value.code is Code.SETTING_INVALID
    assert (tmp_path / "key.pem").read_bytes() == before


def test_a_public_key_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    public = make_private_key(tmp_path / "key.pem").public_key()
    save_public_key(tmp_path / "public.pem", public)
    assert load_public_key(tmp_path / "public.pem") == public


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    for load in (load_private_key, load_public_key):
        with pytest.raises(SetupError, match=r"missing\.pem"):
            load(tmp_path / "missing.pem")


def test_a_directory_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="nowhere"):
        make_private_key(tmp_path / "nowhere" / "key.pem")
    with pytest.raises(SetupError, match="nowhere"):
        save_public_key(tmp_path / "nowhere" / "key.pem", make_private_key(tmp_path / "key.pem").public_key())
