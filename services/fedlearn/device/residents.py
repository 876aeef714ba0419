"""The devices of a process from its start on, whether or not their shards can be used."""

import asyncio
import tempfile
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

from fedlearn.adapters.http import persist
from fedlearn.config import DeviceSettings
from fedlearn.core.errors import Code, FedlearnError, Outage, SetupError
from fedlearn.data.files import Columns
from fedlearn.data.loaders import load_shard
from fedlearn.data.shards import label_counts, read_shard
from fedlearn.device.agent import Agent, Home
from fedlearn.device.peers import ServerClient
from fedlearn.protocol.messages import CheckIn, ComeBack, Unfit
from fedlearn.telemetry.logs import log

_log = log(__name__)
_LOOK_AGAIN_SECONDS = 15.0
ReadHome = Callable[[], Home]


class Resident:
    """One device. While its shard can't be used, its check-ins say why, and it looks at the shard again before each.

    So a bad shard keeps no other device of the process from its work, the server shows what is wrong, and once somebody has
    mended it, the device takes part without a restart.

    Args:
        slot: which of the devices of its process, None where it is the only one.
        read: raises SetupError while the shard can't be used.
        settle: makes the agent that lives there.
        dataset: what a check-in names, as `runtime`.
    """

    def __init__(
        self,
        slot: int | None,
        read: ReadHome,
        settle: Callable[[Home], Agent],
        server: ServerClient,
        *,
        dataset: str,
        runtime: str,
    ) -> None:
        self.slot, self._read, self._settle, self._server = slot, read, settle, server
        self._dataset, self._runtime = dataset, runtime
        self._told = False
        self._agent: Agent | None = None
        self.unfit: SetupError | None = None
        self._look()

    @property
    def connected(self) -> bool:
        """Whether the server has heard its last check-in."""
        return self._told if self._agent is None else self._agent.connected

    async def run(self) -> None:
        """Until cancelled."""
        while self._agent is None:
            assert self.unfit is not None
            await asyncio.sleep(await persist(partial(self._tell, self.unfit)))
            await asyncio.to_thread(self._look)
        await self._agent.run()

    def _look(self) -> None:
        try:
            self._agent = self._settle(self._read())
        except SetupError as error:
            if self.unfit is None or self.unfit.detail != error.detail:
                _log.error("device is unfit", slot=self.slot, code=error.code, detail=error.detail)
            self.unfit = error
        else:
            if self.unfit is not None:
                _log.info("device is fit again", slot=self.slot)
            self.unfit = None

    async def _tell(self, error: SetupError) -> float:
        """Check in; after how many seconds to come again."""
        unfit = Unfit(code=error.code, detail=error.detail[:1000])
        checkin = CheckIn(slot=self.slot, dataset=self._dataset, examples=0, runtime=self._runtime, unfit=unfit, wait_seconds=0)
        try:
            answer = await self._server.check_in(checkin)
        except FedlearnError as failed:
            self._told = False
            _log.warning("check-in failed", code=failed.code, detail=failed.detail)
            raise Outage(failed.code, failed.detail) from failed
        self._told = True
        return answer.after_seconds if isinstance(answer, ComeBack) else _LOOK_AGAIN_SECONDS


def homes_of(settings: DeviceSettings, runtime: str) -> list[tuple[int | None, ReadHome]]:
    """The slots of this process, and how the home of each is read."""
    columns = Columns(tuple(settings.feature_columns.split(",")), settings.label_column, settings.classes)

    def read(slot: int | None) -> Home:
        ordinal = settings.first_shard + (slot or 0)
        if settings.loader is not None:
            shard, name = load_shard(settings.loader, ordinal, columns), str(ordinal)
        else:
            place = _place(settings, ordinal)
            shard, name = read_shard(place, columns), place.name
        labels = label_counts(shard.train) if settings.tells_labels else None
        state = settings.state or Path(_passing().name)
        return Home(slot, settings.dataset, shard, settings.seed, name, runtime, state / name, labels)

    slots = [None] if settings.count is None else list(range(settings.count))
    return [(slot, partial(read, slot)) for slot in slots]


@cache
def _passing() -> "tempfile.TemporaryDirectory[str]":
    """A directory that goes with the process."""
    return tempfile.TemporaryDirectory(prefix="fedlearn-state-", ignore_cleanup_errors=True)


def check_readiness(residents: Sequence[Resident]) -> None:
    """Whether every device of this process can take part.

    Raises:
        Outage: `shard_invalid` with the first sentence, or `server_unreachable`.
    """
    unfit = [resident for resident in residents if resident.unfit is not None]
    if unfit:
        first = unfit[0]
        assert first.unfit is not None
        of = "" if first.slot is None else f"{len(unfit)} of {len(residents)} devices can't take part; slot {first.slot}: "
        raise Outage(first.unfit.code, of + first.unfit.detail)
    if not all(resident.connected for resident in residents):
        raise Outage(Code.SERVER_UNREACHABLE, "Not all devices of this process could check in last time.")


def _place(settings: DeviceSettings, ordinal: int) -> Path:
    assert settings.shards is not None
    return settings.shards if settings.count is None else settings.shards / str(ordinal)
