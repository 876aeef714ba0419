"""A large update on its way to a storage in memory, whatever breaks."""

from typing import Any

import pytest

from fedlearn.adapters.memory import MemoryObjectStore
from fedlearn.aggregator.folding import Folding
from fedlearn.aggregator.layout import update_key
from fedlearn.aggregator.uploads import UploadDesk
from fedlearn.core.errors import Code, FedlearnError, Outage, Refusal
from fedlearn.core.ids import DeviceId, RoundId
from fedlearn.core.ports import UploadGrant
from fedlearn.device.outbox import Parcel
from fedlearn.device.uploads import Upload
from fedlearn.protocol.parts import PART_BYTES, SINGLE_BYTES, PartGrant, PartsDone, PartsRequest, PartsUpload, digests_of
from fedlearn.protocol.plans import Plan
from support.sealed import ROUND, SealedRound
from support.world import small_plan

DEVICE = DeviceId("pod-0")
BODY = bytes(range(256)) * ((SINGLE_BYTES + PART_BYTES // 2) // 256)
DIGEST = "ab" * 32
PARCEL = Parcel(BODY, DIGEST, digests_of(BODY))


def large_plan() -> Plan:
    return small_plan(weights=[{"shape": [len(BODY) // 4]}])


class Services:
    """The aggregator's desk and a storage; a call or a part fails once as `fails` says."""

    def __init__(self) -> None:
        self.now = 0.0
        self.store = MemoryObjectStore()
        self.store.bucket.clock = lambda: self.now
        round_ = SealedRound(self.store, plan=large_plan())
        self.folding = Folding(round_.descriptor, round_.plan, round_.key, self.store)
        self.desk = UploadDesk(self.store, seconds=60)
        self.fails: dict[str, list[FedlearnError]] = {}
        self.uploads: list[str] = []
        self.sent: list[int] = []
        self.at_part: dict[int, Any] = {}

    def _perhaps_fail(self, call: str) -> None:
        if self.fails.get(call):
            raise self.fails[call].pop(0)

    async def place_parts(self, _round: RoundId, request: PartsRequest, _ticket: str) -> PartsUpload:
        self._perhaps_fail("place")
        upload_id, grants = self.desk.grant_parts(self.folding, DEVICE, request)
        self.uploads.append(upload_id)
        parts = tuple(PartGrant(url=grant.url, headers=dict(grant.headers)) for grant in grants)
        return PartsUpload(upload_id=upload_id, parts=parts, valid_seconds=60)

    async def join_parts(self, _round: RoundId, joined: PartsDone, _ticket: str) -> None:
        self.desk.join_parts(self.folding, DEVICE, joined)
        self._perhaps_fail("join")  # the answer is lost

    def store_part(self, grant: UploadGrant, body: bytes) -> str:
        if (happens := self.at_part.pop(len(self.sent), None)) is not None:
            happens()
        status, tag = self.store.bucket.request("PUT", grant.url, body, grant.headers)
        if status != 200:
            raise Refusal(Code.FORBIDDEN, f"The storage says {status}.")
        self.sent.append(len(body))
        return tag.decode()

    def upload(self) -> Upload:
        played: Any = self
        return Upload(played, played, round_id=ROUND, slot=None, ticket="", parcel=PARCEL)

    def stored(self) -> bytes:
        return self.store.get(update_key(ROUND, DEVICE, DIGEST))


@pytest.fixture
def services() -> Services:
    return Services()


def raises(error: FedlearnError) -> Any:
    def happens() -> None:
        raise error

    return happens


OUTAGE = Outage(Code.STORAGE_UNAVAILABLE, "The connection is broken.")


async def test_a_large_update_goes_in_parts(services: Services) -> None:
    await services.upload().bring()
    assert services.stored() == BODY
    assert services.sent == [PART_BYTES] * 4 + [PART_BYTES // 2]


async def test_what_has_arrived_before_a_connection_broke_is_not_sent_again(services: Services) -> None:
    services.at_part = {3: raises(OUTAGE)}
    await services.upload().bring()
    assert services.stored() == BODY
    assert sum(services.sent) == len(BODY)
    assert len(services.uploads) == 1


async def test_urls_that_expire_on_the_way_are_signed_again_for_the_same_upload(services: Services) -> None:
    def hours_pass() -> None:
        services.now += 3600

    services.at_part = {2: hours_pass}
    await services.upload().bring()
    assert services.stored() == BODY
    assert sum(services.sent) == len(BODY)
    assert len(services.uploads) == 2
    assert len(set(services.uploads)) == 1


async def test_a_storage_that_takes_no_part_at_all_is_not_asked_for_ever(services: Services) -> None:
    services.at_part = {0: raises(Refusal(Code.FORBIDDEN, "It is not allowed."))}
    with pytest.raises(Refusal) as refusal:
        await services.upload().bring()
    assert refusal.value.code is Code.FORBIDDEN
    assert services.sent == []


async def test_outages_of_the_aggregator_are_waited_out_and_a_lost_answer_does_no_harm(services: Services) -> None:
    services.fails = {"place": [OUTAGE], "join": [OUTAGE]}
    await services.upload().bring()
    assert services.stored() == BODY
    assert services.store.bucket.uploads == {}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        pytest.param({"part_sha256": (DIGEST,)}, Code.BAD_REQUEST, id="too few parts"),
        pytest.param({"part_sha256": (DIGEST,) * 6}, Code.BAD_REQUEST, id="too many parts"),
        pytest.param({"size_bytes": len(BODY) + (1 << 20)}, Code.UPDATE_TOO_LARGE, id="larger than the plan allows"),
    ],
)
def test_the_desk_grants_no_parts_that_do_not_make_up_an_update(services: Services, change: Any, code: Code) -> None:
    asked = {"size_bytes": len(BODY), "digest": DIGEST, "part_sha256": (DIGEST,) * 5}
    with pytest.raises(Refusal) as refusal:
        services.desk.grant_parts(services.folding, DEVICE, PartsRequest(**{**asked, **change}))
    assert refusal.value.code is code
    assert services.store.bucket.uploads == {}
