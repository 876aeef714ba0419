import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from fedlearn.adapters.token_cache import CACHE_SECONDS, TokenCache
from fedlearn.core.errors import Code, Outage

NOW = 1_800_000_000.0


class Looker:
    """Knows every token by its length, and counts how often it was asked."""

    def __init__(self, until: float = math.inf) -> None:
        self.now, self.until, self.asked = NOW, until, 0
        self.outage: Outage | None = None
        self.cache = TokenCache(self, clock=lambda: self.now)

    def __call__(self, token: str, now: float) -> tuple[int, float]:
        self.asked += 1
        if self.outage:
            raise self.outage
        return len(token), self.until


def test_a_token_is_looked_into_once_a_minute() -> None:
    looker = Looker()
    for seconds in (0.0, 30.0, CACHE_SECONDS - 0.001):
        looker.now = NOW + seconds
        assert looker.cache.find("four") == 4
    assert looker.asked == 1
    looker.now = NOW + CACHE_SECONDS
    assert looker.cache.find("four") == 4
    assert looker.asked == 2


def test_nothing_is_kept_past_the_tokens_own_end() -> None:
    looker = Looker(until=NOW + 5)
    looker.cache.find("four")
    looker.now = NOW + 5
    looker.cache.find("four")
    assert looker.asked == 2


def test_each_token_is_known_by_itself() -> None:
    looker = Looker()
    assert [looker.cache.find(token) for token in ("a", "bb", "a", "bb")] == [1, 2, 1, 2]
    assert looker.asked == 2


def test_an_outage_is_not_kept() -> None:
    looker = Looker()
    looker.outage = Outage(Code.IDENTITY_UNAVAILABLE, "Down.")
    for _ in range(2):
        with pytest.raises(Outage):
            looker.cache.find("four")
    looker.outage = None
    assert looker.cache.find("four") == 4


def test_it_holds_a_bounded_number_of_tokens_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedlearn.adapters.token_cache._CACHED_TOKENS", 3)
    looker = Looker()
    for length in range(1, 11):
        looker.cache.find("x" * length)
    assert len(looker.cache) == 3
    asked = looker.asked
    for length in (8, 9, 10):
        looker.cache.find("x" * length)
    assert looker.asked == asked
    looker.cache.find("x")
    assert looker.asked == asked + 1


class Crowd:
    """Four threads that ask for one token at once; the first to look waits until all have come."""

    def __init__(self, outage: Outage | None = None) -> None:
        self.asked: list[str] = []
        self.outage, self._come, self._all_have_come = outage, threading.Semaphore(3), threading.Event()

    def clock(self) -> float:
        if not self._come.acquire(blocking=False):
            self._all_have_come.set()
        return NOW

    def look(self, token: str, now: float) -> tuple[int, float]:
        self.asked.append(token)
        assert self._all_have_come.wait(10)
        if self.outage:
            raise self.outage
        return len(token), math.inf

    def find(self) -> list[int | Code]:
        cache = TokenCache(self.look, self.clock)

        def one(_number: int) -> int | Code:
            try:
                return cache.find("four")
            except Outage as outage:
                return outage.code

        with ThreadPoolExecutor(4) as threads:
            return list(threads.map(one, range(4)))


def test_a_token_that_many_ask_for_at_once_is_looked_into_once() -> None:
    crowd = Crowd()
    assert crowd.find() == [4] * 4
    assert crowd.asked == ["four"]


def test_an_outage_reaches_all_who_wait() -> None:
    assert Crowd(Outage(Code.IDENTITY_UNAVAILABLE, "Down.")).find() == [Code.IDENTITY_UNAVAILABLE] * 4
