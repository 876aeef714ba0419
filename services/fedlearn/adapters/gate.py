"""Who may call which route: service accounts by role, operators by their bearer token."""

import hashlib
import hmac
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

from fastapi import Header, Request
from starlette.concurrency import run_in_threadpool

from fedlearn.adapters.http import TokenFile
from fedlearn.adapters.identity import Caller, IdentityVerifier, JwksVerifier
from fedlearn.adapters.limits import Rates, address_of
from fedlearn.config import IdentitySettings, LimitSettings
from fedlearn.core.errors import Code, Refusal

Authorization = Annotated[str | None, Header(description="`Bearer <token>`")]


def bearer(authorization: str | None) -> str:
    """The token of an Authorization header.

    Raises:
        Refusal: `unauthenticated`.
    """
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Refusal(Code.UNAUTHENTICATED, "This call needs a token: send 'Authorization: Bearer <token>'.")
    return token.strip()


@contextmanager
def failures_counted(rates: Rates, request: Request) -> Iterator[None]:
    """Check a token within it; raises as `Rate.check` where too many of this address were wrong lately."""
    address = address_of(request)
    rates.failures.check(address)
    try:
        yield
    except Refusal:
        rates.failures.take(address)
        raise


class Gate:
    """Checks tokens, and lets each role's routes only to its service account.

    Args:
        verifier: checks a token for this service's audience.
        accounts: which service account plays which role, and in which namespace.
        rates: how often callers may ask.
    """

    def __init__(self, verifier: IdentityVerifier, accounts: IdentitySettings, rates: Rates) -> None:
        self._verifier, self._accounts, self.rates = verifier, accounts, rates

    def admit(self, *service_accounts: str) -> Callable[..., object]:
        """A FastAPI dependency that gives the `Caller` if it is one of these service accounts."""

        async def check(request: Request, authorization: Authorization = None) -> Caller:
            token = bearer(authorization)
            caller = self._verifier.kept(token)
            if caller is None:
                with failures_counted(self.rates, request):
                    # to a thread and back costs more than to check a signature: it is for those who have to ask somebody
                    caller = self._verifier.at_once(token)
                    if caller is None:
                        caller = await run_in_threadpool(self._verifier.verify, token)
            self.rates.callers.take(f"{caller.namespace}/{caller.pod}")
            if caller.namespace != self._accounts.namespace or caller.service_account not in service_accounts:
                who = f"{caller.namespace}/{caller.service_account}"
                raise Refusal(Code.FORBIDDEN, f"The service account {who} may not call this.")
            return caller

        return check


def verifier(settings: IdentitySettings, audience: str) -> IdentityVerifier:
    """What checks tokens of this audience.

    Raises:
        SetupError: `setting_invalid` where a cluster is to check them and there is no way to one.
    """
    if settings.jwks is not None:
        bearer = TokenFile(settings.jwks_token_file) if settings.jwks_token_file else None
        return JwksVerifier(settings.jwks, audience, settings.issuer, ca_file=settings.jwks_ca_file, bearer=bearer)
    from fedlearn.adapters.kubernetes.connection import connect  # noqa: PLC0415 - one machine does without the client
    from fedlearn.adapters.kubernetes.reviews import TokenReviewVerifier  # noqa: PLC0415

    return TokenReviewVerifier(connect().api, audience)


def make_gate(settings: IdentitySettings, audience: str, limits: LimitSettings | None = None) -> Gate:
    """The gate of the service that tokens of this audience are for; raises as `verifier`."""
    return Gate(verifier(settings, audience), settings, Rates(limits or LimitSettings()))


def operator_gate(token: Callable[[], str], rates: Rates) -> Callable[..., object]:
    """A FastAPI dependency that lets only the operators' bearer token pass."""

    async def check(request: Request, authorization: Authorization = None) -> None:
        given = bearer(authorization).encode()
        with failures_counted(rates, request):
            if not hmac.compare_digest(given, token().encode()):
                raise Refusal(Code.UNAUTHENTICATED, "This is not the operators' token.")
        request.state.operator = f"operator {hashlib.sha256(given).hexdigest()[:8]}"  # for the audit log

    return check
