"""An update beyond 64 MiB: it goes in parts into the real storage, over a connection that breaks, and counts like any other."""

import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from fedlearn.adapters.http import TICKET_HEADER, ServiceClient
from fedlearn.adapters.transfer import SignedTransfer
from fedlearn.core.errors import Code, Refusal
from fedlearn.core.ports import UploadGrant
from fedlearn.core.updates import Update
from fedlearn.device.outbox import Parcel
from fedlearn.device.peers import AggregatorClient
from fedlearn.device.uploads import Upload
from fedlearn.local.storage import LocalStorage
from fedlearn.protocol.messages import Assignment
from fedlearn.protocol.parts import PART_BYTES, SINGLE_BYTES
from support.relay import Relay, relay
from support.trial import Trial, step
from support.world import HandDevice, World, wait_for

SMALL_BYTES = 50_000
PARAMETERS = (SINGLE_BYTES + PART_BYTES // 2) // 4


@pytest.fixture(scope="module")
def wire(storage: LocalStorage) -> Iterator[Relay]:
    """The devices' way to the storage."""
    with relay("127.0.0.1", storage.port) as made:
        yield made


@pytest.fixture(scope="module")
def world(storage: LocalStorage, wire: Relay, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    access_key, secret_key = storage.credentials("aggregator")
    way = {
        "endpoint_url": storage.endpoint_url,
        "public_endpoint_url": f"http://127.0.0.1:{wire.port}",
        "access_key": access_key,
        "secret_key": secret_key,
    }
    world = World.start(tmp_path_factory.mktemp("world"), storage, {"FEDLEARN_STORAGE": json.dumps(way)})
    yield world
    world.stop()


class Breaking(SignedTransfer):
    """Notes what has arrived; the connection breaks in the middle of one part, and is mended for its next attempt."""

    def __init__(self, wire: Relay, part: int) -> None:
        super().__init__()
        self.wire, self.part, self.arrived = wire, part, list[int]()

    def store_part(self, grant: UploadGrant, body: bytes) -> str:
        if len(self.arrived) == self.part:
            self.part = -1
            self.wire.cut()
            try:
                self._request("PUT", grant.url, body, dict(grant.headers))
            finally:
                self.wire.mend()
        tag = super().store_part(grant, body)
        self.arrived.append(len(body))
        return tag


async def bring(world: World, device: HandDevice, assignment: Assignment, body: bytes, transfer: SignedTransfer) -> None:
    """The real device's way of an upload, with a hand device's token."""
    token = device.aggregator.headers["Authorization"].removeprefix("Bearer ")
    client = ServiceClient(world.aggregator_url, "aggregator", token=lambda: token, unreachable=Code.AGGREGATOR_UNREACHABLE)
    parcel = Parcel.of(body)
    async with client:
        aggregator, slot, ticket = AggregatorClient(client), device.slot, assignment.ticket
        round_id = Trial(world, assignment.task).id(assignment.round)
        await Upload(aggregator, transfer, round_id=round_id, slot=slot, ticket=ticket, parcel=parcel).bring()


def large(seed: int) -> Update:
    return Update(np.random.default_rng(seed).normal(0, 0.01, PARAMETERS).astype(np.float32), examples=10 + seed)


async def test_an_upload_goes_on_after_its_connection_broke_and_is_folded_to_the_last_bit(
    world: World, make_trial: Callable[..., Trial], wire: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedlearn.adapters.transfer._RETRIES", 0)  # the break is to be seen by what stands above
    trial = make_trial(world, weights=[{"shape": [PARAMETERS]}])
    trial.submit()
    a, b = trial.devices("a", "b")
    assignments = trial.assign(a, b)
    updates = [large(1), large(2)]
    bodies = [trial.seal(d, at, u) for d, at, u in zip((a, b), assignments, updates, strict=True)]
    assert all(len(body) > SINGLE_BYTES for body in bodies)
    transfer = Breaking(wire, part=2)
    await bring(world, a, assignments[0], bodies[0], transfer)
    await bring(world, b, assignments[1], bodies[1], SignedTransfer())
    assert transfer.part == -1, "the connection did break"
    assert sum(transfer.arrived) == len(bodies[0]), "every part has arrived once"
    base = trial.model(0)
    for device, assignment, body in zip((a, b), assignments, bodies, strict=True):
        assert device.done(assignment, body).status_code == 202
    trial.reach(1, "committed")
    np.testing.assert_allclose(trial.model(1), step(base, updates), rtol=0, atol=1e-7)
    wait_for(lambda: world.updates_of(trial.id()) == [], "the sweep")


def test_parts_that_never_became_an_update_are_swept_with_their_round(world: World, make_trial: Callable[..., Trial]) -> None:
    trial = make_trial(world)
    trial.submit()
    a, b = trial.devices("a", "b")
    assignment, _ = trial.assign(a, b)
    path = f"/v1/rounds/{trial.id()}/uploads/parts"
    digests = [hashlib.sha256(bytes(SMALL_BYTES)).hexdigest()]
    request = {"size_bytes": SMALL_BYTES, "digest": "0" * 64, "part_sha256": digests}
    answer = a.aggregator.post(path, json=request, headers={TICKET_HEADER: assignment.ticket})
    assert answer.status_code == 200, answer.text
    part = answer.json()["parts"][0]
    grant = UploadGrant(part["url"], part["headers"])
    SignedTransfer().store_part(grant, bytes(SMALL_BYTES))
    trial.cancel()

    def refused() -> bool:
        try:
            SignedTransfer().store_part(grant, bytes(SMALL_BYTES))
        except Refusal as refusal:
            return refusal.code is Code.NOT_FOUND
        return False

    wait_for(refused, "the parts to be dropped")


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        pytest.param({"part_sha256": ["0" * 64] * 2}, 422, "bad_request", id="too many digests"),
        pytest.param({"upload_id": "x" * 2000}, 422, "bad_request", id="an id that is none"),
        pytest.param({"size_bytes": 1 << 32, "part_sha256": ["0" * 64] * 256}, 413, "update_too_large", id="too large"),
    ],
)
def test_what_does_not_make_up_an_update_gets_no_urls(
    world: World, make_trial: Callable[..., Trial], change: dict[str, Any], status: int, code: str
) -> None:
    trial = make_trial(world)
    trial.submit()
    a, b = trial.devices("a", "b")
    assignment, _ = trial.assign(a, b)
    request = {"size_bytes": SMALL_BYTES, "digest": "0" * 64, "part_sha256": ["0" * 64], **change}
    path = f"/v1/rounds/{trial.id()}/uploads/parts"
    answer = a.aggregator.post(path, json=request, headers={TICKET_HEADER: assignment.ticket})
    assert (answer.status_code, answer.json()["code"]) == (status, code)
