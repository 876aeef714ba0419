"""Who calls: service-account tokens, in a cluster Kubernetes' own, elsewhere the launcher's with the same claims."""

import base64
import json
import ssl
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

import httpx
import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.exceptions import PyJWTError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedlearn.adapters.keyfiles import load_private_key, make_private_key
from fedlearn.adapters.token_cache import TokenCache
from fedlearn.core.errors import Code, Outage, Refusal
from fedlearn.core.ports import Clock
from fedlearn.protocol.jwks import Fetch, KeySet, ed25519_jwk

ALGORITHMS = ("RS256", "ES256", "EdDSA")
_SKEW_SECONDS = 10.0  # a token of an issuer whose clock is a little ahead is good at once


@dataclass(frozen=True, slots=True)
class Caller:
    """A pod, as its token names it; `node` is None where the issuer does not say."""

    namespace: str
    service_account: str
    pod: str
    pod_uid: str
    node: str | None


class IdentityVerifier(Protocol):
    """Checks tokens of one audience: that of the service that receives them. It may block, and is safe for threads."""

    def kept(self, token: str) -> Caller | None:
        """Who calls with this bearer token, if it was verified a moment ago; never blocks."""
        ...

    def at_once(self, token: str) -> Caller | None:
        """Who calls with this bearer token, if nobody has to be asked for that; never blocks.

        Raises:
            Refusal: `unauthenticated`.
        """
        ...

    def verify(self, token: str) -> Caller:
        """Who calls with this bearer token.

        Raises:
            Refusal: `unauthenticated`.
            Outage: `identity_unavailable` when the token can't be checked now.
        """
        ...


class JwksVerifier:
    """Checks projected service-account tokens against their issuer's public keys.

    Args:
        jwks: the key set, or the file or http(s) URL that it is in; file and URL are read again when a kid is unknown.
        audience: which audience tokens must have.
        issuer: what `iss` must be; None accepts any issuer of these keys.
        clock: seconds since the epoch, UTC.
        ca_file: the CA of the URL's server, where the system's don't know it.
        bearer: gives the token to show at the URL (Kubernetes' own wants one).
    """

    def __init__(
        self,
        jwks: Mapping[str, Any] | Path | str,
        audience: str,
        issuer: str | None = None,
        *,
        clock: Clock = time.time,
        ca_file: Path | None = None,
        bearer: Callable[[], str] | None = None,
    ) -> None:
        fetch = _source(jwks, ca_file, bearer)
        self._keys = KeySet(fetch, algorithms=ALGORITHMS, unavailable=Code.IDENTITY_UNAVAILABLE)
        self._audience, self._issuer = audience, issuer
        self._cache = TokenCache(self._look, clock)

    def kept(self, token: str) -> Caller | None:
        return self._cache.kept(token)

    def at_once(self, token: str) -> Caller | None:
        return self._cache.look(token) if self._keys.holds(_kid(token)) else None

    def verify(self, token: str) -> Caller:
        return self._cache.find(token)

    def _look(self, token: str, now: float) -> tuple[Caller, float]:
        claims = self._claims(token, now)
        return claims.caller(), claims.exp

    def _claims(self, token: str, now: float) -> "_Claims":
        try:
            key = self._keys.find(_kid(token), now)
            if key is None:
                raise _refusal("its key is none of the issuer's")
            payload = jwt.decode(
                token,
                key,
                algorithms=[key.algorithm_name],  # the key's own, and `KeySet` has none off the list
                audience=self._audience,
                issuer=self._issuer,
                # time is checked below, against the clock that was passed in
                options={
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                    "require": ["exp", "aud", "iss", "sub"],
                },
            )
            claims = _Claims.model_validate(payload)
        except ValidationError as error:
            missing = ", ".join(".".join(map(str, e["loc"])) for e in error.errors())
            raise _refusal(f"these claims are missing or wrong: {missing}") from error
        except (PyJWTError, ValueError, RecursionError) as error:
            raise _refusal(str(error) or type(error).__name__) from error
        if claims.exp <= now:
            raise _refusal(f"it expired {now - claims.exp:.0f} s ago")
        if claims.nbf is not None and claims.nbf > now + _SKEW_SECONDS:
            raise _refusal("it is not valid yet")
        return claims


def _kid(token: str) -> str:
    """Which key a token names. PyJWT would decode all of it for that, and does so again to check it.

    Raises:
        Refusal: `unauthenticated` for what has no header.
    """
    part = token.partition(".")[0]
    try:
        header = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (ValueError, RecursionError) as error:
        raise _refusal("it is none") from error
    if not isinstance(header, dict):
        raise _refusal("it is none")
    return str(header.get("kid"))


class LocalIssuer:
    """Mints tokens with the claims of Kubernetes' projected ones, where there is no Kubernetes.

    Args:
        key: the launcher's key.
        namespace: the namespace that all callers are put in.
    """

    ISSUER = "fedlearn-local"

    def __init__(self, key: Ed25519PrivateKey, *, namespace: str = "fedlearn", clock: Clock = time.time) -> None:
        self._key, self._namespace, self._clock = key, namespace, clock
        self._jwk = ed25519_jwk(key.public_key())

    @classmethod
    def make(cls, path: Path, *, namespace: str = "fedlearn", clock: Clock = time.time) -> "LocalIssuer":
        """Make a key and keep it in a new file of mode 0600; raises as `make_private_key`."""
        return cls(make_private_key(path), namespace=namespace, clock=clock)

    @classmethod
    def load(cls, path: Path, *, namespace: str = "fedlearn", clock: Clock = time.time) -> "LocalIssuer":
        """Take the key that `make` kept; raises as `load_private_key`."""
        return cls(load_private_key(path), namespace=namespace, clock=clock)

    def jwks(self) -> dict[str, list[dict[str, str]]]:
        """The public key as a JSON Web Key Set, for a `JwksVerifier`."""
        return {"keys": [self._jwk]}

    def mint(self, service_account: str, pod: str, audience: str, seconds: float) -> str:
        """A token of this service account and pod, for one audience, good for `seconds`; a pod's UID is always the same."""
        now = int(self._clock())
        account = self._uid("serviceaccount", service_account)
        claims = {
            "iss": self.ISSUER,
            "aud": [audience],
            "sub": f"system:serviceaccount:{self._namespace}:{service_account}",
            "iat": now,
            "nbf": now,
            "exp": int(now + seconds),
            "jti": str(uuid.uuid4()),
            "kubernetes.io": {
                "namespace": self._namespace,
                "node": {"name": "local", "uid": self._uid("node", "local")},
                "pod": {"name": pod, "uid": self._uid("pod", pod)},
                "serviceaccount": {"name": service_account, "uid": account},
            },
        }
        return jwt.encode(claims, self._key, "EdDSA", headers={"kid": self._jwk["kid"]})

    def _uid(self, kind: str, name: str) -> str:
        issuer = uuid.uuid5(uuid.NAMESPACE_URL, self._jwk["kid"])
        return str(uuid.uuid5(issuer, f"{self._namespace}/{kind}/{name}"))


Text = Annotated[str, Field(min_length=1, max_length=253)]


class _Lenient(BaseModel):
    model_config = ConfigDict(strict=True)  # claims beside these are the issuer's business


class _Named(_Lenient):
    name: Text


class _Bound(_Named):
    uid: Text


class _Kubernetes(_Lenient):
    namespace: Text
    serviceaccount: _Bound
    pod: _Bound
    node: _Named | None = None  # Kubernetes names it from 1.30 on


class _Claims(_Lenient):
    sub: str
    exp: float
    nbf: float | None = None
    kubernetes: Annotated[_Kubernetes, Field(alias="kubernetes.io")]

    def caller(self) -> Caller:
        bound = self.kubernetes
        if self.sub != f"system:serviceaccount:{bound.namespace}:{bound.serviceaccount.name}":
            raise _refusal("its subject is not the service account that it names")
        node = bound.node.name if bound.node else None
        return Caller(bound.namespace, bound.serviceaccount.name, bound.pod.name, bound.pod.uid, node)


def _refusal(fault: str) -> Refusal:
    return Refusal(Code.UNAUTHENTICATED, f"The token is refused: {fault}.")


def _source(jwks: Mapping[str, Any] | Path | str, ca_file: Path | None, bearer: Callable[[], str] | None) -> Fetch:
    """How to read a key set, whatever it is given as."""

    def given() -> Mapping[str, Any]:
        assert isinstance(jwks, Mapping)
        return jwks

    def from_file() -> Mapping[str, Any]:
        try:
            return _parse(Path(str(jwks)).read_bytes(), jwks)
        except OSError as error:
            raise Outage(Code.IDENTITY_UNAVAILABLE, f"The key set {jwks} can't be read: {error.strerror}.") from error

    def from_url() -> Mapping[str, Any]:
        headers = {"Authorization": f"Bearer {bearer()}"} if bearer else {}
        trust = ssl.create_default_context(cafile=ca_file)
        try:
            response = httpx.get(str(jwks), headers=headers, verify=trust, timeout=10, trust_env=False)
            response.raise_for_status()
        except httpx.HTTPError as error:
            raise Outage(Code.IDENTITY_UNAVAILABLE, f"The key set at {jwks} can't be fetched: {error}.") from error
        return _parse(response.content, jwks)

    if isinstance(jwks, Mapping):
        return given
    return from_url if str(jwks).startswith(("http://", "https://")) else from_file


def _parse(text: bytes, source: object) -> Mapping[str, Any]:
    try:
        keys = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Outage(Code.IDENTITY_UNAVAILABLE, f"The key set {source} is no JSON.") from error
    if not isinstance(keys, Mapping):
        raise Outage(Code.IDENTITY_UNAVAILABLE, f"The key set {source} is no JSON object.")
    return keys
