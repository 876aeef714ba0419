"""Public signing keys by `kid`: cached, and fetched again when an unknown one appears, though not at anybody's will."""

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Collection, Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from jwt import PyJWK, PyJWKSet
from jwt.exceptions import PyJWTError

from fedlearn.core.errors import Code, Outage

Fetch = Callable[[], Mapping[str, Any]]
"""Gives a JSON Web Key Set (RFC 7517); raises `Outage` when its source does not answer."""


class KeySet:
    """The keys of one issuer; safe for threads, of which one fetches while others wait.

    Args:
        fetch: where they come from.
        algorithms: keys of other algorithms are passed by; none of them may be symmetric.
        unavailable: the code of the outage when a key can't be looked up now.
        refetch_seconds: the least time between two fetches, so that made-up kids do not hammer the source.
    """

    def __init__(self, fetch: Fetch, *, algorithms: Collection[str], unavailable: Code, refetch_seconds: float = 5.0) -> None:
        self._fetch, self._algorithms, self._unavailable = fetch, frozenset(algorithms), unavailable
        self._refetch_seconds = refetch_seconds
        self._keys: dict[str, PyJWK] = {}
        self._asked_at: float | None = None
        self._lock = threading.Lock()

    def holds(self, kid: str) -> bool:
        """Whether `find` gives this key without asking for it."""
        return kid in self._keys

    def find(self, kid: str, now: float) -> PyJWK | None:
        """The key, or None when the issuer has none of that name.

        Args:
            now: seconds of any clock that does not jump back.

        Raises:
            Outage: the source does not answer, or was asked so lately that it is not asked again: nobody knows yet.
        """
        if kid in self._keys:
            return self._keys[kid]
        with self._lock:
            if kid in self._keys:  # who held the lock has fetched it
                return self._keys[kid]
            if self._asked_at is not None and 0 <= now - self._asked_at < self._refetch_seconds:
                raise Outage(
                    self._unavailable, f"The key {kid[:64]!r} is not known yet: try again in {self._refetch_seconds:g} s."
                )
            self._asked_at = now
            # a whole new set, so that keys that the issuer has withdrawn go as well
            self._keys = self._read(self._fetch())
        return self._keys.get(kid)

    def _read(self, jwks: Mapping[str, Any]) -> dict[str, PyJWK]:
        try:
            keys = PyJWKSet.from_dict(dict(jwks)).keys
        except PyJWTError as error:
            raise Outage(self._unavailable, "The issuer's key set holds no usable key.") from error
        return {key.key_id: key for key in keys if key.key_id and key.algorithm_name in self._algorithms}


def ed25519_jwk(key: Ed25519PublicKey) -> dict[str, str]:
    """A public key as a JWK (RFC 8037); its `kid` is its thumbprint (RFC 7638)."""
    members = {"crv": "Ed25519", "kty": "OKP", "x": _base64url(key.public_bytes_raw())}
    thumbprint = hashlib.sha256(json.dumps(members, sort_keys=True, separators=(",", ":")).encode()).digest()
    return {**members, "kid": _base64url(thumbprint), "use": "sig", "alg": "EdDSA"}


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
