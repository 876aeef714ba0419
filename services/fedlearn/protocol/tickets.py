"""Tickets: the server's word, for the aggregator, that this device takes part in this round. A JWT signed with Ed25519."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.exceptions import PyJWTError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedlearn.core.errors import Code, Refusal
from fedlearn.protocol.jwks import Fetch, KeySet, ed25519_jwk
from fedlearn.protocol.sealing import identity_from_pem, identity_to_pem

_ALGORITHM = "EdDSA"
_TYPE = "fedlearn-ticket+jwt"  # no token of another kind is taken for a ticket, whoever signed it (RFC 8725, 3.11)


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a ticket grants: this device may bring one update to this round, to the aggregator of this number."""

    device: str
    task: str
    round: int
    plan_digest: str
    base_sha256: str
    aggregator: int = 0


class _Claims(BaseModel):
    model_config = ConfigDict(strict=True)

    iss: Literal["fedlearn-server"]
    aud: Literal["fedlearn-aggregator"]
    sub: Annotated[str, Field(min_length=1)]
    task: Annotated[str, Field(min_length=1)]
    round: Annotated[int, Field(ge=1)]
    plan: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    base: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    aggregator: Annotated[int, Field(ge=0)] = 0
    iat: int
    exp: int


def make_signing_key() -> tuple[str, bytes]:
    """A fresh ticket-signing key as (kid, private key in PEM), for `RoundStore.signing_key`."""
    key = Ed25519PrivateKey.generate()
    return ed25519_jwk(key.public_key())["kid"], identity_to_pem(key)


class TicketSigner:
    """The server's side.

    Raises:
        SetupError: `setting_invalid` when `private_pem` is no Ed25519 private key.
    """

    def __init__(self, kid: str, private_pem: bytes) -> None:
        self._kid, self._key = kid, identity_from_pem(private_pem)

    def sign(self, ticket: Ticket, seconds: float, now: float) -> str:
        """A ticket that is good for `seconds` from `now` (UTC, seconds since the epoch)."""
        claims = _Claims(
            iss="fedlearn-server",
            aud="fedlearn-aggregator",
            sub=ticket.device,
            task=ticket.task,
            round=ticket.round,
            plan=ticket.plan_digest,
            base=ticket.base_sha256,
            aggregator=ticket.aggregator,
            iat=int(now),
            exp=int(now + seconds),
        )
        return jwt.encode(claims.model_dump(), self._key, _ALGORITHM, headers={"kid": self._kid, "typ": _TYPE})

    def jwk(self) -> dict[str, str]:
        """The public key for `/v1/keys`."""
        return {**ed25519_jwk(self._key.public_key()), "kid": self._kid}


class TicketVerifier:
    """The aggregator's side: keys by kid, fetched again (at most every `refetch_seconds`) when a kid is unknown.

    Args:
        fetch_jwks: gives the server's `/v1/keys`; it may block, and its outages are passed on.
    """

    def __init__(self, fetch_jwks: Fetch, *, refetch_seconds: float = 5.0) -> None:
        self._keys = KeySet(
            fetch_jwks, algorithms={_ALGORITHM}, unavailable=Code.SERVER_UNREACHABLE, refetch_seconds=refetch_seconds
        )

    def must_ask(self, token: str) -> bool:
        """Whether `verify` has to ask the server for the ticket's key, and so may block."""
        try:
            return not self._keys.holds(str(jwt.get_unverified_header(token).get("kid")))
        except PyJWTError:
            return False

    def verify(self, token: str, *, device: str, task: str, round: int, now: float) -> Ticket:  # noqa: A002
        """Check a ticket that `device` shows for this round at `now` (UTC, seconds since the epoch).

        Raises:
            Refusal: `ticket_invalid` (not one of the server's), `ticket_expired`, or `ticket_foreign` (another device's or
                another round's).
            Outage: `server_unreachable` when the ticket's key is unknown and can't be looked up now.
        """
        claims = self._claims(token, now)
        if claims.exp <= now:
            raise Refusal(Code.TICKET_EXPIRED, f"The ticket expired {now - claims.exp:.0f} s ago.")
        if (claims.sub, claims.task, claims.round) != (device, task, round):
            raise Refusal(
                Code.TICKET_FOREIGN,
                f"The ticket is for {claims.sub} in round {claims.task}/{claims.round}, not for {device} in {task}/{round}.",
            )
        return Ticket(claims.sub, claims.task, claims.round, claims.plan, claims.base, claims.aggregator)

    def _claims(self, token: str, now: float) -> _Claims:
        try:
            header = jwt.get_unverified_header(token)
            if header.get("typ") != _TYPE:
                raise Refusal(Code.TICKET_INVALID, "The token is no ticket.")
            key = self._keys.find(str(header.get("kid")), now)
            if key is None:
                raise Refusal(Code.TICKET_INVALID, "The ticket's key is none of the server's.")
            # what is about time is checked against `now` by the caller, the rest by `_Claims`
            payload: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[_ALGORITHM],
                options={
                    "verify_exp": False,
                    "verify_iat": False,
                    "verify_nbf": False,
                    "verify_aud": False,
                    "verify_iss": False,
                },
            )
            return _Claims.model_validate(payload)
        except (PyJWTError, ValidationError, ValueError) as error:
            raise Refusal(Code.TICKET_INVALID, f"The ticket is not valid: {_reason(error)}.") from error


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return f"claim {', '.join('.'.join(map(str, e['loc'])) for e in error.errors())}"
    return str(error) or type(error).__name__
