"""Ed25519 keys in files: the aggregator's identity, what devices know of it, and the local issuer's key."""

import os
import tempfile
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedlearn.core.errors import Code, SetupError
from fedlearn.protocol.sealing import identity_from_pem, identity_to_pem, public_from_pem, public_to_pem


def make_private_key(path: Path) -> Ed25519PrivateKey:
    """Make a key and keep it as PEM in a new file of mode 0600, whole or not at all.

    Raises:
        SetupError: `setting_invalid` when the file is there already or can't be written.
    """
    key = Ed25519PrivateKey.generate()
    try:
        # a temporary file has mode 0600 from the start; the link fails where a key is already, and is seen only when complete
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.") as file:
            file.write(identity_to_pem(key))
            file.flush()
            os.fsync(file.fileno())
            os.link(file.name, path)
    except OSError as error:
        raise SetupError(Code.SETTING_INVALID, f"The key file {path} can't be made: {error.strerror}.") from error
    return key


def load_private_key(path: Path) -> Ed25519PrivateKey:
    """Raises:
    SetupError: `setting_invalid` when the file can't be read or holds no Ed25519 private key in PEM.
    """
    return identity_from_pem(_read(path))


def save_public_key(path: Path, key: Ed25519PublicKey) -> None:
    """Raises:
    SetupError: `setting_invalid` when the file can't be written.
    """
    try:
        path.write_bytes(public_to_pem(key))
    except OSError as error:
        raise SetupError(Code.SETTING_INVALID, f"The key file {path} can't be written: {error.strerror}.") from error


def load_public_key(path: Path) -> Ed25519PublicKey:
    """Raises:
    SetupError: `setting_invalid` when the file can't be read or holds no Ed25519 public key in PEM.
    """
    return public_from_pem(_read(path))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SetupError(Code.SETTING_INVALID, f"The key file {path} can't be read: {error.strerror}.") from error
