"""How much one device gets upload URLs for."""

import gc

import pytest

from fedlearn.adapters.memory import MemoryObjectStore
from fedlearn.aggregator.folding import Folding
from fedlearn.aggregator.uploads import UploadDesk
from fedlearn.core.errors import Code, Outage, Refusal
from fedlearn.core.ids import DeviceId
from fedlearn.protocol.messages import UploadRequest
from fedlearn.protocol.parts import PartsRequest
from fedlearn.telemetry.metrics import aggregator as metrics
from support.sealed import SealedRound

A, B = DeviceId("a"), DeviceId("b")


class Desk:
    """A desk that a test asks for URLs, of one piece or in parts."""

    def __init__(self) -> None:
        self.store = MemoryObjectStore()
        self.desk, self.folding = UploadDesk(self.store, seconds=60), self.open()

    def open(self) -> Folding:
        sealed = SealedRound(self.store)
        return Folding(sealed.descriptor, sealed.plan, sealed.key, self.store)

    def ask(self, digit: int, device: DeviceId = A, *, folding: Folding | None = None) -> None:
        request = UploadRequest(size_bytes=100, digest=str(digit) * 64, sha256="0" * 64)
        self.desk.grant(folding or self.folding, device, request)

    def ask_parts(self, digit: int, device: DeviceId = A) -> str:
        request = PartsRequest(size_bytes=100, digest=str(digit) * 64, part_sha256=("0" * 64,))
        return self.desk.grant_parts(self.folding, device, request)[0]


def test_a_device_gets_urls_for_three_updates_of_a_round_and_for_these_as_often_as_it_asks() -> None:
    desk, counter = Desk(), metrics.UPDATES.labels(Code.UPDATE_REPEATED)
    before = counter._value.get()
    for _ in range(5):
        desk.ask(1)
        desk.ask_parts(2)
        desk.ask(3)
    for ask in (desk.ask, desk.ask_parts):
        with pytest.raises(Refusal) as refusal:
            ask(4)
        assert refusal.value.code is Code.UPDATE_REPEATED
    assert counter._value.get() - before == 2
    desk.ask(4, B)
    desk.ask(4, folding=desk.open())


def test_an_update_has_one_upload_in_parts_however_often_it_is_asked_for() -> None:
    desk = Desk()
    ids = {desk.ask_parts(1) for _ in range(5)}
    assert ids == desk.store.bucket.uploads.keys()
    assert len({*ids, desk.ask_parts(2), desk.ask_parts(1, B)}) == 3


def test_an_upload_that_could_not_be_begun_is_begun_at_the_next_question() -> None:
    desk = Desk()
    desk.store.bucket.available = False
    with pytest.raises(Outage):
        desk.ask_parts(1)
    desk.store.bucket.available = True
    assert {desk.ask_parts(1)} == desk.store.bucket.uploads.keys()


def test_what_was_asked_for_is_forgotten_with_its_round() -> None:
    desk = Desk()
    desk.ask(1)
    assert len(desk.desk._asked) == 1
    del desk.folding
    gc.collect()
    assert len(desk.desk._asked) == 0
