"""`fedlearn backup` and `fedlearn restore`."""

# ruff: noqa: PLC0415 - the device's image holds no database

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from fedlearn.config import BackupSettings, load
from fedlearn.core.errors import Code, SetupError, cannot_write

if TYPE_CHECKING:
    from fedlearn.adapters.database.engine import Database
    from fedlearn.core.ports import ObjectStore

_PIPE = Path("-")
_console = Console(stderr=True, soft_wrap=True)


def add_to(app: typer.Typer) -> None:
    """Add `backup` and `restore`."""
    for command in (backup, restore):
        app.command(rich_help_panel="Services, from FEDLEARN_* settings")(command)


def backup(file: Annotated[Path, typer.Argument(help="A new file, or - for standard output.")]) -> None:
    """Write the server's database and all models to one file, while it runs or not.

    It reads FEDLEARN_DATABASE_URL and FEDLEARN_STORAGE__*, as the server does.

    Keep the file safe: it holds the key that signs tickets.
    """
    from fedlearn.adapters.backup import back_up

    with _stands() as (database, models):
        if file == _PIPE:
            contents = back_up(database, models, sys.stdout.buffer)
        else:
            with _new_file(file) as out:
                contents = back_up(database, models, out)
    _console.print(f"Backed up {contents.tables} tables and {contents.objects} objects, {contents.object_bytes:,} bytes.")


def restore(
    file: Annotated[Path, typer.Argument(help="What `fedlearn backup` has written, or - for standard input.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the tasks that the database holds.")] = False,
) -> None:
    """Put a backup back, with the servers and the aggregator stopped; then start them, and the next round begins.

    It reads FEDLEARN_DATABASE_URL, which may be another kind of database, and FEDLEARN_STORAGE__*.

    The credential for the storage must be one that writes models: the aggregator's.
    """
    from fedlearn.adapters.backup import restore as put_back

    with _stands() as (database, models):
        if file == _PIPE:
            contents = put_back(database, models, sys.stdin.buffer, overwrite=overwrite)
        else:
            with _existing_file(file) as source:
                contents = put_back(database, models, source, overwrite=overwrite)
    _console.print(f"Restored {contents.tables} tables and {contents.objects} objects, {contents.object_bytes:,} bytes.")


@contextmanager
def _stands() -> Iterator["tuple[Database, ObjectStore]"]:
    from fedlearn.adapters.database.engine import Database
    from fedlearn.adapters.objects import object_store

    settings = load(BackupSettings)
    database = Database(settings.database_url)
    try:
        yield database, object_store(settings.storage, settings.storage.models_bucket)
    finally:
        database.close()


@contextmanager
def _new_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that is there in the end only if all of it is; nobody else may read it."""
    if path.exists():
        raise SetupError(Code.SETTING_INVALID, f"{path} exists already: choose another file.")
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.touch(0o600)
        with partial.open("wb") as out:
            yield out
        partial.rename(path)
    except OSError as error:
        raise cannot_write(str(path), error) from error
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _existing_file(path: Path) -> Iterator[IO[bytes]]:
    try:
        with path.open("rb") as source:
            yield source
    except OSError as error:
        raise SetupError(Code.SETTING_INVALID, f"{path} can't be read: {error.strerror or error}.") from error
