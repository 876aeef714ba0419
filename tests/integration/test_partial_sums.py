"""SIGKILL at each step of a partial sum, over the real storage: each update is counted once."""

import itertools
import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from fedlearn.aggregator import partials
from fedlearn.aggregator.folding import Folding
from fedlearn.aggregator.layout import partials_prefix, updates_prefix
from fedlearn.core.ids import DeviceId, RoundId, TaskId
from fedlearn.local.seaweed import UPDATES
from fedlearn.local.storage import LocalStorage
from fedlearn.protocol.sealing import identity_to_pem
from support import mortal
from support.sealed import IDENTITY, PLAN, SealedRound, updates_of, weighted_mean

PARTS = -(-PLAN.parameters // mortal.PART_ELEMENTS)
STEPS = {"the first part": 0, "the manifest": PARTS, "the updates' deletion": PARTS + 1, "the old sum's deletion": PARTS + 2}
_numbers = itertools.count(1)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())
def test_an_aggregator_that_is_killed_at_any_step_of_a_partial_sum_goes_on_from_storage(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, step: int, *, after: bool
) -> None:
    monkeypatch.setattr(partials, "_PART_ELEMENTS", mortal.PART_ELEMENTS)
    store, keys = storage.store("aggregator", UPDATES), storage.credentials("aggregator")
    sealed = SealedRound(store, round_id=RoundId(TaskId("partial-sums"), next(_numbers)))  # type: ignore[arg-type]
    told = {
        "endpoint_url": storage.endpoint_url,
        "access": keys.access,
        "secret": keys.secret,
        "descriptor": sealed.descriptor.model_dump_json(),
        "identity": identity_to_pem(IDENTITY).decode(),
    }

    def fold() -> Mapping[DeviceId, str]:
        return mortal.fold({**told, "step": -1, "after": False})

    def die(step: int) -> int:
        command = [sys.executable, "-m", "support.mortal", json.dumps({**told, "step": step, "after": after})]
        return subprocess.run(command, timeout=120, cwd=Path(__file__).parents[1], check=False).returncode

    updates = updates_of(6)
    devices = list(updates)
    digests = {device: sealed.bring(device, updates[device]) for device in devices[:3]}
    assert fold() == digests
    digests |= {device: sealed.bring(device, updates[device]) for device in devices[3:]}
    assert die(step) == -signal.SIGKILL
    assert fold() == digests
    assert store.list(updates_prefix(sealed.id)) == []

    folding = Folding(sealed.descriptor, sealed.plan, sealed.key, store)
    folding.resume()
    total = folding.total(digests)
    assert (total.updates, total.examples) == (6, sum(update.examples for update in updates.values()))
    np.testing.assert_allclose(total.mean(), weighted_mean(updates), rtol=1e-12, atol=1e-15)
    sums = {found.key.rpartition("/")[0] for found in store.list(partials_prefix(sealed.id, 0)) if ".json" not in found.key}
    assert len(sums) == 1
