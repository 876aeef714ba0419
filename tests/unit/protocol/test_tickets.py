import base64
import hmac
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from fedlearn.core.errors import Code, Outage, Refusal, SetupError
from fedlearn.protocol.jwks import ed25519_jwk
from fedlearn.protocol.sealing import identity_from_pem, public_to_pem
from fedlearn.protocol.tickets import Ticket, TicketSigner, TicketVerifier, make_signing_key

NOW = 1_800_000_000.0
TICKET = Ticket("fedlearn-device-0/3", "mnist", 7, "a" * 64, "b" * 64)
SHOWN = {"device": "fedlearn-device-0/3", "task": "mnist", "round": 7}
KID, PEM = make_signing_key()
SIGNER = TicketSigner(KID, PEM)
GOOD = SIGNER.sign(TICKET, 60, NOW)


class Server:
    """A `/v1/keys` that counts how often it is asked."""

    def __init__(self, *keys: Mapping[str, Any]) -> None:
        self.keys, self.asked, self.down = list(keys), 0, False

    def __call__(self) -> dict[str, Any]:
        self.asked += 1
        if self.down:
            raise Outage(Code.SERVER_UNREACHABLE, "The server does not answer.")
        return {"keys": self.keys}


def verifier(server: Server | None = None) -> TicketVerifier:
    return TicketVerifier(server or Server(SIGNER.jwk()), refetch_seconds=5)


def refused(token: str, *, now: float = NOW, **shown: object) -> Code:
    with pytest.raises(Refusal) as refusal:
        verifier().verify(token, **{**SHOWN, **shown}, now=now)
    return refusal.value.code


def encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def decode(part: str) -> dict[str, Any]:
    return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))


def forge(
    sign: Callable[[bytes], bytes], *, header: Mapping[str, Any] | None = None, claims: Mapping[str, Any] | None = None
) -> str:
    """The good ticket with other header fields or claims (None drops one), signed by `sign`."""
    parts = []
    for part, changes in zip(GOOD.split("."), (header or {}, claims or {}), strict=False):
        fields = {name: value for name, value in {**decode(part), **changes}.items() if value is not None}
        parts.append(encode(json.dumps(fields).encode()))
    return ".".join([*parts, encode(sign(".".join(parts).encode()))])


def by_server(signed: bytes) -> bytes:
    return identity_from_pem(PEM).sign(signed)


class TestGoodTickets:
    def test_the_device_it_was_signed_for_may_show_it(self) -> None:
        assert verifier().verify(GOOD, **SHOWN, now=NOW) == TICKET

    def test_it_says_to_which_aggregator_the_update_goes(self) -> None:
        to_the_third = replace(TICKET, aggregator=2)
        assert verifier().verify(SIGNER.sign(to_the_third, 60, NOW), **SHOWN, now=NOW) == to_the_third

    def test_one_that_is_forged_by_nobody_passes(self) -> None:
        """Without this, each test below could be refused for how it builds its token."""
        assert verifier().verify(forge(by_server), **SHOWN, now=NOW) == TICKET

    def test_it_is_good_until_its_last_second(self) -> None:
        assert verifier().verify(GOOD, **SHOWN, now=NOW + 59.9) == TICKET
        assert refused(GOOD, now=NOW + 60) is Code.TICKET_EXPIRED

    def test_replicas_that_share_the_key_sign_alike(self) -> None:
        assert verifier().verify(TicketSigner(KID, PEM).sign(TICKET, 60, NOW), **SHOWN, now=NOW) == TICKET

    def test_the_public_key_alone_is_published(self) -> None:
        assert set(SIGNER.jwk()) == {"kty", "crv", "x", "kid", "use", "alg"}
        assert SIGNER.jwk()["kid"] == KID

    def test_no_signer_is_made_of_what_is_no_key(self) -> None:
        with pytest.raises(SetupError):
            TicketSigner(KID, b"nonsense")


class TestForeignTickets:
    @pytest.mark.parametrize(
        "shown",
        [
            pytest.param({"device": "fedlearn-device-0/4"}, id="another slot"),
            pytest.param({"device": "fedlearn-device-0"}, id="another device"),
            pytest.param({"task": "fashion"}, id="another task"),
            pytest.param({"round": 8}, id="the next round"),
            pytest.param({"round": 6}, id="the round before"),
        ],
    )
    def test_a_ticket_for_something_else_is_foreign(self, shown: dict[str, object]) -> None:
        assert refused(GOOD, **shown) is Code.TICKET_FOREIGN


class TestInvalidTickets:
    def test_a_ticket_of_another_key_of_the_same_kid_is_invalid(self) -> None:
        other = TicketSigner(KID, make_signing_key()[1])
        assert refused(other.sign(TICKET, 60, NOW)) is Code.TICKET_INVALID

    @pytest.mark.parametrize(
        "claims",
        [
            pytest.param({"sub": "fedlearn-device-9"}, id="device"),
            pytest.param({"round": 8}, id="round"),
            pytest.param({"exp": int(NOW) + 10**6}, id="expiry"),
        ],
    )
    def test_a_claim_that_was_changed_breaks_the_signature(self, claims: dict[str, object]) -> None:
        signature = base64.urlsafe_b64decode(GOOD.split(".")[2] + "==")
        assert refused(forge(lambda _: signature, claims=claims)) is Code.TICKET_INVALID

    @pytest.mark.parametrize("alg", ["none", "None", "NONE", "", None], ids=repr)
    @pytest.mark.parametrize("signature", [b"", b"x"], ids=["unsigned", "signed"])
    def test_an_algorithm_that_is_none_is_invalid(self, alg: str | None, signature: bytes) -> None:
        assert refused(forge(lambda _: signature, header={"alg": alg})) is Code.TICKET_INVALID

    @pytest.mark.parametrize("secret", ["raw", "pem", "jwk"])
    def test_the_public_key_is_no_secret_of_hmac(self, secret: str) -> None:
        public = identity_from_pem(PEM).public_key()
        secrets = {
            "raw": public.public_bytes_raw(),
            "pem": public_to_pem(public),
            "jwk": json.dumps(SIGNER.jwk()).encode(),
        }
        token = forge(lambda signed: hmac.digest(secrets[secret], signed, "sha256"), header={"alg": "HS256"})
        assert refused(token) is Code.TICKET_INVALID

    @pytest.mark.parametrize("alg", ["HS256", "RS256", "ES256", "Ed448", "eddsa"])
    def test_another_algorithms_name_is_invalid_under_a_good_signature(self, alg: str) -> None:
        assert refused(forge(by_server, header={"alg": alg})) is Code.TICKET_INVALID

    @pytest.mark.parametrize("typ", ["JWT", None, "at+jwt"], ids=repr)
    def test_another_kind_of_token_of_the_same_key_is_no_ticket(self, typ: str | None) -> None:
        assert refused(forge(by_server, header={"typ": typ})) is Code.TICKET_INVALID

    @pytest.mark.parametrize("claim", ["iss", "aud", "sub", "task", "round", "plan", "base", "iat", "exp"])
    def test_a_missing_claim_is_invalid_under_a_good_signature(self, claim: str) -> None:
        assert refused(forge(by_server, claims={claim: None})) is Code.TICKET_INVALID

    @pytest.mark.parametrize(
        "claims",
        [
            pytest.param({"exp": "2099-01-01"}, id="expiry in words"),
            pytest.param({"exp": float(NOW + 60)}, id="expiry in fractions"),
            pytest.param({"exp": True}, id="a true expiry"),
            pytest.param({"round": "7"}, id="round in words"),
            pytest.param({"round": 0}, id="round 0"),
            pytest.param({"sub": ["fedlearn-device-0/3"]}, id="several devices"),
            pytest.param({"aud": "fedlearn-server"}, id="another audience"),
            pytest.param({"iss": "somebody"}, id="another issuer"),
            pytest.param({"plan": "x"}, id="no digest"),
            pytest.param({"aggregator": "1"}, id="aggregator in words"),
            pytest.param({"aggregator": -1}, id="aggregator below 0"),
        ],
    )
    def test_a_claim_of_another_kind_is_invalid_under_a_good_signature(self, claims: dict[str, object]) -> None:
        assert refused(forge(by_server, claims=claims)) is Code.TICKET_INVALID

    @pytest.mark.parametrize("kid", [None, 5, "", "../../etc/passwd"], ids=repr)
    def test_a_kid_that_is_none_is_invalid(self, kid: object) -> None:
        assert refused(forge(by_server, header={"kid": kid})) is Code.TICKET_INVALID

    @pytest.mark.parametrize(
        "header",
        [{"crit": ["b64"], "b64": False}, {"jwk": SIGNER.jwk()}, {"jku": "http://x"}],
        ids=["critical", "a key", "an address of keys"],
    )
    def test_a_key_that_comes_with_the_token_counts_for_nothing(self, header: dict[str, object]) -> None:
        stranger = Ed25519PrivateKey.generate()
        assert refused(forge(stranger.sign, header=header)) is Code.TICKET_INVALID

    @given(
        st.text(max_size=100) | st.from_regex(r"[A-Za-z0-9_-]{0,40}\.[A-Za-z0-9_-]{0,40}\.[A-Za-z0-9_-]{0,40}", fullmatch=True)
    )
    def test_random_text_is_invalid_and_nothing_else(self, token: str) -> None:
        assert refused(token) is Code.TICKET_INVALID

    @given(st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
    def test_random_headers_and_claims_are_invalid_and_nothing_else(self, value: object) -> None:
        parts = [encode(json.dumps(value).encode())] * 2
        assert refused(".".join([*parts, encode(bytes(64))])) is Code.TICKET_INVALID


class TestKeys:
    def test_keys_are_fetched_once(self) -> None:
        server = Server(SIGNER.jwk())
        checked = verifier(server)
        for second in range(30):
            checked.verify(GOOD, **SHOWN, now=NOW + second)
        assert server.asked == 1

    def test_an_unknown_kid_fetches_again(self) -> None:
        server = Server(SIGNER.jwk())
        checked = verifier(server)
        checked.verify(GOOD, **SHOWN, now=NOW)
        new = TicketSigner(*make_signing_key())
        server.keys.append(new.jwk())
        assert checked.verify(new.sign(TICKET, 60, NOW), **SHOWN, now=NOW + 10) == TICKET
        assert server.asked == 2

    def test_made_up_kids_do_not_hammer_the_server(self) -> None:
        server = Server(SIGNER.jwk())
        checked = verifier(server)
        outcomes = []
        for tenth in range(100):
            with pytest.raises((Refusal, Outage)) as error:
                checked.verify(forge(by_server, header={"kid": f"made-up-{tenth}"}), **SHOWN, now=NOW + tenth / 10)
            outcomes.append(type(error.value))
        assert server.asked == 2
        assert outcomes.count(Refusal) == 2

    def test_a_new_key_is_not_refused_because_of_made_up_ones(self) -> None:
        """Within the pause nobody knows whether the kid is good: an outage, after which the device tries again."""
        server = Server(SIGNER.jwk())
        checked = verifier(server)
        with pytest.raises(Refusal):
            checked.verify(forge(by_server, header={"kid": "made-up"}), **SHOWN, now=NOW)
        new = TicketSigner(*make_signing_key())
        server.keys.append(new.jwk())
        token = new.sign(TICKET, 60, NOW)
        with pytest.raises(Outage) as outage:
            checked.verify(token, **SHOWN, now=NOW + 1)
        assert outage.value.code is Code.SERVER_UNREACHABLE
        assert checked.verify(token, **SHOWN, now=NOW + 6) == TICKET

    def test_known_keys_outlive_the_server(self) -> None:
        server = Server(SIGNER.jwk())
        checked = verifier(server)
        checked.verify(GOOD, **SHOWN, now=NOW)
        server.down = True
        with pytest.raises(Outage):
            checked.verify(forge(by_server, header={"kid": "made-up"}), **SHOWN, now=NOW + 10)
        assert checked.verify(GOOD, **SHOWN, now=NOW + 20) == TICKET

    def test_a_server_that_is_down_is_an_outage_and_asked_again_later(self) -> None:
        server = Server(SIGNER.jwk())
        server.down = True
        checked = verifier(server)
        with pytest.raises(Outage):
            checked.verify(GOOD, **SHOWN, now=NOW)
        server.down = False
        assert checked.verify(GOOD, **SHOWN, now=NOW + 5) == TICKET

    def test_it_is_known_beforehand_whether_the_server_has_to_be_asked(self) -> None:
        server = Server(SIGNER.jwk())
        checked = verifier(server)
        assert checked.must_ask(GOOD)
        checked.verify(GOOD, **SHOWN, now=NOW)
        assert not checked.must_ask(GOOD)
        assert not checked.must_ask("no token at all")
        assert server.asked == 1

    def test_a_withdrawn_key_is_forgotten_at_the_next_fetch(self) -> None:
        server = Server(SIGNER.jwk())
        checked = verifier(server)
        checked.verify(GOOD, **SHOWN, now=NOW)
        new = TicketSigner(*make_signing_key())
        server.keys = [new.jwk()]
        checked.verify(new.sign(TICKET, 60, NOW), **SHOWN, now=NOW + 10)
        with pytest.raises(Refusal) as refusal:
            checked.verify(GOOD, **SHOWN, now=NOW + 20)
        assert refusal.value.code is Code.TICKET_INVALID

    @pytest.mark.parametrize(
        "keys",
        [
            pytest.param([], id="none"),
            pytest.param(["nonsense", {"kty": "OKP"}, {"kty": "XYZ", "kid": KID}], id="nonsense"),
            pytest.param("nonsense", id="no list"),
        ],
    )
    def test_a_key_set_without_a_usable_key_is_an_outage(self, keys: Any) -> None:
        with pytest.raises(Outage):
            TicketVerifier(lambda: {"keys": keys}).verify(GOOD, **SHOWN, now=NOW)

    def test_a_symmetric_key_in_the_set_is_passed_by(self) -> None:
        secret = {"kty": "oct", "k": encode(b"s" * 32), "kid": KID, "alg": "HS256"}
        token = forge(lambda signed: hmac.digest(b"s" * 32, signed, "sha256"), header={"alg": "HS256"})
        with pytest.raises(Refusal) as refusal:
            verifier(Server(secret)).verify(token, **SHOWN, now=NOW)
        assert refusal.value.code is Code.TICKET_INVALID

    def test_a_key_of_another_algorithm_in_the_set_is_passed_by(self) -> None:
        key = rsa.generate_private_key(65537, 2048)
        public = {**jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": KID}
        with pytest.raises(Refusal) as refusal:
            verifier(Server(public)).verify(GOOD, **SHOWN, now=NOW)
        assert refusal.value.code is Code.TICKET_INVALID

    def test_a_kid_is_the_keys_thumbprint(self) -> None:
        """RFC 8037, appendix A.3."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        raw = base64.urlsafe_b64decode("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo=")
        jwk = ed25519_jwk(Ed25519PublicKey.from_public_bytes(raw))
        assert jwk["kid"] == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
