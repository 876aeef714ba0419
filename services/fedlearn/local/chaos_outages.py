"""Storage or database away for a while, and then back with all that it held: not killed, but not to be had either."""

import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from fedlearn.core.rounds import Phase
from fedlearn.local.chaos import PHASES, Arena, Kill

ON_SQLITE = ("storage gone", "storage hangs", "database locked")
ON_POSTGRESQL = ("database gone", "database hangs")
KINDS = (*ON_SQLITE, *ON_POSTGRESQL)


def outage(arena: Arena, kind: str, phase: Phase, seconds: float) -> Kill:
    """Take storage or database away for so long when a round has entered a phase; returns when it is back."""
    arena.aim(phase)
    current, at, began = arena.current(), time.time(), time.monotonic()
    with _KINDS[kind](arena):
        time.sleep(seconds)
    return Kill(kind, current.id.number, current.phase, at, time.monotonic() - began)


def outages(arena: Arena, seconds: float, say: Callable[[Kill], None]) -> list[Kill]:
    """Each kind of outage in each phase, and after each a round that commits.

    On PostgreSQL it is the database's alone: the storage's are the same there.
    """
    done = list[Kill]()
    for kind in ON_SQLITE if arena.postgres is None else ON_POSTGRESQL:
        for phase in PHASES:
            done.append(outage(arena, kind, phase, seconds))
            say(done[-1])
            arena.committed(after=done[-1].round)
    return done


@contextmanager
def _gone(arena: Arena) -> Iterator[None]:
    """Nothing listens at its port."""
    arena.storage.kill()
    try:
        yield
    finally:
        arena.storage.start()


@contextmanager
def _hanging(arena: Arena) -> Iterator[None]:
    """It takes connections and answers none."""
    pid = arena.storage.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def _locked(arena: Arena) -> Iterator[None]:
    """Another writer holds SQLite's lock: it can be read, and every write waits or fails."""
    with closing(sqlite3.connect(arena.database, timeout=10, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            writer.execute("ROLLBACK")


@contextmanager
def _database_gone(arena: Arena) -> Iterator[None]:
    """It is stopped, and started later on the same files."""
    assert arena.postgres is not None
    arena.postgres.stop()
    try:
        yield
    finally:
        arena.postgres.start()


@contextmanager
def _database_hanging(arena: Arena) -> Iterator[None]:
    """All of its processes are stopped: connections stay open, and nothing comes of them."""
    assert arena.postgres is not None
    with arena.postgres.hanging():
        yield


_KINDS = {
    "storage gone": _gone,
    "storage hangs": _hanging,
    "database locked": _locked,
    "database gone": _database_gone,
    "database hangs": _database_hanging,
}
