import time
from typing import Any

import jwt
import pytest

from fedlearn.adapters.identity import Caller
from fedlearn.adapters.kubernetes.connection import Connection
from fedlearn.adapters.kubernetes.reviews import TokenReviewVerifier
from fedlearn.adapters.token_cache import CACHE_SECONDS
from fedlearn.core.errors import Code, Outage, Refusal
from support.played_api import Answer, PlayedApi, connected, failure

AUDIENCE = "fedlearn-server"
NOW = 1_800_000_000.0
EXTRA = {
    "authentication.kubernetes.io/credential-id": ["JTI=906d8e7a-0c03-4698-9e30-ac566895c414"],
    "authentication.kubernetes.io/node-name": ["node1"],
    "authentication.kubernetes.io/pod-name": ["fedlearn-device-0"],
    "authentication.kubernetes.io/pod-uid": ["3866ce38-ac95-45ee-82bc-3d347b0d7173"],
}
CALLER = Caller("fl", "fedlearn-device", "fedlearn-device-0", "3866ce38-ac95-45ee-82bc-3d347b0d7173", "node1")
TOKEN = jwt.encode({"exp": NOW + 3600}, "a" * 32)


def reviewed(*, user: dict[str, Any] | None = None, extra: dict[str, Any] | None = None, **status: Any) -> Answer:
    """The API's answer for a device's token; given fields replace its own, and None leaves one out."""
    whole_extra = {name: value for name, value in {**EXTRA, **(extra or {})}.items() if value is not None}
    whole_user = {"username": "system:serviceaccount:fl:fedlearn-device", "extra": whole_extra, **(user or {})}
    whole = {"authenticated": True, "audiences": [AUDIENCE], "user": whole_user, **status}
    return Answer(
        201,
        {
            "kind": "TokenReview",
            "apiVersion": "authentication.k8s.io/v1",
            "spec": {"token": "-"},
            "status": {name: value for name, value in whole.items() if value is not None},
        },
    )


@pytest.fixture
def verifier(api: PlayedApi, connection: Connection) -> TokenReviewVerifier:
    api.answer("POST tokenreviews", reviewed())
    return TokenReviewVerifier(connection.api, AUDIENCE, clock=lambda: NOW)


def test_the_caller_is_whom_the_cluster_names(api: PlayedApi, verifier: TokenReviewVerifier) -> None:
    assert verifier.verify(TOKEN) == CALLER
    (asked,) = api.asked
    assert asked.path == "/apis/authentication.k8s.io/v1/tokenreviews"
    assert asked.body["spec"] == {"token": TOKEN, "audiences": [AUDIENCE]}


def test_a_cluster_before_1_30_does_not_name_the_node(api: PlayedApi, verifier: TokenReviewVerifier) -> None:
    api.answer("POST tokenreviews", reviewed(extra={"authentication.kubernetes.io/node-name": None}))
    assert verifier.verify(TOKEN).node is None


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (reviewed(authenticated=False, error="token audiences are invalid"), "token audiences are invalid"),
        (reviewed(authenticated=None, error=None), "does not know it"),
        (reviewed(audiences=None), "audience"),
        (reviewed(audiences=[]), "audience"),
        (reviewed(audiences=["fedlearn-aggregator"]), "audience"),
        (reviewed(user={"username": "admin"}), "service account"),
        (reviewed(user={"username": None}), "service account"),
        (reviewed(user={"username": "system:serviceaccount:fl"}), "service account"),
        (reviewed(user={"username": "system:serviceaccount::fedlearn-device"}), "service account"),
        (reviewed(user={"username": "fl:fedlearn-device"}), "service account"),
        (reviewed(user={"extra": None}), "pod"),
        (reviewed(extra={"authentication.kubernetes.io/pod-name": None}), "pod"),
        (reviewed(extra={"authentication.kubernetes.io/pod-uid": None}), "pod"),
        (reviewed(extra={"authentication.kubernetes.io/pod-name": ["a", "b"]}), "pod"),
        (reviewed(extra={"authentication.kubernetes.io/pod-uid": []}), "pod"),
    ],
    ids=[
        "not authenticated", "nothing said", "no audiences", "empty audiences", "another audience", "a user", "no name",
        "no account", "no namespace", "no prefix", "no extra", "no pod", "no UID", "two pods", "an empty UID",
    ],
)  # fmt: skip
def test_a_token_that_the_cluster_does_not_fully_confirm_is_refused(
    api: PlayedApi, verifier: TokenReviewVerifier, answer: Answer, says: str
) -> None:
    api.answer("POST tokenreviews", answer)
    with pytest.raises(Refusal, match=says) as refusal:
        verifier.verify(TOKEN)
    assert refusal.value.code is Code.UNAUTHENTICATED


@pytest.mark.parametrize(
    "text", ["", "nonsense", "a.b.c", "é.é.é", "\udcff.a.b", jwt.encode({"exp": "soon"}, "a" * 32)], ids=ascii
)
def test_what_is_no_token_does_not_trouble_the_cluster(api: PlayedApi, verifier: TokenReviewVerifier, text: str) -> None:
    with pytest.raises(Refusal) as refusal:
        verifier.verify(text)
    assert refusal.value.code is Code.UNAUTHENTICATED
    assert not api.asked


class TestWhenTheClusterDoesNotReview:
    @pytest.mark.parametrize(
        ("answer", "says"),
        [
            (failure(500, "etcd is away"), "etcd is away"),
            (failure(429, "too many requests"), "too many requests"),
            (failure(403, "tokenreviews is forbidden: cannot create resource"), "cannot create resource"),
            (failure(401, "Unauthorized"), "Unauthorized"),
            (failure(404, "no such resource"), "no such resource"),
        ],
        ids=["it fails", "it is busy", "this service may not ask", "this service is not known", "it has no reviews"],
    )
    def test_it_is_an_outage_that_says_why_and_not_the_callers_fault(
        self, api: PlayedApi, verifier: TokenReviewVerifier, answer: Answer, says: str
    ) -> None:
        api.answer("POST tokenreviews", answer)
        with pytest.raises(Outage, match=says) as outage:
            verifier.verify(TOKEN)
        assert outage.value.code is Code.IDENTITY_UNAVAILABLE

    def test_the_next_call_asks_again(self, api: PlayedApi, verifier: TokenReviewVerifier) -> None:
        api.answer("POST tokenreviews", failure(500, "etcd is away"), reviewed())
        with pytest.raises(Outage):
            verifier.verify(TOKEN)
        assert verifier.verify(TOKEN) == CALLER

    def test_a_cluster_that_is_not_there_is_given_up_within_seconds(self, api: PlayedApi) -> None:
        with connected(api, "http://127.0.0.1:9") as nowhere:
            began = time.monotonic()
            with pytest.raises(Outage) as outage:
                TokenReviewVerifier(nowhere.api, AUDIENCE).verify(TOKEN)
        assert outage.value.code is Code.IDENTITY_UNAVAILABLE
        assert time.monotonic() - began < 5


class TestTime:
    @pytest.fixture
    def now(self) -> list[float]:
        return [NOW]

    @pytest.fixture
    def verifier(self, api: PlayedApi, connection: Connection, now: list[float]) -> TokenReviewVerifier:
        api.answer("POST tokenreviews", reviewed())
        return TokenReviewVerifier(connection.api, AUDIENCE, clock=lambda: now[0])

    def test_the_cluster_is_asked_once_a_minute(self, api: PlayedApi, verifier: TokenReviewVerifier, now: list[float]) -> None:
        verifier.verify(TOKEN)
        now[0] += CACHE_SECONDS - 1
        verifier.verify(TOKEN)
        assert len(api.asked) == 1
        now[0] += 1
        verifier.verify(TOKEN)
        assert len(api.asked) == 2

    def test_the_answer_does_not_outlive_the_token(
        self, api: PlayedApi, verifier: TokenReviewVerifier, now: list[float]
    ) -> None:
        token = jwt.encode({"exp": NOW + 10}, "a" * 32)
        verifier.verify(token)
        now[0] += 10
        api.answer("POST tokenreviews", reviewed(authenticated=False, error="token has expired"))
        with pytest.raises(Refusal, match="expired"):
            verifier.verify(token)
