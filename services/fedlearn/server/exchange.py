"""What replicas tell each other of their devices, by the database: so the leader selects among those that wait anywhere."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence

from pydantic import ValidationError

from fedlearn.core.errors import FedlearnError
from fedlearn.core.ids import DeviceId
from fedlearn.core.ports import Clock
from fedlearn.core.replicas import Presence, Presences
from fedlearn.protocol.messages import CheckIn
from fedlearn.server.fleet import Elsewhere, Fleet
from fedlearn.server.roster import Roster, Visit
from fedlearn.server.speeds import Speeds
from fedlearn.telemetry.logs import log

_log = log(__name__)
_GATHER_SECONDS = 0.05
_OUTAGE_PAUSE_SECONDS = 1.0
_LOOK_ANYWAY_SECONDS = 5.0
_IDLE_SHARE = 4.0  # after each look it rests so many times as long as that took


class Exchange:
    """Writes what this replica's fleet notes, in batches, and shows it what the others have written: a `fleet.Journal`.

    Args:
        replica: this one's name.
        is_busy: whether the others' devices are of interest at once (this replica leads), or now and then.
        clock: seconds since the epoch, UTC; `now` seconds that only grow, the fleet's.
    """

    def __init__(
        self,
        presences: Presences,
        replica: str,
        fleet: Fleet,
        *,
        roster: Roster,
        speeds: Speeds,
        is_busy: Callable[[], bool],
        clock: Clock,
        now: Callable[[], float],
    ) -> None:
        self._presences, self._replica, self._fleet, self._roster, self._speeds = presences, replica, fleet, roster, speeds
        self._is_busy, self._clock, self._now = is_busy, clock, now
        self._news: dict[DeviceId, Presence | None] = {}
        self._written, self._called = asyncio.Event(), asyncio.Event()
        self._checkins: dict[DeviceId, tuple[str, CheckIn]] = {}

    # --- the journal

    def here(self, device: DeviceId, checkin: CheckIn, waiting: bool, seconds: float) -> None:
        self._news[device] = Presence(device, checkin.model_dump_json(exclude_defaults=True), waiting, seconds, self._clock())
        self._written.set()

    def gone(self, device: DeviceId) -> None:
        self._news[device] = None
        self._written.set()

    # --- to and fro

    def look_again(self) -> None:
        """Another replica has written."""
        if self._is_busy():
            self._called.set()

    def look_now(self) -> None:
        """This replica leads from now on, or has missed signals."""
        self._called.set()

    async def tell(self) -> None:
        """Write what comes in, until cancelled. What can't be written now is written later, unless it is old by then."""
        while True:
            await self._written.wait()
            self._written.clear()
            news, self._news = self._news, {}
            present = [presence for presence in news.values() if presence is not None]
            gone = [device for device, presence in news.items() if presence is None]
            try:
                await asyncio.to_thread(self._presences.put, self._replica, present, gone)
            except Exception as error:
                _tell_of("other replicas are not told of devices", error)
                self._news = {**news, **self._news}
                self._written.set()
                await asyncio.sleep(_OUTAGE_PAUSE_SECONDS)
            await asyncio.sleep(_GATHER_SECONDS)

    async def look(self) -> None:
        """Read what the others have written whenever that is of interest, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_ANYWAY_SECONDS):
                    await self._called.wait()
            self._called.clear()
            began = loop.time()
            try:
                self._show(await asyncio.to_thread(self._presences.elsewhere, self._replica))
            except Exception as error:
                _tell_of("the devices at other replicas are not known", error)
                await asyncio.sleep(_OUTAGE_PAUSE_SECONDS)
            await asyncio.sleep(_GATHER_SECONDS + _IDLE_SHARE * (loop.time() - began))

    def _show(self, presences: Sequence[Presence]) -> None:
        now, before = self._now(), self._checkins
        self._checkins = {}
        elsewhere: dict[DeviceId, Elsewhere] = {}
        visits: dict[DeviceId, Visit] = {}
        for presence in presences:
            text, checkin = before.get(presence.device, ("", None))
            if checkin is None or text != presence.checkin:
                try:
                    checkin = CheckIn.model_validate_json(presence.checkin)
                except ValidationError:  # a newer release's, while servers are replaced one by one
                    continue
                self._speeds.note(presence.device, checkin)
            self._checkins[presence.device] = presence.checkin, checkin
            elsewhere[presence.device] = Elsewhere(checkin, presence.waiting, now + presence.seconds)
            visits[presence.device] = Visit(checkin, presence.seen_at)
        self._roster.see_elsewhere(visits)
        self._fleet.see_elsewhere(elsewhere)


def _tell_of(what: str, error: Exception) -> None:
    """An outage is foreseen, anything else is a fault of ours; the exchange goes on in either case."""
    if isinstance(error, FedlearnError):
        _log.warning(what, code=error.code, detail=error.detail)
    else:
        _log.error(what, exc_info=error)
