import base64
import hmac
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from fedlearn.adapters.identity import Caller, JwksVerifier, LocalIssuer
from fedlearn.core.errors import Code, Outage, Refusal, SetupError
from fedlearn.protocol.jwks import ed25519_jwk
from fedlearn.protocol.sealing import public_to_pem

NOW = 1_800_000_000.0
SERVER, AGGREGATOR = "fedlearn-server", "fedlearn-aggregator"
KEY = Ed25519PrivateKey.generate()
JWK = ed25519_jwk(KEY.public_key())


class Time:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


CLOCK = Time()
ISSUER = LocalIssuer(KEY, clock=lambda: NOW)


def of_kubernetes(**changes: Any) -> dict[str, Any]:
    """The claims of a projected service-account token of Kubernetes 1.33; None drops one."""
    claims = {
        "aud": [SERVER],
        "exp": int(NOW) + 3607,
        "iat": int(NOW),
        "iss": "https://kubernetes.default.svc.cluster.local",
        "jti": "ea28ed49-2e11-4280-9ec5-bc3d1d84661a",
        "kubernetes.io": {
            "namespace": "fl",
            "node": {"name": "kind-worker", "uid": "646e7c5e-32d6-4d42-9dbd-e504e6cbe6b1"},
            "pod": {"name": "fedlearn-device-0", "uid": "5e0bd49b-f040-43b0-99b7-22765a53f7f3"},
            "serviceaccount": {"name": "fedlearn-device", "uid": "14ee3fa4-a7e2-420f-9f9a-dbc4507c3798"},
        },
        "nbf": int(NOW),
        "sub": "system:serviceaccount:fl:fedlearn-device",
    }
    return {name: value for name, value in {**claims, **changes}.items() if value is not None}


def bound(**changes: Any) -> dict[str, Any]:
    """The same with other fields of `kubernetes.io`."""
    fields = {**of_kubernetes()["kubernetes.io"], **changes}
    return of_kubernetes(**{"kubernetes.io": {name: value for name, value in fields.items() if value is not None}})


def token(claims: dict[str, Any] | None = None, *, key: Any = KEY, alg: str = "EdDSA", kid: str | None = JWK["kid"]) -> str:
    return jwt.encode(claims or of_kubernetes(), key, alg, headers={"kid": kid} if kid else None)


def verifier(jwks: Any = None, audience: str = SERVER, **given: Any) -> JwksVerifier:
    return JwksVerifier(jwks or {"keys": [JWK]}, audience, **{"clock": lambda: NOW, **given})


def refused(text: str, **given: Any) -> str:
    asked = verifier(**given)
    with pytest.raises(Refusal) as refusal:
        asked.verify(text)
    assert refusal.value.code is Code.UNAUTHENTICATED
    with suppress(Refusal):  # where it has the key that is named
        assert asked.at_once(text) is None
    assert text == "" or text not in refusal.value.detail, "no token gets into a log"
    return refusal.value.detail


class TestTokensOfKubernetes:
    CALLER = Caller("fl", "fedlearn-device", "fedlearn-device-0", "5e0bd49b-f040-43b0-99b7-22765a53f7f3", "kind-worker")

    def test_the_caller_is_the_pod_that_the_token_names(self) -> None:
        assert verifier().verify(token()) == self.CALLER

    @pytest.mark.parametrize("alg", ["RS256", "ES256"])
    def test_clusters_sign_with_rsa_or_ecdsa(self, alg: str) -> None:
        if alg == "RS256":
            key: Any = rsa.generate_private_key(65537, 2048)
            jwk = jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
        else:
            key = ec.generate_private_key(ec.SECP256R1())
            jwk = jwt.algorithms.ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
        jwks = {"keys": [{**jwk, "kid": "cluster", "use": "sig", "alg": alg}]}
        assert verifier(jwks).verify(token(key=key, alg=alg, kid="cluster")) == self.CALLER

    def test_an_older_cluster_does_not_name_the_node(self) -> None:
        assert verifier().verify(token(bound(node=None))).node is None

    def test_a_token_of_several_audiences_serves_each(self) -> None:
        text = token(of_kubernetes(aud=[SERVER, AGGREGATOR]))
        assert verifier(audience=SERVER).verify(text) == verifier(audience=AGGREGATOR).verify(text)


class TestLocalTokens:
    def test_the_caller_is_the_pod_that_was_minted_for(self) -> None:
        text = ISSUER.mint("fedlearn-device", "fedlearn-device-0", SERVER, 60)
        caller = verifier(ISSUER.jwks(), issuer=LocalIssuer.ISSUER).verify(text)
        assert (caller.namespace, caller.service_account, caller.pod) == ("fedlearn", "fedlearn-device", "fedlearn-device-0")

    def test_they_have_the_claims_of_kubernetes(self) -> None:
        claims = jwt.decode(ISSUER.mint("a", "b", SERVER, 60), options={"verify_signature": False})
        assert claims.keys() == of_kubernetes().keys()
        assert claims["kubernetes.io"].keys() == of_kubernetes()["kubernetes.io"].keys()

    def test_a_pods_uid_stays_and_no_two_pods_share_one(self) -> None:
        uids = {
            verifier().verify(ISSUER.mint("fedlearn-device", pod, SERVER, 60)).pod_uid
            for pod in ("fedlearn-device-0", "fedlearn-device-0", "fedlearn-device-1")
        }
        assert len(uids) == 2

    def test_a_token_for_one_service_is_refused_by_the_other(self) -> None:
        assert "Audience" in refused(ISSUER.mint("fedlearn-device", "fedlearn-device-0", AGGREGATOR, 60))

    def test_a_key_that_was_made_is_loaded_by_the_next_run(self, tmp_path: Path) -> None:
        made = LocalIssuer.make(tmp_path / "issuer.pem", clock=lambda: NOW)
        loaded = LocalIssuer.load(tmp_path / "issuer.pem", clock=lambda: NOW)
        assert loaded.jwks() == made.jwks()
        first, second = (i.mint("fedlearn-device", "fedlearn-device-0", SERVER, 60) for i in (made, loaded))
        checked = verifier(made.jwks())
        assert checked.verify(first) == checked.verify(second)

    def test_a_key_file_that_is_missing_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(SetupError, match="missing"):
            LocalIssuer.load(tmp_path / "missing.pem")


class TestForgeries:
    def test_another_key_is_refused(self) -> None:
        refused(token(key=Ed25519PrivateKey.generate()))

    @pytest.mark.parametrize("kid", [None, "another"], ids=repr)
    def test_an_unknown_kid_is_refused(self, kid: str | None) -> None:
        refused(token(kid=kid))

    @pytest.mark.parametrize("alg", ["none", "None", "nOnE"])
    def test_an_algorithm_that_is_none_is_refused(self, alg: str) -> None:
        header, claims, _ = token().split(".")
        fields = json.dumps({"alg": alg, "kid": JWK["kid"]}).encode()
        header = base64.urlsafe_b64encode(fields).rstrip(b"=").decode()
        refused(f"{header}.{claims}.")
        refused(f"{header}.{claims}.{token().split('.')[2]}")

    @pytest.mark.parametrize(
        "secret", [KEY.public_key().public_bytes_raw(), public_to_pem(KEY.public_key())], ids=["raw", "pem"]
    )
    def test_the_public_key_is_no_secret_of_hmac(self, secret: bytes) -> None:
        fields = json.dumps({"alg": "HS256", "typ": "JWT", "kid": JWK["kid"]}).encode()
        signed = base64.urlsafe_b64encode(fields).rstrip(b"=").decode() + "." + token().split(".")[1]
        mac = base64.urlsafe_b64encode(hmac.digest(secret, signed.encode(), "sha256")).rstrip(b"=").decode()
        refused(f"{signed}.{mac}")

    def test_a_symmetric_key_among_the_issuers_is_passed_by(self) -> None:
        secret = {"kty": "oct", "k": base64.urlsafe_b64encode(b"s" * 32).rstrip(b"=").decode(), "kid": "secret", "alg": "HS256"}
        refused(token(key=b"s" * 32, alg="HS256", kid="secret"), jwks={"keys": [secret, JWK]})

    @pytest.mark.parametrize("alg", ["RS512", "PS256", "ES384"])
    def test_algorithms_off_the_list_are_refused(self, alg: str) -> None:
        if alg == "ES384":
            key: Any = ec.generate_private_key(ec.SECP384R1())
            jwk = jwt.algorithms.ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
        else:
            key = rsa.generate_private_key(65537, 2048)
            jwk = jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
        refused(token(key=key, alg=alg, kid="k"), jwks={"keys": [{**jwk, "kid": "k", "alg": alg}, JWK]})

    def test_a_claim_that_was_changed_breaks_the_signature(self) -> None:
        header, _, signature = token().split(".")
        other = token(bound(pod={"name": "fedlearn-device-1", "uid": "x"})).split(".")[1]
        refused(f"{header}.{other}.{signature}")

    @given(
        st.text(max_size=60) | st.from_regex(r"[A-Za-z0-9_-]{0,30}\.[A-Za-z0-9_-]{0,30}\.[A-Za-z0-9_-]{0,30}", fullmatch=True)
    )
    def test_random_text_is_refused_and_nothing_else(self, text: str) -> None:
        with pytest.raises(Refusal):
            verifier().verify(text)

    def test_text_that_is_no_unicode_is_refused(self) -> None:
        refused("\udcff.a.b")


class TestClaims:
    @pytest.mark.parametrize(
        "claims",
        [
            pytest.param(of_kubernetes(aud=[AGGREGATOR]), id="another audience"),
            pytest.param(of_kubernetes(aud=None), id="no audience"),
            pytest.param(of_kubernetes(aud=[]), id="an empty audience"),
            pytest.param(of_kubernetes(exp=int(NOW)), id="expired just now"),
            pytest.param(of_kubernetes(exp=int(NOW) - 3600), id="expired long ago"),
            pytest.param(of_kubernetes(exp=None), id="no expiry"),
            pytest.param(of_kubernetes(exp="tomorrow"), id="an expiry in words"),
            pytest.param(of_kubernetes(nbf=int(NOW) + 60), id="not valid yet"),
            pytest.param(of_kubernetes(sub=None), id="no subject"),
            pytest.param(of_kubernetes(sub="system:serviceaccount:fl:fedlearn-server"), id="another account as subject"),
            pytest.param(
                of_kubernetes(sub="system:serviceaccount:kube-system:fedlearn-device"), id="another namespace as subject"
            ),
            pytest.param(of_kubernetes(sub="fedlearn-device"), id="a user as subject"),
            pytest.param(of_kubernetes(**{"kubernetes.io": None}), id="no claims of Kubernetes"),
            pytest.param(of_kubernetes(**{"kubernetes.io": "fl"}), id="other claims of Kubernetes"),
            pytest.param(bound(pod=None), id="no pod"),
            pytest.param(bound(pod={"name": "fedlearn-device-0"}), id="no UID of the pod"),
            pytest.param(bound(pod={"uid": "5e0bd49b"}), id="no name of the pod"),
            pytest.param(bound(pod={"name": "", "uid": "5e0bd49b"}), id="an empty name"),
            pytest.param(bound(pod={"name": ["a"], "uid": "5e0bd49b"}), id="several names"),
            pytest.param(bound(namespace=None), id="no namespace"),
            pytest.param(bound(serviceaccount=None), id="no service account"),
        ],
    )
    def test_a_token_whose_claims_do_not_do_is_refused_under_a_good_signature(self, claims: dict[str, Any]) -> None:
        refused(token(claims))

    def test_an_issuers_clock_may_be_a_little_ahead(self) -> None:
        assert verifier().verify(token(of_kubernetes(nbf=int(NOW) + 5, iat=int(NOW) + 5)))

    def test_another_issuer_is_refused_where_one_is_set(self) -> None:
        assert verifier(issuer=of_kubernetes()["iss"]).verify(token())
        refused(token(), issuer="https://elsewhere")


class TestCache:
    def test_a_token_is_not_good_for_longer_because_it_was_good_before(self) -> None:
        clock = Time()
        checked, text = verifier(clock=clock), token(of_kubernetes(exp=int(NOW) + 30))
        checked.verify(text)
        clock.now += 29
        checked.verify(text)
        clock.now += 1
        with pytest.raises(Refusal, match="expired"):
            checked.verify(text)

    def test_what_was_checked_holds_for_a_minute_and_no_longer(self) -> None:
        clock = Time()
        other = Ed25519PrivateKey.generate()
        jwks = {"keys": [JWK]}
        checked, text = verifier(jwks, clock=clock), token()
        checked.verify(text)
        jwks["keys"] = [ed25519_jwk(other.public_key())]
        clock.now += 10
        checked.verify(token(key=other, kid=jwks["keys"][0]["kid"]))  # an unknown kid: the withdrawn key is forgotten
        clock.now += 49
        checked.verify(text)
        clock.now += 1
        with pytest.raises(Refusal):
            checked.verify(text)


class TestWhereKeysComeFrom:
    @pytest.fixture
    def site(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """A web site that answers with `answer["body"]` and keeps the last request's authorization."""
        answer: dict[str, Any] = {"status": 200, "body": json.dumps({"keys": [JWK]}).encode()}

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer["authorization"] = self.headers.get("Authorization")
                self.send_response(answer["status"])
                self.end_headers()
                self.wfile.write(answer["body"])

            def log_message(self, *_: object) -> None:
                pass

        with HTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            yield f"http://127.0.0.1:{server.server_port}/openid/v1/jwks", answer
            server.shutdown()
            thread.join()

    @pytest.mark.parametrize("kind", [str, Path], ids=["text", "path"])
    def test_from_a_file(self, tmp_path: Path, kind: Callable[[Path], Any]) -> None:
        (tmp_path / "jwks.json").write_text(json.dumps({"keys": [JWK]}))
        assert verifier(kind(tmp_path / "jwks.json")).verify(token())

    def test_a_file_is_read_again_for_an_unknown_kid(self, tmp_path: Path) -> None:
        clock, file, other = Time(), tmp_path / "jwks.json", Ed25519PrivateKey.generate()
        file.write_text(json.dumps({"keys": [JWK]}))
        checked = verifier(file, clock=clock)
        checked.verify(token())
        new = ed25519_jwk(other.public_key())
        file.write_text(json.dumps({"keys": [JWK, new]}))
        clock.now += 10
        assert checked.verify(token(key=other, kid=new["kid"]))

    def test_from_a_url(self, site: tuple[str, dict[str, Any]]) -> None:
        url, answer = site
        assert verifier(url, bearer=lambda: "of-this-pod").verify(token())
        assert answer["authorization"] == "Bearer of-this-pod"

    @pytest.mark.parametrize(
        ("status", "body"),
        [(500, b"{}"), (403, b"{}"), (200, b"nonsense"), (200, b"[]"), (200, b'{"keys": []}'), (200, b"[" * 100_000)],
        ids=["down", "forbidden", "no JSON", "no object", "no key", "a deep nest"],
    )
    def test_a_url_that_gives_no_keys_is_an_outage(self, site: tuple[str, dict[str, Any]], status: int, body: bytes) -> None:
        url, answer = site
        answer.update(status=status, body=body)
        with pytest.raises(Outage) as outage:
            verifier(url).verify(token())
        assert outage.value.code is Code.IDENTITY_UNAVAILABLE

    def test_a_url_where_nobody_listens_is_an_outage(self, site: tuple[str, dict[str, Any]]) -> None:
        with pytest.raises(Outage, match=r"127\.0\.0\.1"):
            verifier("http://127.0.0.1:9/jwks").verify(token())

    @pytest.mark.parametrize("content", [None, "nonsense", "[]"], ids=["missing", "no JSON", "no object"])
    def test_a_file_that_gives_no_keys_is_an_outage(self, tmp_path: Path, content: str | None) -> None:
        if content is not None:
            (tmp_path / "jwks.json").write_text(content)
        with pytest.raises(Outage) as outage:
            verifier(tmp_path / "jwks.json").verify(token())
        assert outage.value.code is Code.IDENTITY_UNAVAILABLE

    def test_it_serves_many_threads(self) -> None:
        checked, texts = verifier(), [token(of_kubernetes(jti=str(number))) for number in range(40)]
        callers: list[Caller] = []
        threads = [threading.Thread(target=lambda: callers.extend(checked.verify(text) for text in texts)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(callers) == 160
        assert len(set(callers)) == 1


class TestAtOnce:
    def test_nobody_is_known_before_the_keys_are_and_all_are_then(self) -> None:
        asked = verifier()
        assert asked.at_once(token()) is None, "it would have to ask for the key"
        caller = asked.verify(token())
        another = token(bound(pod={"name": "fedlearn-device-1", "uid": "u1"}))
        found = asked.at_once(another)
        assert found is not None
        assert (found.pod, found.service_account) == ("fedlearn-device-1", caller.service_account)
        assert asked.kept(another) == found

    def test_a_token_of_a_key_that_is_not_there_asks_nobody(self) -> None:
        asked = verifier()
        asked.verify(token())
        assert asked.at_once(token(kid="another")) is None

    @pytest.mark.parametrize(
        "text",
        [
            token(key=Ed25519PrivateKey.generate()),
            token(of_kubernetes(exp=int(NOW))),
            token(of_kubernetes(aud=[AGGREGATOR])),
            "",
        ],
        ids=["forged", "expired", "for another service", "none"],
    )
    def test_a_wrong_token_is_refused(self, text: str) -> None:
        asked = verifier()
        asked.verify(token())
        with pytest.raises(Refusal) as refusal:
            asked.at_once(text)
        assert refusal.value.code is Code.UNAUTHENTICATED
