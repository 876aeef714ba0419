"""A real device process that hosts several devices, one of which has a shard that can't be used."""

from pathlib import Path

import httpx
import numpy as np

from fedlearn.core.errors import Code
from fedlearn.core.learning import Examples, Shard
from fedlearn.data.shards import write_shard
from fedlearn.local.ports import free_port
from fedlearn.local.processes import start_program
from support.trial import Trial
from support.world import World, wait_for

SHARD = Shard(
    train=Examples(np.zeros((30, 784), np.float32), np.zeros(30, np.int32)),
    holdout=Examples(np.zeros((4, 784), np.float32), np.zeros(4, np.int32)),
)


def test_the_others_train_and_everybody_can_see_what_is_wrong(world: World, trial: Trial, tmp_path: Path) -> None:
    for name in ("0", "2"):
        write_shard(tmp_path / name, SHARD)
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "train.npz").write_bytes(b"torn")
    port = free_port()
    settings = world.deployment.device(7, port=port, shards=tmp_path, first_shard=0, count=3, dataset=trial.name, seed=0)
    log = tmp_path / "device.log"
    device = world.services.add(start_program("device-7", ["device"], {**settings, "FEDLEARN_LEARNER": "synthetic"}, log))
    trial.submit()
    round_ = trial.reach(1, "committed")
    assert {participant.device for participant in round_.participants} == {"device-7/0", "device-7/2"}

    with world.operator() as operator:
        views = {view.device: view for view in operator.devices().devices if view.device.startswith("device-7/")}
    unfit = wait_for(lambda: views["device-7/1"].unfit, "the server to hear of it")
    assert unfit.code is Code.SHARD_INVALID
    assert "1/train.npz cannot be used: it is no readable npz file" in unfit.detail
    assert (views["device-7/1"].waiting, views["device-7/1"].examples) == (False, None)
    assert [views[f"device-7/{slot}"].unfit for slot in (0, 2)] == [None, None]

    answer = httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False)
    assert answer.status_code == 503
    assert answer.json()["code"] == Code.SHARD_INVALID
    assert answer.json()["detail"] == f"1 of 3 devices can't take part; slot 1: {unfit.detail}"
    assert httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False).is_success
    device.process.terminate(10)
