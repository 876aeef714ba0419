"""The embedded storage starts, ends, and keeps what it acknowledged, whatever happens to it."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import urllib3

from fedlearn.adapters.objects import S3ObjectStore
from fedlearn.adapters.s3 import S3Settings
from fedlearn.core.errors import Code, Outage, Refusal, SetupError
from fedlearn.local.seaweed import MODELS, UPDATES, Role
from fedlearn.local.storage import LocalStorage
from support.kernel import is_alive, listening

SECONDS = 30.0


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStorage]:
    """A storage that these tests may kill. Its environment holds keys of somebody else, which SeaweedFS would let in."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ACCESS_KEY_ID", "mallory")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "mallory's secret")
        environment.setenv("WEED_JWT_SIGNING_KEY", "known")
        storage = LocalStorage(tmp_path_factory.mktemp("own"))
        storage.start()
    yield storage
    storage.stop()


def updates(storage: LocalStorage) -> S3ObjectStore:
    return storage.store(Role.AGGREGATOR, UPDATES)


def wait_until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < give_up, "waited in vain"
        time.sleep(0.01)


def has_keys(store: S3ObjectStore, prefix: str, count: int) -> bool:
    return len(store.list(prefix)) >= count


# --- what it keeps


def test_another_storage_in_the_same_directory_goes_on_with_objects_and_keys(tmp_path: Path) -> None:
    with LocalStorage(tmp_path) as first:
        updates(first).put("kept", b"bytes" * 1_000_000)
        keys = [first.credentials(role) for role in Role]
    with LocalStorage(tmp_path) as second:
        assert [second.credentials(role) for role in Role] == keys
        assert updates(second).get("kept") == b"bytes" * 1_000_000
        assert not updates(second).put_once("kept", b"other")


def test_what_was_acknowledged_outlives_sigkill_and_no_caller_notices(own: LocalStorage) -> None:
    store, done = updates(own), threading.Event()

    def write(writer: int) -> list[str]:
        keys: list[str] = []
        while not done.is_set():
            key = f"killed/{writer}/{len(keys)}"
            if len(keys) % 2:
                assert store.put_once(key, key.encode() * 1000)  # also when the answer to a first attempt was lost
            else:
                store.put(key, key.encode() * 1000)
            keys.append(key)
        return keys

    with ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(write, number) for number in range(4)]
        try:
            for enough in (20, 60):
                wait_until(partial(has_keys, store, "killed/", enough))
                os.kill(own.pid, signal.SIGKILL)
                own.restart()
        finally:
            done.set()
        acknowledged = [key for writer in writers for key in writer.result()]
    assert {stored.key for stored in store.list("killed/")} == set(acknowledged)
    for key in acknowledged:
        assert store.get(key) == key.encode() * 1000


# --- who gets in


@pytest.mark.parametrize("bucket", [MODELS, UPDATES])
def test_keys_in_the_environment_are_not_let_in(own: LocalStorage, bucket: str) -> None:
    mallory = S3Settings(own.endpoint_url, access_key="mallory", secret_key="mallory's secret")
    with pytest.raises(Refusal) as refusal:
        S3ObjectStore(bucket, mallory).list("")
    assert refusal.value.code is Code.STORAGE_DENIED


# --- how it ends


def test_an_outage_is_waited_out_for_as_long_as_the_patience_lasts(own: LocalStorage) -> None:
    own.kill()
    impatient = own.store(Role.AGGREGATOR, UPDATES, patience_seconds=0.5)
    started = time.monotonic()
    with pytest.raises(Outage) as outage:
        impatient.get("key")
    assert outage.value.code is Code.STORAGE_UNAVAILABLE
    assert 0.5 <= time.monotonic() - started < 5
    own.start()


def test_a_bucket_that_is_not_there_yet_is_an_outage(own: LocalStorage) -> None:
    unmade = own.store(Role.ADMINISTRATOR, "fedlearn-unmade")
    with pytest.raises(Outage, match="no bucket fedlearn-unmade") as outage:
        unmade.list("")
    assert outage.value.code is Code.STORAGE_UNAVAILABLE


def test_stop_leaves_neither_a_process_nor_a_port_nor_a_socket(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.start()
    pid, sockets = storage.pid, storage.ports.sockets
    assert all(path.is_socket() for path in sockets)
    storage.stop()
    assert not storage.running
    assert not is_alive(pid)
    assert not any(path.exists() for path in sockets)
    socket.create_server(("127.0.0.1", storage.port)).close()
    storage.stop()  # once more is no error


def test_it_outlives_the_thread_that_started_it_and_takes_urls_of_before(own: LocalStorage) -> None:
    updates(own).put("signed", b"bytes")
    url = updates(own).sign_get("signed", seconds=60)
    thread = threading.Thread(target=own.restart)
    thread.start()
    thread.join()
    assert urllib3.request("GET", url).data == b"bytes"


def test_ctrl_c_at_the_terminal_does_not_reach_it(own: LocalStorage) -> None:
    assert os.getsid(own.pid) == own.pid != os.getsid(0)


def test_it_dies_with_its_parent_even_by_sigkill(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys, threading\n"
        "from fedlearn.local.storage import LocalStorage\n"
        "storage = LocalStorage(pathlib.Path(sys.argv[1]))\n"
        "storage.start()\n"
        "print(storage.pid, flush=True)\n"
        "threading.Event().wait()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_alive(pid)
        assert listening(pid)
        parent.kill()
    wait_until(lambda: not is_alive(pid))
    left_behind = [Path(path) for path in (tmp_path / "sockets").read_text().split()]
    assert all(path.is_socket() for path in left_behind)
    heir = LocalStorage(tmp_path)
    heir.start()  # the directory is free again
    heir.kill()
    assert not any(path.exists() for path in left_behind)


# --- what keeps it from starting


def refuse_to_start(storage: LocalStorage) -> SetupError:
    with pytest.raises(SetupError) as error:
        storage.start()
    assert not storage.running
    assert "\n" not in error.value.detail
    assert error.value.detail.endswith(".")
    return error.value


def test_a_busy_port_is_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        error = refuse_to_start(LocalStorage(tmp_path, port=port))
    assert error.code is Code.PORT_BUSY
    assert str(port) in error.detail


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    error = refuse_to_start(LocalStorage(tmp_path, min_free_bytes=1 << 60))
    assert error.code is Code.DISK_FULL
    assert str(tmp_path) in error.detail


def test_a_directory_in_use_is_one_sentence(own: LocalStorage) -> None:
    error = refuse_to_start(LocalStorage(own.log.parent))
    assert error.code is Code.STORAGE_FAILED
    assert "Another run uses the storage" in error.detail
    assert own.running
    assert updates(own).list("") is not None


def test_a_directory_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    error = refuse_to_start(LocalStorage(tmp_path / "file"))
    assert error.code is Code.STORAGE_FAILED
    assert str(tmp_path / "file") in error.detail


def test_keys_that_cannot_be_read_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "identities.json").write_text("{}")
    with pytest.raises(SetupError) as error:
        LocalStorage(tmp_path)
    assert error.value.code is Code.STORAGE_FAILED


def test_a_storage_that_ends_at_once_says_why_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "names").write_text("in the way of the directory of names")
    error = refuse_to_start(LocalStorage(tmp_path))
    assert error.code is Code.STORAGE_FAILED
    assert "names" in error.detail
    assert str(tmp_path / "weed.log") in error.detail


def test_a_storage_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path, start_seconds=0.1)
    error = refuse_to_start(storage)
    assert error.code is Code.STORAGE_FAILED
    assert "not ready after 0.1 s" in error.detail
