import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlearn.config import DeviceSettings
from fedlearn.core.errors import Code, FedlearnError, Outage, SetupError
from fedlearn.core.learning import Examples, Shard
from fedlearn.data.shards import write_shard
from fedlearn.device.agent import Home
from fedlearn.device.residents import Resident, check_readiness, homes_of
from fedlearn.protocol.messages import CheckIn, ComeBack
from support.desk import until

SHARD = Shard(
    train=Examples(np.zeros((5, 3), np.float32), np.zeros(5, np.int32)),
    holdout=Examples(np.zeros((2, 3), np.float32), np.zeros(2, np.int32)),
)


class Server:
    """Answers check-ins of devices that are unfit."""

    def __init__(self, *failures: FedlearnError) -> None:
        self.checkins: list[CheckIn] = []
        self.failures = list(failures)

    async def check_in(self, checkin: CheckIn) -> ComeBack:
        if self.failures:
            raise self.failures.pop(0)
        self.checkins.append(checkin)
        return ComeBack(after_seconds=0.005)


class Worker:
    """In an agent's place."""

    def __init__(self, home: Home) -> None:
        self.home, self.connected, self.works = home, False, asyncio.Event()

    async def run(self) -> None:
        self.connected = True
        self.works.set()
        await asyncio.Event().wait()


class Process:
    """The residents of a process with these settings, on directories below `place`."""

    def __init__(self, place: Path, server: Server, count: int | None, **settings: Any) -> None:
        token = place / "token"
        given = {"server_token_file": token, "aggregator_token_file": token, "aggregator_identity_file": token, **settings}
        if "loader" not in settings:
            given["shards"] = place
        self.workers: list[Worker] = []
        played: Any = server
        self.residents = [
            Resident(slot, read, self._settle, played, dataset="mnist", runtime="numpy")
            for slot, read in homes_of(DeviceSettings(count=count, **given), "numpy")
        ]

    def _settle(self, home: Home) -> Any:
        self.workers.append(Worker(home))
        return self.workers[-1]

    def start(self) -> None:
        self.tasks = [asyncio.create_task(resident.run()) for resident in self.residents]

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def unready(self) -> FedlearnError | None:
        try:
            check_readiness(self.residents)
        except Outage as outage:
            return outage
        return None


async def test_a_bad_shard_among_several_keeps_no_other_device_from_its_work(tmp_path: Path) -> None:
    for name in ("4", "6"):
        write_shard(tmp_path / name, SHARD)
    server = Server()
    process = Process(tmp_path, server, 3, first_shard=4)
    process.start()
    await until(lambda: len(server.checkins) > 1)
    assert [(worker.home.slot, worker.home.seed_name) for worker in process.workers] == [(0, "4"), (2, "6")]
    assert all(worker.works.is_set() for worker in process.workers)
    checkin = server.checkins[0]
    assert (checkin.slot, checkin.examples, checkin.wait_seconds) == (1, 0, 0)
    assert checkin.unfit is not None
    assert checkin.unfit.code is Code.SHARD_INVALID
    assert str(tmp_path / "5" / "train.npz") in checkin.unfit.detail
    unready = process.unready()
    assert unready is not None
    assert unready.code is Code.SHARD_INVALID
    assert unready.detail.startswith("1 of 3 devices can't take part; slot 1: The shard's file ")
    await process.stop()


async def test_once_its_shard_is_mended_a_device_takes_part(tmp_path: Path) -> None:
    place, server = tmp_path / "shard", Server()
    process = Process(place, server, None)
    process.start()
    await until(lambda: server.checkins)
    unready = process.unready()
    assert unready is not None
    assert unready.detail.startswith("The shard's file ")
    write_shard(place, SHARD)
    await until(lambda: process.workers and process.workers[0].works.is_set())
    assert process.unready() is None
    assert process.workers[0].home.slot is None
    await process.stop()


@pytest.mark.parametrize(
    "error",
    [Outage(Code.SERVER_UNREACHABLE, "Away."), SetupError(Code.SETTING_INVALID, "No token yet.")],
    ids=["outage", "setup error"],
)
async def test_a_server_that_does_not_answer_is_asked_again(tmp_path: Path, error: FedlearnError) -> None:
    server = Server(error)
    process = Process(tmp_path, server, None)
    process.start()
    await until(lambda: server.checkins)
    assert process.residents[0].connected
    await process.stop()


async def test_a_loader_is_called_with_the_number_of_each_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_loader.py").write_text(
        "import numpy as np\n"
        "def load(ordinal):\n"
        "    x, y = np.full((ordinal, 2), ordinal, np.float32), np.zeros(ordinal, np.int32)\n"
        "    return (x, y), (x, y)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    process = Process(tmp_path, Server(), 3, first_shard=0, loader="own_loader:load")
    assert [(w.home.slot, w.home.seed_name, len(w.home.shard.train)) for w in process.workers] == [(1, "1", 1), (2, "2", 2)]
    unfit = process.residents[0].unfit
    assert unfit is not None
    assert "no example" in unfit.detail


async def test_declared_columns_and_classes_are_heeded(tmp_path: Path) -> None:
    write_shard(tmp_path, Shard(SHARD.train, Examples(SHARD.holdout.features, np.array([0, 7], np.int32))))
    (resident,) = Process(tmp_path, Server(), None, classes=7).residents
    assert resident.unfit is not None
    assert "holdout.npz cannot be used: y has labels from 0 to 7, where there are classes from 0 to 6" in resident.unfit.detail


@pytest.mark.parametrize("given", [{}, {"shards": Path("a"), "loader": "a:b"}], ids=["none", "both"])
def test_a_device_has_one_source_of_data(given: dict[str, Any]) -> None:
    token = Path("token")
    with pytest.raises(ValueError, match="one of them"):
        DeviceSettings(server_token_file=token, aggregator_token_file=token, aggregator_identity_file=token, **given)
