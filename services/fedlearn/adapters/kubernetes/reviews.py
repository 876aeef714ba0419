"""Who calls, by the cluster's own word: a TokenReview for each token that is not known yet."""

import math
import time

import jwt
from jwt.exceptions import PyJWTError
from kubernetes.client import (
    ApiClient,
    AuthenticationV1Api,
    V1TokenReview,
    V1TokenReviewSpec,
    V1TokenReviewStatus,
    V1UserInfo,
)

from fedlearn.adapters.identity import Caller
from fedlearn.adapters.kubernetes.connection import CALL_SECONDS, asking
from fedlearn.adapters.token_cache import TokenCache
from fedlearn.core.errors import Code, FedlearnError, Outage, Refusal
from fedlearn.core.ports import Clock

_ACCOUNT = "system:serviceaccount:"
_EXTRA = "authentication.kubernetes.io/"


class TokenReviewVerifier:
    """Checks projected service-account tokens by asking the cluster, which also knows whether their pod is still there.

    Its account needs the verb `create` on `tokenreviews.authentication.k8s.io`, by a ClusterRole.

    Args:
        audience: which audience tokens must have.
        clock: seconds since the epoch, UTC; it says how long an answer holds.
    """

    def __init__(self, api: ApiClient, audience: str, *, clock: Clock = time.time) -> None:
        self._reviews, self._audience = AuthenticationV1Api(api), audience
        self._cache = TokenCache(self._look, clock)

    def kept(self, token: str) -> Caller | None:
        return self._cache.kept(token)

    def at_once(self, token: str) -> Caller | None:  # noqa: ARG002 - only the cluster knows
        return None

    def verify(self, token: str) -> Caller:
        return self._cache.find(token)

    def _look(self, token: str, _now: float) -> tuple[Caller, float]:
        ends_at = _ends_at(token)
        review = V1TokenReview(spec=V1TokenReviewSpec(token=token, audiences=[self._audience]))
        try:
            with asking("to review a token"):
                status = self._reviews.create_token_review(review, _request_timeout=CALL_SECONDS).status
        except FedlearnError as error:  # no decision about the caller: it is this service that was not let
            raise Outage(Code.IDENTITY_UNAVAILABLE, error.detail) from error
        if status is None or not status.authenticated:
            raise _refusal((status and status.error) or "the cluster does not know it")
        return self._caller(status), ends_at

    def _caller(self, status: V1TokenReviewStatus) -> Caller:
        # an authenticator that knows no audiences leaves them out, and has checked none
        if self._audience not in (status.audiences or ()):
            raise _refusal(f"the cluster does not confirm the audience {self._audience}")
        user = status.user or V1UserInfo()
        namespace, _, account = (user.username or "").removeprefix(_ACCOUNT).partition(":")
        if not (user.username or "").startswith(_ACCOUNT) or not namespace or not account:
            raise _refusal("it is no service account's")
        pod, uid = _extra(user, "pod-name"), _extra(user, "pod-uid")
        if pod is None or uid is None:
            raise _refusal("it is not bound to a pod")
        return Caller(namespace, account, pod, uid, _extra(user, "node-name"))  # the node is named from Kubernetes 1.30 on


def _ends_at(token: str) -> float:
    """When the token says that it ends; that is believed only if the cluster confirms the token.

    Raises:
        Refusal: `unauthenticated` for what is no service account's token at all, and is not sent to the cluster either.
    """
    try:
        claims = jwt.decode(token, options={"verify_signature": False})
    except (PyJWTError, ValueError, RecursionError) as error:
        raise _refusal(str(error) or type(error).__name__) from error
    ends_at = claims.get("exp", math.inf)
    if not isinstance(ends_at, int | float):
        raise _refusal("its expiry is no time")
    return ends_at


def _extra(user: V1UserInfo, name: str) -> str | None:
    values = (user.extra or {}).get(_EXTRA + name) or []
    return values[0] if len(values) == 1 else None


def _refusal(fault: str) -> Refusal:
    return Refusal(Code.UNAUTHENTICATED, f"The token is refused: {fault}.")
