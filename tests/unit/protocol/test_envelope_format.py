"""docs/envelope.md, followed to the letter by a reader that shares no code with the one under test.

It knows primitives alone: ML-KEM, X25519, SHA-2, SHA-3, HMAC and AES-GCM. When it fails, the page or the format has changed.
"""

import hashlib
import hmac
import json
import math
import struct

import numpy as np
import pytest
import zstandard
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedlearn.core.ids import RoundId, TaskId
from fedlearn.core.sparsity import split
from fedlearn.core.updates import Update
from fedlearn.protocol.envelope import UpdateContext, seal
from fedlearn.protocol.plans import UpdateFormat
from fedlearn.protocol.sealing import SealingKey


def hmac_sha256(key: bytes, message: bytes) -> bytes:
    return hmac.new(key, message, "sha256").digest()


class Hpke:
    """RFC 9180, base mode, one message, for suite (0x647a, 0x0001, 0x0002)."""

    SUITE = b"HPKE" + struct.pack(">HHH", 0x647A, 0x0001, 0x0002)

    def extract(self, salt: bytes, label: bytes, secret: bytes) -> bytes:
        return hmac_sha256(salt, b"HPKE-v1" + self.SUITE + label + secret)

    def expand(self, key: bytes, label: bytes, info: bytes, length: int) -> bytes:
        block = hmac_sha256(key, struct.pack(">H", length) + b"HPKE-v1" + self.SUITE + label + info + b"\x01")
        return block[:length]

    def open(self, seed: bytes, wrapped: bytes, info: bytes) -> bytes:
        encapsulated, ciphertext = wrapped[:1120], wrapped[1120:]
        context = b"\0" + self.extract(b"", b"psk_id_hash", b"") + self.extract(b"", b"info_hash", info)
        secret = self.extract(x_wing(seed, encapsulated), b"secret", b"")
        key, nonce = self.expand(secret, b"key", context, 32), self.expand(secret, b"base_nonce", context, 12)
        return AESGCM(key).decrypt(nonce, ciphertext, b"")


def x_wing(seed: bytes, encapsulated: bytes) -> bytes:
    """The shared secret of X-Wing, draft-connolly-cfrg-xwing-kem, section 5.3."""
    x25519 = X25519PrivateKey.from_private_bytes(seed[64:])
    theirs, ours = encapsulated[1088:], x25519.public_key().public_bytes_raw()
    first = MLKEM768PrivateKey.from_seed_bytes(seed[:64]).decapsulate(encapsulated[:1088])
    second = x25519.exchange(X25519PublicKey.from_public_bytes(theirs))
    return hashlib.sha3_256(first + second + theirs + ours + b"\\.//^\\").digest()


def read(
    blob: bytes, seed: bytes, info: bytes, exact: tuple[tuple[int, int], ...] = ()
) -> tuple[dict[str, object], np.ndarray]:
    magic, version, encoding, compression, window, parameters, kid, wrapped_bytes = struct.unpack_from("<8sHBBIQ16sI", blob)
    assert (magic, version, compression) == (b"FLSEALED", 1, int(encoding in (4, 5)))
    windows = -(-parameters // window)
    end = 44 + wrapped_bytes + 4 * (1 + windows)
    lengths = struct.unpack_from(f"<{1 + windows}I", blob, 44 + wrapped_bytes)
    aad = hashlib.sha256(blob[:end]).digest()
    cipher = AESGCM(Hpke().open(seed, blob[44 : 44 + wrapped_bytes], info))
    plain = []
    for index, length in enumerate(lengths):
        nonce = struct.pack("<Q", index) + b"\0\0\0" + (b"\x01" if index == windows else b"\x00")
        plain.append(cipher.decrypt(nonce, blob[end : end + length], aad))
        end += length
    assert end == len(blob)
    about = {"kid": kid.hex(), **json.loads(plain[0])}
    parts = [range(start, min(start + window, parameters)) for start in range(0, parameters, window)]
    if encoding == 5:
        return about, np.concatenate([top_k(unpacked(raw), len(part)) for raw, part in zip(plain[1:], parts, strict=True)])
    if encoding == 4:
        alone = [[any(first <= j < last for first, last in exact) for j in part] for part in parts]
        return about, np.concatenate([int8(unpacked(raw), mine) for raw, mine in zip(plain[1:], alone, strict=True)])
    return about, np.frombuffer(b"".join(plain[1:]), {1: "<f4", 2: "<f2"}[encoding])


def unpacked(raw: bytes) -> bytes:
    (length,) = struct.unpack_from("<I", raw)
    exponent = int(math.log2(4 + length))
    step = 2 ** (exponent - int(math.log2(exponent)) - 1)
    assert len(raw) == math.ceil((4 + length) / step) * step
    assert not any(raw[4 + length :])
    return zstandard.ZstdDecompressor().decompress(raw[4 : 4 + length], allow_extra_data=False)


def int8(content: bytes, alone: list[bool]) -> np.ndarray:
    others = alone.count(False)
    blocks = math.ceil(others / 1024)
    scales = struct.unpack_from(f"<{blocks}f", content)
    exact = iter(struct.unpack_from(f"<{sum(alone)}f", content, 4 * blocks))
    codes = struct.unpack_from(f"<{others}b", content, 4 * (blocks + sum(alone)))
    values = iter([np.float32(code) * np.float32(scales[j // 1024]) for j, code in enumerate(codes)])
    return np.array([next(exact) if one else next(values) for one in alone], np.float32)


def top_k(content: bytes, elements: int) -> np.ndarray:
    entries = len(content) // 6
    values, place = np.zeros(elements, np.float32), -1
    for entry in range(entries):
        gap = bytes(content[plane * entries + entry] for plane in range(4))
        value = bytes(content[plane * entries + entry] for plane in (4, 5))
        place += 1 + struct.unpack("<I", gap)[0]
        (values[place],) = struct.unpack("<e", value)
    return values


@pytest.mark.parametrize("encoding", ["float32", "float16", "int8", "top_k"])
@pytest.mark.parametrize("parameters", [1, 1024, 1025, 5000], ids=str)
def test_an_envelope_is_read_as_the_page_says(encoding: str, parameters: int) -> None:
    key = SealingKey.generate(RoundId(TaskId("mnist"), 7))
    delta = np.random.default_rng(parameters).normal(size=parameters).astype(np.float32)
    if encoding == "top_k":
        delta = split(delta, max(1, round(0.2 * parameters)))
    blob = seal(
        Update(delta, 540, 60, {"loss": 0.25}),
        key=key.public,
        context=UpdateContext("mnist", 7, "pod-0/3", "a" * 64, "b" * 64),
        format=UpdateFormat(encoding=encoding, window_elements=2048, keep_fraction=0.2 if encoding == "top_k" else None),
    )
    info = (
        b"fedlearn update envelope v1\n"
        b'{"base":"' + b"b" * 64 + b'","device":"pod-0/3","plan":"' + b"a" * 64 + b'","round":7,"task":"mnist"}'
    )
    said, vector = read(blob, key._seed, info)
    assert said == {
        "kid": hashlib.sha256(key.public.raw).hexdigest()[:32],
        "base": "b" * 64,
        "examples": 540,
        "holdout_examples": 60,
        "metrics": {"loss": 0.25},
    }
    if encoding == "int8":
        np.testing.assert_allclose(vector, delta, rtol=0, atol=1.001 * np.abs(delta).max() / 127)
    else:
        np.testing.assert_array_equal(vector, delta if encoding == "top_k" else delta.astype(encoding))


def test_exact_values_are_read_as_the_page_says() -> None:
    key, exact = SealingKey.generate(RoundId(TaskId("mnist"), 7)), ((0, 3), (2000, 2100), (4990, 5000))
    delta = np.random.default_rng(0).normal(size=5000).astype(np.float32)
    alone = np.zeros(5000, bool)
    for first, last in exact:
        alone[first:last] = True
    delta[alone] *= 1e6
    blob = seal(
        Update(delta, 540),
        key=key.public,
        context=UpdateContext("mnist", 7, "pod-0/3", "a" * 64, "b" * 64),
        format=UpdateFormat(encoding="int8", window_elements=2048, exact=exact),
    )
    info = (
        b"fedlearn update envelope v1\n"
        b'{"base":"' + b"b" * 64 + b'","device":"pod-0/3","plan":"' + b"a" * 64 + b'","round":7,"task":"mnist"}'
    )
    _, vector = read(blob, key._seed, info, exact)
    np.testing.assert_array_equal(vector[alone], delta[alone])
    np.testing.assert_allclose(vector[~alone], delta[~alone], rtol=0, atol=1.001 * np.abs(delta[~alone]).max() / 127)
