"""What plain tools reach on this machine, apart from anything of ours: memory, digests, ciphers, loopback TCP, disk.

None is an upper bound: a loop that is compiled for its purpose may read faster than numpy's max. Figures are medians over
turns, so that a slow moment hits all alike.

    python benchmarks/machine.py [--repetitions 5]
"""

import argparse
import hashlib
import os
import socket
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from results import Figure, show
from turns import CORES, Contender, take_turns

BYTES = 256 << 20
_CHUNK = 1 << 20


def loopback(body: memoryview) -> None:
    """All bytes through one TCP connection to this machine."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def send() -> None:
            with server.accept()[0] as peer:
                peer.sendall(body)

        sender = threading.Thread(target=send)
        sender.start()
        into = memoryview(bytearray(_CHUNK))
        with socket.create_connection(server.getsockname()) as client:
            while client.recv_into(into):
                pass
        sender.join()


def written(directory: Path, body: memoryview) -> None:
    """All bytes into a file, and down to the disk."""
    with (directory / "file").open("wb") as file:
        file.write(body)
        os.fsync(file.fileno())


def contenders(directory: Path, threads: ThreadPoolExecutor) -> list[Contender]:
    values = np.random.default_rng(0).normal(0, 0.05, BYTES // 4).astype(np.float32)
    target, bare = np.empty_like(values), values.data.cast("B")
    halves = np.array_split(values, CORES)
    cipher, nonce = AESGCM(bytes(32)), bytes(12)
    pieces = [half.data.cast("B") for half in halves]

    def on_all(action: Callable[[int], object]) -> Callable[[], object]:
        return lambda: list(threads.map(action, range(CORES)))

    def copy(core: int) -> None:
        step = len(values) // CORES
        target[core * step : (core + 1) * step] = values[core * step : (core + 1) * step]

    def encrypt(core: int) -> None:
        for start in range(0, len(pieces[core]), _CHUNK):
            cipher.encrypt(nonce, pieces[core][start : start + _CHUNK], None)

    return [
        Contender("memory, read by one core (numpy's max)", values.max, BYTES),
        Contender(f"memory, read by {CORES} cores", on_all(lambda core: halves[core].max()), BYTES),
        Contender(f"memory, copied by {CORES} cores", on_all(copy), BYTES),
        Contender(f"SHA-256, {CORES} cores", on_all(lambda core: hashlib.sha256(pieces[core]).digest()), BYTES),
        Contender(f"AES-256-GCM in pieces of 1 MiB, {CORES} cores", on_all(encrypt), BYTES),
        Contender("loopback TCP, one connection", lambda: loopback(bare), BYTES),
        Contender("disk, written and synced", lambda: written(directory, bare), BYTES),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(CORES) as threads:
        timed = contenders(Path(directory), threads)
        take_turns(timed, given.repetitions)
    print(show([Figure(one.name, one.rate, "GB/s") for one in timed]))


if __name__ == "__main__":
    main()
