"""The aggregator's keys: an Ed25519 identity that devices are configured with, and a sealing key per round that it vouches for.

A sealing key is HPKE's (RFC 9180) hybrid of ML-KEM-768 and X25519 (X-Wing): who records ciphertext today opens it neither with
a broken curve nor with a broken lattice. Its private half lies in the round's descriptor in object storage, wrapped under a key
derived from the identity; once the descriptor is deleted, nobody opens that round's updates again.
"""

import base64
import hashlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Final, Literal

from cryptography.exceptions import InvalidSignature, InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, MLKEM768X25519PrivateKey, MLKEM768X25519PublicKey, Suite
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import BaseModel, ConfigDict, Field

from fedlearn.core.errors import Code, Refusal, SetupError
from fedlearn.core.ids import RoundId, TaskId

SUITE: Final = "HPKE-MLKEM768-X25519-HKDF-SHA256-AES-256-GCM"
CONTENT_KEY_BYTES = 32
_suite = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
WRAPPED_BYTES = KEM.MLKEM768_X25519.enc_length() + CONTENT_KEY_BYTES + 16
"""The length of a content key wrapped by HPKE: encapsulation, ciphertext and tag."""

_MLKEM_PUBLIC, _MLKEM_SEED, _X25519 = 1184, 64, 32
_SALT = 32
_SIGNATURE_LABEL = b"fedlearn sealing key signature v1\n"
_WRAP_LABEL = b"fedlearn sealing key wrap v1\n"


class SealingPublicKey:
    """What devices seal to.

    Args:
        raw: the ML-KEM-768 encapsulation key (1184 bytes), then the X25519 public key (32 bytes).

    Raises:
        ValueError: when `raw` is no such key.
    """

    def __init__(self, raw: bytes) -> None:
        if len(raw) != _MLKEM_PUBLIC + _X25519:
            raise ValueError(f"a sealing key has {_MLKEM_PUBLIC + _X25519} bytes, not {len(raw)}")
        self.raw = raw
        self._key = MLKEM768X25519PublicKey(
            MLKEM768PublicKey.from_public_bytes(raw[:_MLKEM_PUBLIC]), X25519PublicKey.from_public_bytes(raw[_MLKEM_PUBLIC:])
        )

    @cached_property
    def kid(self) -> str:
        """The first 16 bytes of the key's SHA-256, in hexadecimal."""
        return hashlib.sha256(self.raw).hexdigest()[:32]

    def wrap(self, content_key: bytes, info: bytes) -> bytes:
        """Wrap a content key so that only this key's owner, given the same `info`, unwraps it."""
        return _suite.encrypt(content_key, self._key, info=info)


@dataclass(frozen=True, slots=True)
class SealingKey:
    """One round's sealing key, both halves; only the aggregator ever holds it."""

    round: RoundId
    public: SealingPublicKey
    _seed: bytes
    _key: MLKEM768X25519PrivateKey

    def __repr__(self) -> str:
        return f"SealingKey(round={self.round}, kid={self.kid})"

    @classmethod
    def generate(cls, round_: RoundId) -> "SealingKey":
        """Make a fresh key for a round.

        Raises:
            SetupError: `service_failed` when this build of `cryptography` has no ML-KEM.
        """
        try:
            mlkem = MLKEM768PrivateKey.generate()
        except UnsupportedAlgorithm as error:
            raise SetupError(
                Code.SERVICE_FAILED, "This build of 'cryptography' has no ML-KEM: install its wheel, or link OpenSSL 3.5."
            ) from error
        return cls._of(round_, mlkem.private_bytes_raw() + X25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def _of(cls, round_: RoundId, seed: bytes) -> "SealingKey":
        mlkem = MLKEM768PrivateKey.from_seed_bytes(seed[:_MLKEM_SEED])
        x25519 = X25519PrivateKey.from_private_bytes(seed[_MLKEM_SEED:])
        public = SealingPublicKey(mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw())
        return cls(round_, public, seed, MLKEM768X25519PrivateKey(mlkem, x25519))

    @property
    def kid(self) -> str:
        return self.public.kid

    def unwrap_content_key(self, wrapped: bytes, info: bytes) -> bytes:
        """Undo `SealingPublicKey.wrap`.

        Raises:
            Refusal: `update_tampered` when the bytes, the key or `info` are not those of the wrapping.
        """
        try:
            return _suite.decrypt(wrapped, self._key, info=info)
        except (InvalidTag, ValueError) as error:
            raise Refusal(
                Code.UPDATE_TAMPERED, "The content key does not unwrap: it is for another key, device, round, plan or base."
            ) from error

    def wrap(self, identity: Ed25519PrivateKey) -> bytes:
        """The private half, encrypted for the owner of `identity`, for the round's descriptor."""
        salt = os.urandom(_SALT)
        return salt + _wrapping_cipher(identity, salt).encrypt(bytes(12), self._seed, _wrapping_context(self.round))

    @classmethod
    def unwrap(cls, identity: Ed25519PrivateKey, blob: bytes, round_: RoundId) -> "SealingKey":
        """Undo `wrap`.

        Raises:
            Refusal: `aggregator_key_lost` when `blob` is damaged, or was wrapped by another identity or for another round.
        """
        try:
            seed = _wrapping_cipher(identity, blob[:_SALT]).decrypt(bytes(12), blob[_SALT:], _wrapping_context(round_))
        except InvalidTag as error:
            raise Refusal(
                Code.AGGREGATOR_KEY_LOST,
                f"The sealing key of round {round_} does not unwrap: it is damaged, or the aggregator's identity is another.",
            ) from error
        return cls._of(round_, seed)

    def sign(self, identity: Ed25519PrivateKey) -> "SignedSealingKey":
        """The public half with the identity's word for it, as devices fetch it."""
        unsigned = SignedSealingKey(
            kid=self.kid, task=self.round.task, round=self.round.number, public_key=_text(self.public.raw), signature=""
        )
        return unsigned.model_copy(update={"signature": _text(identity.sign(unsigned.signed_bytes()))})


class SignedSealingKey(BaseModel):
    """A round's sealing key, vouched for by the aggregator's identity."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    kid: Annotated[
        str,
        Field(
            pattern=r"^[0-9a-f]{32}$",
            description="The first half of the public key's SHA-256.",
            examples=["9f86d081884c7d659a2feaa0c55ad015"],
        ),
    ]
    suite: Literal["HPKE-MLKEM768-X25519-HKDF-SHA256-AES-256-GCM"] = SUITE
    task: Annotated[str, Field(min_length=1, max_length=63, examples=["mnist-2nn"])]
    round: Annotated[int, Field(ge=1, le=2**31, examples=[1])]
    public_key: Annotated[str, Field(max_length=2000, description="base64", examples=["bW9yZSB0aGFu…"])]
    signature: Annotated[
        str, Field(max_length=100, description="Ed25519 over all other fields, base64.", examples=["c2lnbmVkIGJ5…"])
    ]

    def signed_bytes(self) -> bytes:
        """What the identity signs: a label, then all fields but the signature as canonical JSON."""
        return _SIGNATURE_LABEL + _canonical(self.model_dump(mode="json", exclude={"signature"}))


def verify_sealing_key(signed: SignedSealingKey, identity: Ed25519PublicKey, round_: RoundId) -> SealingPublicKey:
    """Check that the configured aggregator vouches for this key in this very round, and return it.

    Raises:
        Refusal: `sealing_key_untrusted`.
    """
    if RoundId(TaskId(signed.task), signed.round) != round_:
        raise Refusal(Code.SEALING_KEY_UNTRUSTED, f"The sealing key is for round {signed.task}/{signed.round}, not {round_}.")
    try:
        identity.verify(base64.b64decode(signed.signature, validate=True), signed.signed_bytes())
        public = SealingPublicKey(base64.b64decode(signed.public_key, validate=True))
    except (InvalidSignature, ValueError) as error:
        raise Refusal(
            Code.SEALING_KEY_UNTRUSTED, f"The sealing key of round {round_} is not signed by the configured aggregator."
        ) from error
    if public.kid != signed.kid:
        raise Refusal(Code.SEALING_KEY_UNTRUSTED, f"The sealing key's kid is {public.kid}, not {signed.kid}.")
    return public


def identity_to_pem(identity: Ed25519PrivateKey) -> bytes:
    """The private identity as PKCS #8 PEM, not encrypted: keep it in a Secret or a file of mode 0600."""
    return identity.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def identity_from_pem(pem: bytes) -> Ed25519PrivateKey:
    """Raises:
    SetupError: `setting_invalid` when `pem` is no Ed25519 private key.
    """
    try:
        identity = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SetupError(Code.SETTING_INVALID, "The identity key is no private key in PEM.") from error
    if not isinstance(identity, Ed25519PrivateKey):
        raise SetupError(Code.SETTING_INVALID, "The identity key is not an Ed25519 key.")
    return identity


def public_to_pem(identity: Ed25519PublicKey) -> bytes:
    """The public identity as PEM (SubjectPublicKeyInfo): what devices are configured with."""
    return identity.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def public_from_pem(pem: bytes) -> Ed25519PublicKey:
    """Raises:
    SetupError: `setting_invalid` when `pem` is no Ed25519 public key.
    """
    try:
        identity = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SetupError(Code.SETTING_INVALID, "The aggregator's identity is no public key in PEM.") from error
    if not isinstance(identity, Ed25519PublicKey):
        raise SetupError(Code.SETTING_INVALID, "The aggregator's identity is not an Ed25519 key.")
    return identity


def _wrapping_cipher(identity: Ed25519PrivateKey, salt: bytes) -> AESGCM:
    # a fresh salt makes a fresh key for each blob, so the fixed nonce of `wrap` never meets the same key twice
    kdf = HKDF(hashes.SHA256(), 32, salt, _WRAP_LABEL)
    return AESGCM(kdf.derive(identity.private_bytes_raw()))


def _wrapping_context(round_: RoundId) -> bytes:
    return _WRAP_LABEL + _canonical({"task": round_.task, "round": round_.number})


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
