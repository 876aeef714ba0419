"""What the aggregator's routes do in its event loop, and what in a thread beside it."""

import threading
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from fedlearn.adapters.http import TICKET_HEADER
from fedlearn.adapters.identity import Caller
from fedlearn.adapters.memory import MemoryObjectStore
from fedlearn.aggregator.admission import Admission
from fedlearn.aggregator.folding import Folding
from fedlearn.aggregator.open_round import OpenRound
from fedlearn.aggregator.routes import device_routes, server_routes
from fedlearn.aggregator.uploads import UploadDesk
from fedlearn.config import AggregatorSettings, IdentitySettings, StorageSettings
from fedlearn.core.errors import Code
from fedlearn.core.ids import RoundId
from fedlearn.core.ports import UploadGrant
from fedlearn.protocol.problems import CATALOGUE
from fedlearn.protocol.tickets import Ticket
from support.sealed import ROUND, SealedRound

STATIC = StorageSettings(access_key="key", secret_key=SecretStr("secret"))
FOUND = StorageSettings()


class Signing(MemoryObjectStore):
    """Notes the threads in which it signs."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: list[int] = []

    def sign_put(self, key: str, *, size_bytes: int, sha256: str, seconds: int) -> UploadGrant:
        self.threads.append(threading.get_ident())
        return super().sign_put(key, size_bytes=size_bytes, sha256=sha256, seconds=seconds)


class OpenGate:
    """Takes everybody for the pod `d`."""

    def admit(self, *_accounts: str) -> Callable[..., object]:
        async def caller() -> Caller:
            return Caller("fedlearn", "fedlearn-device", "d", "uid", None)

        return caller


class OneRound:
    """An aggregator with one open round, and what checks its tickets."""

    def __init__(self, store: MemoryObjectStore) -> None:
        sealed = SealedRound(store)
        self._ticket = Ticket("d", ROUND.task, ROUND.number, sealed.plan.digest, sealed.base.sha256)
        self._round = OpenRound(Folding(sealed.descriptor, sealed.plan, sealed.key, store), save_every=1)
        self.desk, self.admission = UploadDesk(store, seconds=60), Admission(store, 2, 60)

    def admit(self, _round: RoundId) -> OpenRound:
        return self._round

    def must_ask(self, _ticket: str) -> bool:
        return False

    def verify(self, _ticket: str, **_: Any) -> Ticket:
        return self._ticket


UPDATE = (f"/v1/rounds/{ROUND.task}/{ROUND.number}/uploads", {"size_bytes": 100, "digest": "0" * 64, "sha256": "0" * 64})
MODEL = ("/v1/models", {"task": "t", "minimum": 2, "mixed": 2, "size_bytes": 100, "sha256": "0" * 64})


def app_of(store: MemoryObjectStore, storage: StorageSettings = STATIC) -> FastAPI:
    played: Any = OneRound(store)
    gate: Any = OpenGate()
    settings = AggregatorSettings.model_construct(
        storage=storage, identity=IdentitySettings.model_construct(), upload_seconds=60
    )
    app = FastAPI()
    app.include_router(device_routes(played, gate, played, settings))
    app.include_router(server_routes(played, gate, settings))
    return app


@pytest.mark.parametrize(("path", "asked"), [pytest.param(*UPDATE, id="an update"), pytest.param(*MODEL, id="a model")])
@pytest.mark.parametrize(("storage", "beside"), [(STATIC, False), (FOUND, True)], ids=["static keys", "a renewed credential"])
async def test_the_renewal_of_a_credential_does_not_hold_up_the_event_loop(
    path: str, asked: Mapping[str, Any], storage: StorageSettings, beside: bool
) -> None:
    store = Signing()
    transport = httpx.ASGITransport(app_of(store, storage))
    async with httpx.AsyncClient(transport=transport, base_url="http://aggregator") as client:
        answer = await client.post(path, json=asked, headers={TICKET_HEADER: "a ticket"})
    assert answer.is_success, answer.text
    assert [thread != threading.get_ident() for thread in store.threads] == [beside]


@pytest.mark.parametrize("path", ["/uploads", "/uploads/parts", "/uploads/parts/done"])
def test_what_asks_the_storage_or_signs_for_it_documents_that_it_may_be_denied_or_away(path: str) -> None:
    answers = app_of(MemoryObjectStore()).openapi()["paths"][f"/v1/rounds/{{task}}/{{number}}{path}"]["post"]["responses"]
    for code in (Code.STORAGE_DENIED, Code.STORAGE_UNAVAILABLE):
        assert code in answers[str(CATALOGUE[code].status)]["description"]
