"""Rounds by each codec with the real services, and what a device keeps on its volume between them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlearn.protocol.envelope import layout_of
from fedlearn.protocol.plans import Plan
from fedlearn.protocol.tensors import decode_vector, encode_model, unflatten
from support.command import Run
from support.trial import Trial, step


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("--codec", "top_k", "--keep-fraction", "0.05"), id="top_k"),
        pytest.param(("--codec", "int8", "--model-encoding", "float16"), id="int8 and a model in float16"),
    ],
)
def test_a_run_commits_its_rounds(tmp_path: Path, options: tuple[str, ...]) -> None:
    out = tmp_path / "run"
    ports = ("--server-port", "0", "--aggregator-port", "0", "--storage-port", "0")
    common = ("--learner", "synthetic", "--devices", "2", "--processes", "1", "--rounds", "3", "--out", str(out))
    run = Run("run", *common, *ports, *options)
    code, said, errors = run.end()
    assert code == 0, said + errors
    logged = [json.loads(line) for line in (out / "logs" / "device-0.log").read_text().splitlines()]
    sizes = {entry["bytes"] for entry in logged if entry["event"] == "uploaded"}
    # of 796,840 bytes; a share of 5 % is 3 bytes each or so, and int8 of uniform noise does not compress
    assert all(size < (45_000 if "top_k" in options else 210_000) for size in sizes)
    assert not (out / "state").exists()


def test_what_devices_begin_with_is_the_copy_that_their_updates_name(make_trial: Callable[..., Trial], world: Any) -> None:
    trial = make_trial(world, update={"encoding": "int8"}, model_encoding="float16")
    trial.submit()
    a, b = trial.devices("a", "b")
    assignments = trial.assign(a, b)
    plan: Plan = trial.plan
    copy = world.store("server", "fedlearn-models").get(assignments[0].model.key)
    base = trial.model(0)
    np.testing.assert_array_equal(decode_vector(copy, plan, "float16"), base.astype(np.float16).astype(np.float32))
    assert len(copy) < 0.6 * len(encode_model(unflatten(base, plan), plan))
    updates = [trial.update() for _ in range(2)]
    for device, assignment, update in zip((a, b), assignments, updates, strict=True):
        body = trial.bring(device, assignment, update)
        assert len(body) < layout_of(plan).max_bytes
    trial.reach(1, "committed")
    # what is added to is the float32 that is kept, not the copy
    expected = step(base, updates)
    assert np.abs(trial.model(1) - expected).max() <= 1.01 * max(np.abs(update.delta).max() for update in updates) / 127
