"""What an `IdentityVerifier` promises, over launcher's tokens and a real cluster's, by keys and by TokenReview."""

import base64
import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedlearn.adapters.identity import Caller, IdentityVerifier, JwksVerifier, LocalIssuer
from fedlearn.adapters.kubernetes.connection import connect
from fedlearn.adapters.kubernetes.reviews import TokenReviewVerifier
from fedlearn.adapters.token_cache import CACHE_SECONDS
from fedlearn.core.errors import Code, Outage, Refusal
from support.namespace import Namespace, own_namespace
from support.world import wait_for

SERVER, AGGREGATOR = "fedlearn-server", "fedlearn-aggregator"
DEVICE, POD = "fedlearn-device", "fedlearn-device-0"
Clock = Callable[[], float]


class Realm(Protocol):
    """A place with tokens of its own, and what checks them there."""

    namespace: str
    sees_pods: bool

    def verifier(self, audience: str, clock: Clock | None = None) -> IdentityVerifier: ...

    def unreachable(self) -> IdentityVerifier: ...

    def token(self, account: str = DEVICE, audience: str = SERVER) -> str:
        """A token of the pod `POD`, which has this account."""
        ...

    def unbound(self, audience: str) -> str:
        """A token of the account alone."""
        ...

    def pod_uid(self) -> str: ...

    def replace_pod(self) -> None:
        """Let another pod of the same name take the place of the first."""
        ...


class LauncherRealm:
    """One machine: tokens of the launcher's key. A pod of a name has always the same UID there, for each key."""

    namespace, sees_pods = "fedlearn", False

    def __init__(self) -> None:
        self._keys, self._jwks = list[Ed25519PrivateKey](), list[dict[str, str]]()
        self.replace_pod()

    def replace_pod(self) -> None:
        self._keys.append(Ed25519PrivateKey.generate())
        self._issuer = LocalIssuer(self._keys[-1])
        self._jwks += self._issuer.jwks()["keys"]

    def verifier(self, audience: str, clock: Clock | None = None) -> IdentityVerifier:
        given = {} if clock is None else {"clock": clock}
        return JwksVerifier({"keys": self._jwks}, audience, LocalIssuer.ISSUER, **given)

    def unreachable(self) -> IdentityVerifier:
        return JwksVerifier("http://127.0.0.1:9/jwks", SERVER)

    def token(self, account: str = DEVICE, audience: str = SERVER) -> str:
        return self._issuer.mint(account, POD, audience, 600)

    def unbound(self, audience: str) -> str:
        header = jwt.get_unverified_header(self.token())
        claims = _claims(self.token(audience=audience))
        del claims["kubernetes.io"]["pod"]
        return jwt.encode(claims, self._keys[-1], "EdDSA", headers={"kid": header["kid"]})

    def pod_uid(self) -> str:
        uid: str = _claims(self.token())["kubernetes.io"]["pod"]["uid"]
        return uid


class ClusterRealm:
    """A namespace of a real cluster, with a pod for each account that is asked for."""

    def __init__(self, home: Namespace, scratch: Path) -> None:
        self.home, self.scratch, self.namespace = home, scratch, home.name
        self._account = ""
        self._uid = ""
        for account in (DEVICE, "fedlearn-evaluator"):
            home.account(account)
        self._place(DEVICE)

    def _place(self, account: str) -> None:
        if self._account:
            self.home.delete_pod(POD)
        self._account, self._uid = account, self.home.pod(POD, account=account)

    def replace_pod(self) -> None:
        self._place(self._account)

    def token(self, account: str = DEVICE, audience: str = SERVER) -> str:
        if account != self._account:
            self._place(account)
        return self.home.token(account, [audience], (POD, self._uid))

    def unbound(self, audience: str) -> str:
        return self.home.token(DEVICE, [audience])

    def pod_uid(self) -> str:
        return self._uid


class ReviewRealm(ClusterRealm):
    sees_pods = True

    def verifier(self, audience: str, clock: Clock | None = None) -> IdentityVerifier:
        given = {} if clock is None else {"clock": clock}
        return TokenReviewVerifier(self.home.api, audience, **given)

    def unreachable(self) -> IdentityVerifier:
        return TokenReviewVerifier(connect(_nowhere(self.scratch)).api, SERVER)


class KeysRealm(ClusterRealm):
    """The same tokens, checked by the cluster's public keys as `identity.mode: jwks` does."""

    sees_pods = False

    def verifier(self, audience: str, clock: Clock | None = None) -> IdentityVerifier:
        given = {} if clock is None else {"clock": clock}
        settings = self.home.api.configuration
        return JwksVerifier(
            f"{settings.host}/openid/v1/jwks",
            audience,
            _claims(self.home.token("default"))["iss"],
            ca_file=Path(settings.ssl_ca_cert),
            bearer=lambda: self.home.token("default"),
            **given,
        )

    def unreachable(self) -> IdentityVerifier:
        return JwksVerifier("https://127.0.0.1:9/openid/v1/jwks", SERVER, ca_file=Path(self.home.api.configuration.ssl_ca_cert))


def _claims(token: str) -> dict[str, Any]:
    return jwt.decode(token, options={"verify_signature": False})


def _nowhere(directory: Path) -> Path:
    """A kubeconfig of a cluster that is not there."""
    named = {
        "name": "nowhere",
        "cluster": {"server": "http://127.0.0.1:9"},
        "context": {"cluster": "nowhere", "user": "nobody"},
    }
    kubeconfig = {
        "current-context": "nowhere",
        "clusters": [named],
        "contexts": [named],
        "users": [{"name": "nobody", "user": {}}],
    }
    path = directory / "kubeconfig"
    path.write_text(json.dumps(kubeconfig))
    return path


@pytest.fixture(scope="module", params=["launcher", "token_review", "cluster_keys"])
def realm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Realm]:
    if request.param == "launcher":
        yield LauncherRealm()
        return
    with own_namespace("identity") as home:
        kind = {"token_review": ReviewRealm, "cluster_keys": KeysRealm}[request.param]
        yield kind(home, tmp_path_factory.mktemp("cluster"))


def refused(verifier: IdentityVerifier, token: str) -> str:
    with pytest.raises(Refusal) as refusal:
        verifier.verify(token)
    assert refusal.value.code is Code.UNAUTHENTICATED
    assert token == "" or token not in refusal.value.detail, "no token gets into a log"
    with suppress(Refusal):  # it may not have what it takes to say so at once
        assert verifier.at_once(token) is None
    return refusal.value.detail


class TestWhoCalls:
    def test_is_the_pod_that_the_token_is_bound_to(self, realm: Realm) -> None:
        caller = realm.verifier(SERVER).verify(realm.token())
        assert caller.node
        assert caller == Caller(realm.namespace, DEVICE, POD, realm.pod_uid(), caller.node)

    def test_has_the_account_of_its_pod(self, realm: Realm) -> None:
        caller = realm.verifier(SERVER).verify(realm.token(account="fedlearn-evaluator"))
        assert (caller.namespace, caller.service_account) == (realm.namespace, "fedlearn-evaluator")

    def test_is_told_the_same_again(self, realm: Realm) -> None:
        verifier, token = realm.verifier(SERVER), realm.token()
        assert verifier.verify(token) == verifier.verify(token)

    def test_is_another_when_another_pod_takes_the_name(self, realm: Realm) -> None:
        first = realm.verifier(SERVER).verify(realm.token())
        realm.replace_pod()
        second = realm.verifier(SERVER).verify(realm.token())
        assert first.pod == second.pod
        assert first.pod_uid != second.pod_uid == realm.pod_uid()

    def test_is_the_same_at_once_where_nobody_has_to_be_asked(self, realm: Realm) -> None:
        verifier = realm.verifier(SERVER)
        caller = verifier.verify(realm.token())
        assert verifier.at_once(realm.token()) in (None, caller)


class TestRefused:
    def test_is_a_token_for_another_service(self, realm: Realm) -> None:
        token = realm.token(audience=AGGREGATOR)
        refused(realm.verifier(SERVER), token)
        assert realm.verifier(AGGREGATOR).verify(token).pod == POD

    def test_is_a_token_that_is_bound_to_no_pod(self, realm: Realm) -> None:
        refused(realm.verifier(SERVER), realm.unbound(SERVER))

    def test_is_a_token_of_another_issuer(self, realm: Realm) -> None:
        claims = _claims(realm.token())
        for kid in ("another", jwt.get_unverified_header(realm.token())["kid"]):
            refused(realm.verifier(SERVER), jwt.encode(claims, Ed25519PrivateKey.generate(), "EdDSA", headers={"kid": kid}))

    def test_is_a_token_whose_pod_was_exchanged(self, realm: Realm) -> None:
        header, _, signature = realm.token().split(".")
        claims = _claims(realm.token())
        claims["kubernetes.io"]["pod"]["name"] = "fedlearn-device-1"
        forged = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
        refused(realm.verifier(SERVER), f"{header}.{forged}.{signature}")

    def test_is_a_token_without_a_signature(self, realm: Realm) -> None:
        header, claims, _ = realm.token().split(".")
        nothing = base64.urlsafe_b64encode(b'{"alg":"none"}').rstrip(b"=").decode()
        for forged in (f"{header}.{claims}.", f"{nothing}.{claims}."):
            refused(realm.verifier(SERVER), forged)

    @pytest.mark.parametrize("text", ["", "nonsense", "a.b.c", "..", "é.é.é", "\udcff.a.b", "e30.e30.e30"], ids=ascii)
    def test_is_what_is_no_token(self, realm: Realm, text: str) -> None:
        refused(realm.verifier(SERVER), text)


class TestTime:
    @pytest.mark.slow
    def test_the_end_of_a_pod_ends_its_token_within_a_minute_where_the_cluster_is_asked(self, realm: Realm) -> None:
        now = [time.time()]
        verifier, token = realm.verifier(SERVER, lambda: now[0]), realm.token()
        verifier.verify(token)
        realm.replace_pod()
        now[0] += CACHE_SECONDS - 1
        assert verifier.verify(token).pod == POD, "the answer is kept"
        now[0] += 1
        if not realm.sees_pods:
            assert verifier.verify(token).pod == POD, "keys say nothing about pods: a token holds until it expires"
            return

        def is_refused() -> bool:
            now[0] += CACHE_SECONDS
            try:
                verifier.verify(token)
            except Refusal as refusal:
                return refusal.code is Code.UNAUTHENTICATED
            return False

        wait_for(is_refused, "the API server, which keeps an answer for ten seconds, to miss the pod")

    def test_a_token_that_cannot_be_checked_now_is_no_refusal(self, realm: Realm) -> None:
        with pytest.raises(Outage) as outage:
            realm.unreachable().verify(realm.token())
        assert outage.value.code is Code.IDENTITY_UNAVAILABLE
