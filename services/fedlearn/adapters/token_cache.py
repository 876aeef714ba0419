"""What was found out about a bearer token holds for a while: it is looked into once, however many ask for it at once."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from fedlearn.core.ports import Clock

CACHE_SECONDS = 60.0
_CACHED_TOKENS = 10_000
Known = TypeVar("Known")
Look = Callable[[str, float], tuple[Known, float]]
"""Looks into a token at a time: what is known of it, and when the token ends by itself (infinity if it does not say)."""


class TokenCache(Generic[Known]):
    """Keeps what `look` gives for at most `CACHE_SECONDS`, and never past the token's own end. Safe for threads.

    A refusal or an outage is not kept. Tokens are held as digests alone.

    Args:
        clock: seconds since the epoch, UTC.
    """

    def __init__(self, look: Look[Known], clock: Clock) -> None:
        self._look, self._clock = look, clock
        self._kept: OrderedDict[bytes, tuple[Known, float]] = OrderedDict()
        self._looking: dict[bytes, Future[Known]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def kept(self, token: str) -> Known | None:
        """What is kept of this token and holds still: an answer at once, that never looks."""
        known, until = self._kept.get(_name(token), (None, 0.0))
        return known if self._clock() < until else None

    def look(self, token: str) -> Known:
        """Look into this token now, whoever else does; raises what `look` raises."""
        now = self._clock()
        known, until = self._look(token, now)
        with self._lock:
            self._keep(_name(token), known, now, until)
        return known

    def find(self, token: str) -> Known:
        """What is known of this token; raises what `look` raises."""
        now, name = self._clock(), _name(token)
        with self._lock:
            kept = self._kept.get(name)
            if kept is not None and now < kept[1]:
                return kept[0]
            others = self._looking.get(name)
            if others is None:
                mine: Future[Known] = Future()
                self._looking[name] = mine
        # a process that hosts many devices asks for all of them with one token
        return self._ask(name, token, now, mine) if others is None else others.result()

    def _ask(self, name: bytes, token: str, now: float, answer: Future[Known]) -> Known:
        try:
            known, until = self._look(token, now)
        except BaseException as error:
            with self._lock:
                del self._looking[name]
            answer.set_exception(error)
            raise
        with self._lock:
            del self._looking[name]
            self._keep(name, known, now, until)
        answer.set_result(known)
        return known

    def _keep(self, name: bytes, known: Known, now: float, until: float) -> None:
        self._kept[name] = known, min(now + CACHE_SECONDS, until)
        self._kept.move_to_end(name)
        if len(self._kept) > _CACHED_TOKENS:
            self._kept.popitem(last=False)


def _name(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="replace")).digest()
