import base64
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from fedlearn.core.errors import Code, Refusal, SetupError
from fedlearn.core.ids import RoundId, TaskId
from fedlearn.protocol.sealing import (
    WRAPPED_BYTES,
    SealingKey,
    SealingPublicKey,
    SignedSealingKey,
    identity_from_pem,
    identity_to_pem,
    public_from_pem,
    public_to_pem,
    verify_sealing_key,
)

ROUND = RoundId(TaskId("mnist"), 7)
CONTENT_KEY = bytes(range(32))


@pytest.fixture(scope="module")
def other_key() -> SealingKey:
    return SealingKey.generate(ROUND)


def flip(raw: bytes, index: int) -> bytes:
    return raw[:index] + bytes([raw[index] ^ (1 << index % 8)]) + raw[index + 1 :]


class TestWrappingContentKeys:
    def test_the_owner_unwraps_what_was_wrapped(self, key: SealingKey) -> None:
        wrapped = key.public.wrap(CONTENT_KEY, b"context")
        assert len(wrapped) == WRAPPED_BYTES
        assert CONTENT_KEY not in wrapped
        assert key.unwrap_content_key(wrapped, b"context") == CONTENT_KEY

    def test_two_wrappings_share_nothing(self, key: SealingKey) -> None:
        assert key.public.wrap(CONTENT_KEY, b"context") != key.public.wrap(CONTENT_KEY, b"context")

    def test_another_context_is_refused(self, key: SealingKey) -> None:
        with pytest.raises(Refusal) as refusal:
            key.unwrap_content_key(key.public.wrap(CONTENT_KEY, b"context"), b"another")
        assert refusal.value.code is Code.UPDATE_TAMPERED

    def test_another_key_is_refused(self, key: SealingKey, other_key: SealingKey) -> None:
        with pytest.raises(Refusal) as refusal:
            other_key.unwrap_content_key(key.public.wrap(CONTENT_KEY, b"context"), b"context")
        assert refusal.value.code is Code.UPDATE_TAMPERED

    def test_every_changed_byte_is_refused(self, key: SealingKey) -> None:
        wrapped = key.public.wrap(CONTENT_KEY, b"context")
        for index in range(len(wrapped)):
            with pytest.raises(Refusal):
                key.unwrap_content_key(flip(wrapped, index), b"context")

    @pytest.mark.parametrize("length", [0, 1, 31, 1120, 1135, 1136, WRAPPED_BYTES - 1], ids=str)
    def test_what_is_cut_off_is_refused(self, key: SealingKey, length: int) -> None:
        with pytest.raises(Refusal):
            key.unwrap_content_key(key.public.wrap(CONTENT_KEY, b"context")[:length], b"context")

    def test_zeros_are_refused(self, key: SealingKey) -> None:
        with pytest.raises(Refusal):
            key.unwrap_content_key(bytes(WRAPPED_BYTES), b"context")

    @pytest.mark.parametrize("raw", [b"", bytes(32), b"\xff" * 1216, bytes(1217)], ids=["none", "short", "no point", "long"])
    def test_what_is_no_public_key_is_no_public_key(self, raw: bytes) -> None:
        with pytest.raises(ValueError, match=r".*"):
            SealingPublicKey(raw)


class TestKeepingTheKey:
    def test_the_same_identity_gets_the_same_key_back(self, key: SealingKey, identity: Ed25519PrivateKey) -> None:
        again = SealingKey.unwrap(identity, key.wrap(identity), ROUND)
        assert again.kid == key.kid
        assert again.round == ROUND
        assert again.unwrap_content_key(key.public.wrap(CONTENT_KEY, b"context"), b"context") == CONTENT_KEY

    def test_an_identity_that_was_saved_and_loaded_gets_it_too(self, key: SealingKey, identity: Ed25519PrivateKey) -> None:
        loaded = identity_from_pem(identity_to_pem(identity))
        assert SealingKey.unwrap(loaded, key.wrap(identity), ROUND).kid == key.kid

    def test_another_identity_has_lost_it(self, key: SealingKey, identity: Ed25519PrivateKey) -> None:
        with pytest.raises(Refusal) as refusal:
            SealingKey.unwrap(Ed25519PrivateKey.generate(), key.wrap(identity), ROUND)
        assert refusal.value.code is Code.AGGREGATOR_KEY_LOST

    @pytest.mark.parametrize("round_", [RoundId(TaskId("mnist"), 8), RoundId(TaskId("other"), 7)], ids=str)
    def test_it_is_not_taken_for_another_rounds(self, key: SealingKey, identity: Ed25519PrivateKey, round_: RoundId) -> None:
        with pytest.raises(Refusal) as refusal:
            SealingKey.unwrap(identity, key.wrap(identity), round_)
        assert refusal.value.code is Code.AGGREGATOR_KEY_LOST

    def test_damage_of_any_byte_is_noticed(self, key: SealingKey, identity: Ed25519PrivateKey) -> None:
        blob = key.wrap(identity)
        for index in range(len(blob)):
            with pytest.raises(Refusal) as refusal:
                SealingKey.unwrap(identity, flip(blob, index), ROUND)
            assert refusal.value.code is Code.AGGREGATOR_KEY_LOST

    def test_a_loss_of_any_byte_is_noticed(self, key: SealingKey, identity: Ed25519PrivateKey) -> None:
        blob = key.wrap(identity)
        for length in (*range(len(blob)), len(blob) + 1):
            with pytest.raises(Refusal):
                SealingKey.unwrap(identity, (blob + b"\0")[:length], ROUND)

    def test_no_two_rounds_and_no_two_blobs_are_alike(self, key: SealingKey, identity: Ed25519PrivateKey) -> None:
        assert SealingKey.generate(ROUND).kid != key.kid
        assert key.wrap(identity) != key.wrap(identity)

    def test_neither_the_blob_nor_the_repr_shows_the_private_half(self, key: SealingKey, identity: Ed25519PrivateKey) -> None:
        assert key._seed not in key.wrap(identity)
        assert repr(key) == f"SealingKey(round=mnist/7, kid={key.kid})"


class TestVouchingForTheKey:
    def test_a_device_takes_the_key_that_its_aggregator_signed(self, key: SealingKey, identity: Ed25519PrivateKey) -> None:
        sent = SignedSealingKey.model_validate_json(key.sign(identity).model_dump_json())
        public = verify_sealing_key(sent, identity.public_key(), ROUND)
        assert (public.raw, public.kid) == (key.public.raw, key.kid)

    def test_a_key_that_another_identity_signed_is_refused(self, key: SealingKey, identity: Ed25519PrivateKey) -> None:
        with pytest.raises(Refusal) as refusal:
            verify_sealing_key(key.sign(Ed25519PrivateKey.generate()), identity.public_key(), ROUND)
        assert refusal.value.code is Code.SEALING_KEY_UNTRUSTED

    @pytest.mark.parametrize("round_", [RoundId(TaskId("mnist"), 6), RoundId(TaskId("other"), 7)], ids=str)
    def test_the_key_of_another_round_is_refused(self, key: SealingKey, identity: Ed25519PrivateKey, round_: RoundId) -> None:
        with pytest.raises(Refusal) as refusal:
            verify_sealing_key(key.sign(identity), identity.public_key(), round_)
        assert refusal.value.code is Code.SEALING_KEY_UNTRUSTED

    @pytest.mark.parametrize(
        "changes",
        [
            pytest.param({"kid": "0" * 32}, id="kid"),
            pytest.param({"suite": "HPKE-X25519"}, id="suite"),
            pytest.param({"version": 2}, id="version"),
            pytest.param({"public_key": base64.b64encode(bytes(1216)).decode()}, id="public key"),
            pytest.param({"public_key": "not base64!"}, id="no base64"),
            pytest.param({"signature": ""}, id="no signature"),
            pytest.param({"signature": base64.b64encode(bytes(64)).decode()}, id="a signature of zeros"),
            pytest.param({"signature": "ä"}, id="no ASCII"),
        ],
    )
    def test_a_key_with_any_field_changed_is_refused(
        self, key: SealingKey, identity: Ed25519PrivateKey, changes: dict[str, Any]
    ) -> None:
        changed = key.sign(identity).model_copy(update=changes)
        with pytest.raises(Refusal) as refusal:
            verify_sealing_key(changed, identity.public_key(), ROUND)
        assert refusal.value.code is Code.SEALING_KEY_UNTRUSTED

    def test_the_round_is_part_of_what_is_signed(self, key: SealingKey, identity: Ed25519PrivateKey) -> None:
        replayed = key.sign(identity).model_copy(update={"round": 8})
        with pytest.raises(Refusal):
            verify_sealing_key(replayed, identity.public_key(), RoundId(TaskId("mnist"), 8))

    def test_a_signed_key_whose_kid_is_not_its_own_is_refused(self, key: SealingKey, identity: Ed25519PrivateKey) -> None:
        lie = key.sign(identity).model_copy(update={"kid": "0" * 32})
        signed = lie.model_copy(update={"signature": base64.b64encode(identity.sign(lie.signed_bytes())).decode()})
        with pytest.raises(Refusal, match="kid"):
            verify_sealing_key(signed, identity.public_key(), ROUND)

    def test_a_message_of_another_version_or_suite_is_not_read(self, key: SealingKey, identity: Ed25519PrivateKey) -> None:
        for changes in ({"version": 2}, {"suite": "none"}, {"extra": 1}):
            with pytest.raises(ValidationError):
                SignedSealingKey.model_validate({**key.sign(identity).model_dump(), **changes})


class TestIdentitiesInPem:
    def test_both_halves_come_back(self, identity: Ed25519PrivateKey) -> None:
        assert identity_from_pem(identity_to_pem(identity)).private_bytes_raw() == identity.private_bytes_raw()
        public = identity.public_key()
        assert public_from_pem(public_to_pem(public)) == public

    @pytest.mark.parametrize(
        "pem", [b"", b"nonsense", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"], ids=repr
    )
    def test_what_is_no_pem_is_refused_with_a_sentence(self, pem: bytes) -> None:
        for read in (identity_from_pem, public_from_pem):
            with pytest.raises(SetupError) as error:
                read(pem)
            assert error.value.code is Code.SETTING_INVALID

    def test_keys_of_another_kind_are_refused(self, identity: Ed25519PrivateKey) -> None:
        p256 = ec.generate_private_key(ec.SECP256R1())
        private = p256.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        public = p256.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        with pytest.raises(SetupError, match="Ed25519"):
            identity_from_pem(private)
        with pytest.raises(SetupError, match="Ed25519"):
            public_from_pem(public)

    def test_the_halves_are_not_taken_for_each_other(self, identity: Ed25519PrivateKey) -> None:
        with pytest.raises(SetupError):
            identity_from_pem(public_to_pem(identity.public_key()))
        with pytest.raises(SetupError):
            public_from_pem(identity_to_pem(identity))

    def test_an_encrypted_key_is_refused(self, identity: Ed25519PrivateKey) -> None:
        pem = identity.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
        )
        with pytest.raises(SetupError):
            identity_from_pem(pem)
