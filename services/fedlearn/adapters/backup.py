"""A backup: the database and the models as one tar archive, to or from a file or a pipe.

In it: `manifest.json`, `models/<key>` for each object, `tables/<name>.jsonl`, and at last `complete.json`, without which
nothing is restored. The database is read first, as of one moment: every model that it names is there by then, and stays.
"""

import hashlib
import io
import json
import shutil
import tarfile
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO, Any

from fedlearn import __version__
from fedlearn.adapters.database.dump import dump, load, refuse_tasks
from fedlearn.adapters.database.engine import Database
from fedlearn.core.errors import Code, Refusal, SetupError
from fedlearn.core.ports import ObjectStore

_FORMAT = 1
_IN_MEMORY_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Contents:
    """What a backup holds."""

    revision: str
    tables: int
    objects: int
    object_bytes: int


def back_up(database: Database, models: ObjectStore, out: IO[bytes]) -> Contents:
    """Write everything to a file, whether rounds run or not.

    Raises:
        Refusal: `model_missing` for a version whose object is not in the storage, `model_mismatch` for one that is damaged.
        Outage: `database_unavailable`, `storage_unavailable`.
    """
    with ExitStack() as kept, tarfile.open(fileobj=out, mode="w|") as archive:
        files: dict[str, IO[bytes]] = {}

        def open_file(name: str) -> IO[bytes]:
            files[name] = _scratch(kept)
            return files[name]

        revision = dump(database, open_file)
        _add(archive, "manifest.json", {"format": _FORMAT, "release": __version__, "revision": revision, "tables": list(files)})
        digests, total = _digests(files["model_versions"]), 0
        objects = models.list("")
        if missing := digests.keys() - {stored.key for stored in objects}:
            raise Refusal(Code.MODEL_MISSING, f"The database names {min(missing)}, which is not in the object storage.")
        count = 0
        for stored in objects:
            try:
                body = models.get(stored.key)
            except Refusal as refusal:
                if refusal.code is Code.NOT_FOUND and stored.key not in digests:  # a state that nobody needs any more
                    continue
                raise
            _check(stored.key, body, digests)
            _add_bytes(archive, f"models/{stored.key}", io.BytesIO(body), len(body))
            count, total = count + 1, total + len(body)
        for name, file in files.items():
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            _add_bytes(archive, f"tables/{name}.jsonl", file, size)
        _add(archive, "complete.json", {"objects": count, "object_bytes": total})
    return Contents(revision, len(files), count, total)


def restore(database: Database, models: ObjectStore, source: IO[bytes], *, overwrite: bool) -> Contents:
    """Put back what `back_up` has written. Models come first, and the database as a whole: it alone says what counts.

    Raises:
        Refusal: `backup_refused` for what is no backup, or not all of it, and for a database that holds tasks without
            `overwrite`; `model_mismatch` for a damaged model.
        SetupError: `setting_invalid` for a backup of a newer release.
        Outage: `database_unavailable`, `storage_unavailable`.
    """
    if not overwrite:  # before anything is written; `load` looks again
        with database.reading() as connection:
            refuse_tasks(connection)
    with ExitStack() as kept:
        try:
            archive = kept.enter_context(tarfile.open(fileobj=source, mode="r|"))
            manifest, files, sizes = _read(archive, models, kept)
        except (tarfile.TarError, ValueError, KeyError) as error:
            said = f"This is no whole backup of fedlearn ({error}): the database is as it was."
            raise Refusal(Code.BACKUP_REFUSED, said) from error
        load(database, manifest["revision"], [(name, files[name]) for name in manifest["tables"]], overwrite=overwrite)
    return Contents(manifest["revision"], len(files), len(sizes), sum(sizes))


def _read(
    archive: tarfile.TarFile, models: ObjectStore, kept: ExitStack
) -> tuple[dict[str, Any], dict[str, IO[bytes]], list[int]]:
    """Put the models into the storage; the manifest, the tables' files, and how large the models are."""
    documents: dict[str, dict[str, Any]] = {}
    files: dict[str, IO[bytes]] = {}
    found: dict[str, str] = {}
    sizes: list[int] = []
    for entry in archive:
        content = archive.extractfile(entry)
        assert content is not None
        kind, _, name = entry.name.partition("/")
        if not name:
            documents[kind] = json.loads(content.read())
            if documents["manifest.json"]["format"] != _FORMAT:
                raise SetupError(Code.SETTING_INVALID, "The backup's format is of a newer fedlearn: restore it with that one.")
        elif kind == "models":
            body = content.read()
            models.put(name, body)
            found[name] = hashlib.sha256(body).hexdigest()
            sizes.append(len(body))
        else:
            files[name.removesuffix(".jsonl")] = file = _scratch(kept)
            shutil.copyfileobj(content, file)
            file.seek(0)
    complete = documents["complete.json"]
    if (complete["objects"], complete["object_bytes"]) != (len(sizes), sum(sizes)):
        raise ValueError("models are missing in it")
    if set(documents["manifest.json"]["tables"]) != files.keys():
        raise ValueError("tables are missing in it")
    for key, sha256 in _digests(files["model_versions"]).items():
        if found.get(key) != sha256:
            raise Refusal(Code.MODEL_MISMATCH, f"The backup's object {key} is damaged: the database is as it was.")
    return documents["manifest.json"], files, sizes


def _scratch(kept: ExitStack) -> IO[bytes]:
    return kept.enter_context(tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES))


def _digests(versions: IO[bytes]) -> dict[str, str]:
    """SHA-256 by key of all model versions in their table's file."""
    versions.seek(0)
    names, *rows = (json.loads(line) for line in versions)
    key, sha256 = names.index("key"), names.index("sha256")
    versions.seek(0)
    return {row[key]: row[sha256] for row in rows}


def _check(key: str, body: bytes, digests: dict[str, str]) -> None:
    if key in digests and hashlib.sha256(body).hexdigest() != digests[key]:
        raise Refusal(Code.MODEL_MISMATCH, f"The object {key} does not have the digest that the database names: it is damaged.")


def _add(archive: tarfile.TarFile, name: str, document: dict[str, Any]) -> None:
    body = json.dumps(document).encode()
    _add_bytes(archive, name, io.BytesIO(body), len(body))


def _add_bytes(archive: tarfile.TarFile, name: str, file: IO[bytes], size: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = size, 0o600, int(time.time())
    archive.addfile(entry, file)
