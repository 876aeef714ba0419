"""What sealing costs: envelopes of the CNN's 1,663,370 parameters beside bare AES-256-GCM of the same bytes, in one run.

All rows take turns within each repetition, so that a slow moment of the machine hits them alike; figures are medians, ratios
are medians of each repetition's ratio. The bare cipher writes into memory that is there already and does nothing else; sealing
makes its envelope anew and wraps a content key, opening looks at every value.

    python benchmarks/envelope.py [--parameters N] [--repetitions N]
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from fedlearn.core.ids import RoundId, TaskId
from fedlearn.core.updates import Update
from fedlearn.protocol.envelope import UpdateContext, open_update, seal
from fedlearn.protocol.plans import Plan, TensorSpec, UpdateFormat
from fedlearn.protocol.sealing import SealingKey
from results import Figure, show, table

CNN_PARAMETERS = 1_663_370
BARE = ("bare AES-256-GCM, encrypt", "bare AES-256-GCM, decrypt")


@dataclass(slots=True)
class Row:
    """One thing that is timed; `size` is the delta's length in float32 bytes, 0 where only the time counts."""

    name: str
    action: Callable[[], object]
    size: int
    seconds: list[float]


def bare(delta: np.ndarray, window_bytes: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """AES-256-GCM of the same bytes in the same windows into memory that is there already, and back."""
    cipher, plain = AESGCM(os.urandom(32)), delta.data.cast("B")
    starts = range(0, len(plain), window_bytes)
    sealed = memoryview(bytearray(len(plain) + 16 * len(starts)))
    opened = memoryview(bytearray(len(plain)))
    windows = [
        (index.to_bytes(12, "big"), plain[start : start + window_bytes], opened[start : start + window_bytes])
        for index, start in enumerate(starts)
    ]

    def encrypt() -> None:
        start = 0
        for nonce, source, _ in windows:
            start += cipher.encrypt_into(nonce, source, None, sealed[start : start + len(source) + 16])

    def decrypt() -> None:
        start = 0
        for nonce, _, target in windows:
            cipher.decrypt_into(nonce, sealed[start : start + len(target) + 16], None, target)
            start += len(target) + 16

    return encrypt, decrypt


def rows(parameters: int) -> list[Row]:
    plan = Plan(dataset="mnist", architecture={}, weights=(TensorSpec(shape=(parameters,)),))
    delta = np.random.default_rng(0).normal(0, 0.01, parameters).astype(np.float32)
    update = Update(delta, 600, 60, {"loss": 0.25, "accuracy": 0.9})
    key = SealingKey.generate(RoundId(TaskId("mnist"), 1))
    context = UpdateContext("mnist", 1, "fedlearn-device-0", plan.digest, "0" * 64)
    out = np.empty(parameters, np.float32)
    encrypt, decrypt = bare(delta, 4 * plan.update.window_elements)
    found = [
        Row(BARE[0], encrypt, delta.nbytes, []),
        Row(BARE[1], decrypt, delta.nbytes, []),
    ]

    def add(encoding: str) -> None:
        of_encoding = plan.model_copy(update={"update": UpdateFormat(encoding=encoding)})
        blob = seal(update, key=key.public, context=context, format=of_encoding.update)
        found.append(
            Row(
                f"seal {encoding}",
                lambda: seal(update, key=key.public, context=context, format=of_encoding.update),
                delta.nbytes,
                [],
            )
        )
        found.append(
            Row(
                f"open {encoding}",
                lambda: open_update(blob, key=key, context=context, plan=of_encoding, out=out),
                delta.nbytes,
                [],
            )
        )

    add("float32")
    add("float16")
    add("int8")

    wrapped = key.public.wrap(bytes(32), b"info")
    classic, curve = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM), X25519PrivateKey.generate()
    of_curve = classic.encrypt(bytes(32), curve.public_key(), info=b"info")
    found += [
        Row("wrap a content key, ML-KEM-768 + X25519", lambda: key.public.wrap(bytes(32), b"info"), 0, []),
        Row("unwrap a content key, ML-KEM-768 + X25519", lambda: key.unwrap_content_key(wrapped, b"info"), 0, []),
        Row("wrap a content key, X25519 alone", lambda: classic.encrypt(bytes(32), curve.public_key(), info=b"info"), 0, []),
        Row("unwrap a content key, X25519 alone", lambda: classic.decrypt(of_curve, curve, info=b"info"), 0, []),
        Row("make a round's sealing key", lambda: SealingKey.generate(RoundId(TaskId("mnist"), 1)), 0, []),
    ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=CNN_PARAMETERS)
    parser.add_argument("--repetitions", type=int, default=51)
    given = parser.parse_args()
    timed = rows(given.parameters)
    for _ in range(given.repetitions):
        for row in timed:
            before = time.perf_counter()
            row.action()
            row.seconds.append(time.perf_counter() - before)
    headings = (f"{given.parameters:,} float32, medians of {given.repetitions}", "ms", "GB/s of float32")
    cells = []
    for row in timed:
        rate = f"{row.size / statistics.median(row.seconds) / 1e9:.2f}" if row.size else ""
        cells.append([row.name, f"{1e3 * statistics.median(row.seconds):.3f}", rate])
    print(table(headings, cells))
    print(show(aims({row.name: row for row in timed})))


def aims(timed: dict[str, Row]) -> list[Figure]:
    """float32 beside the cipher alone, and what is encoded beside what a storage gives, 1 GB/s."""
    beside = (("seal float32", BARE[0], 3.0), ("open float32", BARE[1], 2.0))
    figures = [
        Figure(f"how long it takes to {what}, by {bare}", _ratio(timed[what], timed[bare]), "×", at_most=most)
        for what, bare, most in beside
    ]
    for what in ("seal float16", "open float16", "seal int8", "open int8"):
        rate = timed[what].size / statistics.median(timed[what].seconds) / 1e9
        figures.append(Figure(what, rate, "GB/s", at_least=1.0))
    return figures


def _ratio(row: Row, other: Row) -> float:
    return statistics.median(one / two for one, two in zip(row.seconds, other.seconds, strict=True))


if __name__ == "__main__":
    main()
