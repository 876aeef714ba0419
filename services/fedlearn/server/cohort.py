"""The devices of the running round: nobody else's while their reports are out, and told as soon as these are not wanted."""

import asyncio
import contextlib
from collections.abc import Collection

from fedlearn.core.errors import Code, Refusal
from fedlearn.core.ids import DeviceId, RoundId
from fedlearn.core.rounds import OUTSTANDING, DevicesAvailable, Phase, Round
from fedlearn.server.fleet import Fleet

_OPEN = (Phase.CONFIGURATION, Phase.REPORTING)


class Cohort:
    """Follows one task's rounds, and keeps their devices reserved in the fleet."""

    def __init__(self, fleet: Fleet, dataset: str) -> None:
        self._fleet, self._dataset = fleet, dataset
        self._held: set[DeviceId] = set()
        self._round: Round | None = None
        self._gathering_since: float | None = None
        self._over = asyncio.Event()
        self._leaving = False

    def follow(self, round_: Round) -> None:
        """The round has changed."""
        before, self._round = self._round, round_
        if round_.phase is Phase.REPORTING and before is not None and before.phase is Phase.CONFIGURATION:
            self._gathering_since = round_.phase_since
        elif round_.phase in (Phase.CONFIGURATION, Phase.ABANDONED):
            self._gathering_since = None
        if round_.phase in _OPEN:
            if self._over.is_set():
                self._over = asyncio.Event()
            self.hold(round_.devices(*OUTSTANDING))
        elif round_.phase is not Phase.SELECTION:
            self.let_go()

    def candidates(self, round_: Round) -> list[DeviceId]:
        """The devices that wait and meet the round's demands."""
        return self._fleet.waiting(self._dataset, round_.policy.demands)

    def available(self, round_: Round, now: float) -> DevicesAvailable:
        """How many they are, and whether others are to come, where that makes a difference.

        They have gathered since the round before began to report, if this driver has seen that: all that time their check-ins
        were held here.
        """
        count, policy = len(self.candidates(round_)), round_.policy
        since = self._gathering_since if policy.overlap_selection else None
        least = policy.goal if since is None else policy.minimum
        if not least <= count < policy.selection.goal:
            return DevicesAvailable(count)
        began = round_.phase_since if since is None else since
        to_come = self._fleet.missing(self._dataset, max(0.0, began + policy.selection_timeout_seconds - now))
        return DevicesAvailable(count, to_come, gathering_seconds=0.0 if since is None else now - since)

    def hold(self, devices: Collection[DeviceId]) -> None:
        """Keep just these devices; who has reported or left is free for other tasks' rounds."""
        free, self._held = self._held.difference(devices), set(devices)
        self._fleet.reserve(devices)
        if free:
            self._fleet.release(free)

    def let_go(self) -> None:
        """Keep nobody, and answer those who wait."""
        self.hold(())
        self._over.set()

    def leave(self) -> None:
        """Answer those who wait, now and from now on: this driver ends, and another one goes on with the round."""
        self._leaving = True
        self._over.set()

    async def while_wanted(self, round_id: RoundId, device: DeviceId, seconds: float) -> None:
        """Wait, at most so long, while the round takes the device's report.

        Raises:
            Refusal: `round_closed` as soon as it does not any more, `not_selected` for a device that is not in it.
        """
        if self._round is None:  # it is still being read
            return
        if self._round.id == round_id and device not in self._round.participants:
            raise Refusal(Code.NOT_SELECTED, f"{device} is not in round {round_id}.")
        if self._is_open(round_id):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._over.wait()
        if not self._is_open(round_id):
            raise Refusal(Code.ROUND_CLOSED, f"Round {round_id} takes no more reports.")

    def _is_open(self, round_id: RoundId) -> bool:
        """Whether reports are taken, as far as is known here."""
        return self._leaving or (self._round is not None and self._round.id == round_id and self._round.phase in _OPEN)
