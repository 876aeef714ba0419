"""Changes on their way to open pages: gathered, written once for all pages, at most four times a second.

While no page is open nothing is gathered. A page that falls behind, or comes back too late, is sent everything anew.
"""

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from fedlearn.core.errors import Code, FedlearnError, Outage
from fedlearn.core.happenings import Happening
from fedlearn.core.ids import DeviceId, RoundId, TaskId
from fedlearn.core.rounds import Round
from fedlearn.telemetry.logs import log

_log = log(__name__)
MAX_PAGES = 64
_PAUSE_SECONDS = 0.25
_HEARTBEAT_SECONDS = 15.0
_LINGER_SECONDS = 60.0
_KEPT_MESSAGES = 64


@dataclass(slots=True)
class Gathered:
    """What has changed, by name: what it is now is looked up when it is sent."""

    tasks: set[TaskId] = field(default_factory=set)
    rounds: dict[RoundId, Round] = field(default_factory=dict)
    devices: set[DeviceId] = field(default_factory=set)
    fleet: bool = False
    versions: set[tuple[TaskId, int]] = field(default_factory=set)
    histories: set[TaskId] = field(default_factory=set)
    happenings: list[Happening] = field(default_factory=list)


class Feed:
    """Every method but `stream` returns at once."""

    def __init__(self) -> None:
        self.overview: Callable[[], Awaitable[str]] = _nothing
        """Everything, as JSON."""
        self.changes: Callable[[Gathered], Awaitable[str]] = _nothing_changed
        """What has changed, as JSON."""
        self._gathered = Gathered()
        self._dirty, self._sent = asyncio.Event(), asyncio.Event()
        self._messages: deque[str] = deque(maxlen=_KEPT_MESSAGES)
        self._number = 0
        self._life = secrets.token_hex(4)
        self._pages = 0
        self._sender: asyncio.Task[None] | None = None
        self._closed = False

    # --- what the server says

    def task(self, task: TaskId) -> None:
        if self._listening:
            self._gathered.tasks.add(task)
            self._dirty.set()

    def round(self, round_: Round) -> None:
        if self._listening:
            self._gathered.rounds[round_.id] = round_
            self._dirty.set()

    def device(self, device: DeviceId) -> None:
        if self._listening:
            self._gathered.devices.add(device)
            self._dirty.set()

    def fleet(self) -> None:
        """Any device may have changed: the cluster has news of the pods."""
        if self._listening:
            self._gathered.fleet = True
            self._dirty.set()

    def version(self, task: TaskId, version: int) -> None:
        if self._listening:
            self._gathered.versions.add((task, version))
            self._dirty.set()

    def versions(self, task: TaskId) -> None:
        """Any version of the task may have changed."""
        if self._listening:
            self._gathered.histories.add(task)
            self._dirty.set()

    def happened(self, happenings: Sequence[Happening]) -> None:
        if self._listening and happenings:
            self._gathered.happenings += happenings
            self._dirty.set()

    def close(self) -> None:
        """End all streams: the server stops."""
        self._closed = True
        self._dirty.set()
        self._announce()

    # --- what pages hear

    def admit(self) -> None:
        """Raises:
        Outage: `too_many_pages`.
        """
        if self._pages >= MAX_PAGES:
            raise Outage(Code.TOO_MANY_PAGES, f"{MAX_PAGES} pages follow this server already: close some of them.")

    async def stream(self, last: str | None) -> AsyncIterator[str]:
        """Server-sent events: everything, or what came after `last`; then each change, and a beat when it is quiet."""
        self._pages += 1
        try:
            self._listen()
            position = self._position(last)
            while not self._closed:
                oldest = self._number - len(self._messages)
                sent = self._sent
                if position is None or position < oldest:
                    position = self._number
                    yield self._event("overview", position, await self.overview())
                elif position < self._number:
                    message = self._messages[position - oldest]
                    position += 1
                    yield self._event("changes", position, message)
                elif not await _within(sent, _HEARTBEAT_SECONDS):
                    yield "event: beat\ndata:\n\n"
        finally:
            self._pages -= 1

    @property
    def _listening(self) -> bool:
        return self._sender is not None

    def _listen(self) -> None:
        if self._sender is None:
            self._life, self._number = secrets.token_hex(4), 0  # what came while nobody listened is in no message
            self._messages.clear()
            self._gathered = Gathered()
            self._sender = asyncio.create_task(self._send(), name="console feed")

    def _position(self, last: str | None) -> int | None:
        life, _, number = (last or "").partition("-")
        known = life == self._life and number.isdecimal() and int(number) <= self._number
        return int(number) if known else None

    def _event(self, kind: str, number: int, data: str) -> str:
        return f"id: {self._life}-{number}\nevent: {kind}\ndata: {data}\n\n"

    async def _send(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            heard_until = loop.time() + _LINGER_SECONDS
            while not self._closed and loop.time() < heard_until:
                if await _within(self._dirty, _HEARTBEAT_SECONDS) and not self._closed:
                    await self._write()
                    await asyncio.sleep(_PAUSE_SECONDS)
                if self._pages:
                    heard_until = loop.time() + _LINGER_SECONDS
        finally:
            self._sender = None

    async def _write(self) -> None:
        gathered, self._gathered = self._gathered, Gathered()
        self._dirty.clear()
        try:
            message = await self.changes(gathered)
        except FedlearnError as error:
            _log.warning("pages are sent everything anew", code=error.code, detail=error.detail)
            self._messages.clear()
            self._number += 1  # nobody has this one: each page has fallen behind
        else:
            self._messages.append(message)
            self._number += 1
        self._announce()

    def _announce(self) -> None:
        self._sent.set()
        self._sent = asyncio.Event()


async def _within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


async def _nothing() -> str:
    return "{}"


async def _nothing_changed(_gathered: Gathered) -> str:
    return "{}"
